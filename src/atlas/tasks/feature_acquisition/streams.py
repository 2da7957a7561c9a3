"""Streams: sequences of features and labels, what each gate opens and costs, and how they are composed or cut."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from atlas.datasets.activity import BANK, CHANNELS, DESCRIPTION, MOTIONS, RECORDINGS, STATISTICS
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import derive_seed
from atlas.nn.sequences import check_complete, check_labels, labelled
from atlas.tasks.feature_acquisition.protocol import Stream

if TYPE_CHECKING:
    from atlas.harness.run import Run

TEST_SEED = 20220
HANDOVER_STATISTICS = ("mean", "std", "rms", "mean-diff")
DEVICES = 3
BOUT_SERIES = (1, 3)
"""A bout of one activity lasts from one to three series."""
NOISE_FEATURES = 10
BEACON_NOISE = 0.5


@dataclass(frozen=True)
class Sequences:
    """Sequences of one split.

    Attributes
    ----------
    x : Tensor
        (N, T, D) float32, standardised.
    y : Tensor
        (N, T) int64, −1 where unlabelled; or (N, T, L) of several labels in {−1, 0, 1}.
    context : Tensor, optional
        (N, T) int64: what decides which features are informative, where that is not the label.
    """

    x: Tensor
    y: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Sequences:
        """Return the same sequences on a device."""
        return Sequences(self.x.to(device), self.y.to(device), None if self.context is None else self.context.to(device))


@dataclass(frozen=True)
class GateLayout:
    """What features and gates are.

    Attributes
    ----------
    groups : Tensor
        (D,) gate of every feature.
    cost : Tensor
        (G,) cost of every gate.
    names : list of str
        Of the gates.
    sensors : Tensor
        (D,) physical sensor of every feature.
    classes : list of str
        Names of the labels.
    several : bool
        Whether a step has several labels.
    truth : Tensor, optional
        (K, G): gates that are informative in each context, where that is known.
    """

    groups: Tensor
    cost: Tensor
    names: list[str]
    sensors: Tensor
    classes: list[str]
    several: bool = False
    truth: Tensor | None = None
    sensor_names: list[str] = field(default_factory=list)

    @property
    def features(self) -> int:
        """Number D of features of a step."""
        return len(self.groups)


class Streams:
    """Everything a run reads: training batches by step, and whole splits.

    Training batches are functions of (seed, phase, step), so that a run goes on anywhere.
    """

    def __init__(self, layout: GateLayout, splits: dict[str, Sequences], train: Sequences | Recordings, seed: int) -> None:
        self.layout, self.splits, self.train, self.seed = layout, splits, train, seed

    def batch(self, size: int, step: int, phase: str = "train") -> tuple[Tensor, Tensor]:
        """Features (B, T, D) and labels of one training step."""
        random = torch.Generator().manual_seed(derive_seed(self.seed, "order", phase, step))
        if isinstance(self.train, Recordings):
            return self.train.segments(size, random)
        chosen = torch.randint(len(self.train), (size,), generator=random).to(self.train.x.device)
        return self.train.x[chosen], self.train.y[chosen]

    def to(self, device: torch.device) -> Streams:
        """Return the same stream, all splits of it, on a device."""
        splits = {name: split.to(device) for name, split in self.splits.items()}
        return Streams(self.layout, splits, self.train.to(device), self.seed)


def load_streams(run: Run, stream: Stream) -> Streams:
    """Return the streams of a run.

    Raises
    ------
    UserError
        The dataset is of another kind than the stream asks for.
    """
    if stream.kind == "synthetic":
        return synthetic(stream, run.seed)
    wanted = RECORDINGS if stream.kind == "recordings" else BANK
    if not (run.data_folder / wanted).is_file():
        raise UserError(f"{run.cell}: a stream of kind {stream.kind} cannot be made of the dataset {run.data or 'null'}")
    if stream.kind == "recordings":
        return recorded(run.data_folder, stream, run.seed)
    compose = sessions if stream.kind == "sessions" else handover
    return compose(read_tensors(run.data_folder / BANK), stream, run.seed)


# --- synthetic ----------------------------------------------------------------------------------------------------------


def markov(draw: np.random.Generator, count: int, steps: int, states: int, switch: float) -> np.ndarray:
    """Sticky chains (count, steps): with probability ``switch`` a step goes to another state, uniformly."""
    chain = np.empty((count, steps), dtype=np.int64)
    chain[:, 0] = draw.integers(states, size=count)
    for step in range(1, steps):
        moved = (chain[:, step - 1] + draw.integers(1, states, size=count)) % states
        chain[:, step] = np.where(draw.random(count) < switch, moved, chain[:, step - 1])
    return chain


def beacon_code(contexts: int) -> np.ndarray:
    """±1 binary code of every context, (contexts, log2 contexts)."""
    bits = contexts.bit_length() - 1
    return 2.0 * ((np.arange(contexts)[:, None] >> np.arange(bits)) & 1) - 1


def synthetic_sequences(stream: Stream, count: int, steps: int, seed: int) -> Sequences:
    """Contexts that a code in the beacons tells, and a bit that only the block of the present context tells; label 2c + a."""
    draw = np.random.default_rng(seed)
    states = stream.contexts
    context = markov(draw, count, steps, states, stream.switch)
    bit = draw.integers(2, size=(count, steps))
    decoys = draw.integers(2, size=(count, steps, states))
    shown = np.where(np.arange(states) == context[..., None], bit[..., None], decoys)
    beacons = beacon_code(states)[context]
    blocks = np.repeat(2.0 * shown - 1, 2, axis=-1)
    signal = np.concatenate([beacons, blocks], -1) + BEACON_NOISE * draw.normal(
        size=(count, steps, beacons.shape[-1] + 2 * states)
    )
    x = np.concatenate([signal, draw.normal(size=(count, steps, NOISE_FEATURES))], -1).astype(np.float32)
    return Sequences(torch.from_numpy(x), torch.from_numpy(2 * context + bit), torch.from_numpy(context))


def synthetic_layout(stream: Stream) -> GateLayout:
    """Beacons, two features per block, and noise; the truth of a context is the beacons and its block."""
    states = stream.contexts
    bits = states.bit_length() - 1
    names = [f"beacon {index}" for index in range(bits)]
    names += [f"block {block}.{part}" for block in range(states) for part in range(2)]
    names += [f"noise {index}" for index in range(NOISE_FEATURES)]
    truth = torch.zeros(states, len(names), dtype=torch.bool)
    truth[:, :bits] = True
    for block in range(states):
        truth[block, bits + 2 * block : bits + 2 * block + 2] = True
    index = torch.arange(len(names))
    classes = [f"context {context}, bit {bit}" for context in range(states) for bit in range(2)]
    return GateLayout(index, torch.ones(len(names)), names, index, classes, truth=truth, sensor_names=names)


def synthetic(stream: Stream, seed: int) -> Streams:
    """The stream with a known answer; not standardised, since 0 is the mean already."""
    parts = {
        "train": (stream.train_sequences, stream.steps, derive_seed(seed, "synthetic", "train")),
        "validation": (stream.validation_sequences, stream.steps, derive_seed(seed, "synthetic", "validation")),
        "test": (stream.test_sequences, stream.steps, derive_seed(TEST_SEED, "synthetic", "test")),
        "long": (stream.long_sequences, stream.long_steps, derive_seed(TEST_SEED, "synthetic", "long")),
    }
    splits = {name: synthetic_sequences(stream, *part) for name, part in parts.items()}
    return Streams(synthetic_layout(stream), splits, splits.pop("train"), seed)


# --- BasicMotions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Banks:
    """Windows of the series of each split, standardised on the training series."""

    features: dict[str, np.ndarray]  # (series, offsets, D)
    labels: dict[str, np.ndarray]

    @classmethod
    def split(cls, arrays: dict[str, Tensor], held: int) -> _Banks:
        """Hold ``held`` series per class out of the training series, by a fixed choice: the last ones.

        Raises
        ------
        UserError
            The windows hold NaN or infinity, which the mean and deviation of a feature would spread over all its windows.
        """
        for name in ("train_bank", "test_bank"):
            try:
                check_complete(name, arrays[name])
            except ValueError as error:
                raise UserError(f"{BANK}: {error}") from None
        labels = arrays["train_labels"].numpy()
        validation = np.concatenate([np.flatnonzero(labels == kind)[-held:] for kind in np.unique(labels)])
        train = np.setdiff1d(np.arange(len(labels)), validation)
        bank = arrays["train_bank"].numpy()
        mean, std = bank[train].mean((0, 1)), bank[train].std((0, 1)) + 1e-6
        chosen = {"train": bank[train], "validation": bank[validation], "test": arrays["test_bank"].numpy()}
        named = {"train": labels[train], "validation": labels[validation], "test": arrays["test_labels"].numpy()}
        chosen["long"], named["long"] = chosen["test"], named["test"]
        return cls({name: (series - mean) / std for name, series in chosen.items()}, named)


def session(
    draw: np.random.Generator, labels: np.ndarray, offsets: int, steps: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """One session: indices of series and of offsets, (steps,) each.

    Bouts of one to three series of a class, never the same class twice in a row; windows of a series do not overlap and do
    not wrap.
    """
    chosen: list[int] = []
    placed: list[int] = []
    classes, last = np.unique(labels), -1
    windows = (offsets - 1) // window  # with room for any start before the second window
    while len(chosen) < steps:
        last = int(draw.choice(classes[classes != last]))
        for _ in range(int(draw.integers(BOUT_SERIES[0], BOUT_SERIES[1] + 1))):
            series = int(draw.choice(np.flatnonzero(labels == last)))
            start = int(draw.integers(offsets - (windows - 1) * window))
            chosen += [series] * windows
            placed += [start + window * index for index in range(windows)]
    return np.asarray(chosen[:steps]), np.asarray(placed[:steps])


def _sessions(
    draw: np.random.Generator, bank: np.ndarray, labels: np.ndarray, count: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, steps, D) and labels (count, steps) of several sessions."""
    from atlas.datasets.activity import WINDOW

    drawn = [session(draw, labels, bank.shape[1], steps, WINDOW) for _ in range(count)]
    series = np.stack([index for index, _ in drawn])
    offsets = np.stack([index for _, index in drawn])
    return bank[series, offsets], labels[series]


def _counts(stream: Stream) -> dict[str, tuple[int, int]]:
    return {
        "train": (stream.train_sequences, stream.steps),
        "validation": (stream.validation_sequences, stream.steps),
        "test": (stream.test_sequences, stream.steps),
        "long": (stream.long_sequences, stream.long_steps),
    }


def _draw(seed: int, kind: str, split: str) -> np.random.Generator:
    """Test sequences are the same for every run; the others follow from its seed."""
    return np.random.default_rng(derive_seed(TEST_SEED if split in ("test", "long") else seed, kind, split))


def sessions(arrays: dict[str, Tensor], stream: Stream, seed: int) -> Streams:
    """Sessions of one wrist-worn device: 6 channels of 8 statistics; a gate per feature or per channel.

    ``arrays`` holds banks of windows (series, offsets, features) and labels (series,).
    """
    banks, splits = _Banks.split(arrays, stream.held_series), {}
    for name, (count, steps) in _counts(stream).items():
        x, y = _sessions(_draw(seed, "sessions", name), banks.features[name], banks.labels[name], count, steps)
        splits[name] = Sequences(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y))
    channel = torch.arange(len(CHANNELS)).repeat_interleave(len(STATISTICS))
    channel_cost = torch.tensor([stream.gyro_cost if name.startswith("gyro") else 1.0 for name in CHANNELS])
    names = [f"{name} {statistic}" for name in CHANNELS for statistic in STATISTICS]
    grouped = stream.gates == "group"
    layout = GateLayout(
        groups=channel if grouped else torch.arange(len(names)),
        cost=channel_cost if grouped else torch.ones(len(names)),
        names=list(CHANNELS) if grouped else names,
        sensors=channel,
        classes=list(MOTIONS),
        sensor_names=list(CHANNELS),
    )
    return Streams(layout, splits, splits.pop("train"), seed)


def handover(arrays: dict[str, Tensor], stream: Stream, seed: int) -> Streams:
    """Three devices of which one is worn: it shows the session, the others show unrelated sessions; two beacons say which.

    ``arrays`` holds banks of windows (series, offsets, features) and labels (series,).
    """
    banks, splits = _Banks.split(arrays, stream.held_series), {}
    kept = [
        channel * len(STATISTICS) + STATISTICS.index(statistic)
        for channel in range(len(CHANNELS))
        for statistic in HANDOVER_STATISTICS
    ]
    for name, (count, steps) in _counts(stream).items():
        draw = _draw(seed, "handover", name)
        bank = banks.features[name][..., kept]
        shown = [_sessions(draw, bank, banks.labels[name], count, steps) for _ in range(DEVICES + 1)]
        worn = markov(draw, count, steps, DEVICES, stream.switch)
        truth, y = shown[-1]
        devices = [np.where((worn == device)[..., None], truth, shown[device][0]) for device in range(DEVICES)]
        angle = 2 * math.pi * worn / DEVICES
        beacons = 1.4 * np.stack([np.cos(angle), np.sin(angle)], -1) + 0.3 * draw.normal(size=(count, steps, 2))
        x = np.concatenate([*devices, beacons], -1).astype(np.float32)
        splits[name] = Sequences(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(worn))
    device_names = [f"device {device}" for device in range(DEVICES)]
    names = [
        f"{device} {channel} {statistic}" for device in device_names for channel in CHANNELS for statistic in HANDOVER_STATISTICS
    ]
    names += ["beacon cos", "beacon sin"]
    sensors = torch.cat([torch.arange(DEVICES).repeat_interleave(len(kept)), torch.tensor([DEVICES, DEVICES])])
    layout = GateLayout(
        groups=torch.arange(len(names)),
        cost=torch.ones(len(names)),
        names=names,
        sensors=sensors,
        classes=list(MOTIONS),
        sensor_names=[*device_names, "beacons"],
    )
    return Streams(layout, splits, splits.pop("train"), seed)


# --- recordings ---------------------------------------------------------------------------------------------------------


class Recordings:
    """Long training recordings; batches cut random contiguous segments, from different recordings if there are enough."""

    def __init__(self, recordings: list[tuple[Tensor, Tensor]], steps: int) -> None:
        self.recordings, self.steps = [pair for pair in recordings if len(pair[0]) >= steps], steps
        if not self.recordings:
            longest = max(len(x) for x, _ in recordings)
            raise UserError(f"no training recording has {steps} steps; set stream.steps to {longest} or less")

    def segments(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features (B, T, D) and labels of random segments."""
        count = len(self.recordings)
        repeats = -(-size // count)
        order = torch.cat([torch.randperm(count, generator=random) for _ in range(repeats)])[:size].tolist()
        cut = []
        for index in order:
            x, y = self.recordings[index]
            start = int(torch.randint(len(x) - self.steps + 1, (), generator=random))
            cut.append((x[start : start + self.steps], y[start : start + self.steps]))
        return torch.stack([x for x, _ in cut]), torch.stack([y for _, y in cut])

    def to(self, device: torch.device) -> Recordings:
        """Return the same recordings on a device."""
        return Recordings([(x.to(device), y.to(device)) for x, y in self.recordings], self.steps)


def consecutive(recordings: list[tuple[Tensor, Tensor]], steps: int) -> Sequences:
    """Cut recordings, (length, D) with labels (length,), into segments (N, T, D) of ``steps`` that do not overlap.

    A recording's last one reaches back, with the labels that were counted already left out.
    """
    xs, ys = [], []
    for x, y in recordings:
        if len(x) < steps:
            continue
        for start in range(0, len(x) - steps + 1, steps):
            xs.append(x[start : start + steps])
            ys.append(y[start : start + steps])
        rest = len(x) % steps
        if rest:
            labels = y[-steps:].clone()
            labels[: steps - rest] = -1
            xs.append(x[-steps:])
            ys.append(labels)
    if not xs:
        raise UserError(f"no recording has {steps} steps; set stream.steps to {max(len(x) for x, _ in recordings)} or less")
    return Sequences(torch.stack(xs), torch.stack(ys))


def recorded(folder: Path, stream: Stream, seed: int) -> Streams:
    """Streams of a dataset of recordings, standardised on the training recordings. What is missing, or infinite, is the mean.

    Raises
    ------
    UserError
        A label is not one, a part has no label, or no recording is long enough.
    """
    description = json.loads((folder / DESCRIPTION).read_text())
    layout = _recorded_layout(description, stream)
    arrays = read_tensors(folder / RECORDINGS)
    arrays |= {name: torch.where(array.isfinite(), array, torch.nan) for name, array in arrays.items() if name.startswith("x")}
    mean, std = _statistics([arrays[f"x{index}"] for index in description["splits"]["train"]])

    def recordings(split: str) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for index in description["splits"][split]:
            x = ((arrays[f"x{index}"] - mean) / std).nan_to_num(0.0)
            y = _labels(arrays[f"y{index}"], len(x), layout, f"recording {description['names'][index]}")
            pairs.append((x if stream.clip is None else x.clamp(-stream.clip, stream.clip), y))
        return pairs

    splits = {name: consecutive(recordings(name), stream.steps) for name in ("validation", "test")}
    longest = max(len(x) for x, _ in recordings("test"))
    splits["long"] = consecutive(recordings("test"), min(stream.long_steps, longest))
    train = Recordings(recordings("train"), stream.steps)
    for part, labels in {
        "train": [y for _, y in train.recordings],
        "validation": [splits["validation"].y],
        "test": [splits["test"].y],
    }.items():
        if not any(bool((y >= 0).any()) for y in labels):
            raise UserError(f"the {part} recordings of {stream.steps} steps or more label no step: all labels are −1")
    return Streams(layout, splits, train, seed)


def _labels(y: Tensor, steps: int, layout: GateLayout, where: str) -> Tensor:
    """Labels of one recording as int64, (steps,) or (steps, labels)."""
    wanted = (steps, len(layout.classes)) if layout.several else (steps,)
    if y.shape != wanted:
        raise UserError(f"{where}: y must have shape {wanted}, not {tuple(y.shape)}")
    try:
        check_labels(y[None], labelled(y[None], None), len(layout.classes))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return y.long()


def _statistics(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per feature over what is not missing."""
    count = sum((~part.isnan()).sum(0).double() for part in parts)
    mean = sum(part.nan_to_num(0).double().sum(0) for part in parts) / torch.as_tensor(count).clamp(min=1)
    square = sum(((part.double() - mean) ** 2).nan_to_num(0).sum(0) for part in parts) / torch.as_tensor(count).clamp(min=1)
    std = torch.as_tensor(square).sqrt()
    return torch.as_tensor(mean).float(), torch.where(std > 1e-8, std, 1.0).float()


def _recorded_layout(description: dict[str, object], stream: Stream) -> GateLayout:
    names = list(description["features"])  # type: ignore[call-overload]
    index = torch.arange(len(names))
    sensors = torch.as_tensor(description.get("sensors", index))
    grouped = stream.gates == "group"
    if grouped and "groups" not in description:
        raise UserError("stream.gates = group: this dataset has no groups of features; use feature")
    return GateLayout(
        groups=torch.as_tensor(description["groups"]) if grouped else index,
        cost=torch.as_tensor(description["cost"], dtype=torch.float32) if grouped else torch.ones(len(names)),
        names=list(description["group_names"]) if grouped else names,  # type: ignore[call-overload]
        sensors=sensors,
        classes=[str(name) for name in description["classes"]],  # type: ignore[attr-defined]
        several=bool(description.get("several", False)),
        sensor_names=list(description.get("sensor_names", names)),  # type: ignore[call-overload]
    )
