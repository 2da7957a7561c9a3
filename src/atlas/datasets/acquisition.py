"""Acquire a dataset: download or copy, verify, unpack, prepare, and move into place complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source, get_dataset

ATTEMPTS = 3
PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 30
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What lies under ``data/<name>/``; equal data give equal manifests, byte for byte.

    Attributes
    ----------
    sources : list of dict
        file, size in bytes, sha256 and url of every download.
    files : list of dict
        path, size and sha256 of every prepared file.
    sha256 : str
        One hash over all prepared files.
    """

    dataset: str
    sources: list[dict[str, Any]]
    files: list[dict[str, Any]]
    sha256: str

    @property
    def text(self) -> str:
        """The manifest as written."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(root: Path, name: str) -> Manifest | None:
    """Return the manifest of an acquired dataset, or ``None``."""
    try:
        return Manifest(**json.loads((Path(root) / name / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def acquire(name: str, root: Path | str = Path("data"), mirror: str | Path | None = None) -> Manifest:
    """Make ``<root>/<name>/`` hold the dataset; one that is there already is checked and left alone.

    Parameters
    ----------
    name : str
        A name of :func:`~atlas.datasets.base.dataset_names`.
    root : Path
        Folder of all datasets.
    mirror : str or Path, optional
        Folder or URL that holds the archives under their own names, to use instead of the origins.

    Raises
    ------
    UserError
        There is no such dataset.
    DatasetError
        A download fails or is not what it should be, an archive is damaged or unsafe, or the folder cannot be written.
        Nothing half-written is left in place.
    DatasetLayoutError
        Files that the user supplies are missing or not as expected.
    """
    dataset, root = get_dataset(name), Path(root)
    present = read_manifest(root, name)
    if present is not None and _intact(present, root / name):
        return present
    if dataset.kind == "user-supplied":
        return _adopt(dataset, root / name)
    with _workplace(root, name) as (downloads, staging):
        archives = [_fetch(source, downloads, mirror) for source in dataset.sources]
        assert dataset.prepare is not None
        dataset.prepare(archives, staging)
        manifest = _describe(dataset, archives, staging)
        (staging / MANIFEST).write_text(manifest.text)
        _move_into_place(staging, root / name)
    return manifest


def stand_in(name: str, root: Path | str) -> Manifest:
    """Write random data of a dataset's shape to ``<root>/<name>/``, with a manifest that says so; for rehearsals and tests.

    Raises
    ------
    UserError
        There is no such dataset.
    DatasetError
        The dataset has no stand-in.
    """
    dataset, folder = get_dataset(name), Path(root) / name
    if dataset.stand_in is None:
        raise DatasetError(f"{name} has no stand-in: nothing can rehearse on it")
    folder.mkdir(parents=True)
    dataset.stand_in(folder)
    manifest = replace(_describe(dataset, [], folder), sha256="stand-in")
    (folder / MANIFEST).write_text(manifest.text)
    return manifest


@contextmanager
def _workplace(root: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """Folders for downloads and for the prepared files, beside the target; gone afterwards, whatever happens."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    except OSError as error:
        raise DatasetError(f"{name}: cannot write to the folder {root}: {error.strerror}") from None
    try:
        (folder / "downloads").mkdir()
        (folder / "staging").mkdir()
        yield folder / "downloads", folder / "staging"
    except OSError as error:
        raise DatasetError(f"{name}: cannot write {error.filename or root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(staging: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    staging.chmod(0o755)
    staging.rename(target)


def _fetch(source: Source, folder: Path, mirror: str | Path | None) -> Path:
    """Copy or download one file and verify its checksum; a broken connection is tried again from the start."""
    if mirror is not None and "://" not in str(mirror):
        return _copy(source, folder, Path(mirror))
    if mirror is None and not source.url:
        raise DatasetError(f"{source.file} has no public origin: name a folder that holds it with --mirror (ATLAS_DATA_MIRROR)")
    url = source.url if mirror is None else f"{str(mirror).rstrip('/')}/{source.file}"
    import logging

    import pooch
    import requests

    pooch.get_logger().setLevel(logging.ERROR)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_SECONDS)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = Path(pooch.retrieve(url, None, fname=source.file, path=folder, downloader=downloader))
            break
        except requests.HTTPError as error:
            raise DatasetError(f"{source.file}: {url} answers with an error ({error}); is there a --mirror?") from None
        except (requests.RequestException, ConnectionError) as error:
            if attempt == ATTEMPTS:
                reason = type(error).__name__
                raise DatasetError(
                    f"{source.file}: {url} failed {ATTEMPTS} times ({reason}); try again, or use --mirror"
                ) from None
            time.sleep(PAUSE_SECONDS * attempt)
    _verify(source, path, url)
    return path


def _copy(source: Source, folder: Path, mirror: Path) -> Path:
    original = mirror / source.file
    if not original.is_file():
        raise DatasetError(f"{source.file} is not in the mirror {mirror}")
    path = folder / source.file
    shutil.copyfile(original, path)
    _verify(source, path, str(original))
    return path


def _verify(source: Source, path: Path, origin: str) -> None:
    if not source.checksum:
        return
    algorithm, _, expected = source.checksum.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        size = path.stat().st_size
        path.unlink()
        raise DatasetError(
            f"{source.file} from {origin} has {algorithm} {found} ({size:,} bytes), not {expected}: damaged or another version"
        )


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive; refuses members that would land outside ``folder``, links out of it and devices.

    Raises
    ------
    DatasetError
        The archive is damaged, or holds an unsafe member.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                for member in bundle.namelist():
                    parts = PurePosixPath(member.replace("\\", "/"))
                    if parts.is_absolute() or ".." in parts.parts or ":" in member.split("/")[0]:
                        raise DatasetError(f"{archive.name} is unsafe: its member {member} would land outside the folder")
                bundle.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise DatasetError(f"{archive.name} is unsafe: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DatasetError(f"{archive.name} is damaged or incomplete: {error}") from None


def _describe(dataset: Dataset, archives: list[Path], folder: Path) -> Manifest:
    sources = [
        {"file": source.file, "url": source.url, "size": path.stat().st_size, "sha256": _sha256(path)}
        for source, path in zip(dataset.sources, archives, strict=bool(archives))
    ]
    files = [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return Manifest(dataset.name, sources, files, _total(files))


def _adopt(dataset: Dataset, folder: Path) -> Manifest:
    """Check a user-supplied folder, and write a manifest of its names and sizes (contents would take hours to hash)."""
    assert dataset.check is not None
    dataset.check(folder)
    files = []
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            path = Path(place) / name
            if name != MANIFEST:
                files.append({"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size})
    manifest = Manifest(dataset.name, [], [{"path": ".", "size": sum(file["size"] for file in files)}], _total(files))
    try:
        (folder / MANIFEST).write_text(manifest.text)
    except OSError as error:
        raise DatasetLayoutError(f"{dataset.name}: cannot write {folder / MANIFEST}: {error.strerror}") from None
    return manifest


def _intact(manifest: Manifest, folder: Path) -> bool:
    """Whether every file of a manifest is there with its size; contents were verified when it was written."""
    for file in manifest.files:
        path = folder / file["path"]
        if not path.exists() or (path.is_file() and path.stat().st_size != file["size"]):
            return False
    return True


def _total(files: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
