"""Seeds of a row that are trained at once: each as if it were trained by itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stacks import farthest
from torch import Tensor, nn

from atlas.errors import AtlasError, Interrupted
from atlas.harness.execute import train_run, train_stack, training_summary
from atlas.harness.files import read_tensors
from atlas.harness.lockstep import Lockstep
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.nn.stacked import Stack, Unstackable
from atlas.settings import merge
from atlas.tasks.image_classification.ingredients import Ingredient
from atlas.tasks.image_classification.stacking import train_together
from atlas.tasks.image_classification.training import Training

ROOT = Path(__file__).resolve().parents[2]
TWENTY_STEPS: dict[str, Any] = {
    "epochs": 1,
    "warmup_epochs": 0.3,
    "batch_size": 60,
    "log_every": 7,
    "clip_norm": 0.5,
    "backbone": {"depth": 2, "drop_path_rate": 0.3},
    "data": {"crop_padding": 1, "flip": True},
}
STUDY = """
seeds: [4, 5]
batch_seeds: true
stack_seeds: true
image-classification:
  datasets:
    digits:
      protocol:
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 8, depth: 2, num_heads: 2, drop_path_rate: 0}
        epochs: 2
        warmup_epochs: 0
        batch_size: 1200
        mixup: 0
        cutmix: 0
      methods: {deit: {}, cait: {class_layers: 1}}
"""
FAST = ("digits/deit", "digits/attnscale", "digits-mixed/attnscale+diverse-vit")
SLOW = ("digits/layerscale", "digits/featscale", "digits/head-gain", "digits-mixed/deit", "digits-mixed/diverse-vit")
ROWS = (*FAST, *(pytest.param(row, marks=pytest.mark.slow) for row in SLOW))


def seeds_of(row: str, root: Path, seeds: tuple[int, ...] = (10, 11, 12), **protocol: object) -> list[Run]:
    """Stacked runs of a row of the demo, with another protocol."""
    study = Study.read("demo", ROOT)
    found = [study.find(f"image-classification/{row}/seed{seed}") for seed in seeds]
    return [
        replace(run, root=root, stack_seeds=True, protocol=merge(merge(run.protocol, TWENTY_STEPS), protocol)) for run in found
    ]


def at(root: Path, runs: list[Run], stacked: bool = True) -> list[Run]:
    """The same runs with files of their own, on the same data."""
    root.mkdir()
    (root / "data").symlink_to(runs[0].root / "data")
    return [replace(run, root=root, stack_seeds=stacked) for run in runs]


@pytest.mark.parametrize("row", ROWS)
def test_seeds_at_once_are_single_runs_in_double_precision(row: str, workspace: Path, tmp_path: Path) -> None:
    together = seeds_of(row, workspace, seeds=(10, 11), precision="float64")
    alone = at(tmp_path / "alone", together, stacked=False)
    assert all(outcome is True for outcome in train_stack(together).values())
    for one, same in zip(together, alone, strict=True):
        train_run(same)
        assert farthest(one, same) < 1e-9
        assert training_summary(one) == training_summary(same)
        curves = [[line.split(",") for line in run.history.read_text().splitlines()] for run in (one, same)]
        assert curves[0][0] == curves[1][0]
        assert len(curves[0]) == 4  # steps 7, 14 and 20
        for mine, other in zip(curves[0][1:], curves[1][1:], strict=True):
            assert [float(value) for value in mine] == pytest.approx([float(value) for value in other], rel=1e-7, abs=1e-9)
        assert {path.name for path in one.checkpoint.iterdir()} == {path.name for path in same.checkpoint.iterdir()}
        assert {path.name for path in one.results.iterdir()} == {path.name for path in same.results.iterdir()}


def test_seeds_at_once_are_single_runs_to_rounding_in_single_precision(workspace: Path, tmp_path: Path) -> None:
    together = seeds_of("digits/attnscale", workspace, backbone={"depth": 12}, ema_decay=0.5, evaluate_ema=True, micro_batch=20)
    alone = at(tmp_path / "alone", together, stacked=False)
    train_stack(together)
    for one, same in zip(together, alone, strict=True):
        train_run(same)
        assert farthest(one, same) < 2e-3
    assert farthest(*together[:2]) > 0.1  # seeds differ


def test_numbers_do_not_depend_on_which_seeds_are_there(workspace: Path, tmp_path: Path) -> None:
    three = seeds_of("digits/featscale", workspace)
    (one,) = at(tmp_path / "one", three[1:2])
    train_stack(three)
    train_stack([one])
    assert farthest(one, three[1]) == 0


def test_an_interrupted_stack_goes_on_as_if_nothing_had_happened(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = seeds_of("digits/deit", workspace)
    parts = at(tmp_path / "parts", whole)
    train_stack(whole)
    steps = iter(range(100))

    def told(self: Training, step: int, images: int) -> None:
        self.step = step
        if next(steps) == 3 * 11 + 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        counted = Training.begin_step
        patched.setattr(Training, "begin_step", lambda self, *given: (told(self, *given), counted(self, *given))[1])
        with pytest.raises(Interrupted, match=r"deit/seed10 and 2 more: stopped by SIGTERM after step 12 of 20"):
            train_stack(parts)
    assert not any(run.record.exists() for run in parts)
    states = [path for run in parts for path in (run.checkpoint / "state").rglob("state-*.pt")]
    single = sum(value.nbytes for value in read_tensors(whole[0].weights).values())
    assert len(states) == 3
    assert all(path.stat().st_size < 5 * single for path in states)  # weights, two moments, and no other run's
    train_stack(parts[:1])  # each goes on by itself, or with others
    train_stack(parts)
    for one, same in zip(parts, whole, strict=True):
        assert farthest(one, same) == 0
        assert one.history.read_text() == same.history.read_text()


def test_a_seed_that_fails_leaves_the_others_be(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seeds_of("digits/deit", workspace)
    runs = at(tmp_path / "some", whole)
    train_stack(whole)
    own = Training.base_loss

    def spoilt(self: Training, logits: Tensor, batch: Any) -> Tensor:
        return own(self, logits, batch) * (float("nan") if self.run.seed == 11 and self.step > 4 else 1)

    monkeypatch.setattr(Training, "base_loss", spoilt)
    outcomes = train_stack(runs)
    assert isinstance(outcomes[runs[1].cell], AtlasError)
    assert "not finite at step 7" in runs[1].failure.read_text()
    assert not runs[1].record.exists()
    for index in (0, 2):
        assert outcomes[runs[index].cell] is True
        assert farthest(runs[index], whole[index]) == 0


def test_the_mode_is_part_of_a_run_and_is_told(workspace: Path) -> None:
    (run,) = seeds_of("digits/deit", workspace, seeds=(10,))
    assert run.fingerprint != replace(run, stack_seeds=False).fingerprint
    assert run.described()["stacked"] is True
    assert "stacked" not in replace(run, stack_seeds=False).described()
    train_stack([run])
    assert '"trained_at_once": 1' in run.record.read_text()


@pytest.mark.parametrize("row", [f"{entry.name}" for entry in load().methods["image-classification"].values() if entry.stacks])
def test_whatever_says_that_it_stacks_does(row: str, workspace: Path) -> None:
    base = seeds_of("digits/deit", workspace, seeds=(10, 11), epochs=2, warmup_epochs=1, batch_size=1200, backbone={"depth": 3})
    entry = load().methods["image-classification"][row]
    settings = {row: entry.settings(**entry.preset).model_dump()}
    runs = [replace(run, method=row, recipe=(row,), method_entries=(entry,), settings=settings) for run in base]
    assert all(run.stacked for run in runs)
    assert all(isinstance(outcome, dict) for outcome in train_together(runs))


def test_what_cannot_be_stacked_says_why(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(*extra: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), *extra)

    with pytest.raises(Unstackable, match=r"1 \(Dropout\) has dropout of 0.5"):
        Stack([model(nn.Dropout(0.5)), model(nn.Dropout(0.5))]).join()
    with pytest.raises(Unstackable, match="has a buffer, 1.running_mean"):
        Stack([model(nn.BatchNorm1d(3))] * 2)
    with pytest.raises(Unstackable, match="different parameters"):
        Stack([model(), model(nn.Linear(3, 3))])
    assert not seeds_of("digits/deit", workspace, backbone={"drop_rate": 0.1})[0].stacked
    assert not seeds_of("digits/deit", workspace, precision="float16")[0].stacked
    runs = seeds_of("digits/deit", workspace)
    monkeypatch.setattr(Ingredient, "optimizer", lambda self, groups: torch.optim.SGD(groups))
    with pytest.raises(AtlasError, match=r"cannot be trained together with other seeds: it is trained by SGD; set stack_seeds"):
        train_stack(runs)


def test_a_hook_sees_its_models_share_and_may_only_look() -> None:
    torch.manual_seed(0)
    models: list[nn.Module] = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)) for _ in range(3)]
    stack = Stack(models)
    seen: dict[int, Tensor] = {}
    for index, model in enumerate(models):
        model[0].register_forward_hook(lambda module, inputs, output, index=index: seen.update({index: output}))  # type: ignore[index]
    stack.join()
    stack.watch()
    images = torch.randn(3, 5, 3)
    made = stack(images)
    for index, model in enumerate(models):
        torch.testing.assert_close(seen[index], model[0](images[index]))  # type: ignore[index]
        torch.testing.assert_close(made[index], model(images[index]))
    models[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    stack.watch()
    with pytest.raises(Unstackable, match="a hook on Sequential changes what passes"):
        stack(images)


def test_loops_in_lockstep_have_the_same_steps_left(workspace: Path) -> None:
    from atlas.harness.lockstep import Randomness
    from atlas.harness.resume import training

    runs = seeds_of("digits/deit", workspace, seeds=(10, 11))
    own = [Randomness(run) for run in runs]
    with pytest.raises(ValueError, match="same steps left"):
        Lockstep([training(runs[0], 3, {}), training(runs[1], 4, {})], own)


def test_the_command_line_trains_and_evaluates_a_row_at_once(workspace: Path) -> None:
    (workspace / "config").mkdir()
    (workspace / "config/mine.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "atlas", "train", "--tier", "mine", "--evaluate", "image-classification/digits"]
    said = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=True)
    assert "deit/seed4 and 1 more train 2/2" in said.stderr
    for row, stacked in (("deit", True), ("cait", False)):
        for seed in (4, 5):
            results = workspace / "results/mine/runs/image-classification/digits" / row / f"seed{seed}"
            content = json.loads((results / "metrics.json").read_text())
            assert content["run"].get("stacked", False) is stacked
            assert content["provenance"].get("trained_at_once") == (2 if stacked else None)
            assert 0 <= content["metrics"]["top1"] <= 1
    again = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=True)
    assert again.stderr.count("already trained") == 4
    assert not any(run.place != "mine" or (run.checkpoint / "state").exists() for run in Study.read("mine", workspace).runs)
