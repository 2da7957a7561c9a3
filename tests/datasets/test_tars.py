"""Class folders in a tar are read as the folders are."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from atlas.datasets import tars
from atlas.datasets.base import DatasetLayoutError
from atlas.datasets.tars import ImageTar, ImageTree, image_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes, of which one has a file that is no image, with contents that tell images apart."""
    folder = tmp_path / "train"
    for place in ("n02/b.JPEG", "n02/a.JPEG", "n01/z.jpg", "n10/c.png", "n10/notes.txt", "n01/.hidden.JPEG", ".trash/x.JPEG"):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.encode() * 300)
    return folder


def packed(tree: Path, inside: str = ".") -> Path:
    path = tree.parent / "packed" / "train.tar"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        tar.add(tree, arcname=inside)
    return path


@pytest.mark.parametrize("inside", [".", "train", "some/where"])
def test_a_tar_holds_what_the_folder_holds(tree: Path, inside: str) -> None:
    folder, tar = ImageTree(tree), ImageTar(packed(tree, inside))
    assert folder.names == tar.names == ["n01/z.jpg", "n02/a.JPEG", "n02/b.JPEG", "n10/c.png"]
    assert folder.classes == tar.classes == ["n01", "n02", "n10"]
    assert folder.labels.tolist() == tar.labels.tolist() == [0, 1, 1, 2]
    for index in (2, 0, 3, 1):
        with folder.open(index) as one, tar.open(index) as other:
            assert one.read() == other.read() == tar.names[index].encode() * 300


def test_headers_are_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tree)
    names = ImageTar(path).names
    monkeypatch.setattr(tars, "_headers", lambda path: pytest.fail("read again"))
    assert ImageTar(path).names == names
    os.utime(path, (1, 1))
    with pytest.raises(pytest.fail.Exception):
        ImageTar(path)


def test_a_folder_comes_before_a_tar(tree: Path) -> None:
    path = packed(tree)
    assert isinstance(image_files(path.parent, "train"), ImageTar)
    assert isinstance(image_files(tree.parent, "train"), ImageTree)


def test_tars_that_cannot_be_read_are_named(tree: Path, tmp_path: Path) -> None:
    path = packed(tree)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"n10/c.png")])
    with pytest.raises(DatasetLayoutError, match="is the copy complete"):
        ImageTar(path)
    for content in (b"\x1f\x8b" + bytes(600), b"no tar" * 200):
        (tmp_path / "other.tar").write_bytes(content)
        with pytest.raises(DatasetLayoutError, match="cannot be read as an uncompressed tar"):
            ImageTar(tmp_path / "other.tar")
    with tarfile.open(tmp_path / "flat.tar", "w") as tar:
        tar.add(tree / "n01" / "z.jpg", arcname="z.jpg")
    with pytest.raises(DatasetLayoutError, match="holds no <class>/<image>; make it by: tar cf flat.tar -C flat"):
        ImageTar(tmp_path / "flat.tar")
