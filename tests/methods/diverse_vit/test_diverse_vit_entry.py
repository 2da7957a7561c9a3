"""Diverse-ViT as an ingredient: every tier's rows build what they say, and impossible combinations are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas.errors import AtlasError, UserError
from atlas.harness.execute import train_run
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.diverse_vit import DiversityConfig
from atlas.settings import merge, validate_settings

ROOT = Path(__file__).resolve().parents[3]
TASK = "image-classification"
PRESETS = {
    "patch-mixup": "none",
    "diverse-vit": "deit-s-12",
    "diverse-mixing": "mixing",
    "diverse-embedding": "embedding",
    "diverse-attention": "attention",
    "diverse-weight": "weight",
}
NAMES = tuple(PRESETS)


def demo(root: Path, method: str = "diverse-vit", protocol: dict[str, Any] | None = None, **settings: Any) -> Run:
    """A demo row of this paper as short as it can be, of any of its methods."""
    run = Study.read("demo", ROOT).find(f"{TASK}/digits-mixed/deit/seed10")
    task, entry = run.task_entry, load().method(TASK, method)
    small = merge(merge(run.protocol, task.smallest), {"epochs": 1, "warmup_epochs": 0, **(protocol or {})})
    return replace(
        run,
        root=root,
        recipe=(method,),
        protocol=validate_settings(task.protocol, small, "test", task.name),
        settings={method: validate_settings(entry.settings, merge(entry.preset, settings), "test", method)},
        method_entries=(entry,),
    )


def test_every_row_of_the_paper_has_its_preset() -> None:
    rivals = {"reattention"}  # DeepViT's, which has no terms
    assert {entry.name for entry in load().all_methods() if entry.paper == "diverse-vit"} == set(PRESETS) | rivals


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_the_presets(name: str, tmp_path: Path) -> None:
    ingredient = demo(tmp_path, name).build()[0]
    expected = DiversityConfig.preset(PRESETS[name]).model_dump()
    assert ingredient.settings.model_dump(include=set(expected)) == expected
    assert ingredient.settings.mix


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_build(tier: str) -> None:
    rows = {runs[0].recipe: runs[0] for runs in Study.read(tier, ROOT).by_row.values() if set(NAMES) & set(runs[0].recipe)}
    assert {("patch-mixup",), ("diverse-vit",), ("diverse-mixing",), ("attnscale", "diverse-vit")} <= set(rows)
    if tier != "demo":
        assert {(name,) for name in NAMES} <= set(rows)
    for run in rows.values():
        assert len(run.build()) == len(run.recipe)


@pytest.mark.parametrize("name", ["diverse-embedding", "diverse-attention", "diverse-weight"])
def test_each_level_trains_and_logs_its_terms(name: str, workspace: Path) -> None:
    run = demo(workspace, name)
    train_run(run)
    header = set(run.history.read_text().splitlines()[0].split(","))
    terms = {
        "diverse-embedding": {"emb_cos", "emb_contrast"},
        "diverse-attention": {"attn_cos"},
        "diverse-weight": {"weight_orth"},
    }[name]
    assert {column for column in header if column.startswith("unweighted_")} == {f"unweighted_{term}" for term in terms}
    assert terms <= header


def test_regularisers_alone_train_on_ordinary_batches(workspace: Path) -> None:
    run = demo(workspace, mix=False, mix_weight=0)
    train_run(run)
    assert run.weights.is_file()


def test_patch_labels_need_mixed_batches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mix_weight needs the patch labels"):
        demo(tmp_path, mix=False)


def test_batches_must_be_even(workspace: Path) -> None:
    with pytest.raises(UserError, match="batch_size must be even, not 65"):
        train_run(demo(workspace, protocol={"batch_size": 65}))


def test_a_loss_that_is_not_finite_stops_the_run(workspace: Path) -> None:
    run = demo(workspace, protocol={"learning_rate": 1e30, "epochs": 3, "log_every": 1000})
    with pytest.raises(AtlasError, match="seed10: step 2: .* is not finite"):
        train_run(run)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("patch-mixup+diverse-vit", "diverse-vit"), ("diverse-vit+attnscale", r"attnscale\+diverse-vit")],
)
def test_impossible_recipes_are_refused_when_planned(recipe: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    rows = (
        (ROOT / "config/demo.yaml")
        .read_text()
        .replace("attnscale+diverse-vit:", "good:\n          method: attnscale+diverse-vit")
    )
    text = rows.replace("diverse-mixing: {}", f"diverse-mixing: {{}}\n        {recipe}: {{}}")
    (tmp_path / "config/demo.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        Study.read("demo", tmp_path)
