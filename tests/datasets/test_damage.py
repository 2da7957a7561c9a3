"""Damaged downloads: one line that names the archive or the file in it, and nothing left behind, for every data set."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from atlas.datasets import DatasetError, DatasetLayoutError, acquire, base, get_dataset
from atlas.datasets.acquisition import extract
from atlas.datasets.activity import HAR_SIGNALS
from atlas.datasets.base import all_datasets
from atlas.datasets.damage import told_as
from atlas.datasets.mnist import FILES

DOWNLOADS = [name for name, dataset in all_datasets().items() if dataset.kind == "download"]
Members = dict[str, bytes]


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return stream.getvalue()


def tarred(members: Mapping[str, bytes], level: int = 6) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=level) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def table(rows: int, columns: int, first: int = 1) -> bytes:
    return "".join(" ".join(str(first + (i * j) % 4) for j in range(columns)) + "\n" for i in range(rows)).encode()


def picture(size: int, level: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (level, 90, 30)).save(stream, format="PNG")
    return stream.getvalue()


def batch(label: bytes = b"labels") -> bytes:
    return pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), label: [0, 1, 2, 3]}, protocol=2)


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def har(part: str, subjects: bytes) -> Members:
    where = f"UCI HAR Dataset/{part}"
    return {
        f"{where}/X_{part}.txt": table(12, 3),
        f"{where}/y_{part}.txt": b"1\n2\n3\n4\n5\n6\n" * 2,
        f"{where}/subject_{part}.txt": subjects,
    }


def har_signals() -> Members:
    members = {}
    for part, rounds in (("train", 9), ("test", 2)):
        members[f"UCI HAR Dataset/{part}/y_{part}.txt"] = b"6\n5\n2\n3\n" * rounds
        for signal in HAR_SIGNALS:
            members[f"UCI HAR Dataset/{part}/Inertial Signals/{signal}_{part}.txt"] = table(4 * rounds, 128)
    return members


USER = b"timestamp,acc:x,label:SITTING,label_source\n1,0.5,1,2\n2,nan,0,2\n"

# A small whole download of every kind: the members of its one archive.
WHOLE: dict[str, Callable[[], Members]] = {
    "cifar10": lambda: {f"cifar-10-python/{name}": batch() for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]},
    "cifar100": lambda: {f"cifar-100-python/{name}": batch(b"fine_labels") for name in ("train", "test")},
    "cifar10-jpeg": lambda: {
        f"set/{split}/{name}/{k}.png": picture(32, 40 * k)
        for split in ("train", "test")
        for name in ("cat", "dog")
        for k in range(2)
    },
    "tiny-imagenet": lambda: {
        "tiny/wnids.txt": b"n01\nn02\n",
        **{f"tiny/train/{name}/images/{name}_0.JPEG": picture(64) for name in ("n01", "n02")},
        "tiny/val/val_annotations.txt": b"v0.JPEG\tn01\t0\nv1.JPEG\tn02\t0\n",
        **{f"tiny/val/images/v{k}.JPEG": picture(64) for k in range(2)},
    },
    "uci-har": lambda: {
        "UCI HAR Dataset/features.txt": b"1 tBodyAcc-X\n2 tBodyAcc-Y\n3 tBodyGyro-X\n",
        **har("train", b"1\n3\n5\n6\n" * 3),
        **har("test", b"2\n4\n" * 6),
    },
    "uci-har-subset": har_signals,
    "opportunity": lambda: {f"data/S{k}-ADL1.dat": table(20, 250) for k in range(1, 5)},
    "extrasensory": lambda: {f"U{k}.features_labels.csv.gz": gzip.compress(USER, mtime=0) for k in range(10)},
}
TARS = ("cifar10", "cifar100", "cifar10-jpeg")
NOTHING = [b"", b"<!DOCTYPE html>\n<title>404</title>\n", zipped({}), tarred({}), b"PK\3\4", b"\x1f\x8b\x08"]
STRAYS = {"__MACOSX/x/._a.txt": b"\0\5\x16\7", "._stray.features_labels.csv.gz": b"\0\5\x16\7", ".DS_Store": b"\0\0\0\1Bud1"}


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that puts archives of a data set into a mirror, whatever checksums their source publishes."""
    (tmp_path / "mirror").mkdir()

    def put(name: str, *contents: bytes) -> Path:
        sources = tuple(replace(source, checksum="") for source in get_dataset(name).sources)
        monkeypatch.setitem(base.all_datasets(), name, replace(get_dataset(name), sources=sources))
        for source, content in zip(sources, contents * (len(sources) if len(contents) == 1 else 1), strict=True):
            (tmp_path / "mirror" / source.file).write_bytes(content)
        return tmp_path / "mirror"

    return put


def refused(name: str, mirror: Path, *named: str) -> None:
    """That acquisition fails with one line that names one of ``named`` and leaves nothing."""
    root = mirror.parent / "data"
    with pytest.raises(DatasetError) as caught:
        acquire(name, root, mirror=mirror)
    message = str(caught.value)
    assert "\n" not in message
    assert "cannot write" not in message
    assert any(one in message for one in named), message
    assert not list(root.iterdir())


def packed(name: str, members: Mapping[str, bytes]) -> bytes:
    return tarred(members) if name in TARS else zipped(members)


def files_of(name: str) -> list[str]:
    return [source.file for source in get_dataset(name).sources]


@pytest.mark.parametrize("name", DOWNLOADS)
@pytest.mark.parametrize("content", NOTHING, ids=["empty", "html", "empty zip", "empty tar", "cut zip", "cut gz"])
def test_no_archive_or_an_empty_one(offer: Callable[..., Path], name: str, content: bytes) -> None:
    refused(name, offer(name, content), *files_of(name))


@pytest.mark.parametrize("name", WHOLE)
def test_strays_are_passed_over(offer: Callable[..., Path], name: str, tmp_path: Path) -> None:
    clean = acquire(name, tmp_path / "clean", mirror=offer(name, packed(name, WHOLE[name]())))
    members = {**STRAYS, **WHOLE[name]()}
    inside = {str(PurePosixPath(path).with_name(f"._{PurePosixPath(path).name}")): b"\0\5\x16\7" for path in members}
    stray = acquire(name, tmp_path / "stray", mirror=offer(name, packed(name, {**members, **inside})))
    assert stray.sha256 == clean.sha256


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_archive(offer: Callable[..., Path], name: str) -> None:
    content = packed(name, WHOLE[name]())
    for length in (len(content) // 2, len(content) - 30):
        refused(name, offer(name, content[:length]), *files_of(name))


@pytest.mark.parametrize("name", WHOLE)
def test_flipped_bytes(offer: Callable[..., Path], name: str) -> None:
    content = bytearray(packed(name, WHOLE[name]()))
    middle = len(content) // 3
    content[middle : middle + 20] = bytes(byte ^ 0x5A for byte in content[middle : middle + 20])
    members = [path.rpartition("/")[2] for path in WHOLE[name]()]
    refused(name, offer(name, bytes(content)), *files_of(name), *members)


MEMBERS = {
    "cifar10": ["cifar-10-python/data_batch_2", "cifar-10-python/test_batch"],
    "cifar100": ["cifar-100-python/train", "cifar-100-python/test"],
    "cifar10-jpeg": ["set/train/cat/0.png", "set/test/dog/1.png"],
    "tiny-imagenet": ["tiny/train/n02/images/n02_0.JPEG", "tiny/val/images/v0.JPEG"],
    "uci-har": [f"UCI HAR Dataset/{name}" for name in ("train/X_train.txt", "test/y_test.txt", "test/subject_test.txt")],
    "uci-har-subset": ["UCI HAR Dataset/train/Inertial Signals/body_gyro_y_train.txt", "UCI HAR Dataset/test/y_test.txt"],
    "opportunity": ["data/S1-ADL1.dat"],
    "extrasensory": ["U0.features_labels.csv.gz", "U7.features_labels.csv.gz"],
}


@pytest.mark.parametrize("damage", [lambda content: b"\x9d\0\xff{}\n", lambda content: b""], ids=["garbage", "empty"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_member_is_named(offer: Callable[..., Path], name: str, damage: Callable[[bytes], bytes]) -> None:
    for path in MEMBERS[name]:
        members = WHOLE[name]()
        members[path] = damage(members[path])
        refused(name, offer(name, packed(name, members)), PurePosixPath(path).name)


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("opportunity", "extrasensory", "cifar10-jpeg")])
def test_a_missing_member_is_named(offer: Callable[..., Path], name: str) -> None:
    for path in MEMBERS[name]:
        members = WHOLE[name]()
        del members[path]
        refused(name, offer(name, packed(name, members)), PurePosixPath(path).name, str(PurePosixPath(path).parent.parent)[5:])


def encrypted(content: bytes) -> bytes:
    """A zip archive whose members say that they are protected by a password."""
    changed = bytearray(content)
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = changed.find(signature)
        while place >= 0:
            changed[place + flags] |= 1
            place = changed.find(signature, place + 1)
    return bytes(changed)


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in TARS])
def test_a_password(offer: Callable[..., Path], name: str) -> None:
    refused(name, offer(name, encrypted(packed(name, WHOLE[name]()))), f"{files_of(name)[0]} is protected by a password")


def test_the_checksum_of_a_compressed_archive_is_read(tmp_path: Path) -> None:
    """The damage decodes to as many bytes, and only the checksum at the end tells."""
    content = bytearray(tarred({"a.txt": b"0123456789" * 2000}, level=0))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.tar\.gz is damaged or incomplete: CRC"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_member_whose_name_is_a_folder_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"1", "a/b": b"2"}))
    with pytest.raises(DatasetError, match=r"a\.zip is damaged or incomplete: a/b"):
        extract(tmp_path / "a.zip", tmp_path / "out")


X_TRAIN = "UCI HAR Dataset/train/X_train.txt"
Y_TRAIN = "UCI HAR Dataset/train/y_train.txt"
U3 = "U3.features_labels.csv.gz"


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("uci-har", X_TRAIN, table(5, 3) + b"1 2\n" + table(6, 3), "X_train.txt is damaged: line 6 has 2 columns, not 3"),
        ("uci-har", X_TRAIN, b"1 2\n" * 12, "X_train.txt is damaged: line 1 has 2 columns, not 3"),
        ("uci-har", X_TRAIN, table(5, 3) + b"\n1 2 1.5e\n", "X_train.txt is damaged: line 7 holds '1.5e', which is not a number"),
        ("uci-har", X_TRAIN, b"\n \n", "X_train.txt is damaged: it holds no table of 3 columns"),
        ("uci-har", X_TRAIN, table(11, 3), "the train part has 11 rows of features, 12 labels and 12 subjects"),
        ("uci-har", Y_TRAIN, b"1\n2\n7\n", "y_train.txt is damaged: row 3 is 7, not a whole number from 1 to 6"),
        ("uci-har", Y_TRAIN, b"1\nnan\n", "y_train.txt is damaged: row 2 is nan, not a whole number"),
        ("uci-har", "UCI HAR Dataset/features.txt", b"1 a\n2\n3 c\n", "features.txt is damaged: row 2 names no feature"),
        (
            "uci-har-subset",
            "UCI HAR Dataset/test/Inertial Signals/total_acc_y_test.txt",
            table(7, 128),
            "total_acc_y_test.txt of uci-har-subset.zip has 7 windows, and there are 8 labels",
        ),
        (
            "opportunity",
            "data/S3-ADL1.dat",
            table(9, 250) + table(1, 120),
            "S3-ADL1.dat is damaged: line 10 has 120 columns, not 250",
        ),
        ("opportunity", "data/S3-ADL1.dat", table(20, 249), "S3-ADL1.dat is damaged: line 1 has 249 columns, not 250"),
        (
            "opportunity",
            "data/S3-ADL1.dat",
            table(9, 250) + b"1 " * 249 + b"nan\n",
            "S3-ADL1.dat is damaged: a label is missing in row 10",
        ),
        ("extrasensory", U3, gzip.compress(USER + b"3,1\n", mtime=0), f"{U3} is damaged: line 4 has 2 columns, not 4"),
        ("extrasensory", U3, gzip.compress(USER + b"3,x,1,2\n", mtime=0), f"{U3} is damaged: line 4: could not convert"),
        ("extrasensory", U3, gzip.compress(USER, mtime=0)[:40], f"{U3} is damaged: "),
        ("extrasensory", U3, b"<html>", f"{U3} is damaged: Not a gzipped file"),
        ("extrasensory", U3, gzip.compress(b"\xff\xfe\0", mtime=0), f"{U3} is damaged: "),
        ("extrasensory", U3, gzip.compress(b"\n\n", mtime=0), f"{U3} has no header"),
        (
            "extrasensory",
            U3,
            gzip.compress(USER.replace(b"SITTING", b"LYING"), mtime=0),
            f"{U3} has other columns than the users before it",
        ),
        ("cifar10-jpeg", "set/test/dog/1.png", picture(31), "test/dog/1.png has 31 × 31 pixels, not 32 × 32"),
        ("cifar10-jpeg", "set/test/dog/notes.txt", b"hello", "test/dog/notes.txt is missing or damaged"),
        ("cifar10-jpeg", "set/train/bird/1.png", picture(32), "has the class bird in only one of train/ and test/"),
        (
            "tiny-imagenet",
            "tiny/val/val_annotations.txt",
            b"v0.JPEG\tn01\nv1.JPEG",
            "val_annotations.txt, line 2, names the class ''",
        ),
        (
            "tiny-imagenet",
            "tiny/val/val_annotations.txt",
            b"v9.JPEG\tn01\n",
            "val/images/v9.JPEG is missing or damaged: No such file",
        ),
        ("tiny-imagenet", "tiny/wnids.txt", b"n01\nn02\nn03\n", "tiny-imagenet-200.zip has no images under train/n03"),
        ("cifar10", "cifar-10-python/data_batch_3", pickle.dumps([1, 2], protocol=2), "data_batch_3 is not a batch of CIFAR"),
        (
            "cifar10",
            "cifar-10-python/data_batch_3",
            pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0]}, protocol=2),
            "data_batch_3 is not a batch of CIFAR's Python version: 4 images and labels of the shape (1,)",
        ),
    ],
)
def test_where_the_damage_is(offer: Callable[..., Path], name: str, path: str, content: bytes, message: str) -> None:
    refused(name, offer(name, packed(name, {**WHOLE[name](), path: content})), message)


def test_images_and_labels_of_mnist_belong_together(offer: Callable[..., Path]) -> None:
    images, labels = idx(np.zeros((3, 28, 28), np.uint8)), idx(np.zeros(3, np.uint8))
    refused("mnist", offer("mnist", labels, images, images, labels), f"mnist-{FILES[0]} holds an array of the shape (3,)")
    refused("mnist", offer("mnist", images, labels, images, idx(np.zeros(2, np.uint8))), f"mnist-{FILES[2]} holds an array")
    refused("mnist", offer("mnist", images, labels[:-9] + b"123456789", images, labels), f"mnist-{FILES[1]} is not a gzipped IDX")


def test_user_supplied_files_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(folder: Path) -> None:
        raise KeyError("frames")

    monkeypatch.setitem(base.all_datasets(), "llff", replace(get_dataset("llff"), check=check))
    with pytest.raises(DatasetLayoutError, match=r"llff: .*data/llff is not as expected: 'frames'"):
        acquire("llff", tmp_path / "data")


def test_a_full_disk_is_no_damage() -> None:
    with pytest.raises(OSError, match="No space left"), told_as("a.zip is damaged"):
        raise OSError(28, "No space left on device", "data/x")
    with pytest.raises(ImportError), told_as("a.zip is damaged"):
        raise ImportError("no module")
    with pytest.raises(DatasetError, match=r"^a\.zip is damaged: EOFError$"), told_as("a.zip is damaged"):
        raise EOFError
