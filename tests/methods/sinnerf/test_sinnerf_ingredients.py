"""The upper bound that learns from every view: it takes steps on further views, and says where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.errors import UserError
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.sinnerf.entry import FieldMethod
from atlas.methods.sinnerf.ingredients import AllViews
from atlas.settings import merge
from atlas.tasks.novel_view_synthesis.analytic import analytic_scene

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def small() -> Run:
    run = Study.read("demo", ROOT).find("novel-view-synthesis/analytic/nerf1/seed10")
    return replace(run, protocol=merge(run.protocol, run.task_entry.smallest))


def test_every_step_on_further_views_changes_the_field(small: Run) -> None:
    scene = analytic_scene(0)
    row = AllViews(small.protocol_model(), FieldMethod(), seed=3)
    row.start(replace(scene, train=scene.test), CPU)
    before = {name: value.clone() for name, value in row.tensors().items() if value.is_floating_point()}
    losses = [float(row.step(index)["loss"]) for index in range(row.total)]
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)
    after = row.tensors()
    assert any((after[name] != value).any() for name, value in before.items())
    again = AllViews(small.protocol_model(), FieldMethod(), seed=3)
    again.start(replace(scene, train=scene.test), CPU)
    again.model.field.load_state_dict(row.model.field.state_dict())
    again.optimizer.load_state_dict(row.optimizer.state_dict())
    torch.testing.assert_close(again.step(4)["loss"], row.step(4)["loss"])


def test_a_scene_of_one_view_is_refused(small: Run) -> None:
    row = AllViews(small.protocol_model(), FieldMethod(), seed=3)
    with pytest.raises(UserError, match="the scene has no further views to learn from"):
        row.start(analytic_scene(0), CPU)
