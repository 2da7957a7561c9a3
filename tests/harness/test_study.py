"""The plan: what a study file means, and what it says when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness import study as study_module
from atlas.harness.claims import load_claims
from atlas.harness.names import ignores_case
from atlas.harness.study import Study
from atlas.settings import merge

GOOD = """
seeds: [3, 4]
resources: {minutes: 7}
image-classification:
  protocol: {epochs: 9, warmup_epochs: 1}
  methods:
    deit: {}
  datasets:
    digits:
      methods:
        attnscale: {lr_multiplier: 10}
        deep: {method: deit, protocol: {backbone: {depth: 24}}, resources: {gpus: 1}}
        attnscale+featscale: {featscale: {gain: 2}}
    again: {data: digits, protocol: {epochs: 4}}
    stacks:
      data: null
      methods: {deit: false, w1: {method: random-stack, depth: 12}}
"""


def write(root: Path, text: str, name: str = "mine") -> None:
    (root / "config").mkdir(exist_ok=True)
    (root / "config" / f"{name}.yaml").write_text(text)


def read(root: Path, text: str) -> Study:
    write(root, text)
    return Study.read("mine", root)


def test_runs_are_rows_times_seeds(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    assert len(study.runs) == (4 + 1 + 1) * 2
    assert study.tables == [(study.tasks[0], name) for name in ("digits", "again", "stacks")]
    assert study.datasets == ["digits"]
    run = study.find("image-classification/digits/attnscale/seed3")
    assert run.settings == {"attnscale": {"lr_multiplier": 10.0}}
    assert run.protocol["epochs"] == 9
    assert run.resources.minutes == 7
    assert run.metrics == tmp_path / "results/mine/runs/image-classification/digits/attnscale/seed3/metrics.json"
    assert study.find("image-classification/again/deit/seed4").protocol["epochs"] == 4


def test_rows_override_protocol_and_resources(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    deep = study.find("image-classification/digits/deep/seed3")
    assert deep.recipe == ("deit",)
    assert deep.protocol["backbone"]["depth"] == 24
    assert deep.protocol["backbone"]["embed_dim"] == 384
    assert (deep.resources.gpus, deep.resources.minutes) == (1, 7)
    assert study.find("image-classification/digits/deit/seed3").resources.gpus == 0


def test_recipes_nest_settings_by_method(tmp_path: Path) -> None:
    run = read(tmp_path, GOOD).find("image-classification/digits/attnscale+featscale/seed3")
    assert run.recipe == ("attnscale", "featscale")
    assert run.settings["featscale"]["gain"] == 2
    assert run.settings["attnscale"]["lr_multiplier"] == 1
    assert run.title == "AttnScale + FeatScale"


def test_fingerprint_covers_what_determines_the_numbers(tmp_path: Path) -> None:
    cell = "image-classification/digits/attnscale/seed3"
    before = read(tmp_path, GOOD).find(cell).fingerprint
    assert read(tmp_path, GOOD.replace("minutes: 7", "minutes: 70")).find(cell).fingerprint == before
    assert read(tmp_path, GOOD.replace("lr_multiplier: 10", "lr_multiplier: 5")).find(cell).fingerprint != before
    assert read(tmp_path, GOOD.replace("epochs: 9", "epochs: 8")).find(cell).fingerprint != before
    other = read(tmp_path, GOOD).find("image-classification/digits/attnscale/seed4")
    assert other.fingerprint != before
    json.dumps(other.described())


def test_only_what_can_be_stacked_is_and_only_where_the_study_says_so(tmp_path: Path) -> None:
    single = read(tmp_path, GOOD)
    stacking = read(tmp_path, GOOD + "batch_seeds: true\nstack_seeds: true\n")
    stacked = {run.cell for run in stacking.runs if run.stacked}
    assert not any(run.stacked for run in single.runs)
    assert {cell.split("/", 1)[1] for cell in stacked} == {
        f"{row}/seed{seed}"
        for row in ("digits/deit", "digits/attnscale", "digits/deep", "digits/attnscale+featscale", "again/deit")
        for seed in (3, 4)
    }
    for run in stacking.runs:
        assert (run.fingerprint != single.find(run.cell).fingerprint) == (run.cell in stacked)
    several = read(tmp_path, GOOD.replace("gpus: 1", "gpus: 2") + "batch_seeds: true\nstack_seeds: true\n")
    assert not several.find("image-classification/digits/deep/seed3").stacked  # ranks share a batch of one run


def test_a_task_or_a_benchmark_may_stack_or_not(tmp_path: Path) -> None:
    def stacked(text: str) -> set[str]:
        return {run.dataset for run in read(tmp_path, f"{text}batch_seeds: true\n").runs if run.stacked}

    task = GOOD.replace("  protocol: {epochs: 9", "  stack_seeds: true\n  protocol: {epochs: 9")
    assert stacked(GOOD) == set()
    assert stacked(task) == {"digits", "again"}
    assert stacked(task.replace("{data: digits,", "{data: digits, stack_seeds: false,")) == {"digits"}
    assert stacked(GOOD.replace("{data: digits,", "{data: digits, stack_seeds: true,")) == {"again"}
    assert stacked(f"stack_seeds: true\n{GOOD.replace('{data: digits,', '{data: digits, stack_seeds: false,')}") == {"digits"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "lr_multiplier: 10",
            "lr_multiplyer: 10",
            r"methods\.attnscale\.lr_multiplyer is not a setting of attnscale; did you mean lr_multiplier\?",
        ),
        ("lr_multiplier: 10", "lr_multiplier: -1", r"attnscale\.lr_multiplier = -1: input should be greater than 0"),
        ("epochs: 9", "epoch: 9", r"protocol\.epoch is not a setting of the protocol .*; did you mean epochs\?"),
        ("depth: 24", "dept: 24", r"protocol\.backbone\.dept is not a setting .*; did you mean depth\?"),
        ("attnscale: {", "atnscale: {", r"atnscale is not a method of image-classification; did you mean attnscale\?"),
        (
            "image-classification:",
            "image-clasification:",
            r"image-clasification is not known here; did you mean image-classification\?",
        ),
        ("seeds: [3, 4]", "seeds: 3", r"seeds must be a list of whole numbers"),
        ("seeds: [3, 4]", "seeds: [3, 3]", r"names a seed twice"),
        ("seeds: [3, 4]", "seeds: []", r"seeds must be a list of whole numbers from 0"),
        (
            "attnscale+featscale: {featscale: {gain: 2}}",
            "uvc: {}\n        deit: false",
            r"methods\.uvc needs the row deit, which digits does not have; add it there$",
        ),
        ("data: digits, ", "dta: digits, ", r"again\.dta is not known here; did you mean data\?"),
        ("gpus: 1", "gpu: 1", r"resources\.gpu is not a setting of resources; did you mean gpus\?"),
        ("attnscale+featscale", "attnscale+head-gain", r"attnscale and head-gain cannot stand in one recipe"),
        ("attnscale+featscale", "attnscale+attnscale", r"names a method twice"),
        ("attnscale+featscale: {featscale: {gain: 2}}", "attnscale+random-stack: {}", r"random-stack trains by itself"),
        ("attnscale+featscale: {featscale: {gain: 2}}", "uvc+attnscale: {}", r"another order: write attnscale\+uvc"),
        (
            "attnscale+featscale: {featscale: {gain: 2}}",
            "attnscale+uvc+unstructured: {}",
            r"attnscale\+uvc\+unstructured holds two methods that act after training; at most one can",
        ),
        ("{featscale: {gain: 2}}", "{gain: 2}", r"gain is not known here"),
        ("seeds:", "seeds: [", r"is not YAML"),
        ("deit: {}", "deit: 3", r"deit must be a mapping, not 3"),
        ("deit: {}", "deit: [a, b]", r"deit must be a mapping, not a list"),
        ("{epochs: 9, warmup_epochs: 1}", "3", r"image-classification\.protocol must be a mapping, not 3"),
        ("{epochs: 4}", "[1]", r"datasets\.again\.protocol must be a mapping, not a list"),
        ("{backbone: {depth: 24}}", "x", r"methods\.deep\.protocol must be a mapping, not 'x'"),
        ("{gpus: 1}", "2", r"methods\.deep\.resources must be a mapping, not 2"),
        ("{minutes: 7}", "7", r"resources must be a mapping, not 7"),
        ("seeds: [3, 4]", "seeds: [3, -4]", r"seeds must be a list of whole numbers from 0"),
        ("seeds: [3, 4]", "seeds: [true]", r"seeds must be a list of whole numbers from 0"),
        ("seeds: [3, 4]", "seeds: [18446744073709551616]", r"seeds must be a list of whole numbers from 0"),
        ("seeds: [3, 4]", "seeds: [3]\nbatch_seeds: 'no'", r"batch_seeds must be true or false, not 'no'"),
        ("seeds: [3, 4]", "seeds: [3]\nstack_seeds: 1", r"stack_seeds must be true or false, not 1"),
        ("seeds: [3, 4]", "seeds: [3]\nstack_seeds: true", r"stack_seeds needs one job for all seeds of a row: set batch_seeds"),
        ("deit: {}", "deit: {}\n  stack_seeds: 1", r"image-classification\.stack_seeds must be true or false, not 1"),
        ("data: digits", "stack_seeds: true, data: digits", r"datasets\.again\.stack_seeds needs one job for all seeds of a row"),
        ("data: digits", "data: digit", r"again\.data = 'digit' is not a data set; did you mean digits\?"),
        ("data: digits", "data: [digits]", r"again\.data = \['digits'\] is not a data set"),
        ("data: digits", "data: ''", r"again\.data = '' is not a data set"),
        (
            "    digits:",
            "    digts:",
            r"datasets\.digts is not a data set, and a benchmark .*; did you mean digits\?",
        ),
        ("deit: {}", "no: {method: deit}", r"has a key that YAML reads as False; if it is a name, put it in quotes"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith("config/mine.yaml: ") or "is not YAML" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config/mine.yaml: is empty; a study names at least its seeds and one task"),
        ("# nothing but this\n", "config/mine.yaml: is empty"),
        ("- a\n- b\n", "config/mine.yaml: must be a mapping, not a list"),
        ("seeds", "config/mine.yaml: must be a mapping, not 'seeds'"),
        ("seeds:\n\t- 1\n", "config/mine.yaml is not YAML: "),
    ],
)
def test_files_that_hold_no_study_get_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "place", "lines"),
    [
        ("        deep: {", "        attnscale: {", "digits.methods.attnscale", (11, 12)),
        ("    again:", "    digits:", "image-classification.datasets.digits", (9, 14)),
        ("resources: {minutes: 7}", "resources: {minutes: 7, minutes: 8}", "resources.minutes", (3, 3)),
        ("gain: 2", "gain: 2, 'gain': 3", "attnscale+featscale.featscale.gain", (13, 13)),
        ("deit: false", "deit: false, deit: {}", "stacks.methods.deit", (17, 17)),
        ("depth: 24", "<<: {depth: 24}, <<: {depth: 12}", "protocol.backbone.<<", (12, 12)),
        ("seeds: [3, 4]", "1: a\n'1': b", "1", (2, 3)),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(
    tmp_path: Path, old: str, new: str, place: str, lines: tuple[int, int]
) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    message = str(caught.value)
    assert message.startswith("config/mine.yaml: ")
    assert message.endswith(f"{place} stands twice, in line {lines[0]} and in line {lines[1]}; keep one of them")


def test_a_merged_key_may_be_given_again(tmp_path: Path) -> None:
    merged = GOOD.replace("deit: {}", "deit: &own {protocol: {epochs: 2}}").replace("deep: {", "deep: {<<: *own, ")
    assert read(tmp_path, merged).find("image-classification/digits/deep/seed3").protocol["epochs"] == 9


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a/b", "it holds '/'"),
        ("..", "it begins with a dot"),
        (".", "it begins with a dot"),
        (".hidden", "it begins with a dot"),
        ("", "it is empty"),
        ("deit ", "it begins or ends with a space"),
        ("de\\0it", r"it holds '\x00'"),
        ("de\\nit", r"it holds '\n'"),
        ("{seed}", "it holds '{'"),
        ("é" * 128, "it has 256 bytes, and 200 is the most"),
    ],
)
def test_a_name_that_can_be_no_folder_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    row = GOOD.replace("deep: {", f'"{name}": {{')
    benchmark = GOOD.replace("again: {data", f'"{name}": {{data')
    for text, where in ((row, "image-classification.datasets.digits.methods: "), (benchmark, "image-classification.datasets: ")):
        with pytest.raises(UserError) as caught:
            read(tmp_path, text)
        message = str(caught.value)
        assert message.startswith(f"config/mine.yaml: {where}'")
        assert message.endswith(f"cannot name a folder: {fault}")
        assert "\n" not in message
    with pytest.raises(UserError, match="^--tier '.* cannot name a folder: it "):
        Study.read(name.replace("\\0", "\0").replace("\\n", "\n"), tmp_path)


@pytest.mark.parametrize(
    "word", ["seeds", "batch_seeds", "stack_seeds", "description", "limits", "resources", "substitutes", "image-classification"]
)
def test_every_word_of_a_study_is_known_when_it_is_misspelt(tmp_path: Path, word: str) -> None:
    misspelt = word[:-2] + word[-1]
    with pytest.raises(UserError, match=rf"^config/mine\.yaml: {misspelt} is not known here; did you mean {word}\?$"):
        read(tmp_path, f"{GOOD}{misspelt}: 1\n")


def test_names_that_differ_in_case_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("deep: {", "Deit: {")
    write(tmp_path, text)
    monkeypatch.setattr(study_module, "ignores_case", lambda path: False)
    assert {run.method for run in Study.read("mine", tmp_path).runs} >= {"deit", "Deit"}
    monkeypatch.setattr(study_module, "ignores_case", lambda path: True)
    with pytest.raises(UserError, match="methods: deit and Deit would share a folder, since this file system ignores case"):
        Study.read("mine", tmp_path)


def test_whether_the_file_system_ignores_case(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert not ignores_case(tmp_path / "mine.yaml") or (tmp_path / "MINE.YAML").is_file()
    (tmp_path / "both.yaml").touch()
    (tmp_path / "BOTH.YAML").unlink(missing_ok=True)
    (tmp_path / "both.yaml").touch()
    (tmp_path / "BOTH.YAML").hardlink_to(tmp_path / "both.yaml")
    assert ignores_case(tmp_path / "both.yaml"), "one file under both names is what such a file system shows"


def test_missing_study_and_run_suggest_a_name(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"there is no study mime .*; did you mean mine\?"):
        Study.read("mime", tmp_path)
    with pytest.raises(UserError, match=r"did you mean image-classification/digits/deit/seed3\?"):
        study.find("image-classification/digits/deit/sed3")


def test_merge_is_deep_and_later_wins() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, None) == {"a": {"b": 1, "c": 3}}


SOME = """
seeds: [3, 4]
substitutes: {cifar10: cifar10-jpeg}
image-classification:
  methods: {deit: {}}
  datasets:
    deep: {data: cifar10}
    digits: {seeds: [7]}
adversarial-robustness:
  seeds: [5, 6, 7]
  datasets:
    cifar10: {methods: {dense: {}}}
    few: {data: cifar10-jpeg, seeds: [1], methods: {dense: {}}}
"""


def test_tasks_and_benchmarks_may_have_seeds_of_their_own(tmp_path: Path) -> None:
    rows = read(tmp_path, SOME).by_row
    seeds = {dataset: [run.seed for run in runs] for (_, dataset, _), runs in rows.items()}
    assert seeds == {"deep": [3, 4], "digits": [7], "cifar10": [5, 6, 7], "few": [1]}
    with pytest.raises(UserError, match=r"datasets\.digits\.seeds names a seed twice"):
        read(tmp_path, SOME.replace("[7]}", "[7, 7]}"))
    with pytest.raises(UserError, match=r"adversarial-robustness\.seeds must be a list of whole numbers"):
        read(tmp_path, SOME.replace("[5, 6, 7]", "3"))


def test_a_substitute_is_read_and_named_and_counts_as_what_it_is(tmp_path: Path) -> None:
    study = read(tmp_path, SOME)
    run, named = (study.find(f"adversarial-robustness/{cell}") for cell in ("cifar10/dense/seed5", "few/dense/seed1"))
    assert (run.dataset, run.data, run.stands_for) == ("cifar10", "cifar10-jpeg", "cifar10")
    assert run.substitution == "cifar10-jpeg in place of cifar10"
    assert run.described()["stands_for"] == "cifar10"
    assert (named.data, named.stands_for, named.substitution) == ("cifar10-jpeg", "", "")
    assert "stands_for" not in named.described()
    assert study.datasets == ["cifar10-jpeg", "digits"]
    original = read(tmp_path, SOME.replace("substitutes: {cifar10: cifar10-jpeg}\n", ""))
    assert original.find(run.cell).data == "cifar10"
    assert original.find(run.cell).fingerprint != run.fingerprint
    assert original.find(named.cell).fingerprint == named.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{cifar11: cifar10}", r"substitutes.cifar11 names cifar11, not a data set; did you mean cifar1"),
        ("{cifar10: cifar}", r"substitutes.cifar10 names cifar, not a data set"),
        ("{cifar10: digits, digits: mnist}", r"substitutes.cifar10 = digits is itself replaced"),
        ("[cifar10]", r"substitutes must be a mapping, not a list"),
    ],
)
def test_substitutes_are_two_known_names_each(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, SOME.replace("{cifar10: cifar10-jpeg}", given))


@pytest.mark.parametrize("tier", ["demo", "desk", "lab", "paper"])
def test_shipped_studies_are_valid(checkout: Path, tier: str) -> None:
    study = Study.read(tier, checkout)
    assert study.runs
    assert study.description


def test_the_desk_study_judges_what_the_demo_judges_and_more(checkout: Path) -> None:
    study = Study.read("desk", checkout)
    assert {run.data for run in study.runs if run.stands_for} == {study.substitutes["cifar10"]}
    rows = {(task, dataset, method) for task, dataset, method in study.by_row}
    asked = {tier: {claim.id for claim in load_claims() if claim.dataset(tier)} for tier in ("demo", "desk", "lab")}
    assert asked["demo"] - asked["desk"] == {"div.acc-demo-noninferior", "sinnerf.depth-beats-dsnerf"}  # of the demo's own scale
    assert asked["desk"] - asked["demo"] >= {"vfds.har-no-acc-loss", "symbolic-l2o.r2-rp-gt-dm", "symbolic-l2o.simpler-than-dm"}
    for claim in load_claims():
        for comparison in claim.comparisons("desk") if claim.dataset("desk") else ():
            for row in filter(None, (comparison.method, comparison.baseline)):
                assert (claim.task, claim.dataset("desk"), row) in rows, claim.id
    used = {run.seed for run in study.runs} & {run.seed for run in Study.read("demo", checkout).runs}
    assert not used  # nothing was chosen on a seed of the desk
