"""The upper bound that learns from every view: it takes steps on further views, and says where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.errors import UserError
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.sinnerf.plugin import AllViews, stage_weights
from atlas.methods.sinnerf.settings import LossWeights, SinNeRFSettings
from atlas.settings import Settings, merge
from atlas.tasks.novel_view_synthesis.analytic import analytic_scene

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def small() -> Run:
    run = Study.read("demo", ROOT).find("novel-view-synthesis/analytic/nerf1/seed10")
    return replace(run, protocol=merge(run.protocol, run.task_entry.smallest))


def test_every_step_on_further_views_changes_the_field(small: Run) -> None:
    scene = analytic_scene(0)
    row = AllViews(small, Settings())
    row.start(replace(scene, train=scene.test), CPU)
    before = {name: value.clone() for name, value in row.tensors().items() if value.is_floating_point()}
    losses = [float(row.step(index)["loss"]) for index in range(row.total)]
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)
    after = row.tensors()
    assert any((after[name] != value).any() for name, value in before.items())
    again = AllViews(small, Settings())
    again.start(replace(scene, train=scene.test), CPU)
    again.model.field.load_state_dict(row.model.field.state_dict())
    again.optimizer.load_state_dict(row.optimizer.state_dict())
    torch.testing.assert_close(again.step(4)["loss"], row.step(4)["loss"])


def test_a_scene_of_one_view_is_refused(small: Run) -> None:
    row = AllViews(small, Settings())
    with pytest.raises(UserError, match="the scene has no further views to learn from"):
        row.start(analytic_scene(0), CPU)


def test_a_weight_is_one_number_or_one_for_each_stage() -> None:
    settings = SinNeRFSettings(depth=3, vit=(10, 0))
    assert stage_weights(settings, 2) == [LossWeights(depth=3, vit=10), LossWeights(depth=3)]
    with pytest.raises(ValueError, match="vit has 2 values for 3 stages"):
        stage_weights(settings, 3)
    with pytest.raises(ValueError, match="adv"):
        SinNeRFSettings(adv=(0, -1))
    with pytest.raises(ValueError, match="vit"):
        LossWeights(vit=(10, 0))  # type: ignore[arg-type]


def test_rows_differ_in_their_terms_alone() -> None:
    study = Study.read("paper", ROOT)
    terms = {
        "nerf1": {"rgb"},
        "dsnerf": {"rgb", "depth"},
        "dietnerf": {"rgb", "consistency"},
        "sinnerf-geom": {"rgb", "depth", "side"},
        "sinnerf": {"rgb", "depth", "side", "vit", "adv"},
    }
    for name, expected in terms.items():
        run = study.find(f"novel-view-synthesis/lego/{name}/seed0")
        first, second = stage_weights(run.settings_model(name), 2)
        assert {term for term in LossWeights.model_fields if getattr(first, term) or getattr(second, term)} == expected
        assert (run.method_entries[0].options == {"warped": True}) == name.startswith("sinnerf")
