"""VFDS in its task: every tier's rows build, the baselines keep to VFDS's cost, and the oracle is exact."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atlas.datasets.activity import write_recordings
from atlas.datasets.looks import look_at
from atlas.datasets.manifest import describe
from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors, write_json
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.vfds import SelectiveGRU, Sweep, arm_loss, baselines, selection_loss
from atlas.methods.vfds.baselines import target_count, top
from atlas.methods.vfds.settings import SelectionSettings
from atlas.methods.vfds.stages import bayes_filter
from atlas.settings import Settings, merge, validate_settings
from atlas.tasks.feature_acquisition.protocol import Protocol, Stream
from atlas.tasks.feature_acquisition.streams import synthetic_sequences

ROOT = Path(__file__).resolve().parents[3]
TASK = "feature-acquisition"
LONG_ROWS = {"vfds-arm-unbiased", "vfds-arm-published"}


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_build(tier: str) -> None:
    study = Study.read(tier, ROOT)
    rows = {runs[0].recipe[0]: runs[0] for (task, _, _), runs in study.by_row.items() if task == TASK}
    known = {entry.name for entry in load().methods[TASK].values() if entry.paper == "vfds"}
    assert known - set(rows) <= (LONG_ROWS if tier == "demo" else {"oracle"})
    for run in rows.values():
        if run.method_entries[0].plugin and not run.needs:
            run.build()


def test_paper_protocol_is_the_official_one() -> None:
    run = Study.read("paper", ROOT).find(f"{TASK}/uci-har/vfds/seed0")
    protocol = run.protocol_model()
    assert (protocol.hidden, protocol.batch_size, protocol.steps, protocol.stream.steps) == (2805, 10, 30000, 200)
    assert (protocol.optimizer, protocol.learning_rate, protocol.clip_norm, protocol.warmup) == ("rmsprop", 1e-4, None, 0)
    assert run.settings["vfds"]["temperature"] == 0.05
    opportunity = Study.read("paper", ROOT).find(f"{TASK}/opportunity/vfds/seed0").protocol_model()
    assert (opportunity.layers, opportunity.hidden, opportunity.optimizer, opportunity.steps) == (2, 256, "adam", 5000)


@pytest.mark.parametrize(
    ("dataset", "scale", "kappa", "cost_path"),
    [("uci-har", 5.0, 1.0, True), ("opportunity", 1.0, "lambda", False), ("extrasensory", 5.0, 1.0, False)],
)
def test_published_arm_is_that_of_its_data_set(dataset: str, scale: float, kappa: Any, cost_path: bool) -> None:
    study = Study.read("paper", ROOT)
    run = study.find(f"{TASK}/{dataset}/vfds-arm-published/seed0")
    settings = run.settings["vfds-arm-published"]
    assert (settings["logit_scale"], settings["kappa"], settings["cost_path"]) == (scale, kappa, cost_path)
    # rows of one data set differ in the estimator alone
    for row in ("vfds-arm", "vfds-arm-unbiased"):
        assert study.find(f"{TASK}/{dataset}/{row}/seed0").settings[row]["logit_scale"] == scale

    learner = run.build()[0]
    torch.manual_seed(0)
    x, y, noise = torch.randn(3, 5, 4), torch.randint(2, (3, 5)), torch.rand(5, 3, 4)
    cost, lam = torch.tensor([1.0, 3.0, 1.0, 1.0]), torch.tensor([0.1, 0.7])
    sweep = Sweep([SelectiveGRU(4, 6, 2, relaxation="arm", logit_scale=scale) for _ in range(2)])
    options = {"published": True, "kappa": kappa, "cost_path": cost_path}
    losses = [
        learner.estimate(sweep, x, y, cost, lam, noise),
        arm_loss(sweep, x, y, lam=lam, cost=cost, noise=noise, **options),
        arm_loss(sweep, x, y, lam=lam, cost=cost, noise=noise, **{**options, "cost_path": not cost_path}),
    ]
    row, same, other = ([*torch.autograd.grad(loss.total.sum(), list(sweep.parameters()))] for loss in losses)
    assert all(torch.equal(*pair) for pair in zip(row, same, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(row, other, strict=True))


@pytest.mark.parametrize("kappa", ["mu", -1.0, math.nan, math.inf, [1.0, 2.0]])
def test_settings_refuse_a_weight_that_is_none(kappa: Any) -> None:
    with pytest.raises(UserError, match=r"test\.kappa = .*: must be a finite number of at least 0, or lambda$"):
        validate_settings(load().method(TASK, "vfds-arm-published").settings, {"kappa": kappa}, "test", "vfds-arm-published")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": 5}, "is not one of lams"),
        ({"published": True}, "published is a form of arm"),
        ({"lams": []}, "at least 1 item"),
        ({"lams": [-1], "lam": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_refuse(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(load().method(TASK, "vfds").settings, settings, "test", "vfds")


def test_library_calls_have_the_defaults_of_the_rows() -> None:
    default = SelectionSettings()
    calls = {SelectiveGRU: default.model_options, selection_loss: default.loss_options}
    calls[arm_loss] = SelectionSettings(relaxation="arm").loss_options
    for call, options in calls.items():
        parameters = inspect.signature(call).parameters
        assert options == {name: parameters[name].default for name in options}
    assert set().union(*calls.values()) == set(SelectionSettings.model_fields) - {"lams", "lam"}


@pytest.mark.parametrize(
    ("row", "relaxation", "scale", "published"),
    [
        ("vfds", "concrete", 1, False),
        ("vfds-st", "st", 1, False),
        ("vfds-arm", "arm", 5, False),
        ("vfds-arm-unbiased", "arm-unbiased", 5, False),
        ("vfds-arm-published", "arm", 5, True),
        ("static", "concrete", 1, False),
    ],
)
def test_rows_differ_by_their_presets(row: str, relaxation: str, scale: float, published: bool) -> None:
    settings = Study.read("paper", ROOT).find(f"{TASK}/uci-har/{row}/seed0").settings[row]
    assert (settings["relaxation"], settings["logit_scale"], settings["published"]) == (relaxation, scale, published)
    assert (settings["kappa"], settings["cost_path"]) == (1.0, True)


def shrink(run: Run, root: Path) -> Run:
    """As short as it can be, with what it needs."""
    protocol = validate_settings(Protocol, merge(run.protocol, run.task_entry.smallest), "test", TASK)
    needs = {role: shrink(needed, root) for role, needed in run.needs.items()}
    return replace(run, root=root, protocol=protocol, needs=needs)


def test_baselines_keep_to_the_cost_of_vfds(workspace: Path) -> None:
    study = Study.read("demo", ROOT)
    rows = {
        name: shrink(study.find(f"{TASK}/synth/{name}/seed10"), workspace)
        for name in ("vfds", "static", "static-top-k", "random")
    }
    for run in rows.values():
        train_run(run)
    record = rows["vfds"].record
    content = json.loads(record.read_text())
    content["training"]["validation_frac_steady"] = 0.31
    write_json(record, content)
    assert target_count(rows["static-top-k"], 20) == 6
    train_run(rows["static-top-k"], force=True)
    state = read_tensors(rows["static-top-k"].weights)
    assert state["mask"].sum() == 6
    logits = read_tensors(rows["static"].weights)["static_logits"][1]  # λ = 1, the headline
    assert torch.equal(state["mask"][0], top(logits, 6))
    metrics = evaluate_run(rows["static-top-k"])["metrics"]
    assert metrics["n_features"] == pytest.approx(6)
    assert metrics["frac_steady"] == pytest.approx(0.3)
    assert metrics["context_drift"] == 0
    train_run(rows["random"], force=True)
    assert evaluate_run(rows["random"])["metrics"]["frac_steady"] == pytest.approx(0.31, abs=0.05)


@pytest.mark.parametrize(
    "row", ["vanilla", "vfds", "vfds-arm", "vfds-arm-unbiased", "vfds-arm-published", "static", "mi-top-k", "group-lasso"]
)
def test_rows_train_through_unlabelled_stretches(row: str, tmp_path: Path) -> None:
    """Four steps of one training recording are labelled, so that most batches hold no label at all."""
    run = shrink(Study.read("lab", ROOT).matching(TASK, "uci-har-subset", row)[0], tmp_path)
    run.data_folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    recordings = [(f"person {k}", draw.normal(size=(30, 3)), np.full(30, -1)) for k in range(8)]
    recordings = [(name, x.astype(np.float32), y) for name, x, y in recordings]
    for index in (0, 6, 7):
        recordings[index][2][10:14] = (0, 1, 0, 1)
    splits = {"train": [0, 1, 2, 3, 4, 5], "validation": [6], "test": [7]}
    write_recordings(run.data_folder, recordings, splits, classes=["still", "moving"], features=["a", "b", "c"])
    (run.data_folder / "manifest.json").write_text(describe(run.data, [], look_at(tmp_path / "data", run.data)).text)
    for needed in (*run.needs.values(), run):
        train_run(needed)
    assert all(tensor.isfinite().all() for tensor in read_tensors(run.weights).values())
    metrics = evaluate_run(run)["metrics"]
    assert 0 <= metrics["accuracy"] <= 1
    assert math.isfinite(metrics["nll"])


def test_mutual_information_waits_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of a thousand steps are labelled, by feature 1; what stands beside the others says nothing."""
    draw = torch.Generator().manual_seed(0)

    def batch(size: int, step: int, phase: str) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = torch.randn(size, 250, 3, generator=draw), torch.full((size, 250), -1)
        if step:
            y[0, :2] = torch.tensor([step % 2, 1 - step % 2])
            x[0, :2, 1] = 3.0 * y[0, :2]
        return x, y

    layout = SimpleNamespace(several=False, groups=torch.arange(3))
    bench: Any = SimpleNamespace(
        streams=SimpleNamespace(batch=batch, layout=layout), protocol=SimpleNamespace(batch_size=4), run=SimpleNamespace(seed=1)
    )
    monkeypatch.setattr(baselines, "target_count", lambda run, gates: 1)
    learner = baselines.MutualInformation(bench.run, Settings())
    values, labels = learner.labelled_steps(bench)
    assert values.shape == (78, 3)
    assert labels.unique().tolist() == [0, 1]
    assert learner.choose(bench).tolist() == [False, True, False]


def test_oracle_is_exact_on_the_synthetic_stream() -> None:
    stream = Stream(kind="synthetic", steps=40)
    sequences = synthetic_sequences(stream, 2000, 40, seed=123)

    def accuracy(*seen: int) -> float:
        blocks = torch.zeros(4, dtype=torch.bool)
        blocks[list(seen)] = True
        logits, _ = bayes_filter(sequences, 4, 0.05, blocks if seen else None)
        return float((logits.argmax(-1) == sequences.y).double().mean())

    assert accuracy(0, 1, 2, 3) == pytest.approx(0.9865, abs=0.005)
    assert accuracy() == pytest.approx(0.961, abs=0.005)
    # fixed blocks: the mean over which ones, since contexts are sticky and one choice alone varies by 0.003
    for count, expected in ((1, 0.629), (2, 0.748), (3, 0.872)):
        choices = list(combinations(range(4), count))[:4]
        assert sum(accuracy(*one) for one in choices) / len(choices) == pytest.approx(expected, abs=0.0075)
    _, gates = bayes_filter(sequences, 4, 0.05)
    assert float(gates[:, 1:].mean()) == pytest.approx(0.2)
