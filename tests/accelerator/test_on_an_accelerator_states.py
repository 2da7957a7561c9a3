"""What is saved and drawn on a pretended GPU: interrupted trainings, stacks of seeds, generators, states that change devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conformance.test_methods import STUDY, interrupted_every, shortest, with_data
from tests.pretend_accelerator import Pretence, pretending
from tests.stacks import farthest

from atlas.errors import Interrupted
from atlas.harness.execute import train_run, train_stack
from atlas.harness.lockstep import Randomness
from atlas.harness.resume import Values, random_state, set_random_state
from atlas.harness.run import Run
from atlas.harness.seeds import drawing, generator, pick_device
from atlas.methods.sparse_robust import WeightAverage
from atlas.settings import merge

FAST = (
    "feature-acquisition/synth/vfds",
    "adversarial-robustness/digits/flying-bird",
    "federated-learning/digits-domains/split-mix",
    "learned-optimization/digits/rnnprop",
    "learned-optimization/digits/amalgamated-noisy",
)
LONG = (
    "learned-optimization/digits/l2o-dm",
    "novel-view-synthesis/analytic/sinnerf-geom",
    "image-classification/digits-compressed/uvc-b35",
    "image-classification/digits/unstructured",
    "image-classification/digits-mixed/diverse-vit",
    "image-classification/digits-as-vit/as-vit-growth",
    "feature-acquisition/synth/group-lasso",
    "feature-acquisition/synth/vfds-arm",
    "adversarial-robustness/digits/robust-bird",
    "federated-learning/digits-robust/split-mix-dat",
    "learned-optimization/digits/choice-policy",
    "learned-optimization/digits/l2o-scale",
    "learned-optimization/digits/template-tuned",
)
ROWS = [*FAST, *(pytest.param(row, marks=pytest.mark.slow) for row in LONG)]


@pytest.fixture
def device() -> Iterator[Pretence]:
    """A pretended GPU, with a stream of random numbers of its own."""
    with pretending(own_stream=True) as found:
        yield found


def run_of(row: str, root: Path, device: str = "cuda") -> Run:
    """A short run of a row, with what it needs, on a device."""
    found = shortest(next(run for run in STUDY.runs if f"{run.task}/{run.dataset}/{run.method}" == row), root)

    def moved(run: Run) -> Run:
        resources = run.resources.model_copy(update={"device": device})
        return replace(run, resources=resources, needs={role: moved(needed) for role, needed in run.needs.items()})

    return moved(found)


def train_all(run: Run) -> None:
    """Train a run and what it needs."""
    for needed in run.needs.values():
        train_all(needed)
    train_run(run)


def interrupted(run: Run, patched: pytest.MonkeyPatch, devices: Iterator[str]) -> int:
    """Train in pieces, each on the next device; returns how often it was interrupted."""
    for times, where in enumerate(devices):
        try:
            with interrupted_every(0, patched):
                train_run(replace(run, resources=run.resources.model_copy(update={"device": where})))
        except Interrupted:
            continue
        return times
    raise AssertionError("never comes to an end")


def design(run: Run) -> dict[str, bytes]:
    """What a stage leaves, file by file."""
    return {path.name: path.read_bytes() for path in run.checkpoint.iterdir() if path.name != "settings.json"}


@pytest.mark.parametrize("row", ROWS)
def test_an_interrupted_training_goes_on(
    row: str, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, device: Pretence
) -> None:
    """Its weights are the same bits: the device's own generator is part of the state."""
    roots = [with_data(tmp_path / name, data_folder) for name in ("whole", "parts") if (tmp_path / name).mkdir() is None]
    whole, parts = (run_of(row, root) for root in roots)
    train_all(whole)
    for needed in parts.needs.values():
        train_all(needed)
    assert interrupted(parts, monkeypatch, iter(["cuda"] * 20)) > 0
    if whole.weights.is_file():
        assert farthest(whole, parts) == 0
    else:  # a stage that leaves a design, and no network
        assert design(whole) == design(parts) != {}


@pytest.mark.parametrize("row", ROWS)
def test_a_state_changes_devices(row: str, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretending():
        run = run_of(row, with_data(tmp_path, data_folder))
        for needed in run.needs.values():
            train_all(needed)
        assert interrupted(run, monkeypatch, iter(["cpu", "cuda"] * 20)) > 0


def stacked(root: Path, data: Path, place: str) -> list[Run]:
    """Two seeds with stochastic depth, trained at once on a device."""
    root.mkdir()
    first = run_of("image-classification/digits/deit", with_data(root, data), place)
    changed = merge(first.protocol, {"clip_norm": 0.5, "ema_decay": 0.5, "backbone": {"drop_path_rate": 0.3}})
    return [replace(first, seed=seed, stack_seeds=True, protocol=changed) for seed in (10, 11)]


def test_seeds_at_once_are_single_runs(tmp_path: Path, data_folder: Path) -> None:
    """Joint weights, one fused optimiser, and a generator of the device for each seed's stochastic depth."""
    with pretending(own_stream=True):
        together = stacked(tmp_path / "together", data_folder, "cuda")
        assert all(outcome is True for outcome in train_stack(together).values())
        for run in stacked(tmp_path / "alone", data_folder, "cuda"):
            alone = replace(run, stack_seeds=False)
            train_run(alone)
            assert farthest(together[alone.seed - 10], alone) < 1e-3
    assert farthest(*together) > 0.01


def test_generators_are_the_devices_own(device: Pretence) -> None:
    assert pick_device("auto") == torch.device("cuda")
    assert generator(0, "order", device="cuda").device.type == "cuda"
    torch.manual_seed(0)
    expected = torch.rand(2, device="cuda").tolist()
    torch.manual_seed(0)
    with drawing(1, "attack", device="cuda"):
        other = torch.rand(2, device="cuda").tolist()
    assert torch.rand(2, device="cuda").tolist() == expected != other
    state = random_state()
    drawn = torch.rand(2, device="cuda").tolist()
    set_random_state(state)
    assert torch.rand(2, device="cuda").tolist() == drawn


def test_a_generator_goes_on_where_a_runs_own_is(device: Pretence, tmp_path: Path) -> None:
    randomness = Randomness(run_of("image-classification/digits/deit", tmp_path))
    own = randomness.generator("cuda")
    first = torch.rand(2, device="cuda", generator=own).tolist()
    with randomness():
        assert torch.rand(2, device="cuda").tolist() == first
    randomness.follow(own)
    with randomness():
        assert torch.rand(2, device="cuda").tolist() != first


def test_values_go_back_to_the_device(device: Pretence) -> None:
    values = Values(total=torch.zeros(2, device="cuda"), steps=3)
    values.load_state_dict({"total": torch.ones(2), "steps": 4})
    assert (values.total.device.type, values.total.tolist(), values.steps) == ("cuda", [1.0, 1.0], 4)


def test_an_average_of_weights_goes_on_from_a_state_on_the_cpu(device: Pretence) -> None:
    model, average = torch.nn.Linear(2, 2).to("cuda"), WeightAverage("frozen")
    masks = {"weight": torch.ones(2, 2, dtype=torch.bool, device="cuda")}
    average.update(model, masks)
    state = {"average": average.average, "masks": masks}
    restored = WeightAverage("frozen")
    on_the_cpu = {key: {name: value.cpu() for name, value in state[key].items()} for key in ("average", "masks")}
    restored.load_state_dict({"count": 1, **on_the_cpu})
    for each in (average, restored):
        each.update(model, masks)
    assert restored.average["weight"].tolist() == average.average["weight"].tolist()
