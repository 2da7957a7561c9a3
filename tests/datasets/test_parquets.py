"""ImageNet's Parquet files become a tar that is read as its folders are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas.datasets.base import DatasetError, DatasetLayoutError
from atlas.datasets.parquets import pack, parquet_files
from atlas.datasets.tars import ImageTar, ImageTree

Row = tuple[str, int, bytes]
KINDS = ("n01440764", "n01443537", "n02000000")


def written(path: Path, rows: Sequence[Row], **columns: Any) -> Path:
    """A Parquet file as Hugging Face writes it, in groups of two rows."""
    arrow = pytest.importorskip("pyarrow", reason="the Parquet reader (pip install 'atlas[parquet]') is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        columns or {"image": [{"bytes": content, "path": name} for name, _, content in rows], "label": [row[1] for row in rows]}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def tree(folder: Path) -> Path:
    """Three classes of four images, whose names sort otherwise once Hugging Face has put the class behind them."""
    for kind in KINDS:
        for number in (2, 10, 100, 1002):
            path = folder / kind / f"{kind}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind} {number}".encode() * 50)
    return folder


def rows_of(folder: Path) -> list[Row]:
    """The images of a folder in a shuffled order, with Hugging Face's names."""
    paths = sorted(folder.rglob("*.JPEG"), key=lambda path: path.stem[::-1])
    return [(f"{path.stem}_{path.parent.name}.JPEG", KINDS.index(path.parent.name), path.read_bytes()) for path in paths]


@pytest.mark.parametrize("place", [".", "data"])
def test_parquet_files_hold_what_the_folder_holds(tmp_path: Path, place: str) -> None:
    folder, rows = tree(tmp_path / "tree"), rows_of(tmp_path / "tree")
    for number in range(3):
        written(tmp_path / place / f"train-{number:05d}-of-00003.parquet", rows[4 * number : 4 * number + 4])
    written(tmp_path / place / "test-00000-of-00001.parquet", [("ILSVRC2012_test_00000001.JPEG", -1, b"no label")])
    files = parquet_files(tmp_path, "train")
    assert [path.name[:11] for path in files] == ["train-00000", "train-00001", "train-00002"]
    assert parquet_files(tmp_path, "val") == []
    pack(files, tmp_path / "train.tar")
    one, other = ImageTree(folder), ImageTar(tmp_path / "train.tar")
    assert (one.names, one.classes, one.labels.tolist()) == (other.names, other.classes, other.labels.tolist())
    for index in range(len(one)):
        with one.open(index) as expected, other.open(index) as found:
            assert expected.read() == found.read()
    assert not list(tmp_path.glob(".train.tar.*[!z]"))  # besides the index of the tar, nothing is left


def test_names_of_validation_and_no_names(tmp_path: Path) -> None:
    rows = [("ILSVRC2012_val_00000293_n01440764.JPEG", 0, b"a"), ("n01443537_5.JPEG", 1, b"b")]
    pack([written(tmp_path / "validation.parquet", rows)], tmp_path / "val.tar")
    assert parquet_files(tmp_path, "val") == [tmp_path / "validation.parquet"]
    assert ImageTar(tmp_path / "val.tar").names == ["n01440764/ILSVRC2012_val_00000293.JPEG", "n01443537/n01443537_5.JPEG"]
    pack([written(tmp_path / "train.parquet", [("", 1, b"a"), ("cat.png", 0, b"b")])], tmp_path / "train.tar")
    assert ImageTar(tmp_path / "train.tar").names == ["0000/cat.png", "0001/00000000.JPEG"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a_n01440764.JPEG", 0, b"x")] * 2, "hold n01440764/a.JPEG twice"),
        ([("a_n01440764.JPEG", 0, b"x"), ("b_n01440764.JPEG", 1, b"x")], "label n01440764 both 0 and 1"),
        ([("a_n01440764.JPEG", 1, b"x"), ("b_n01443537.JPEG", 0, b"x")], "do not number the classes in the order of their names"),
        ([("a_n01440764.JPEG", 0, b"x"), ("b_n01443537.JPEG", 1, b"")], "without content or label, the 2th of its split"),
        ([("a_n01440764.JPEG", -1, b"x")], "without content or label"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(tmp_path: Path, rows: list[Row], message: str) -> None:
    file = written(tmp_path / "train.parquet", rows)
    with pytest.raises(DatasetLayoutError, match=message):
        pack([file], tmp_path / "train.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]


def test_damaged_files_and_other_columns(tmp_path: Path) -> None:
    file = written(tmp_path / "train.parquet", [("a_n01440764.JPEG", 0, b"x" * 5000)])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetLayoutError, match=r"train\.parquet is no readable Parquet file"):
        pack([file], tmp_path / "train.tar")
    with pytest.raises(DatasetLayoutError, match=r"has the columns pixels, label; expected image \(bytes, path\) and label"):
        pack([written(file, [], pixels=[b"x"], label=[0])], tmp_path / "train.tar")


def test_a_missing_file_of_several(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"train-{number:05d}-of-00003.parquet").touch()
    with pytest.raises(DatasetLayoutError, match="2 of 3 Parquet files of train, 1 missing, the first of them 00001"):
        parquet_files(tmp_path, "train")


def test_without_a_reader_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"needs a Parquet reader: pip install 'atlas\[parquet\]'"):
        pack([tmp_path / "train.parquet"], tmp_path / "train.tar")
    assert list(tmp_path.iterdir()) == []


def test_acquiring_imagenet_makes_its_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three classes of four images, which decode, in place of a thousand; a copy that lacks some leaves no tar."""
    from PIL import Image

    from atlas.datasets import images

    for name, count in (("IMAGENET_CLASSES", 3), ("IMAGENET_TRAIN", 12), ("IMAGENET_VALIDATION", 12)):
        monkeypatch.setattr(images, name, count)
    folder = tree(tmp_path / "tree")
    for number, path in enumerate(sorted(folder.rglob("*.JPEG"))):
        Image.new("RGB", (8, 6), (20 * number, 0, 0)).save(path)
    rows = rows_of(folder)
    place = tmp_path / "imagenet"
    written(place / "data" / "train-00000-of-00001.parquet", rows)
    written(place / "data" / "validation-00000-of-00001.parquet", rows[:11])
    with pytest.raises(DatasetLayoutError, match=r"val\.tar has 11 images, not 12; is the copy complete"):
        images.check_imagenet(place)
    assert not (place / "val.tar").exists()
    written(place / "data" / "validation-00000-of-00001.parquet", rows)
    images.check_imagenet(place)
    assert [ImageTar(place / f"{split}.tar").names for split in ("train", "val")] == [ImageTree(folder).names] * 2
