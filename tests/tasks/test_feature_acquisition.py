"""The task's own parts: streams, batches that can be gone on with, the optimiser, scores, and the choice of modes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atlas.datasets import stand_in
from atlas.datasets.activity import BANK, write_recordings
from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge, validate_settings
from atlas.tasks.feature_acquisition.learner import Learner, Prediction
from atlas.tasks.feature_acquisition.optimizers import StackedOptimizer
from atlas.tasks.feature_acquisition.protocol import Protocol, Stream
from atlas.tasks.feature_acquisition.scores import score, sensors_on
from atlas.tasks.feature_acquisition.streams import (
    GateLayout,
    Recordings,
    Sequences,
    Streams,
    consecutive,
    load_streams,
    recorded,
    session,
    sessions,
    synthetic_layout,
    synthetic_sequences,
)
from atlas.tasks.feature_acquisition.training import choose_modes, make_bench

ROOT = Path(__file__).resolve().parents[2]
TASK = "feature-acquisition"


def demo(root: Path, cell: str = "synth/vfds", **protocol: Any) -> Run:
    run = Study.read("demo", ROOT).find(f"{TASK}/{cell}/seed10")
    changed = validate_settings(Protocol, merge(run.protocol, run.task_entry.smallest, protocol), "test", TASK)
    return replace(run, root=root, protocol=changed)


def test_synthetic_stream_is_what_it_says() -> None:
    stream = Stream(kind="synthetic", steps=40)
    found = synthetic_sequences(stream, 500, 40, seed=1)
    assert found.x.shape == (500, 40, 20)
    context, bit = found.y // 2, found.y % 2
    assert torch.equal(context, found.context)
    switched = (context[:, 1:] != context[:, :-1]).double().mean()
    assert float(switched) == pytest.approx(0.05, abs=0.006)
    truth = synthetic_layout(stream).truth
    assert truth.sum(1).tolist() == [4] * 4
    signs = 2.0 * bit - 1
    for one in range(4):
        block = found.x[..., 2 + 2 * one]
        here = context == one
        assert float((block * signs)[here].mean()) == pytest.approx(1, abs=0.03)
        assert float((block * signs)[~here].mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(synthetic_sequences(stream, 5, 9, 1).x, synthetic_sequences(stream, 5, 9, 1).x)


@pytest.mark.parametrize("cell", ["synth/vfds", "basic-motions/vfds", "handover/vfds"])
def test_test_sequences_do_not_depend_on_the_seed(workspace: Path, cell: str) -> None:
    run = demo(workspace, cell)
    first, second = (load_streams(replace(run, seed=seed), run.protocol_model().stream) for seed in (1, 2))
    assert torch.equal(first.splits["test"].x, second.splits["test"].x)
    assert not torch.equal(first.splits["validation"].x, second.splits["validation"].x)
    assert torch.equal(first.batch(4, 7)[0], load_streams(replace(run, seed=1), run.protocol_model().stream).batch(4, 7)[0])
    assert not torch.equal(first.batch(4, 7)[0], first.batch(4, 8)[0])
    assert not torch.equal(first.batch(4, 7)[0], second.batch(4, 7)[0])


def test_sessions_do_not_repeat_a_class_or_overlap() -> None:
    labels = np.repeat(np.arange(4), 10)
    series, offsets = session(np.random.default_rng(0), labels, 81, 64, 20)
    bouts = labels[series][::4]
    assert (labels[series].reshape(-1, 4) == bouts[:, None]).all()
    assert (np.diff(offsets.reshape(-1, 4), axis=1) == 20).all()
    assert offsets.max() <= 80
    longest = max(len(list(one)) for one in np.split(bouts, np.flatnonzero(np.diff(bouts)) + 1))
    assert longest <= 3


def test_series_of_splits_do_not_mix(workspace: Path) -> None:
    run = demo(workspace, "basic-motions/vfds")
    streams = load_streams(run, run.protocol_model().stream)
    rows = {name: {tuple(row) for row in split.x.flatten(0, 1).tolist()} for name, split in streams.splits.items()}
    train = {tuple(row) for row in streams.train.x.flatten(0, 1).tolist()}
    assert not train & rows["validation"]
    assert not train & rows["test"]
    assert not rows["validation"] & rows["test"]


def test_group_gates_cost_what_their_sensors_cost(workspace: Path) -> None:
    run = demo(workspace, "basic-motions/vfds", stream={"gates": "group"})
    layout = load_streams(run, run.protocol_model().stream).layout
    assert layout.cost.tolist() == [1, 1, 1, 3, 3, 3]
    assert torch.bincount(layout.groups).tolist() == [8] * 6


def test_handover_shows_the_session_on_the_worn_device(workspace: Path) -> None:
    run = demo(workspace, "handover/vfds")
    split = load_streams(run, run.protocol_model().stream).splits["test"]
    assert split.x.shape[-1] == 74
    device = split.x[..., :72].unflatten(-1, (3, 24))
    worn = device.gather(2, split.context[..., None, None].expand(-1, -1, 1, 24)).squeeze(2)
    arrays = set(map(tuple, worn.flatten(0, 1).round(decimals=3).tolist()))
    assert len(arrays) > 20
    angle = torch.atan2(split.x[..., 73], split.x[..., 72])
    assert float((torch.cos(angle - 2 * torch.pi * split.context / 3) > 0.5).double().mean()) > 0.98


def recordings(*lengths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.arange(n).float()[:, None] + 100 * k, torch.arange(n) % 3) for k, n in enumerate(lengths)]


def test_segments_of_recordings() -> None:
    found = Recordings(recordings(20, 30, 5), 8)
    assert len(found.recordings) == 2
    x, _ = found.segments(2, torch.Generator().manual_seed(0))
    assert x.shape == (2, 8, 1)
    assert (x[:, 1:] - x[:, :-1] == 1).all()
    assert len({int(value) // 100 for value in x[:, 0, 0]}) == 2
    assert found.segments(5, torch.Generator().manual_seed(0))[0].shape[0] == 5
    with pytest.raises(UserError, match=r"stream\.steps to 5"):
        Recordings(recordings(5), 8)


def test_consecutive_segments_count_every_label_once() -> None:
    found = consecutive(recordings(20, 8, 5), 8)
    assert len(found) == 4
    assert int((found.y >= 0).sum()) == 28
    assert found.y[2, :4].tolist() == [-1] * 4


def recorded_streams(folder: Path, change: Any, several: bool = False) -> Streams:
    """Three recordings of two features, one per split, after ``change(arrays)``; two classes, or two labels per step."""
    draw = np.random.default_rng(0)
    shape = (12, 2) if several else (12,)
    parts = [(f"person {k}", draw.normal(size=(12, 2)).astype(np.float32), draw.integers(2, size=shape)) for k in range(3)]
    change(parts)
    splits = {"train": [0], "validation": [1], "test": [2]}
    write_recordings(folder, parts, splits, classes=["still", "moving"], features=["a", "b"], several=several)
    return recorded(folder, Stream(steps=6, long_steps=12), seed=0)


def test_readings_that_are_not_finite_are_missing(tmp_path: Path) -> None:
    """One infinite reading must not cost its feature; what is missing is the mean."""

    def gap(value: float) -> Any:
        def change(parts: list[Any]) -> None:
            for _, x, _ in parts:
                x[3, 0] = value

        return change

    found = [recorded_streams(tmp_path, gap(value)) for value in (np.nan, np.inf, -np.inf)]
    for streams in found:
        x, _ = streams.train.recordings[0]
        assert x.isfinite().all()
        assert float(x[3, 0]) == 0
        assert float(x[:, 0].abs().min(dim=0).values) == 0
        assert float(x[torch.arange(12) != 3, 0].std(correction=0)) == pytest.approx(1, abs=1e-5)
        assert torch.equal(x, found[0].train.recordings[0][0])
        assert torch.equal(streams.splits["test"].x, found[0].splits["test"].x)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "label no step"),
        (2, r"classes must lie from 0 to 1.*the first is 2 at "),
        (-3, r"the first is -3 at "),
        (0.5, r"the first is 0\.5 at "),
        (np.nan, r"the first is nan at "),
    ],
)
def test_streams_refuse_labels_that_say_nothing(tmp_path: Path, split: str, value: float, message: str) -> None:
    def change(parts: list[Any]) -> None:
        index = ["train", "validation", "test"].index(split)
        name, x, y = parts[index]
        y = y.astype(np.float64) if isinstance(value, float) else y
        y[slice(None) if value == -1 else 4] = value
        parts[index] = (name, x, y)

    where = f"the {split} recordings" if value == -1 else f"recording person {['train', 'validation', 'test'].index(split)}: "
    with pytest.raises(UserError, match=rf"^{where}.*{message}") as error:
        recorded_streams(tmp_path, change)
    assert "\n" not in str(error.value)


def test_streams_of_several_labels(tmp_path: Path) -> None:
    def unlabelled(parts: list[Any]) -> None:
        parts[0][2][1:] = -1

    assert int((recorded_streams(tmp_path, unlabelled, several=True).train.recordings[0][1] >= 0).sum()) == 2
    with pytest.raises(UserError, match=r"^recording person 0: several labels must be 0 or 1.*the first is 3 at \[0, 2, 1\]"):
        recorded_streams(tmp_path, lambda parts: parts[0][2].__setitem__((2, 1), 3), several=True)


def test_labels_may_come_in_any_type(tmp_path: Path) -> None:
    def floats(parts: list[Any]) -> None:
        parts[:] = [(name, x, y.astype(np.float32)) for name, x, y in parts]

    plain, found = recorded_streams(tmp_path, lambda parts: None), recorded_streams(tmp_path, floats)
    assert torch.equal(plain.splits["test"].y, found.splits["test"].y)
    assert found.splits["test"].y.dtype == torch.int64


def test_features_of_composed_streams_must_be_finite(workspace: Path) -> None:
    run = demo(workspace, "basic-motions/vfds")
    arrays = read_tensors(run.data_folder / BANK)
    arrays["test_bank"] = arrays["test_bank"].clone()
    arrays["test_bank"][:, :, 3] = torch.nan
    with pytest.raises(UserError, match=r"^bank\.safetensors: test_bank must hold no NaN or infinity.*the first at \[0, 0, 3\]"):
        sessions(arrays, run.protocol_model().stream, seed=1)


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_optimiser_follows_torch_and_clips_each_model_by_itself(kind: Any) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(torch.randn(2, 4, 3))
    module.bias = nn.Parameter(torch.randn(2, 4))
    singles = [[nn.Parameter(p[k].detach().clone()) for p in (module.weight, module.bias)] for k in range(2)]
    protocol = Protocol(optimizer=kind, learning_rate=0.01, clip_norm=1.0)
    mine = StackedOptimizer(module, protocol)
    torchs = [torch.optim.Adam(one, lr=0.01) if kind == "adam" else torch.optim.RMSprop(one, lr=0.01) for one in singles]
    for step in range(5):
        for index, scale in enumerate((5.0, 0.01)):
            for own, stacked in zip(singles[index], (module.weight, module.bias), strict=True):
                own.grad = scale * torch.randn(own.shape, generator=torch.Generator().manual_seed(step))
                stacked.grad = torch.zeros_like(stacked) if stacked.grad is None else stacked.grad
                stacked.grad[index] = own.grad
            nn.utils.clip_grad_norm_(singles[index], 1.0)
            torchs[index].step()
        mine.step()
    for index in range(2):
        assert torch.allclose(module.weight[index], singles[index][0], atol=1e-6)
        assert torch.allclose(module.bias[index], singles[index][1], atol=1e-6)
    again = StackedOptimizer(module, protocol)
    again.load_state_dict(mine.state_dict())
    assert again.count == 5
    assert torch.equal(again.second[0], mine.second[0])


def layout(features: int = 2, classes: int = 2, several: bool = False) -> GateLayout:
    index = torch.arange(features)
    return GateLayout(
        index, torch.tensor([1.0, 3.0]), ["a", "b"], torch.tensor([0, 0]), [str(k) for k in range(classes)], several
    )


def test_scores_by_hand() -> None:
    y = torch.tensor([[0, 1, 1, -1]])
    logits = torch.tensor([[[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]]]])
    gates = torch.tensor([[[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]])
    found = score(Prediction(logits, gates), 0, Sequences(torch.zeros(1, 4, 2), y), layout())
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["iou"] == pytest.approx(0.5)
    assert found["frac_steady"] == pytest.approx(2 / 6)
    assert found["frac_total"] == pytest.approx(4 / 8)
    assert found["frac_official"] == pytest.approx(2 / 8)
    assert found["cost_fraction"] == pytest.approx(4 / 12)
    assert found["n_features"] == pytest.approx(2 / 3)
    assert found["sensor_on"] == pytest.approx(2 / 3)
    assert sensors_on(gates[0], torch.tensor([0, 1])).tolist() == pytest.approx([1 / 3, 1 / 3])


def test_scores_of_several_labels() -> None:
    y = torch.tensor([[[1, 0], [-1, 1]]])
    logits = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]]])
    found = score(Prediction(logits, torch.ones(1, 1, 2, 2)), 0, Sequences(torch.zeros(1, 2, 2), y), layout(several=True))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(0.8)
    assert found["iou"] == pytest.approx(2 / 3)


def test_modes_are_chosen_on_validation_data(workspace: Path) -> None:
    bench = make_bench(demo(workspace))
    split = bench.streams.splits["validation"]

    class Fixed(Learner):
        points, weights, modes = (0.0, 10.0), (0.0, 10.0), ("threshold", "sample")

        def predict(self, x: Any, mode: Any, random: Any) -> Prediction:
            """Sampling is right and expensive, the threshold wrong and free."""
            y = split.y[: len(x)]
            right = 5.0 * nn.functional.one_hot(y, 8)
            logits = right if mode == "sample" else torch.zeros_like(right)
            gates = torch.full((2, *x.shape), float(mode == "sample"))
            return Prediction(logits.expand(2, *logits.shape), gates)

    modes, best = choose_modes(Fixed(bench.run, None), bench)
    assert modes == ["sample", "threshold"]
    assert (best[0]["accuracy"], best[1]["frac_steady"]) == (1.0, 0.0)


def test_streams_refuse_other_data(workspace: Path) -> None:
    with pytest.raises(UserError, match="cannot be made of the dataset null"):
        make_bench(demo(workspace, stream={"kind": "recordings"}))
    with pytest.raises(UserError, match="power of two"):
        demo(workspace, stream={"contexts": 6})


@pytest.mark.parametrize("tier", ["lab", "paper"])
def test_rows_of_the_larger_tiers_train_on_stand_ins(tier: str, tmp_path: Path) -> None:
    """One row per benchmark, as small as can be, on random data of the dataset's shape."""
    study = Study.read(tier, ROOT)
    for dataset in dict.fromkeys(name for task, name in study.tables if task == TASK):
        run = study.matching(TASK, dataset, "vfds")[0]
        assert len(run.build()) == 1
        small = {**run.task_entry.smallest, "layers": run.protocol["layers"]}
        protocol = validate_settings(Protocol, merge(run.protocol, small), "test", TASK)
        run = replace(run, root=tmp_path, protocol=protocol, resources=run.resources.model_copy(update={"device": "cpu"}))
        if run.data and not run.data_folder.exists():
            stand_in(run.data, tmp_path / "data")
        train_run(run)
        assert 0 <= evaluate_run(run)["metrics"]["accuracy"] <= 1
