"""Data that are looked at again: other contents are seen, whatever their names and sizes; what has not changed is not read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atlas.datasets import (
    DatasetError,
    DatasetLayoutError,
    acquire,
    acquisition,
    base,
    get_dataset,
    looks,
    manifest,
    read_manifest,
    stale_data,
    stand_in,
)

SCENE = "views/room"


def check_views(folder: Path) -> None:
    if not any(folder.glob("*/images/*")):
        raise DatasetLayoutError(f"views: {folder} holds no pictures")


def age(folder: Path, seconds: float = 60) -> None:
    """Give files a time that lies so far back that a further change cannot carry the same one."""
    past = time.time() - seconds
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (past, past))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user-supplied set of three pictures, as files that are not new."""
    dataset = replace(get_dataset("digits"), name="views", kind="user-supplied", prepare=None, check=check_views)
    monkeypatch.setitem(base.all_datasets(), "views", dataset)
    images = tmp_path / "data" / SCENE / "images"
    images.mkdir(parents=True)
    for index in range(3):
        (images / f"{index}.png").write_bytes(b"picture %d" % index)
    age(tmp_path / "data")
    return tmp_path / "data"


def same_size(data: Path) -> None:
    (data / SCENE / "images/1.png").write_bytes(b"PICTURE 1")


def same_size_and_time(data: Path) -> None:
    path = data / SCENE / "images/1.png"
    before = path.stat()
    path.write_bytes(b"PICTURE 1")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_size(data: Path) -> None:
    (data / SCENE / "images/1.png").write_bytes(b"another picture")


def added(data: Path) -> None:
    (data / SCENE / "images/3.png").write_bytes(b"picture 3")


def removed(data: Path) -> None:
    (data / SCENE / "images/1.png").unlink()


def renamed(data: Path) -> None:
    (data / SCENE / "images/1.png").rename(data / SCENE / "images/9.png")


def swapped(data: Path) -> None:
    images = data / SCENE / "images"
    for old, new in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        (images / old).rename(images / new)


CHANGES = [same_size, other_size, added, removed, renamed, swapped]


@pytest.mark.parametrize("change", [*CHANGES, same_size_and_time])
def test_a_change_gives_another_hash(data: Path, change: Callable[[Path], None]) -> None:
    first = acquire("views", data)
    change(data)
    second = acquire("views", data)
    assert second.sha256 != first.sha256
    assert read_manifest(data, "views") == second


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_without_reading(data: Path, change: Callable[[Path], None]) -> None:
    acquire("views", data)
    assert stale_data("views", data) is None
    change(data)
    assert "room/images" in (stale_data("views", data) or "")
    acquire("views", data)
    assert stale_data("views", data) is None


@pytest.mark.parametrize("change", [other_size, added, removed, renamed])
def test_without_a_memory_names_and_sizes_are_compared(data: Path, change: Callable[[Path], None]) -> None:
    acquire("views", data)
    shutil.rmtree(data.parent / ".atlas")
    age(data, 10)  # a clone has other times
    assert stale_data("views", data) is None
    change(data)
    assert stale_data("views", data) == "names or sizes of its files changed"


def test_a_change_back_gives_the_first_hash(data: Path) -> None:
    first = acquire("views", data)
    other_size(data)
    acquire("views", data)
    (data / SCENE / "images/1.png").write_bytes(b"picture 1")
    assert acquire("views", data).text == first.text


def test_a_link_that_leads_elsewhere_is_a_change(data: Path, tmp_path: Path) -> None:
    for name, content in (("one", b"1111"), ("two", b"2222")):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images/a.png").write_bytes(content)
        os.utime(tmp_path / name / "images/a.png", (10**9, 10**9))
    link = data / "views/linked"
    link.symlink_to(tmp_path / "one")
    first = acquire("views", data)
    link.unlink()
    link.symlink_to(tmp_path / "two")
    assert stale_data("views", data) == "linked/images/a.png was modified"
    assert acquire("views", data).sha256 != first.sha256


def test_an_incomplete_copy_is_refused_as_at_first(data: Path) -> None:
    acquire("views", data)
    shutil.rmtree(data / SCENE / "images")
    with pytest.raises(DatasetLayoutError, match="holds no pictures"):
        acquire("views", data)


def test_what_has_not_changed_is_not_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = acquire("views", data)
    read: list[Path] = []
    digest = looks._digest
    monkeypatch.setattr(looks, "_digest", lambda path, reading: read.append(path) or digest(path, reading))
    assert acquire("views", data) == first
    assert read == []
    same_size(data)
    acquire("views", data)
    assert [path.name for path in read] == ["1.png"]


def test_a_file_that_changed_within_a_tick_of_the_look_is_read_again(data: Path) -> None:
    """A clock may not have moved between a look and a change that follows at once: time and size are then the same."""
    path = data / SCENE / "images/1.png"
    path.write_bytes(b"picture 1")
    tick = path.stat()
    first = acquire("views", data)
    path.write_bytes(b"PICTURE 1")
    remembered = data.parent / ".atlas/looks/views.jsonl"
    short, long = remembered.read_text().splitlines()
    files = json.loads(long)
    now = path.stat()
    files["room/images/1.png"][:4] = [now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns]
    remembered.write_text(f"{short}\n{json.dumps(files)}\n")
    assert tick.st_size == now.st_size
    assert acquire("views", data).sha256 != first.sha256


def test_equal_data_give_equal_manifests_on_every_machine(data: Path, tmp_path: Path) -> None:
    first = acquire("views", data)
    shutil.copytree(data, tmp_path / "elsewhere/data")
    (tmp_path / "elsewhere/data/views/manifest.json").unlink()
    assert acquire("views", tmp_path / "elsewhere/data").text == first.text


def test_what_file_managers_leave_is_no_data(data: Path) -> None:
    first = acquire("views", data)
    (data / SCENE / ".DS_Store").write_bytes(b"x")
    (data / SCENE / "images/._1.png").write_bytes(b"x")
    assert stale_data("views", data) is None
    assert acquire("views", data) == first


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null\nnull", '{"folder": 1}\n{"a": 3}', "\udcff"])
def test_a_damaged_memory_costs_time_only(data: Path, damage: str) -> None:
    first = acquire("views", data)
    (data.parent / ".atlas/looks/views.jsonl").write_bytes(damage.encode(errors="surrogateescape"))
    assert stale_data("views", data) is None
    assert acquire("views", data) == first


def test_a_memory_of_another_folder_says_nothing(data: Path, tmp_path: Path) -> None:
    acquire("views", data)
    (tmp_path / "copy").mkdir()
    shutil.copytree(data / "views", tmp_path / "copy/views")
    (data / "views").rename(tmp_path / "old")
    (data / "views").symlink_to(tmp_path / "copy/views")
    assert looks.recall(data, "views") is None
    assert stale_data("views", data) is None


def test_a_manifest_of_an_older_form_is_read_and_looked_at_anew(data: Path) -> None:
    old = {"dataset": "views", "sources": [], "files": [{"path": ".", "size": 27}], "sha256": "0" * 64}
    (data / "views/manifest.json").write_text(json.dumps(old))
    found = read_manifest(data, "views")
    assert found is not None
    assert found.sha256 == "0" * 64
    assert stale_data("views", data) == "it was acquired before contents were looked at"
    assert acquire("views", data).sha256 != "0" * 64
    assert stale_data("views", data) is None


def test_large_sets_are_told_by_the_ends_of_their_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / SCENE / "images/1.png"
    content = bytearray(3 * looks.ENDS)
    path.write_bytes(content)
    hashes = set()
    for limit in (10**6, 10**3):
        monkeypatch.setattr(acquisition, "CONTENTS_LIMIT", limit)
        hashes.add(acquire("views", data).sha256)
    assert len(hashes) == 2, "what a hash covers is part of it"
    for place, seen in ((0, True), (looks.ENDS - 1, True), (looks.ENDS + 9, False), (-looks.ENDS, True), (-1, True)):
        before = acquire("views", data).sha256
        content[place] ^= 255
        path.write_bytes(content)
        assert (acquire("views", data).sha256 != before) == seen, place


def test_of_many_files_the_plan_looks_at_folders_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MANY_FILES", 2)
    acquire("views", data)
    monkeypatch.setattr(manifest, "walk", lambda folder: pytest.fail("every file was listed"))
    assert stale_data("views", data) is None
    added(data)
    assert stale_data("views", data) == "room/images/ was modified"
    shutil.rmtree(data / SCENE)
    assert stale_data("views", data) == "room/ is missing"
    shutil.rmtree(data.parent / ".atlas")
    assert stale_data("views", data) is None


def test_links_that_lead_nowhere_or_round_are_named(data: Path) -> None:
    acquire("views", data)
    link = data / "views/link"
    link.symlink_to(data / "nothing")
    with pytest.raises(DatasetLayoutError, match=r"views/link is a link to nothing"):
        acquire("views", data)
    assert "link is a link to nothing" in (stale_data("views", data) or "")
    link.unlink()
    link.symlink_to(data / "views")
    with pytest.raises(DatasetLayoutError, match=r"link is a link to a folder that holds it"):
        acquire("views", data)
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(DatasetLayoutError, match=r"link is neither a file nor a folder"):
        acquire("views", data)


def test_what_is_not_acquired_is_not_stale(data: Path) -> None:
    assert stale_data("views", data) is None
    assert stale_data("views", data / "nowhere") is None
    (data / "views/manifest.json").write_text("{cut")
    assert stale_data("views", data) == "its manifest cannot be read"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedded set of one file, acquired and not new."""

    def prepare(archives: object, folder: Path) -> None:
        (folder / "numbers.bin").write_bytes(bytes(range(100)))
        (folder / "part").mkdir()
        (folder / "part/more.bin").write_bytes(bytes(7))

    monkeypatch.setitem(base.all_datasets(), "numbers", replace(get_dataset("digits"), name="numbers", prepare=prepare))
    acquire("numbers", tmp_path / "data")
    age(tmp_path / "data")
    acquire("numbers", tmp_path / "data")
    return tmp_path / "data"


def flipped(folder: Path) -> None:
    (folder / "numbers.bin").write_bytes(bytes(100))


def cut(folder: Path) -> None:
    (folder / "numbers.bin").write_bytes(bytes(range(50)))


def gone(folder: Path) -> None:
    shutil.rmtree(folder / "part")


@pytest.mark.parametrize("damage", [flipped, cut, gone])
def test_damaged_prepared_data_are_made_again(prepared: Path, damage: Callable[[Path], None]) -> None:
    first = read_manifest(prepared, "numbers")
    damage(prepared / "numbers")
    assert stale_data("numbers", prepared)
    assert acquire("numbers", prepared) == first
    assert (prepared / "numbers/numbers.bin").read_bytes() == bytes(range(100))
    assert stale_data("numbers", prepared) is None


def test_damage_that_cannot_be_mended_is_named(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(archives: object, folder: Path) -> None:
        raise DatasetError("the library is gone")

    monkeypatch.setitem(base.all_datasets(), "numbers", replace(get_dataset("numbers"), prepare=fail))
    for damage, what in ((flipped, "numbers.bin has other contents"), (cut, "numbers.bin has 50 bytes, not 100")):
        damage(prepared / "numbers")
        with pytest.raises(DatasetError) as caught:
            acquire("numbers", prepared)
        assert str(caught.value) == f"{prepared}/numbers is damaged ({what}) and cannot be made again: the library is gone"


def test_prepared_data_are_not_read_again(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_digest", lambda path, reading: pytest.fail(f"{path} was read"))
    acquire("numbers", prepared)


def test_a_file_that_does_not_belong_there_is_named_and_kept(prepared: Path) -> None:
    notes = prepared / "numbers/notes.txt"
    notes.write_text("mine")
    assert stale_data("numbers", prepared) == "notes.txt is new"
    with pytest.raises(DatasetError, match=r"numbers/notes\.txt does not belong to numbers: move it out"):
        acquire("numbers", prepared)
    assert notes.read_text() == "mine"


def test_a_manifest_that_a_workflow_removed_is_written_again(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_manifest(prepared, "numbers")
    (prepared / "numbers/manifest.json").unlink()
    monkeypatch.setitem(
        base.all_datasets(),
        "numbers",
        replace(get_dataset("numbers"), prepare=lambda archives, folder: pytest.fail("made again")),
    )
    assert acquire("numbers", prepared) == first
    assert read_manifest(prepared, "numbers") == first


def test_a_stand_in_stays_one(tmp_path: Path) -> None:
    stand_in("digits5", tmp_path / "data")
    assert acquire("digits5", tmp_path / "data").sha256 == "stand-in"
    shutil.rmtree(tmp_path / "data/digits5/MNIST_M")
    with pytest.raises(DatasetLayoutError, match="MNIST_M"):
        acquire("digits5", tmp_path / "data")
