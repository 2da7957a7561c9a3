"""Digits-5 and DomainNet: layouts, lists, and what is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.datasets import DatasetError, DatasetLayoutError, acquire, get_dataset, stand_in
from atlas.datasets.domains import (
    DIGIT_DOMAINS,
    DOMAINNET_CLASSES,
    DOMAINNET_DOMAINS,
    listed,
    prepare_domainnet,
    read_domains,
    resized,
)


def test_digits5_is_checked_and_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match="digits5 does not exist; unpack the digits archive of FedBN"):
        acquire("digits5", tmp_path)
    stand_in("digits5", tmp_path / "made")
    (tmp_path / "made" / "digits5" / "manifest.json").unlink()
    acquire("digits5", tmp_path / "made")
    found = read_domains("digits5", tmp_path / "made" / "digits5", parts=3)
    assert list(found) == list(DIGIT_DOMAINS)
    for arrays in found.values():
        assert arrays["train_images"].shape == (18, 3, 28, 28)
        assert arrays["train_images"].dtype == np.uint8
        assert arrays["test_labels"].dtype == np.int64
    missing = tmp_path / "made" / "digits5" / "USPS" / "partitions" / "train_part7.pkl"
    missing.write_bytes(b"")
    with pytest.raises(DatasetLayoutError, match="train_part7.pkl is empty"):
        get_dataset("digits5").check(tmp_path / "made" / "digits5")  # type: ignore[misc]
    missing.unlink()
    with pytest.raises(DatasetLayoutError, match="train_part7.pkl does not exist"):
        get_dataset("digits5").check(tmp_path / "made" / "digits5")  # type: ignore[misc]


def test_pickles_run_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("ran",))

    stand_in("digits5", tmp_path)
    path = tmp_path / "digits5" / "MNIST" / "test.pkl"
    path.write_bytes(pickle.dumps((Evil(), 1)))
    with pytest.raises(DatasetError, match="only arrays and plain values are read"):
        read_domains("digits5", tmp_path / "digits5")
    path.write_bytes(b"no pickle")
    with pytest.raises(DatasetLayoutError, match="is not a pickle of"):
        read_domains("digits5", tmp_path / "digits5")
    path.write_bytes(pickle.dumps((["one", "two"], [1, 2])))
    with pytest.raises(DatasetLayoutError, match=r"test.pkl holds other things than images and labels: invalid literal"):
        read_domains("digits5", tmp_path / "digits5")
    path.write_bytes(pickle.dumps((np.zeros((3, 28, 28), np.uint8), np.zeros(2))))
    with pytest.raises(DatasetLayoutError, match="images of the shape"):
        read_domains("digits5", tmp_path / "digits5")


def test_grey_images_get_three_channels_and_the_size() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    found = resized(grey, 28)
    assert found.shape == (3, 28, 28)
    assert (found[0] == found[1]).all()
    same = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    assert np.array_equal(resized(same, 28), same.transpose(2, 0, 1))


def downloads(folder: Path) -> list[Path]:
    """Tiny archives and lists in DomainNet's layout."""
    made = []
    for domain in DOMAINNET_DOMAINS:
        archive = folder / f"{domain}.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            for name in ("tiger", "zebra", "sock"):
                buffer = io.BytesIO()
                Image.new("RGB", (30, 20), (200, 10, 10)).save(buffer, format="JPEG")
                bundle.writestr(f"{domain}/{name}/{domain}_1.jpg", buffer.getvalue())
        made.append(archive)
        for split in ("train", "test"):
            path = folder / f"{domain}_{split}.txt"
            path.write_text("".join(f"{domain}/{name}/{domain}_1.jpg {label}\n" for label, name in enumerate(["sock", "zebra"])))
            made.append(path)
    return made


def test_domainnet_keeps_the_ten_classes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    made = downloads(tmp_path / "in")
    prepare_domainnet(made, tmp_path / "out")
    found = read_domains("domainnet", tmp_path / "out")
    assert list(found) == list(DOMAINNET_DOMAINS)
    for arrays in found.values():
        assert arrays["train_images"].shape == (1, 3, 256, 256)
        assert arrays["train_labels"].tolist() == [DOMAINNET_CLASSES.index("zebra")]
    (tmp_path / "in" / "real_test.txt").write_text("real/sock/real_1.jpg 3\n")
    with pytest.raises(DatasetError, match="real_test.txt lists no image of bird"):
        listed(tmp_path / "in" / "real_test.txt")
    (tmp_path / "in" / "real_test.txt").write_text("real/tiger/gone.jpg 3\n")
    with pytest.raises(DatasetError, match="real.zip: real/tiger/gone.jpg cannot be read"):
        prepare_domainnet(made, tmp_path / "out")
    (tmp_path / "in" / "sketch.zip").write_bytes(b"PK damaged")
    (tmp_path / "in" / "real_test.txt").write_text("real/tiger/real_1.jpg 3\n")
    with pytest.raises(DatasetError, match="sketch.zip is damaged"):
        prepare_domainnet(made, tmp_path / "out")
    with pytest.raises(DatasetError, match="there are digits5 and domainnet"):
        read_domains("mnist", tmp_path)


def test_sources_have_checksums_where_they_are_published() -> None:
    sources = get_dataset("domainnet").sources
    assert len(sources) == 6 + 12
    assert all(source.checksum.startswith("md5:") for source in sources if source.file.endswith(".zip"))
