"""Rows on two ranks take the steps that one process takes: in float64, where rounding cannot be mistaken for a difference."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.harness.execute import train_run
from atlas.harness.files import read_tensors, write_tensors
from atlas.harness.launch import function_of, shares_work
from atlas.harness.run import Run
from atlas.harness.seeds import seed_everything
from atlas.harness.study import Study
from atlas.nn.ranks import here
from atlas.settings import merge
from atlas.tasks.image_classification.data import load_data
from atlas.tasks.image_classification.evaluate import load_trained, predict
from ranks import on_ranks, steady_steps

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-12
IMAGES = "image-classification"
ROBUST = "adversarial-robustness"
PREDICTIONS = "test.safetensors"

# every ingredient of the protocol that draws, mixes, averages or cuts a batch into pieces
EVERYTHING = {
    "micro_batch": 20,
    "mixup": 0.8,
    "cutmix": 1.0,
    "clip_norm": 0.5,
    "ema_decay": 0.9,
    "evaluate_ema": True,
    "backbone": {"depth": 4, "drop_path_rate": 0.3},
    "data": {"flip": True, "crop_padding": 1, "random_erasing": 0.5, "repeats": 2, "validation_fraction": 0.1},
}
# batch normalisation, attacked in training mode: what a rank alone would see differs
CONVOLUTIONS = {"network": {"name": "convnet", "widths": [4, 8]}, "epochs": 2, "milestones": [1]}
SHORT_UVC = {"epochs": 2, "search_epochs": 2, "search_warmup_epochs": 1}
SHORT = {
    IMAGES: {"precision": "float64", "batch_size": 60, "epochs": 1, "warmup_epochs": 0, "log_every": 5},
    ROBUST: {"precision": "float64", "epochs": 3, "milestones": [2], "test_every": 2},
}
SETTINGS = {
    "uvc": SHORT_UVC,
    "prune-only": SHORT_UVC,
    "skip-only": SHORT_UVC,
    "dense-kd": {"epochs": 1},
    "dynamic-vit-b52": {"epochs": 2, "frozen_epochs": 1},
    "uniform-mag": {"epochs": 1},
    "as-vit-search": {"steps": 2},
    "as-vit-growth": {"max_steps": 2},
    "as-vit-ranking": {"topologies": 4, "law_topologies": 4, "draws": 20},
    "flying-bird": {"interval": 2, "late_interval": 2},
    "flying-bird-plus": {"interval": 2, "late_interval": 2, "start_epoch": 1},
    "robust-bird": {"max_epochs": 2},
}


def short(run: Run, root: Path, needed: Path, change: Any = None) -> Run:
    """A run of the demo with about 20 steps in a folder of its own; what it needs lies in another, made by one process."""
    settings = {name: merge(values, SETTINGS.get(name)) for name, values in run.settings.items()}
    protocol = merge(merge(run.protocol, SHORT[run.task]), change)
    needs = {role: short(other, needed, needed) for role, other in run.needs.items()}
    return replace(run, root=root, protocol=protocol, settings=settings, needs=needs)


def train(cells: Sequence[str], root: str, needed: str, changes: Sequence[Any], own_epsilon: Sequence[str]) -> None:
    """Train and evaluate runs in this process, which may be one of several ranks; some with Adam's own ε."""
    study = Study.read("demo", ROOT)
    for cell, change in zip(cells, changes, strict=True):
        run = short(study.find(cell), Path(root), Path(needed), change)
        seed_everything(run.seed)
        with nullcontext() if cell in own_epsilon else steady_steps():
            summary = function_of(run, "train")(run)
        if here().first:
            print("summary", sorted((summary or {}).items()))
        if run.task == IMAGES and run.recipe == ("deit",):
            here().barrier()  # the first rank has written the weights
            predict_test_images(run)


def predict_test_images(run: Run) -> None:
    """Keep what the ranks together say of the test split."""
    data = load_data(run, run.protocol_model(), torch.device("cpu"))
    with torch.no_grad():
        logits, labels = predict(load_trained(run, data), data.batches("test"))
    if here().first:
        write_tensors(run.results / PREDICTIONS, {"logits": logits, "labels": labels})


def prepare(run: Run) -> None:
    """Train what a run needs."""
    for needed in run.needs.values():
        prepare(needed)
        train_run(needed)


def curves(run: Run) -> list[dict[str, float | str]]:
    found = []
    for path in sorted(run.results.glob("*.csv")):
        with path.open() as stream:
            found += [{name: number(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    return found


def number(value: str) -> float | str:
    """A value of a curve; a topology, for one, is none."""
    try:
        return float(value)
    except ValueError:
        return value


def weights(run: Run) -> Iterator[tuple[str, torch.Tensor, slice]]:
    """Names and values of all weights, and where in them the biases of keys lie."""
    for path in sorted(run.checkpoint.glob("*.safetensors")):
        tensors = read_tensors(path)
        for name, value in tensors.items():
            keys = slice(0)
            if name.endswith("qkv.bias"):  # queries and keys are of one width, values of another where UVC cut some away
                width = (len(value) - tensors[name.replace("qkv.bias", "proj.weight")].shape[1]) // 2
                keys = slice(width, 2 * width)
            yield f"{path.name}:{name}", value, keys


def require_the_same(one: Run, two: Run, *, own_epsilon: bool) -> None:
    """Losses relatively, weights absolutely: they are of the order of 1; with Adam's own ε, all but the biases of keys."""
    expected, found = curves(one), curves(two)
    assert len(expected) == len(found) > 0
    for row, other in zip(expected, found, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
            assert other[name] == same, (one.cell, name)
    twins = {name: value for name, value, _ in weights(two)}
    for name, value, keys in weights(one):
        difference = (twins[name].double() - value.double()).abs()
        if own_epsilon and keys != slice(0):  # counters of batches are scalars
            difference[keys] = 0
        assert float(difference.max()) < TOLERANCE, (one.cell, name, float(difference.max()))


@pytest.fixture
def compare(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    roots = [tmp_path / name for name in ("one", "two")]
    for root in roots:
        root.mkdir()
        (root / "data").symlink_to(data_folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))

    def act(
        cells: Sequence[str], changes: Sequence[Any] | None = None, own_epsilon: Sequence[str] = ()
    ) -> tuple[list[Run], list[Run]]:
        changes = changes or [None] * len(cells)
        study = Study.read("demo", ROOT)
        runs = [
            [short(study.find(cell), root, roots[0], change) for cell, change in zip(cells, changes, strict=True)]
            for root in roots
        ]
        threads = torch.get_num_threads()
        for run in runs[0]:
            prepare(run)
        torch.set_num_threads(1)
        train(cells, str(roots[0]), str(roots[0]), changes, own_epsilon)
        torch.set_num_threads(threads)
        on_ranks(2, "test_ranks_of_rows:train", list(cells), str(roots[1]), str(roots[0]), list(changes), list(own_epsilon))
        for one, two in zip(*runs, strict=True):
            require_the_same(one, two, own_epsilon=one.cell in own_epsilon)
        return runs[0], runs[1]

    return act


def test_some_rows_on_two_ranks(compare) -> None:  # type: ignore[no-untyped-def]
    """Batch statistics are those of the whole batch, those of the very first attack too, which comes before the first pass."""
    cells = [
        f"{IMAGES}/digits/deit/seed10",
        f"{IMAGES}/digits-mixed/diverse-vit/seed10",
        f"{ROBUST}/digits/flying-bird/seed10",
        f"{ROBUST}/digits/dense/seed11",
    ]
    changes = [
        EVERYTHING,
        {"backbone": {"depth": 2}},
        {"epochs": 2, "milestones": [1]},
        merge(CONVOLUTIONS, {"batch_size": 50, "drop_last": False}),
    ]
    alone, shared = compare(cells, changes, cells[1:3])
    expected, found = (read_tensors(runs[0].results / PREDICTIONS) for runs in (alone, shared))
    assert len(expected["labels"]) % 2 == 1, "two ranks cannot predict as many test images each"
    assert torch.equal(found["labels"], expected["labels"])
    assert torch.allclose(found["logits"], expected["logits"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_row_of_the_image_study_on_two_ranks(compare) -> None:  # type: ignore[no-untyped-def]
    rows = [runs[0] for (task, _, _), runs in Study.read("demo", ROOT).by_row.items() if task == IMAGES]
    cells = [run.cell for run in rows if run.data and shares_work(run)]
    assert len(cells) > 20
    compare(cells)


@pytest.mark.slow
def test_every_row_of_the_robust_study_on_two_ranks(compare) -> None:  # type: ignore[no-untyped-def]
    rows = [runs[0] for (task, _, _), runs in Study.read("demo", ROOT).by_row.items() if task == ROBUST]
    cells = [run.cell for run in rows if run.data and shares_work(run)]
    compare(cells)
