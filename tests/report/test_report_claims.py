"""The claims file is checked when a study is read; verdicts follow from results as worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest_report import TOY, write_metrics

from atlas.errors import UserError
from atlas.harness import claims as claims_module
from atlas.harness.claims import Claim, check_claims, load_claims, load_reported
from atlas.harness.registry import Paper, load
from atlas.harness.study import Study
from atlas.report import verdicts

TASK = "image-classification"
CLAIM = {"id": "x.y", "statement": "s", "task": TASK, "metric": "top1", "method": "attnscale", "baseline": "deit"}
ON_DIGITS = {"demo": {"dataset": "digits"}}


@pytest.fixture
def claims_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make a file the only claims that there are."""

    def write(content: Any) -> None:
        path = tmp_path / "my_paper" / f"claims{len(list(tmp_path.glob('my_paper/*')))}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        paper = Paper("my-paper", "My paper", "Me, 2026", "https://arxiv.org/abs/0", path)
        monkeypatch.setattr(load(), "papers", {"my-paper": paper})

    return write


def judged(study: Study, **changes: Any) -> verdicts.Judged:
    """One claim of the study, judged."""
    claim = Claim(**{**CLAIM, "paper": "my-paper", "tiers": ON_DIGITS, **changes})  # type: ignore[arg-type]
    tables = {(table.task, table.dataset): table for table in verdicts.collect(study)}
    return verdicts.judge(claim, study, tables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "top2"}, "claim x.y names the metric top2 of attnscale; did you mean top1"),
        ({"method": "atnscale"}, "claim x.y names the row atnscale of image-classification/digits; did you mean attnscale"),
        ({"baseline": "dait"}, "claim x.y names the row dait of image-classification/digits; did you mean deit"),
        ({"task": "image-clasification"}, "there is no task image-clasification; did you mean image-classification"),
        (
            {"tiers": {"demo": {"dataset": "digit"}}},
            "claim x.y names the dataset digit of image-classification; did you mean digits",
        ),
        ({"also": [{"method": "featscal"}]}, "names the row featscal"),
        ({"tiers": {"lab": {"dataset": "cifar10"}}, "metric": "top2"}, "names the metric top2, which no method of"),
        ({"margn": 1}, r"claims\[0\] \(x.y\).margn is not a setting of a claim; did you mean margin"),
        ({"margin": "much"}, "margin = 'much'"),
        ({"direction": "up"}, "direction = 'up'"),
        ({"tiers": {"demo": {"dataset": "digits", "margn": 1}}}, "tiers.demo: margn is not known here; did you mean margin"),
        ({"tiers": {"demo": {"margin": 1}}}, "tiers.demo names no dataset"),
        ({"also": [{"methd": "deit"}]}, "methd is not a setting of a comparison; did you mean method"),
        ({"tolerance": -1}, "tolerance = -1"),
    ],
)
def test_what_does_not_exist_is_an_error_at_plan_time(
    study: Study, claims_file: Callable[[Any], None], changes: dict[str, Any], message: str
) -> None:
    claims_file({"claims": [{**CLAIM, "tiers": ON_DIGITS}]})
    check_claims(study)
    claims_file({"claims": [{**CLAIM, "tiers": ON_DIGITS, **changes}]})
    with pytest.raises(UserError, match=message):
        Study.read("demo", study.root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("claims: [", "is not YAML"),
        ("- a", "must be a mapping"),
        ({"claim": []}, "claim is not known here; did you mean claims"),
        ({"claims": ["text"]}, "claims must be a list of mappings"),
        ({"claims": [CLAIM, CLAIM]}, "two claims are called x.y"),
        (
            {"reported": [{"row": "deit", "task": TASK, "dataset": "digits", "metric": "top2", "value": 1, "source": "T1"}]},
            "top2",
        ),
        ({"reported": [{"row": "deit", "value": 1}]}, r"reported\[0\]"),
    ],
)
def test_a_broken_file_is_one_line(study: Study, claims_file: Callable[[Any], None], content: Any, message: str) -> None:
    claims_file(content)
    with pytest.raises(UserError, match=message):
        check_claims(study)


def test_a_study_may_leave_rows_and_benchmarks_out(study: Study, claims_file: Callable[[Any], None]) -> None:
    rows = {**CLAIM, "id": "x.row", "method": "head-gain", "tiers": ON_DIGITS}
    tables = {**CLAIM, "id": "x.table", "tiers": {"demo": {"dataset": "cifar10"}}}
    tiers = {**CLAIM, "id": "x.tier", "tiers": {"lab": {"dataset": "cifar10"}}}
    claims_file({"claims": [rows, tables, tiers]})
    check_claims(study)
    found = {one.claim.id: one for one in verdicts.judge_all(study)}
    assert {one.verdict for one in found.values()} == {"not run"}
    assert found["x.row"].reason == "head-gain is not a row of this study"
    assert found["x.table"].reason == "image-classification/cifar10 is not in this study"
    assert found["x.tier"].reason == "not a claim for the demo tier"


def test_every_shipped_claim_has_a_place_in_its_tiers(checkout: Path) -> None:
    """What a shipped study claims to judge, it plans to run."""
    for tier in ("demo", "lab", "paper"):
        if not (checkout / "config" / f"{tier}.yaml").is_file():
            continue
        study = Study.read(tier, checkout)
        for claim in load_claims():
            dataset = claim.dataset(tier)
            if dataset is not None:
                assert (claim.task, dataset) in study.tables, f"{claim.id} on {claim.task}/{dataset} of {tier}"
                for comparison in claim.comparisons(tier):
                    for row in filter(None, (comparison.method, comparison.baseline)):
                        assert (claim.task, dataset, row) in study.by_row, f"{claim.id}: {row} of {claim.task}/{dataset}, {tier}"


def test_a_difference_by_hand(study: Study) -> None:
    # differences 0.020, 0.021, 0.022: mean 0.021, sd 0.001, half width 4.30265 · 0.001 / √3
    one = judged(study)
    assert one.verdict == "supported"
    half = 4.302652729911275 * 0.001 / math.sqrt(3)
    row = one.row()
    assert (float(row["effect"]), float(row["ci_low"])) == pytest.approx((0.021, 0.021 - half), rel=1e-5)
    assert row["n_seeds"] == "3"
    assert one.decisive.asked == "top-1: AttnScale − DeiT ≥ 0 points"
    assert one.decisive.effect == "+2.1 [+1.9, +2.3] points"
    assert judged(study, margin=0.03).verdict == "contradicted"
    assert judged(study, margin=-0.035).decisive.asked.endswith("≥ −3.5 points")
    assert judged(study, margin=0.5, baseline=None).decisive.asked == "top-1: AttnScale ≥ 50\u202f%"
    near = judged(study, metric="nll", direction="equal", tolerance=0.1)
    assert near.decisive.asked == "NLL: AttnScale − DeiT = 0 ± 0.1"
    assert judged(study, margin=0.021).verdict == "inconclusive"
    assert judged(study, direction="lower", margin=0.03).verdict == "supported"


def test_a_value_and_a_ratio_by_hand(study: Study) -> None:
    value = judged(study, baseline=None, method="deit", margin=0.5)
    assert (value.verdict, value.row()["baseline"]) == ("supported", "")
    assert float(value.row()["effect"]) == pytest.approx(0.82)
    ratio = judged(study, compare="ratio", margin=1.0)
    expected = math.exp(sum(math.log((0.82 + 0.021 * seed) / (0.80 + 0.02 * seed)) for seed in range(3)) / 3)
    assert float(ratio.row()["effect"]) == pytest.approx(expected, rel=1e-5)
    assert ratio.verdict == "supported"


def test_a_conjunction_needs_all_and_falls_with_one(study: Study) -> None:
    assert judged(study, also=[{"margin": -0.01}]).verdict == "supported"
    fallen = judged(study, also=[{"method": "featscale"}])  # loses 0.10 exactly... on every seed, while accuracies vary
    assert fallen.verdict == "inconclusive"
    for run in study.runs:
        if run.method == "featscale":
            write_metrics(run, top1=0.70 + 0.021 * run.seed)
    fallen = judged(study, also=[{"method": "featscale"}])
    assert (fallen.verdict, fallen.row()["method"]) == ("contradicted", "featscale")
    assert [part.verdict for part in fallen.parts] == ["supported", "contradicted"]
    open_ = judged(study, also=[{"margin": 0.021}])
    assert open_.verdict == "inconclusive"


def test_a_contradiction_needs_a_wider_interval_the_more_comparisons_there_are(study: Study) -> None:
    """Student's t of 2 degrees of freedom at 95 %, 97.5 % and 98.33 %: 4.303, 6.205, 7.649, times sd / √3 = 0.577 sd."""
    for run in study.runs:
        if run.method == "attnscale":
            write_metrics(run, top1=0.80 + 0.02 * run.seed + (-0.005, -0.004, -0.003)[run.seed])
    # a mean loss of 4 sd lies outside intervals of half width 2.48 and 3.58 sd, inside one of 4.42 sd
    agreed = [{"margin": -0.5}, {"margin": -0.4}]
    assert judged(study).verdict == "contradicted"
    assert judged(study, also=agreed[:1]).verdict == "contradicted"
    of_three = judged(study, also=agreed)
    assert [part.verdict for part in of_three.parts] == ["inconclusive", "supported", "supported"]
    shown = of_three.parts[0].found
    assert (shown.low, shown.high) == pytest.approx((-0.004 - 0.0024841, -0.004 + 0.0024841), abs=1e-6)  # the reader sees 95 %
    # support needs no wider one: a claim with more comparisons is no easier to support
    gained = {"direction": "lower", "margin": 0.0}
    assert judged(study, **gained, also=[{**one, "direction": "higher"} for one in agreed]).verdict == "supported"


def test_a_missing_part_leaves_a_conjunction_not_run(study: Study) -> None:
    for run in study.runs:
        if run.method == "featscale":
            run.metrics.unlink()
    one = judged(study, also=[{"method": "featscale"}])
    assert one.verdict == "not run"
    assert one.reason == "FeatScale: not run"


def test_a_verdict_says_how_many_seeds_it_rests_on(study: Study) -> None:
    runs = {(run.method, run.seed): run for run in study.runs}
    write_metrics(runs["attnscale", 1], top1=None)
    one = judged(study)
    assert one.row()["n_seeds"] == "2"
    assert one.decisive.basis == "2 of 3 seeds, Student’s t"
    runs["deit", 2].metrics.unlink()
    assert judged(study).verdict == "inconclusive"  # one seed is left
    runs["deit", 0].metrics.unlink()
    nothing = judged(study)
    assert (nothing.verdict, nothing.row()["effect"]) == ("not run", "")
    assert nothing.reason == "no seed has both rows"


def test_exact_quantities_are_judged_exactly(study: Study) -> None:
    for run in study.runs:
        write_metrics(run, parameters=148.0 if run.method == "attnscale" else 100.0)
    one = judged(study, metric="parameters", direction="equal", margin=48)
    assert one.verdict == "supported"
    assert one.decisive.effect == "+48 (exact)"
    assert judged(study, metric="parameters", direction="equal", margin=47).verdict == "contradicted"


def test_numbers_that_papers_print_stand_beside_ours(two_tasks: Study, claims_file: Callable[[Any], None]) -> None:
    from atlas.report import write_report, write_table

    ours = {"row": "plain", "task": TOY, "dataset": "curve", "metric": "loss", "value": 0.25, "source": "Table 7"}
    theirs = {**ours, "row": "other", "value": 0.125}
    claims_file({"claims": [], "reported": [ours, theirs]})
    assert [number.value for number in load_reported(TOY, "curve")] == [0.25, 0.125]
    write_table(two_tasks, TOY, "curve")
    csv = (two_tasks.results / "tables" / TOY / "curve.csv").read_text()
    assert "loss_reported" in csv.splitlines()[0]
    assert csv.splitlines()[-1].startswith("other,other,quoted,0,")
    assert "0.125,Table 7," in csv.splitlines()[-1]
    page = write_report(two_tasks).read_text()
    assert "paper 0.25" in page
    assert "quoted: Table 7" in page
    assert claims_module.load_claims() == []
