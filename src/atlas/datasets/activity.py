"""Human activity: series and recordings of worn sensors, as features that a stream of decisions can be made on.

Two layouts. ``bank.safetensors`` holds windows of short series to compose sessions of: ``<split>_bank`` (series, offsets, D)
float32 and ``<split>_labels`` (series,). ``recordings.safetensors`` holds long recordings, in order: ``x<i>`` (n, D) float32
and ``y<i>`` (n,) int64 or (n, labels) in {−1, 0, 1}, with ``recordings.json``: names, splits and the layout of the features.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets.acquisition import extract
from atlas.datasets.base import Dataset, DatasetError, Source
from atlas.datasets.damage import told_as

if TYPE_CHECKING:
    import numpy as np

BANK = "bank.safetensors"
RECORDINGS = "recordings.safetensors"
DESCRIPTION = "recordings.json"

WINDOW = 20
"""Samples of a window of BasicMotions: two seconds at 10 Hz."""
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
STATISTICS = ("mean", "std", "min", "max", "rms", "mean-diff", "centroid", "entropy")
MOTIONS = ("Standing", "Running", "Walking", "Badminton")

HAR_SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
HAR_ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
HAR_SUBJECTS = 30
HAR_STEPS = 128
HAR_RATE = 50.0
HAR_BANDS = ((0.3, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, 25.0))
HAR_TIME = ("mean", "std", "min", "max", "iqr", "rms", "lag1", "crossings")
HAR_FREQUENCY = ("centroid", "entropy", *(f"power{low:g}-{high:g}" for low, high in HAR_BANDS))
HAR_VALIDATION_ROUNDS = 6
HAR_VALIDATION_SUBJECTS = 3

OPPORTUNITY_FEATURES = slice(1, 243)
OPPORTUNITY_LABELS = slice(243, 250)
OPPORTUNITY_LEAST = 3
SHUFFLE_SEED = 42


# --- BasicMotions -------------------------------------------------------------------------------------------------------


def read_ts(text: str, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the ``.ts`` format of equal-length series: (series, channels, steps) float32 and class indices.

    Raises
    ------
    DatasetError
        A line does not hold what it should.
    """
    import numpy as np

    series, labels = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line[0] in "#@%":
            continue
        *channels, label = line.strip().split(":")
        try:
            series.append([[float(value) for value in channel.split(",")] for channel in channels])
            labels.append(classes.index(label))
        except ValueError as error:
            raise DatasetError(f"line {number} of the series is damaged: {error}") from None
    try:
        values = np.asarray(series, dtype=np.float32)
    except ValueError:
        raise DatasetError("the series have different lengths") from None
    if values.ndim != 3:
        raise DatasetError("there is no series in the file")
    return values, np.asarray(labels, dtype=np.int64)


def window_bank(series: np.ndarray) -> np.ndarray:
    """Statistics of every window of :data:`WINDOW` samples: (n, channels, steps) to (n, offsets, channels · 8) float32.

    Per channel mean, standard deviation, minimum, maximum, root mean square, mean absolute difference, and of the demeaned
    window's spectrum without its constant the centroid (cycles per sample) and the entropy (nats).
    """
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(
        series.astype(np.float64), WINDOW, axis=-1
    )  # (n, channels, offsets, WINDOW)
    mean = windows.mean(-1)
    power = np.abs(np.fft.rfft(windows - mean[..., None], axis=-1)[..., 1:]) ** 2
    share = power / np.maximum(power.sum(-1, keepdims=True), 1e-12)
    statistics = [
        mean,
        windows.std(-1),
        windows.min(-1),
        windows.max(-1),
        np.sqrt((windows**2).mean(-1)),
        np.abs(np.diff(windows, axis=-1)).mean(-1),
        share @ np.fft.rfftfreq(WINDOW)[1:],
        -(share * np.log(np.maximum(share, 1e-12))).sum(-1),
    ]
    bank = np.stack(statistics, -1)  # (n, channels, offsets, 8)
    return bank.transpose(0, 2, 1, 3).reshape(len(series), bank.shape[2], -1).astype(np.float32)


def prepare_basic_motions(downloads: Sequence[Path], folder: Path) -> None:
    """40 + 40 series of 6 channels and 100 steps in 4 classes, read from the files that aeon bundles, without importing it."""
    from importlib.util import find_spec

    package = find_spec("aeon")
    if package is None or package.origin is None:
        raise DatasetError("basic-motions is bundled with aeon, which is not installed: pip install 'atlas[timeseries]'")
    bundled = Path(package.origin).parent / "datasets" / "data" / "BasicMotions"
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        path = bundled / f"BasicMotions_{split.upper()}.ts"
        if not path.is_file():
            raise DatasetError(f"the installed aeon has no {path.name}; atlas is known to work with aeon 1.0 to 1.6")
        series, labels = read_ts(path.read_text(), MOTIONS)
        arrays |= {f"{split}_bank": window_bank(series), f"{split}_labels": labels}
    write_arrays(folder / BANK, arrays)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of any shapes, by name, to a safetensors file."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


# --- recordings ---------------------------------------------------------------------------------------------------------


def write_recordings(
    folder: Path,
    recordings: Sequence[tuple[str, np.ndarray, np.ndarray]],
    splits: dict[str, list[int]],
    **layout: Any,
) -> None:
    """Write recordings (name, x (n, D), y), which of them belong to which split, and what the features are."""
    arrays = {f"{kind}{index}": array for index, (_, x, y) in enumerate(recordings) for kind, array in (("x", x), ("y", y))}
    write_arrays(folder / RECORDINGS, arrays)
    description = {"names": [name for name, _, _ in recordings], "splits": splits, **layout}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


@contextmanager
def _unpacked(archive: Path, folder: Path, inner: str = "") -> Iterator[Path]:
    """The content of an archive, and of an archive inside it, for as long as the block runs."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(archive, Path(unpacked))
        nested = sorted(Path(unpacked).rglob(inner)) if inner else []
        if nested:
            extract(nested[0], Path(unpacked))
        yield Path(unpacked)


def _find(root: Path, pattern: str, archive: Path) -> Path:
    matches = sorted(root.rglob(pattern))
    if not matches:
        raise DatasetError(f"{archive.name} holds no {pattern}")
    return matches[0]


def _table(path: Path, columns: int, dtype: type = float) -> np.ndarray:
    """Read a table of numbers: (rows, columns).

    Raises
    ------
    DatasetError
        The table is empty, or a line of it has another number of columns or something that is no number.
    """
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # what NumPy says of an empty table
            table: np.ndarray | None = np.loadtxt(path, dtype, comments=None, ndmin=2)
    except (ValueError, UserWarning):
        table = None
    if table is None or table.shape[1] != columns:
        raise DatasetError(f"{path.name} is damaged: {_first_fault(path, columns)}")
    return table


def _first_fault(path: Path, columns: int) -> str:
    """The first line that is no row of a table of numbers; NumPy counts rows, from 0 or from 1, and no empty lines."""
    with path.open(errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            words = line.split()
            if words and len(words) != columns:
                return f"line {number} has {len(words)} columns, not {columns}"
            wrong = next((word for word in words if not _is_number(word)), None)
            if wrong is not None:
                return f"line {number} holds {wrong[:40]!r}, which is not a number"
    return f"it holds no table of {columns} columns"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _whole_numbers(path: Path, lowest: int, highest: int) -> np.ndarray:
    """Read a column of whole numbers in a range: (rows,) int64."""
    import numpy as np

    values = _table(path, 1)[:, 0]
    wrong = np.flatnonzero((values != np.round(values)) | ~((values >= lowest) & (values <= highest)))
    if len(wrong):
        reason = f"row {wrong[0] + 1} is {values[wrong[0]]:g}, not a whole number from {lowest} to {highest}"
        raise DatasetError(f"{path.name} is damaged: {reason}")
    return values.astype(np.int64)


def _feature_names(path: Path) -> list[str]:
    """Names from lines of a number and a name."""
    with told_as(f"{path.name} is damaged"):
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    short = next((number for number, words in enumerate(lines or [[]], 1) if len(words) < 2), None)
    if short is not None:
        raise DatasetError(f"{path.name} is damaged: row {short} names no feature")
    return [words[1] for words in lines]


def prepare_uci_har(downloads: Sequence[Path], folder: Path) -> None:
    """561 features per window, one recording per subject; validation is on the last three training subjects."""
    import numpy as np

    recordings: list[tuple[str, np.ndarray, np.ndarray]] = []
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    with _unpacked(downloads[0], folder, "UCI HAR Dataset.zip") as unpacked:
        names = _feature_names(_find(unpacked, "features.txt", downloads[0]))
        for part in ("train", "test"):
            x = _table(_find(unpacked, f"X_{part}.txt", downloads[0]), len(names)).astype(np.float32)
            y = _whole_numbers(_find(unpacked, f"y_{part}.txt", downloads[0]), 1, len(HAR_ACTIVITIES)) - 1
            subject = _whole_numbers(_find(unpacked, f"subject_{part}.txt", downloads[0]), 1, HAR_SUBJECTS)
            if not len(x) == len(y) == len(subject):
                counts = f"{len(x)} rows of features, {len(y)} labels and {len(subject)} subjects"
                raise DatasetError(f"{downloads[0].name}: the {part} part has {counts}")
            held = np.unique(subject)[-HAR_VALIDATION_SUBJECTS:]
            for person in np.unique(subject):
                split = "validation" if part == "train" and person in held else part
                splits[split].append(len(recordings))
                recordings.append((f"subject{person:02d}", x[subject == person], y[subject == person]))
    sensors = [int("Gyro" in name) for name in names]
    layout = {"classes": HAR_ACTIVITIES, "features": names, "sensors": sensors, "sensor_names": ["accelerometer", "gyroscope"]}
    write_recordings(folder, recordings, splits, **layout)


def prepare_uci_har_subset(downloads: Sequence[Path], folder: Path) -> None:
    """Raw inertial windows, a third of the official ones in order: 138 features, one recording per round of the protocol."""
    import numpy as np

    recordings: list[tuple[str, np.ndarray, np.ndarray]] = []
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    with _unpacked(downloads[0], folder) as unpacked:
        for part in ("train", "test"):
            files = [_find(unpacked, f"{signal}_{part}.txt", downloads[0]) for signal in HAR_SIGNALS]
            y = _whole_numbers(_find(unpacked, f"y_{part}.txt", downloads[0]), 1, len(HAR_ACTIVITIES)) - 1
            signals = [_table(path, HAR_STEPS) for path in files]
            for path, signal in zip(files, signals, strict=True):
                if len(signal) != len(y):
                    counts = f"{len(signal)} windows, and there are {len(y)} labels"
                    raise DatasetError(f"{path.name} of {downloads[0].name} has {counts}")
            windows = np.stack(signals, 1)  # (n, channels, 128)
            x = har_features(windows)
            rounds = har_rounds(y)
            for index in range(int(rounds.max()) + 1):
                splits[part].append(len(recordings))
                recordings.append((f"{part}-round{index:02d}", x[rounds == index], y[rounds == index]))
    splits["validation"] = splits["train"][-HAR_VALIDATION_ROUNDS:]
    splits["train"] = splits["train"][:-HAR_VALIDATION_ROUNDS]
    write_recordings(folder, recordings, splits, classes=HAR_ACTIVITIES, **har_layout())


def har_rounds(labels: np.ndarray) -> np.ndarray:
    """Index of the round of every window: the volunteers repeat a sequence of activities, which standing (4) opens.

    In the order of the official files a round ends with walking upstairs (1).
    """
    import numpy as np

    starts = (labels[1:] == 4) & (labels[:-1] == 1)
    return np.concatenate([[0], np.cumsum(starts)])


def har_features(windows: np.ndarray) -> np.ndarray:
    """138 features of raw windows (n, 9, 128) at 50 Hz, float32; :func:`har_layout` names them.

    Per channel eight in time (mean, standard deviation, minimum, maximum, interquartile range, root mean square, lag-1
    autocorrelation, zero-crossing rate) and six in frequency (Hann window; centroid, entropy, log10 power in four bands);
    per triple of axes three correlations and the signal-magnitude area.
    """
    import numpy as np

    mean = windows.mean(-1, keepdims=True)
    centred = windows - mean
    energy = np.maximum((centred**2).sum(-1), 1e-12)
    low, high = np.percentile(windows, [25, 75], axis=-1)
    in_time = [
        mean[..., 0],
        windows.std(-1),
        windows.min(-1),
        windows.max(-1),
        high - low,
        np.sqrt((windows**2).mean(-1)),
        (centred[..., 1:] * centred[..., :-1]).sum(-1) / energy,
        (np.diff(np.signbit(centred), axis=-1)).mean(-1),
    ]
    frequencies = np.fft.rfftfreq(windows.shape[-1], 1 / HAR_RATE)
    power = np.abs(np.fft.rfft(centred * np.hanning(windows.shape[-1]), axis=-1)) ** 2
    share = power / np.maximum(power.sum(-1, keepdims=True), 1e-12)
    in_frequency = [share @ frequencies, -(share * np.log(np.maximum(share, 1e-12))).sum(-1)]
    for lower, upper in HAR_BANDS:
        band = (frequencies >= lower) & (frequencies < upper)
        in_frequency.append(np.log10(power[..., band].sum(-1) + 1e-8))
    channels = np.stack([*in_time, *in_frequency], -1).reshape(len(windows), -1)  # (n, 9 · 14)
    crossed = []
    for first in range(0, windows.shape[1], 3):
        triple, strength = centred[:, first : first + 3], energy[:, first : first + 3]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            crossed.append((triple[:, a] * triple[:, b]).sum(-1) / np.sqrt(strength[:, a] * strength[:, b]))
        crossed.append(np.abs(windows[:, first : first + 3]).sum(1).mean(-1))
    return np.concatenate([channels, np.stack(crossed, -1)], -1).astype(np.float32)


def har_layout() -> dict[str, Any]:
    """Names, groups, costs and physical sensors of :func:`har_features`.

    21 groups: each channel's time features, each channel's frequency features, and the crossed features of each triple.
    Accelerometer 1, gyroscope 3 (gyroscopes draw several times the current), frequency features half a unit more. Body and
    total acceleration come from the same physical accelerometer.
    """
    names: list[str] = []
    groups: list[int] = []
    cost: list[float] = []
    group_names: list[str] = []
    sensors: list[int] = []
    for channel in HAR_SIGNALS:
        gyroscope = int("gyro" in channel)
        for kind, statistics, extra in (("time", HAR_TIME, 0.0), ("frequency", HAR_FREQUENCY, 0.5)):
            names += [f"{channel} {statistic}" for statistic in statistics]
            groups += [len(cost)] * len(statistics)
            sensors += [gyroscope] * len(statistics)
            cost.append((3.0 if gyroscope else 1.0) + extra)
            group_names.append(f"{channel} {kind}")
    for triple in ("body_acc", "body_gyro", "total_acc"):
        gyroscope = int("gyro" in triple)
        names += [f"{triple} {what}" for what in ("corr-xy", "corr-xz", "corr-yz", "magnitude")]
        groups += [len(cost)] * 4
        sensors += [gyroscope] * 4
        cost.append(3.0 if gyroscope else 1.0)
        group_names.append(f"{triple} crossed")
    return {
        "features": names,
        "groups": groups,
        "cost": cost,
        "group_names": group_names,
        "sensors": sensors,
        "sensor_names": ["accelerometer", "gyroscope"],
    }


def prepare_opportunity(downloads: Sequence[Path], folder: Path) -> None:
    """24 recordings of 242 sensor columns; gestures of both arms (17 and none); shuffled with a fixed seed, 80/10/10."""
    import numpy as np

    with _unpacked(downloads[0], folder) as unpacked:
        files = sorted(unpacked.rglob("S[1-4]-*.dat"))
        if not files:
            raise DatasetError(f"{downloads[0].name} holds no recording S1-ADL1.dat")
        tables = {path.stem: _table(path, OPPORTUNITY_LABELS.stop, np.float32) for path in files}
    if len(tables) < OPPORTUNITY_LEAST:
        raise DatasetError(f"{downloads[0].name} holds {len(tables)} recordings: three splits need at least {OPPORTUNITY_LEAST}")
    for name, table in tables.items():
        if not np.isfinite(table[:, OPPORTUNITY_LABELS]).all():
            row = int(np.flatnonzero(~np.isfinite(table[:, OPPORTUNITY_LABELS]).all(1))[0]) + 1
            raise DatasetError(f"{name}.dat is damaged: a label is missing in row {row}")
    cut = {name: _annotated(table) for name, table in tables.items()}
    values = np.unique(np.concatenate([table[:, OPPORTUNITY_LABELS.stop - 1] for table in cut.values()])).astype(np.int64)
    order = list(cut)
    random.Random(SHUFFLE_SEED).shuffle(order)
    held = max(1, round(0.1 * len(order)))
    bounds = (len(order) - 2 * held, len(order) - held)
    train = [cut[name][:, OPPORTUNITY_FEATURES] for name in order[: bounds[0]]]
    varies = np.nanmax([np.nanmax(x, 0) for x in train], 0) > np.nanmin([np.nanmin(x, 0) for x in train], 0)
    recordings = []
    for name in order:
        labels = np.searchsorted(values, cut[name][:, OPPORTUNITY_LABELS.stop - 1].astype(np.int64))
        recordings.append((name, cut[name][:, OPPORTUNITY_FEATURES][:, varies], labels.astype(np.int64)))
    indices = list(range(len(order)))
    splits = {"train": indices[: bounds[0]], "validation": indices[bounds[0] : bounds[1]], "test": indices[bounds[1] :]}
    columns = np.flatnonzero(varies) + OPPORTUNITY_FEATURES.start
    names = [f"column {column}" for column in columns]
    write_recordings(folder, recordings, splits, classes=["none" if v == 0 else f"gesture {v}" for v in values], features=names)


def _annotated(table: np.ndarray) -> np.ndarray:
    """The rows from the first to the last at which all seven label tracks are set."""
    import numpy as np

    rows = np.flatnonzero((table[:, OPPORTUNITY_LABELS] != 0).all(1))
    return table[rows[0] : rows[-1] + 1] if len(rows) else table


def prepare_extrasensory(downloads: Sequence[Path], folder: Path) -> None:
    """One recording per user, features per minute and 51 labels that may be missing; users by name, shuffled, 70/10/20."""
    recordings: list[tuple[str, np.ndarray, np.ndarray]] = []
    columns: list[str] = []
    with _unpacked(downloads[0], folder) as unpacked:
        files = sorted(unpacked.rglob("*.features_labels.csv.gz"))
        if not files:
            raise DatasetError(f"{downloads[0].name} holds no <user>.features_labels.csv.gz")
        for path in files:
            names, x, y = read_extrasensory_user(path)
            if columns and names != columns:
                raise DatasetError(f"{path.name} has other columns than the users before it")
            columns = names
            recordings.append((path.name.split(".")[0], x, y))
    features = [name for name in columns if not name.startswith("label:")]
    classes = [name.removeprefix("label:") for name in columns if name.startswith("label:")]
    random.Random(SHUFFLE_SEED).shuffle(recordings)
    count = len(recordings)
    first, second = round(0.7 * count), round(0.8 * count)
    indices = list(range(count))
    splits = {"train": indices[:first], "validation": indices[first:second], "test": indices[second:]}
    write_recordings(folder, recordings, splits, classes=classes, features=features, several=True)


def read_extrasensory_user(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read one user's file: names of columns, features (n, D) with NaN where missing, labels (n, L) in {−1, 0, 1}."""
    import numpy as np

    with told_as(f"{path.name} is damaged"), gzip.open(path, "rt", newline="") as stream:
        rows = list(csv.reader(io.StringIO(stream.read())))
    if len(rows) < 2 or rows[0][:1] != ["timestamp"]:
        raise DatasetError(f"{path.name} has no header of features and labels")
    kept = [index for index, name in enumerate(rows[0]) if name not in ("timestamp", "label_source")]
    names = [rows[0][index] for index in kept]
    numbers = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise DatasetError(f"{path.name} is damaged: line {number} has {len(row)} columns, not {len(rows[0])}")
        with told_as(f"{path.name} is damaged: line {number}"):
            numbers.append([float(row[index] or "nan") for index in kept])
    values = np.asarray(numbers, dtype=np.float32)
    is_label = np.asarray([name.startswith("label:") for name in names])
    labels = np.where(np.isnan(values[:, is_label]), -1, values[:, is_label]).astype(np.int64)
    return names, values[:, ~is_label], labels


# --- stand-ins ----------------------------------------------------------------------------------------------------------


def _stand_in(width: int, classes: int, steps: int, several: bool = False, **layout: Any) -> Any:
    """A function that writes random recordings of a dataset's shape."""

    def write(folder: Path) -> None:
        import numpy as np

        draw = np.random.default_rng(0)
        recordings = []
        for index in range(24):
            x = draw.normal(size=(steps, width)).astype(np.float32)
            y = draw.integers(-1, 2, (steps, classes)) if several else draw.integers(0, classes, steps)
            recordings.append((f"stand-in{index}", x, y.astype(np.int64)))
        splits = {"train": list(range(18)), "validation": list(range(18, 21)), "test": list(range(21, 24))}
        names = [f"feature {index}" for index in range(width)]
        write_recordings(
            folder,
            recordings,
            splits,
            **{"classes": list(map(str, range(classes))), "features": names, "several": several, **layout},
        )

    return write


def stand_in_basic_motions(folder: Path) -> None:
    """Write random banks of windows of the shape of BasicMotions, for tests without the data."""
    import numpy as np

    draw = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_bank"] = draw.normal(size=(40, 81, 48)).astype(np.float32)
        arrays[f"{split}_labels"] = np.repeat(np.arange(4), 10)
    write_arrays(folder / BANK, arrays)


def stand_in_uci_har_subset(folder: Path) -> None:
    """Random recordings with the features of the subset."""
    _stand_in(138, 6, 60, **har_layout())(folder)


UCI_HAR = "D. Anguita et al., A Public Domain Dataset for Human Activity Recognition Using Smartphones, ESANN 2013"
DATASETS = [
    Dataset(
        name="basic-motions",
        title="BasicMotions: 80 series of a wrist's accelerometer and gyroscope, 4 activities, bundled with aeon",
        kind="embedded",
        licence="not stated by its authors; bundled with aeon (BSD)",
        citation="A. Bagnall et al., The UEA Multivariate Time Series Classification Archive, arXiv 1811.00075, 2018",
        prepare=prepare_basic_motions,
        stand_in=stand_in_basic_motions,
        facts={"classes": 4, "features": 48},
    ),
    Dataset(
        name="uci-har",
        title="UCI HAR: 10,299 windows of a phone at the waist, 561 features, 6 activities, 30 subjects",
        kind="download",
        licence="CC BY 4.0",
        citation=UCI_HAR,
        prepare=prepare_uci_har,
        stand_in=_stand_in(561, 6, 220),
        sources=(
            Source(
                "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",
                "human+activity+recognition+using+smartphones.zip",
            ),
        ),
        facts={"classes": 6, "features": 561},
    ),
    Dataset(
        name="uci-har-subset",
        title="UCI HAR, every third raw window or so, in order: 2,400 + 950 windows, no subjects",
        kind="download",
        licence="CC BY 4.0",
        citation=UCI_HAR,
        prepare=prepare_uci_har_subset,
        stand_in=stand_in_uci_har_subset,
        sources=(Source("", "uci-har-subset.zip", "sha256:1a3c186103e7da31a702d34d44957599f99e2747f08cf4e40e127f6ae54e699d"),),
        facts={"classes": 6, "features": 138},
    ),
    Dataset(
        name="opportunity",
        title="Opportunity: 24 recordings of 242 worn and ambient sensor columns, 18 gestures",
        kind="download",
        licence="CC BY 4.0",
        citation="D. Roggen et al., Collecting Complex Activity Datasets in Highly Rich Networked Sensor Environments, INSS 2010",
        prepare=prepare_opportunity,
        stand_in=_stand_in(242, 18, 220),
        sources=(
            Source(
                "https://archive.ics.uci.edu/static/public/226/opportunity+activity+recognition.zip",
                "opportunity+activity+recognition.zip",
            ),
        ),
        facts={"classes": 18, "features": 242},
    ),
    Dataset(
        name="extrasensory",
        title="ExtraSensory: 60 users' phones and watches in the wild, features per minute, 51 labels",
        kind="download",
        licence="publicly available; publications must cite its paper",
        citation="Y. Vaizman, K. Ellis, G. Lanckriet, Recognizing Detailed Human Context In-the-Wild, Pervasive Computing, 2017",
        prepare=prepare_extrasensory,
        stand_in=_stand_in(225, 51, 220, several=True),
        sources=(
            Source(
                "http://extrasensory.ucsd.edu/data/primary_data_files/ExtraSensory.per_uuid_features_labels.zip",
                "ExtraSensory.per_uuid_features_labels.zip",
            ),
        ),
        facts={"classes": 51, "features": 225},
    ),
]
