"""The claims file is checked when a study is read; verdicts follow from results as worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from csv import DictReader
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest_report import TOY, write_metrics

from atlas.datasets.base import all_datasets
from atlas.errors import UserError
from atlas.harness import claims as claims_module
from atlas.harness.claims import Claim, check_claims, load_claims, load_reported
from atlas.harness.registry import Paper, load
from atlas.harness.study import Study
from atlas.report import evidence, verdicts
from atlas.report.intervals import interval_picture
from atlas.report.told import _markdown_rows, claim_row, told_line, values_csv

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
    check_claims(study.runs, study.tier)
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
        check_claims(study.runs, study.tier)


def test_a_study_may_leave_rows_and_benchmarks_out(study: Study, claims_file: Callable[[Any], None]) -> None:
    rows = {**CLAIM, "id": "x.row", "method": "head-gain", "tiers": ON_DIGITS}
    tables = {**CLAIM, "id": "x.table", "tiers": {"demo": {"dataset": "cifar10"}}}
    tiers = {**CLAIM, "id": "x.tier", "tiers": {"lab": {"dataset": "cifar10"}}}
    claims_file({"claims": [rows, tables, tiers]})
    check_claims(study.runs, study.tier)
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


def test_no_claim_is_spared_where_its_rows_are(checkout: Path) -> None:
    """A tier that has every row and metric of a claim judges it, unless the claim is about something that the tier lacks."""
    spared = []
    for tier in ("demo", "lab", "paper"):
        study = Study.read(tier, checkout)
        tables: dict[tuple[str, str], dict[str, set[str]]] = {}
        for (task, dataset, row), runs in study.by_row.items():
            tables.setdefault((task, dataset), {})[row] = {metric.name for metric in runs[0].declared_metrics}
        for claim in load_claims():
            if claim.dataset(tier) is None and not claim.about:
                needed = {(each.method, each.metric) for each in claim.comparisons(tier)}
                needed |= {(each.baseline, each.metric) for each in claim.comparisons(tier) if each.baseline}
                for (task, dataset), rows in tables.items():
                    if task == claim.task and all(metric in rows.get(row, ()) for row, metric in needed):
                        spared.append((tier, claim.id, dataset))
    assert spared == []


def test_what_a_demo_judges_is_what_it_says() -> None:
    """Where the demo asks less than the claim, its statement or its note says so."""
    for claim in load_claims():
        changed = set(claim.tiers.get("demo", {})) - {"dataset", "method", "baseline", "also", "statement", "note", "of"}
        if changed and "arithmetic" not in claim.evidence:
            assert {"statement", "note"} & set(claim.tiers["demo"]), f"{claim.id}: {changed}"
    by_id = {claim.id: claim for claim in load_claims()}
    assert "training loss" in by_id["optimizer-amalgamation.choice-lt-mean"].said("demo")
    assert "validation loss" in by_id["optimizer-amalgamation.choice-lt-mean"].said("lab")
    assert "52 %" in by_id["uvc.flops-50-small-drop"].said("demo")
    assert by_id["aos.attnscale-keeps-hf"].every
    assert {claim.seeds for claim in load_claims() if claim.paper == "sinnerf"} == {5}


def test_a_statement_and_a_note_may_differ_by_tier(study: Study) -> None:
    one = judged(study, note="In general.", tiers={"demo": {"dataset": "digits", "statement": "Here.", "note": "Only here."}})
    assert (one.statement, one.note) == ("Here.", "Only here.")
    assert judged(study, note="In general.").note == "In general."


def test_what_is_asked_of_every_seed_falls_with_one(study: Study) -> None:
    # gains of 2.0, 2.1 and 2.2 points
    assert judged(study, margin=0.018, every=True).verdict == "supported"
    fallen = judged(study, margin=0.0205, every=True)
    assert (judged(study, margin=0.0205).verdict, fallen.verdict) == ("inconclusive", "contradicted")
    assert fallen.decisive.basis == "3 seeds, Student’s t; not on seed 0"
    assert fallen.decisive.asked.endswith("points, on every seed")


def test_a_claim_may_ask_for_more_seeds(study: Study) -> None:
    one = judged(study, seeds=5)
    assert (one.verdict, one.told) == ("inconclusive", "inconclusive")
    assert one.decisive.basis == "3 seeds, Student’s t; the claim asks 5 seeds"
    assert one.replicates_text == "5"


def test_agreement_on_few_decisions_settles_nothing(study: Study) -> None:
    for run in study.runs:
        write_metrics(run, top1=1.0)
    value = {"baseline": None, "compare": "value", "margin": 0.9}
    assert judged(study, **value).verdict == "inconclusive"
    few = judged(study, **value, of=4)
    assert few.decisive.basis == "3 seeds, Clopper–Pearson, 12 decisions"
    assert few.verdict == "inconclusive"
    assert judged(study, **value, of=20).verdict == "supported"
    assert judged(study, **value, exact=True).verdict == "supported"
    assert judged(study, **value, evidence="arithmetic").verdict == "supported"
    assert judged(study, **value, of="parameters").decisive.effects.decisions == 3  # a metric that counts, here 1 per seed


def test_the_tightest_part_is_named_and_decides(study: Study) -> None:
    one = judged(study, margin=-0.5, also=[{"margin": 0.0}])
    assert one.tightest is one.parts[1]
    assert claim_row(one)["tightest"] == "top-1: AttnScale − DeiT ≥ 0 points"
    assert claim_row(one)["parts"].count("supported") == 2


def test_the_tightest_part_is_marked_in_the_table_and_the_claim_is_named_once(study: Study) -> None:
    first, second = _markdown_rows(judged(study, margin=-0.5, also=[{"margin": 0.0}]))
    assert (first[0], second[0]) == ("x.y", "")
    assert first[1:3] == ["s", "top-1: AttnScale − DeiT ≥ −50 points on digits"]
    assert second[1:3] == ["", "top-1: AttnScale − DeiT ≥ 0 points on digits (tightest)"]
    assert (second[4], second[5], second[6]) == ("supported", "", "")


def test_values_of_every_seed_stand_in_full_precision(study: Study) -> None:
    one = judged(study, also=[{"baseline": None, "compare": "value", "margin": 0.9}])
    header, *lines = csv.reader(io.StringIO(values_csv([one])))
    assert header == ["id", "part", "metric", "method", "baseline", "seed", "method_value", "baseline_value", "effect"]
    top1 = {
        (run.row.rpartition("/")[2], str(run.seed)): json.loads(run.metrics.read_text())["metrics"]["top1"]
        for run in study.runs
        if run.row in (f"{TASK}/digits/attnscale", f"{TASK}/digits/deit")
    }
    seeds = sorted({seed for _, seed in top1})
    pairs = [(seed, top1["attnscale", seed], top1["deit", seed]) for seed in seeds]
    assert lines == [
        *(
            ["x.y", "1", "top1", "attnscale", "deit", seed, repr(ours), repr(theirs), repr(ours - theirs)]
            for seed, ours, theirs in pairs
        ),
        *(["x.y", "2", "top1", "attnscale", "", seed, repr(ours), "", repr(ours)] for seed, ours, _ in pairs),
    ]


def test_the_picture_of_a_part_has_its_marks_in_place(study: Study) -> None:
    picture = interval_picture(judged(study, margin=-0.5).parts[0])
    lines = re.findall(r'<line class="(\w+)" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"/>', picture)
    places = {kind: tuple(map(float, place)) for kind, *place in lines}
    assert len(lines) == picture.count("<line") == 3
    margin, zero, found = (places[kind] for kind in ("margin", "zero", "range"))
    assert (margin[0], margin[1], margin[3]) == (margin[2], 1, 27)
    assert (zero[0], zero[1], zero[3]) == (zero[2], 3, 25)
    assert found[1] == found[3] == 11
    assert margin[0] < zero[0] < found[0] <= found[2] < 160
    width = float(re.search(r'class="region" x="([\d.]+)" y="1" width="([\d.]+)" height="26"', picture)[2])  # type: ignore[index]
    assert width == pytest.approx(160 - margin[0], abs=0.11), "from the margin to the border: more is better"


def test_other_kernels_are_read_from_the_results(study: Study, claims_file: Callable[[Any], None]) -> None:
    claims_file({"claims": [{**CLAIM, "tiers": ON_DIGITS}]})
    assert verdicts.judge_all(study)[0].kernels == {}
    (study.results / "kernels.csv").write_text("id,kernel,verdict\nx.y,avx2,contradicted\nx.y,default,supported\n,,\n")
    found = verdicts.judge_all(study)[0]
    assert found.kernels == {"avx2": "contradicted", "default": "supported"}
    assert found.told == "supported, fragile"


def test_the_kind_of_evidence_follows_from_the_data(study: Study) -> None:
    assert judged(study).evidence == "real data"
    assert judged(study).tested == "539 test images"
    assert judged(study, evidence="arithmetic").evidence == "arithmetic"
    assert judged(study, tiers={"lab": {"dataset": "cifar10"}}).evidence == ""


@pytest.mark.parametrize(
    ("cell", "kind", "tested"),
    [
        ("image-classification/digits-compressed/deit", "real data", "719 test images"),
        ("image-classification/random-stacks/residual", "synthetic", ""),
        ("adversarial-robustness/digits/dense", "modified real data", "1,285 test images"),
        ("federated-learning/digits-domains/split-mix", "modified real data", "539 test images in each of 4 domains"),
        ("federated-learning/digits-robust/fedavg-dat", "real data", "539 test images"),
        ("feature-acquisition/synth/vfds", "synthetic", "400 test sequences"),
        ("feature-acquisition/handover/vfds", "modified real data", "200 test sequences"),
        ("novel-view-synthesis/analytic/dsnerf", "synthetic", "6 test views of one scene per seed"),
        ("novel-view-synthesis/motorcycle/dsnerf", "real data", "1 test view of one scene"),
        ("learned-optimization/digits/adam", "real data", "5 starts of each problem"),
    ],
)
def test_tasks_tell_what_the_demo_rests_on(checkout: Path, cell: str, kind: str, tested: str) -> None:
    run = next(run for run in Study.read("demo", checkout).runs if run.cell.startswith(f"{cell}/"))
    claim = Claim(**{**CLAIM, "paper": "p", "task": run.task})  # type: ignore[arg-type]
    assert evidence.evidence(claim, run) == kind
    assert evidence.tested(run) == tested


def test_pictures_that_were_rendered_are_no_photographs(checkout: Path) -> None:
    claim = Claim(**{**CLAIM, "paper": "p", "task": "novel-view-synthesis"})  # type: ignore[arg-type]
    kinds = {
        run.data: evidence.evidence(claim, run)
        for tier in ("demo", "desk", "lab", "paper")
        for run in Study.read(tier, checkout).runs
        if run.task == "novel-view-synthesis" and run.data
    }
    assert kinds == {
        "motorcycle-stereo": "real data",
        "lego-400": "synthetic",
        "nerf-synthetic": "synthetic",
        "llff": "real data",
        "dtu": "real data",
    }
    assert set(all_datasets()) >= evidence.RENDERED


def test_costs_count_what_a_row_builds_on(two_tasks: Study) -> None:
    from atlas.report.chapters import Chapter
    from atlas.report.collect import collect_table
    from atlas.report.costs import costs
    from atlas.report.general import cost_of

    table = collect_table(two_tasks, TOY, "curve")
    fast, plain = table.row("fast"), table.row("plain")
    assert fast
    assert plain
    alone = costs(table, fast, plain)
    assert alone
    assert alone.text.replace("\u00a0", " ") == "training FLOPs: 100 G against 1 T (0.1 ×; not counted: Search)"
    assert not alone.equal
    search = next(row for row in table.stages if row.name == "search")
    for cell in search.cells:
        cell.values["train_flops"] = 9.5e11  # as if it counted its work
    whole = costs(table, fast, plain)
    assert whole
    assert whole.text.replace("\u00a0", " ") == "training FLOPs: 100 G + 950 G once before against 1 T (equal within 10 %)"
    # so do the figure that plots the headline against the cost, and the costs' table
    for cell in search.cells:
        cell.values["train_flops"] = 2e12
    drawn = cost_of(table)
    assert drawn
    assert drawn.values == pytest.approx({"plain": 1e12, "fast": 2.1e12})
    assert "training FLOPs in all" in Chapter(table).cost_header


def test_a_comparison_at_unequal_cost_says_so(study: Study) -> None:
    def write(flops: float) -> None:
        for run in study.runs:
            mine = run.method == "attnscale"
            write_metrics(run, top1=0.80 + (0.021 if mine else 0.02) * run.seed, train_flops=flops if mine else 1e9)

    write(3e9)
    one = judged(study, margin=-0.5)
    assert told_line(one) == "supported, at 3 × the cost of training"
    assert "training FLOPs: 3" in claim_row(one)["cost"]
    write(1.05e9)
    one = judged(study, margin=-0.5)
    assert told_line(one) == "supported"
    assert claim_row(one)["cost"].endswith("(equal within 10 %)")


def test_what_speaks_against_a_method_is_gathered(study: Study) -> None:
    fallen = judged(study, id="a.fallen", margin=0.03)
    held = judged(study, id="a.held", against=True)
    spoken = [one for one in (judged(study), judged(study, margin=0.03, against=True), fallen, held) if one.speaks_against]
    assert [one.claim.id for one in spoken] == ["a.fallen", "a.held"]


def test_a_difference_by_hand(study: Study) -> None:
    # differences 0.020, 0.021, 0.022: mean 0.021, sd 0.001, half width 4.30265 · 0.001 / √3
    one = judged(study)
    assert one.verdict == "supported"
    half = 4.302652729911275 * 0.001 / math.sqrt(3)
    row = claim_row(one)
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


def test_every_seed_that_a_verdict_rests_on_is_named(study: Study) -> None:
    # of two seeds the interval is 12.7062 · sd / √2 to either side: 0.0064 or 0.0127 where three seeds have 0.0025
    assert judged(study, margin=0.0175).fragile == "not without seed 0, 1 or 2"
    assert judged(study, margin=0.0145).fragile == "not without seed 1 or 2"
    assert judged(study, margin=0.0085).fragile == "not without seed 1"
    assert judged(study, margin=0.008).fragile == ""


def test_a_row_that_the_study_leaves_out_has_its_method_s_name(study: Study) -> None:
    assert judged(study, method="layerscale").decisive.asked == "top-1: LayerScale − DeiT ≥ 0 points"
    assert judged(study, method="nobody").decisive.asked == "top-1: nobody − DeiT ≥ 0 points"


def test_a_value_and_a_ratio_by_hand(study: Study) -> None:
    value = judged(study, baseline=None, method="deit", margin=0.5)
    assert (value.verdict, claim_row(value)["baseline"]) == ("supported", "")
    assert float(claim_row(value)["effect"]) == pytest.approx(0.82)
    ratio = judged(study, compare="ratio", margin=1.0)
    expected = math.exp(sum(math.log((0.82 + 0.021 * seed) / (0.80 + 0.02 * seed)) for seed in range(3)) / 3)
    assert float(claim_row(ratio)["effect"]) == pytest.approx(expected, rel=1e-5)
    assert ratio.verdict == "supported"


def test_a_conjunction_needs_all_and_falls_with_one(study: Study) -> None:
    assert judged(study, also=[{"margin": -0.01}]).verdict == "supported"
    fallen = judged(study, also=[{"method": "featscale"}])  # loses 0.10 exactly... on every seed, while accuracies vary
    assert fallen.verdict == "inconclusive"
    for run in study.runs:
        if run.method == "featscale":
            write_metrics(run, top1=0.70 + 0.021 * run.seed)
    fallen = judged(study, also=[{"method": "featscale"}])
    assert (fallen.verdict, claim_row(fallen)["method"]) == ("contradicted", "featscale")
    assert [part.verdict for part in fallen.parts] == ["supported", "contradicted"]
    open_ = judged(study, also=[{"margin": 0.021}])
    assert open_.verdict == "inconclusive"


def test_a_bound_that_is_not_reached_leaves_a_claim_open(study: Study) -> None:
    """That an interval reaches below the margin says that too little was looked at, and not that the effect is not there."""
    bound = {"method": "featscale", "bound": True}
    for run in study.runs:
        if run.method == "featscale":
            write_metrics(run, top1=0.70 + 0.021 * run.seed)
    open_ = judged(study, also=[bound])
    assert (open_.verdict, claim_row(open_)["method"]) == ("inconclusive", "featscale")
    assert [part.verdict for part in open_.parts] == ["supported", "inconclusive"]
    assert open_.replicates_text == ""  # seeds do not narrow an interval of the runs' own
    assert judged(study, also=[{**bound, "margin": -0.2}]).verdict == "supported"
    # the estimate is judged as if it stood alone: a bound is no further chance to contradict
    alone = judged(study, margin=0.026)
    assert alone.verdict == judged(study, margin=0.026, also=[bound]).verdict == "contradicted"
    assert judged(study, also=[{**bound, "every": True}]).verdict == "inconclusive"


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
    assert claim_row(one)["n_seeds"] == "2"
    assert one.decisive.basis == "2 of 3 seeds, Student’s t"
    runs["deit", 2].metrics.unlink()
    assert judged(study).verdict == "inconclusive"  # one seed is left
    runs["deit", 0].metrics.unlink()
    nothing = judged(study)
    assert (nothing.verdict, claim_row(nothing)["effect"]) == ("not run", "")
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
    lines = {line["method"]: line for line in DictReader(csv.splitlines())}
    told = {name: (line["loss_reported"], line["source"], line["role"], line["n_seeds"]) for name, line in lines.items()}
    assert told == {
        "plain": ("0.25", "Table 7", "baseline", "3"),
        "fast": ("", "", "method", "3"),
        "other": ("0.125", "Table 7", "quoted", "0"),
    }
    page = write_report(two_tasks).read_text()
    assert "paper 0.25" in page
    assert "quoted: Table 7" in page
    assert claims_module.load_claims() == []
