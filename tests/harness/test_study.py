"""The plan: what a study file means, and what it says when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness.planning import merge
from atlas.harness.study import Study

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
    ],
)
def test_mistakes_get_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith("config/mine.yaml: ") or "is not YAML" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_study_and_run_suggest_a_name(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"there is no study mime .*; did you mean mine\?"):
        Study.read("mime", tmp_path)
    with pytest.raises(UserError, match=r"did you mean image-classification/digits/deit/seed3\?"):
        study.find("image-classification/digits/deit/sed3")


def test_merge_is_deep_and_later_wins() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, None) == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_shipped_studies_are_valid(checkout: Path, tier: str) -> None:
    study = Study.read(tier, checkout)
    assert study.runs
    assert study.description
