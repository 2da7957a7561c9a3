"""Data sets of human activity: what is read from archives in the official layouts, and what features mean."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from atlas.datasets import DatasetError, acquire, get_dataset
from atlas.datasets import activity as module
from atlas.datasets.activity import (
    BANK,
    DESCRIPTION,
    HAR_SIGNALS,
    RECORDINGS,
    har_features,
    har_layout,
    har_rounds,
    read_ts,
    window_bank,
)

MIRROR = os.environ.get("ATLAS_DATA_MIRROR")


def prepared(folder: Path, name: str, archive: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    out = folder / "out"
    out.mkdir()
    prepare = get_dataset(name).prepare
    assert prepare is not None
    prepare([archive], out)
    return load_file(out / RECORDINGS), json.loads((out / DESCRIPTION).read_text())


def zipped(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return path


def rows(array: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:.6g}" for value in row) for row in np.atleast_2d(array)) + "\n"


def test_ts_format() -> None:
    text = "@problemName X\n@data\n1,2,3:4,5,6:Walking\n0,0,0:1,1,1:Standing\n"
    series, labels = read_ts(text, ("Standing", "Walking"))
    assert series.shape == (2, 2, 3)
    assert labels.tolist() == [1, 0]
    for damaged, message in (
        ("1,2:3,4:Flying", "damaged"),
        ("1,x:3,4:Walking", "damaged"),
        ("", "no series"),
        ("1,2:3,4:Walking\n1:2:Walking", "different lengths"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_ts(damaged, ("Standing", "Walking"))


def test_window_statistics_by_hand() -> None:
    time = np.arange(20)
    wave = np.sin(2 * np.pi * time * 3 / 20)
    bank = window_bank(np.stack([np.concatenate([wave, wave[:5]]), np.full(25, 2.0)])[None])
    assert bank.shape == (1, 6, 16)
    first, constant = bank[0, 0, :8], bank[0, 0, 8:]
    assert first[[0, 1, 2, 3, 4]] == pytest.approx([0, np.sqrt(0.5), wave.min(), wave.max(), np.sqrt(0.5)], abs=1e-5)
    assert first[5] == pytest.approx(np.abs(np.diff(wave)).mean(), abs=1e-5)
    assert first[6] == pytest.approx(3 / 20, abs=1e-5)
    assert first[7] == pytest.approx(0, abs=1e-5)
    assert constant == pytest.approx([2, 0, 2, 2, 2, 0, 0, 0], abs=1e-5)


def test_basic_motions_is_bundled(data_folder: Path) -> None:
    arrays = load_file(data_folder / "basic-motions" / BANK)
    for split in ("train", "test"):
        assert arrays[f"{split}_bank"].shape == (40, 81, 48)
        assert np.bincount(arrays[f"{split}_labels"]).tolist() == [10] * 4
        assert np.isfinite(arrays[f"{split}_bank"]).all()
    flat = np.concatenate([arrays["train_bank"][:, 0], arrays["test_bank"][:, 0]])
    assert len(np.unique(flat, axis=0)) == 80


def test_har_features_and_their_layout() -> None:
    draw = np.random.default_rng(0)
    windows = draw.normal(size=(3, 9, 128))
    windows[:, 1] = windows[:, 0]
    features, layout = har_features(windows), har_layout()
    assert features.shape == (3, 138)
    assert len(layout["features"]) == len(layout["groups"]) == len(layout["sensors"]) == 138
    assert sorted(set(layout["groups"])) == list(range(21))
    assert len(layout["cost"]) == len(layout["group_names"]) == 21
    assert {cost for name, cost in zip(layout["group_names"], layout["cost"], strict=True) if "gyro" in name} == {3.0, 3.5}
    named = dict(zip(layout["features"], features.T, strict=True))
    assert named["body_acc corr-xy"] == pytest.approx(1, abs=1e-5)
    assert named["body_acc_x mean"] == pytest.approx(windows[:, 0].mean(-1), abs=1e-5)
    assert named["body_gyro_z iqr"] == pytest.approx(np.diff(np.percentile(windows[:, 5], [25, 75], -1), axis=0)[0], abs=1e-5)
    time = np.arange(128) / 50
    tone = np.zeros((1, 9, 128))
    tone[:, 0] = np.sin(2 * np.pi * 4 * time)
    named = dict(zip(layout["features"], har_features(tone)[0], strict=True))
    powers = [named[f"body_acc_x power{band}"] for band in ("0.3-2", "2-5", "5-10", "10-25")]
    assert int(np.argmax(powers)) == 1
    assert named["body_acc_x centroid"] == pytest.approx(4, abs=0.3)


def test_rounds_begin_where_standing_follows_upstairs() -> None:
    assert har_rounds(np.array([4, 3, 5, 0, 2, 1, 4, 3, 1, 1, 4])).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("nested", [False, True])
def test_uci_har_official_layout(tmp_path: Path, nested: bool) -> None:
    draw = np.random.default_rng(0)
    members: dict[str, str | bytes] = {"UCI HAR Dataset/features.txt": "1 tBodyAcc-mean()-X\n2 tBodyGyro-mean()-X\n"}
    truth = {}
    for part, subjects in (("train", [1, 3, 5, 7, 8, 11]), ("test", [2, 4])):
        subject = np.repeat(subjects, 3)
        x, y = draw.normal(size=(len(subject), 2)), draw.integers(1, 7, len(subject))
        truth[part] = (x, y, subject)
        members |= {
            f"UCI HAR Dataset/{part}/X_{part}.txt": rows(x),
            f"UCI HAR Dataset/{part}/y_{part}.txt": rows(y[:, None]),
            f"UCI HAR Dataset/{part}/subject_{part}.txt": rows(subject[:, None]),
        }
    archive = zipped(tmp_path / "har.zip", members)
    if nested:
        archive = zipped(tmp_path / "outer.zip", {"UCI HAR Dataset.zip": archive.read_bytes()})
    arrays, description = prepared(tmp_path, "uci-har", archive)
    names, splits = description["names"], description["splits"]
    found = {split: [names[index] for index in indices] for split, indices in splits.items()}  # type: ignore[attr-defined,index]
    assert found["train"] == ["subject01", "subject03", "subject05"]
    assert found["validation"] == ["subject07", "subject08", "subject11"]
    assert found["test"] == ["subject02", "subject04"]
    assert description["sensors"] == [0, 1]
    x, y, subject = truth["train"]
    assert arrays["x1"] == pytest.approx(x[subject == 3], abs=1e-4)
    assert arrays["y1"].tolist() == (y[subject == 3] - 1).tolist()
    with pytest.raises(DatasetError, match=r"holds no features\.txt"):
        module.prepare_uci_har([zipped(tmp_path / "empty.zip", {"a.txt": ""})], tmp_path / "out")


def test_uci_har_subset_layout(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    members: dict[str, str | bytes] = {}
    for part, rounds in (("train", 9), ("test", 2)):
        y = np.tile([5, 4, 1, 2], rounds)
        members[f"UCI HAR Dataset/{part}/y_{part}.txt"] = rows(y[:, None])
        for signal in HAR_SIGNALS:
            members[f"UCI HAR Dataset/{part}/Inertial Signals/{signal}_{part}.txt"] = rows(draw.normal(size=(len(y), 128)))
    arrays, description = prepared(tmp_path, "uci-har-subset", zipped(tmp_path / "subset.zip", members))
    sizes = {split: len(indices) for split, indices in description["splits"].items()}  # type: ignore[attr-defined]
    assert sizes == {"train": 3, "validation": 6, "test": 2}
    assert arrays["x0"].shape == (4, 138)
    assert arrays["y0"].tolist() == [4, 3, 0, 1]


def test_opportunity_official_layout(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    members: dict[str, str | bytes] = {}
    for subject in (1, 2):
        for name in ("ADL1", "ADL2", "ADL3", "ADL4", "Drill"):
            table = draw.normal(size=(12, 250)).round(3)
            table[:, 5] = 7.0  # constant: dropped
            table[3, 7] = np.nan
            table[:, 243:249] = 1
            table[:, 249] = draw.choice([0, 404516, 406520], 12)
            table[[0, 1, 11], 249] = 0  # cut at both ends
            table[[2, 10], 249] = (404516, 406520)
            members[f"OpportunityUCIDataset/dataset/S{subject}-{name}.dat"] = rows(table)
    archive = zipped(tmp_path / "opportunity.zip", members)
    arrays, description = prepared(tmp_path, "opportunity", archive)
    assert {split: len(indices) for split, indices in description["splits"].items()} == {  # type: ignore[attr-defined]
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    assert description["classes"] == ["none", "gesture 404516", "gesture 406520"]
    assert arrays["x0"].shape == (9, 241)
    assert arrays["y0"][[0, -1]].tolist() == [1, 2]
    assert np.isnan(arrays["x0"]).any()
    with pytest.raises(DatasetError, match="holds no recording"):
        module.prepare_opportunity([zipped(tmp_path / "empty.zip", {"a.txt": ""})], tmp_path / "out")


def test_extrasensory_official_layout(tmp_path: Path) -> None:
    header = "timestamp,raw_acc:mean,gyro:std,label:SITTING,label:LYING_DOWN,label_source\n"
    members: dict[str, str | bytes] = {
        f"user{index}.features_labels.csv.gz": gzip.compress(
            (header + f"{index},0.5,nan,1.0,,2\n{index + 1},{index},1.5,nan,0.0,-1\n").encode()
        )
        for index in range(10)
    }
    arrays, description = prepared(tmp_path, "extrasensory", zipped(tmp_path / "users.zip", members))
    assert {split: len(indices) for split, indices in description["splits"].items()} == {  # type: ignore[attr-defined]
        "train": 7,
        "validation": 1,
        "test": 2,
    }
    assert description["several"]
    assert description["features"] == ["raw_acc:mean", "gyro:std"]
    assert description["classes"] == ["SITTING", "LYING_DOWN"]
    index = description["names"].index("user4")  # type: ignore[attr-defined]
    assert arrays[f"x{index}"][1].tolist() == [4.0, 1.5]
    assert np.isnan(arrays[f"x{index}"][0, 1])
    assert arrays[f"y{index}"].tolist() == [[1, -1], [-1, 0]]


@pytest.mark.parametrize("name", ["basic-motions", "uci-har", "uci-har-subset", "opportunity", "extrasensory"])
def test_stand_ins_have_the_shape(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    assert dataset.stand_in is not None
    dataset.stand_in(tmp_path)
    arrays = load_file(tmp_path / (BANK if name == "basic-motions" else RECORDINGS))
    width = next(array for key, array in arrays.items() if key.startswith(("x", "train_bank"))).shape[-1]
    assert width == dataset.facts["features"]


@pytest.mark.data
@pytest.mark.skipif(not MIRROR, reason="ATLAS_DATA_MIRROR names no folder of archives")
def test_uci_har_subset_of_the_mirror(tmp_path: Path) -> None:
    acquire("uci-har-subset", root=tmp_path, mirror=MIRROR)
    arrays = load_file(tmp_path / "uci-har-subset" / RECORDINGS)
    description = json.loads((tmp_path / "uci-har-subset" / DESCRIPTION).read_text())
    assert {split: len(indices) for split, indices in description["splits"].items()} == {"train": 34, "validation": 6, "test": 18}
    sizes = [sum(len(arrays[f"x{index}"]) for index in description["splits"][split]) for split in ("train", "validation", "test")]
    assert sizes[0] + sizes[1] == 2400
    assert sizes[2] == 950
    assert all(np.isfinite(array).all() for array in arrays.values())
