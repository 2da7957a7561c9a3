"""Acquisition against archives made and served here: every way in which it can go wrong leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from atlas.datasets import DatasetError, DatasetLayoutError, Source, acquire, acquisition, base, get_dataset, read_manifest
from atlas.datasets.acquisition import extract
from atlas.datasets.images import check_imagenet, prepare_image_folders, read_cifar_batch
from atlas.datasets.splits import balanced_order, stratified_split
from atlas.errors import UserError

MIRROR = os.environ.get("ATLAS_DATA_MIRROR")


def cifar_archive() -> bytes:
    """A tiny CIFAR-10 in the official layout."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for index, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
            data = np.random.default_rng(index).integers(0, 256, (4, 3072), dtype=np.uint8)
            content = pickle.dumps({b"data": data, b"labels": [index % 10] * 4}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}".replace("batches-py", "python"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Server:
    """Serves one file, and can drop the connection in the middle of the first answers."""

    def __init__(self, content: bytes) -> None:
        self.content, self.drops, self.requests = content, 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if not outer.content:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                if outer.drops:
                    outer.drops -= 1
                    self.wfile.write(outer.content[: len(outer.content) // 2])
                    self.wfile.flush()
                    self.connection.close()
                    return
                self.wfile.write(outer.content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """CIFAR-10's entry with the tiny archive's checksum, served on loopback."""
    monkeypatch.setattr(acquisition, "PAUSE_SECONDS", 0)
    served = Server(cifar_archive())
    dataset = get_dataset("cifar10")
    checksum = "md5:" + hashlib.md5(served.content).hexdigest()
    source = Source(f"{served.url}/cifar-10-python.tar.gz", "cifar-10-python.tar.gz", checksum)
    monkeypatch.setitem(base.all_datasets(), "cifar10", replace(dataset, sources=(source,)))
    yield served
    served.server.shutdown()


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def test_download_verify_unpack_and_manifest(server: Server, tmp_path: Path) -> None:
    manifest = acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == ["cifar10"]
    assert manifest == read_manifest(tmp_path, "cifar10")
    assert [file["path"] for file in manifest.files] == ["images.safetensors"]
    assert manifest.sources[0]["sha256"] == hashlib.sha256(server.content).hexdigest()
    requests = server.requests
    assert acquire("cifar10", tmp_path) == manifest
    assert server.requests == requests, "what is there is not downloaded again"
    again = acquire("cifar10", tmp_path / "other")
    assert again.text == manifest.text, "equal data, equal manifest, byte for byte"


def test_mirror_folder_and_url_stand_in_for_the_origin(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "cifar-10-python.tar.gz").write_bytes(server.content)
    by_folder = acquire("cifar10", tmp_path / "a", mirror=tmp_path / "mirror")
    assert server.requests == 0
    by_url = acquire("cifar10", tmp_path / "b", mirror=f"{server.url}/anywhere/")
    assert by_folder.sha256 == by_url.sha256
    with pytest.raises(DatasetError, match=r"cifar-10-python\.tar\.gz is not in the mirror"):
        acquire("cifar10", tmp_path / "c", mirror=tmp_path / "c")


def test_dropped_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.drops = 2
    acquire("cifar10", tmp_path)
    assert server.requests == 3


def test_connection_that_keeps_dropping_is_an_error(server: Server, tmp_path: Path) -> None:
    server.drops = 99
    with pytest.raises(DatasetError, match=r"failed 3 times .*; try again, or use --mirror"):
        acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == []


def test_missing_file_on_the_server(server: Server, tmp_path: Path) -> None:
    server.content = b""
    with pytest.raises(DatasetError, match="404"):
        acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == []


def test_wrong_checksum_names_both(server: Server, tmp_path: Path) -> None:
    expected = hashlib.md5(server.content).hexdigest()
    server.content = server.content[:-1] + b"x"
    found = hashlib.md5(server.content).hexdigest()
    with pytest.raises(DatasetError, match=f"has md5 {found} .* not {expected}"):
        acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == []


def test_truncated_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = server.content[: len(server.content) // 2]
    dataset = get_dataset("cifar10")
    monkeypatch.setitem(base.all_datasets(), "cifar10", replace(dataset, sources=(replace(dataset.sources[0], checksum=""),)))
    with pytest.raises(DatasetError, match="is damaged or incomplete"):
        acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == []


def test_an_older_copy_survives_a_failed_update(server: Server, tmp_path: Path) -> None:
    first = acquire("cifar10", tmp_path)
    (tmp_path / "cifar10" / "images.safetensors").write_bytes(b"cut short")
    server.drops = 99
    with pytest.raises(DatasetError):
        acquire("cifar10", tmp_path)
    assert leftovers(tmp_path) == ["cifar10"]
    server.drops = 0
    assert acquire("cifar10", tmp_path).sha256 == first.sha256


@pytest.mark.parametrize("member", ["../escape", "/tmp/escape", "a/../../escape"])
def test_archives_cannot_write_outside_their_folder(tmp_path: Path, member: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(member), io.BytesIO())
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bundle:
        bundle.writestr(member, "x")
    for name in ("bad.tar", "bad.zip"):
        (tmp_path / "out").mkdir(exist_ok=True)
        if name == "bad.tar" and member.startswith("/"):
            extract(tmp_path / name, tmp_path / "out")  # the data filter strips the leading slash
            assert (tmp_path / "out" / "tmp" / "escape").exists()
            continue
        with pytest.raises(DatasetError, match="is unsafe"):
            extract(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "escape").exists()


def test_links_out_of_an_archive_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(link)
    with pytest.raises(DatasetError, match="is unsafe"):
        extract(tmp_path / "bad.tar", tmp_path / "out")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(DatasetError, match=r"digits: cannot write to the folder .*data"):
        acquire("digits", tmp_path / "data")


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (os.system, ("touch owned",))

    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}, protocol=2))
    with pytest.raises(DatasetError, match="only arrays and plain values are read"):
        read_cifar_batch(tmp_path / "batch", b"labels")
    (tmp_path / "batch").write_bytes(b"not a pickle")
    with pytest.raises(DatasetError, match="is not a batch of CIFAR"):
        read_cifar_batch(tmp_path / "batch", b"labels")


def imagenet(root: Path, train: int, val: int, images: bool = True) -> Path:
    for split, classes in (("train", train), ("val", val)):
        for index in range(classes):
            folder = root / split / f"n{index:08d}"
            folder.mkdir(parents=True)
            if images:
                (folder / "a.JPEG").touch()
    return root


def test_imagenet_layouts_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match=r"does not exist; put ImageNet-1k at .*train/<wnid>"):
        check_imagenet(tmp_path / "imagenet")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "train" / "a.JPEG").touch()
    with pytest.raises(DatasetLayoutError, match=r"0 class folders, not 1000 .*not sorted into class folders"):
        check_imagenet(tmp_path / "flat")
    with pytest.raises(DatasetLayoutError, match="has 3 class folders, not 1000"):
        check_imagenet(imagenet(tmp_path / "few", 3, 1))
    with pytest.raises(DatasetLayoutError, match="is empty; is the copy complete"):
        check_imagenet(imagenet(tmp_path / "empty", 1000, 1000, images=False))
    with pytest.raises(DatasetLayoutError, match=r"has 1,000 images, not 1,281,167; is the copy complete"):
        check_imagenet(imagenet(tmp_path / "half", 1000, 1000))
    assert issubclass(DatasetLayoutError, UserError)


def test_unknown_dataset_suggests_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no dataset digit; did you mean digits"):
        acquire("digit", tmp_path)


def test_digits_are_complete_and_their_manifest_is_stable(data_folder: Path) -> None:
    manifest = read_manifest(data_folder, "digits")
    assert manifest is not None
    assert json.loads(manifest.text)["files"][0]["path"] == "images.safetensors"
    from safetensors.numpy import load_file

    arrays = load_file(data_folder / "digits" / "images.safetensors")
    assert arrays["train_images"].shape == (1797, 1, 8, 8)
    assert int(arrays["train_images"].max()) == 16


def test_splits_are_stratified_disjoint_and_fixed() -> None:
    labels = np.repeat(np.arange(5), 40)
    kept, held = stratified_split(labels, 0.3)
    assert sorted([*kept, *held]) == list(range(200))
    assert np.bincount(labels[held]).tolist() == [12] * 5
    assert (stratified_split(labels, 0.3)[1] == held).all()
    assert len(stratified_split(labels, 0.0)[1]) == 0


@pytest.mark.parametrize("counts", [(40, 40, 40), (60, 20, 10), (1, 1, 1), (7, 0, 3)])
def test_any_stretch_of_a_balanced_order_is_stratified(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(labels)
    assert sorted(order) == list(range(len(labels)))
    assert (balanced_order(labels) == order).all()
    assert len(labels) < 4 or (balanced_order(labels, seed=1) != order).any()
    for first in range(0, len(labels), 9):
        for last in range(first, len(labels) + 1, 7):
            found = np.bincount(labels[order[first:last]], minlength=len(counts))
            expected = (last - first) * np.asarray(counts) / len(labels)
            assert (np.abs(found - expected) <= 1.5).all()


def test_folders_of_classes_become_arrays_in_a_balanced_order(tmp_path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "set.zip", "w") as bundle:
        for split, each in (("train", 8), ("test", 4)):
            for place, name in enumerate(("cat", "dog")):
                for index in range(each):
                    stream = io.BytesIO()
                    Image.new("RGB", (4, 4), (100 * place + index,) * 3).save(stream, "PNG")
                    bundle.writestr(f"set/{split}/{name}/{index}.png", stream.getvalue())
    (tmp_path / "out").mkdir()
    prepare_image_folders([tmp_path / "set.zip"], tmp_path / "out")
    from safetensors.numpy import load_file

    arrays = load_file(tmp_path / "out" / "images.safetensors")
    labels, shades = arrays["train_labels"], arrays["train_images"][:, 0, 0, 0].astype(int)
    assert (labels == shades // 100).all()  # every image has kept its label
    assert sorted(shades % 100) == sorted([*range(8)] * 2)
    assert all(np.bincount(labels[:count], minlength=2).tolist() == [count // 2] * 2 for count in (2, 4, 8, 16))
    assert list(shades) != sorted(shades)
    assert np.bincount(arrays["test_labels"][:4]).tolist() == [2, 2]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not MIRROR, reason="ATLAS_DATA_MIRROR does not name a folder with cifar10-imagefolder.tar.gz")
def test_real_cifar10_as_jpeg(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    acquire("cifar10-jpeg", tmp_path, mirror=MIRROR)
    arrays = load_file(tmp_path / "cifar10-jpeg" / "images.safetensors")
    assert arrays["train_images"].shape == (50000, 3, 32, 32)
    assert np.bincount(arrays["test_labels"]).tolist() == [1000] * 10
    parts = {1000: arrays["train_labels"][:10000], 100: arrays["train_labels"][-1000:], 50: arrays["test_labels"][:500]}
    for each, part in parts.items():
        assert np.bincount(part, minlength=10).tolist() == [each] * 10
