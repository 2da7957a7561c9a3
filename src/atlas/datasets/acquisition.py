"""Acquire a dataset: download or copy, verify, unpack, prepare, and move into place complete or not at all."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source, get_dataset
from atlas.datasets.damage import told_as
from atlas.datasets.looks import MANIFEST, FolderLook, is_stray, look_at, recall, remember
from atlas.datasets.manifest import Manifest, changed_origin, describe, describe_together, parse_manifest, read_manifest
from atlas.errors import refusal

ATTEMPTS = 3
PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 30
CONTENTS_LIMIT = 10 * 2**30
"""Bytes of a user-supplied set above which the ends of its files are hashed, and not their contents: 10 GiB take a minute."""
ZIP = b"PK"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""How gzip, bzip2 and xz files begin."""
ENCRYPTED = 0x1
"""The flag of a zip archive's member that is protected by a password."""
STAND_IN = "stand-in"
"""What stands for the hash of random data."""


def acquire(name: str, root: Path | str = Path("data"), mirror: str | Path | None = None) -> Manifest:
    """Make ``<root>/<name>/`` hold the dataset; what is there already is looked at, and made again where it is damaged.

    Contents are compared, not names; a file that this machine has read before, and that has not been changed since, is not
    read again. User-supplied data are described as they are: other contents give another hash. A person's own data are copied
    again where the study declares them otherwise, or what they were copied from has other contents.

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
        A download fails or is not what it should be, an archive is damaged or unsafe, the folder holds a file that does not
        belong to it, or it cannot be written. Nothing half-written is left in place.
    DatasetLayoutError
        Files that the user supplies are missing or not as expected.
    """
    dataset, root = get_dataset(name), Path(root)
    manifest, damage = _prepared(dataset, root)
    if manifest is not None and damage is None and changed_origin(manifest, root) is None:
        return manifest
    if dataset.kind == "user-supplied":
        return _adopt(dataset, root)
    try:
        return _make(dataset, root, mirror)
    except DatasetError as error:
        if damage is None:
            raise
        raise DatasetError(f"{root / name} is damaged ({damage}) and cannot be made again: {error}") from error


def stand_in(name: str, root: Path | str) -> Manifest:
    """Write random data of a dataset's shape to ``<root>/<name>/``, with a manifest that says so; for rehearsals and tests.

    Raises
    ------
    UserError
        There is no such dataset.
    DatasetError
        The dataset has no stand-in.
    """
    dataset, root = get_dataset(name), Path(root)
    folder = root / name
    if dataset.stand_in is None:
        raise DatasetError(f"{name} has no stand-in: nothing can rehearse on it")
    folder.mkdir(parents=True)
    dataset.stand_in(folder)
    manifest = replace(describe(name, [], look_at(root, name)), sha256=STAND_IN)
    (folder / MANIFEST).write_text(manifest.text)
    return manifest


def _make(dataset: Dataset, root: Path, mirror: str | Path | None) -> Manifest:
    """Download and prepare a set, and put it in the place of what is there."""
    name = dataset.name
    with _workplace(root, name) as (downloads, staging):
        archives = [_fetch(source, downloads, mirror) for source in dataset.sources]
        sources = dataset.made_of(root) if dataset.made_of else _sources(dataset, archives)
        assert dataset.prepare is not None
        with told_as(f"{name}: {', '.join(path.name for path in archives) or 'what its library bundles'} cannot be prepared"):
            dataset.prepare(archives, staging)
        look = look_at(staging.parent, staging.name)
        manifest = describe(name, sources, look)
        (staging / MANIFEST).write_text(manifest.text)
        _move_into_place(staging, root / name)
    remember(root, name, look, asdict(manifest))
    return manifest


def _prepared(dataset: Dataset, root: Path) -> tuple[Manifest | None, str | None]:
    """The manifest of prepared data, if there are any, and the first file that is not as it says.

    A manifest that is gone is written again where this machine remembers it: workflow tools remove what a job is to make before
    they start the job, and nothing else needs to be made again.

    Raises
    ------
    DatasetError
        There is a file that the manifest does not name. Making the data again would delete it.
    """
    name = dataset.name
    known = recall(root, name, files=False)
    manifest = read_manifest(root, name) or (parse_manifest(known.manifest) if known else None)
    if manifest is None or manifest.together or not (root / name).is_dir():
        return None, None
    look = look_at(root, name)
    expected = {file["path"]: file.get("sha256") for file in manifest.files}
    foreign = next((path for path in look.files if path not in expected), None)
    if foreign is not None and dataset.kind != "user-supplied":
        raise DatasetError(f"{root / name / foreign} does not belong to {name}: move it out of the folder, and acquire again")
    other = (path for path, digest in expected.items() if path in look.files and look.files[path][1] != digest)
    damage = manifest.difference(look.sizes) or next((f"{path} has other contents" for path in other), None)
    if damage is None:
        _keep(manifest, root, look)
    return manifest, damage


def _keep(manifest: Manifest, root: Path, look: FolderLook) -> None:
    """Write a manifest where it is not there already, and remember what was looked at."""
    path = root / manifest.dataset / MANIFEST
    if read_manifest(root, manifest.dataset) != manifest:
        try:
            path.write_text(manifest.text)
        except OSError as error:
            linked = "; make it a folder of your own with links to its parts" if path.parent.is_symlink() else ""
            raise DatasetError(f"{manifest.dataset}: cannot write {path}: {error.strerror}{linked}") from None
    remember(root, manifest.dataset, look, asdict(manifest))


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
        raise DatasetError(f"{name}: {refusal(error) or error}") from error
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
        digest = hashlib.file_digest(stream, algorithm).hexdigest()
    if digest != expected:
        size = path.stat().st_size
        path.unlink()
        raise DatasetError(
            f"{source.file} from {origin} has {algorithm} {digest} ({size:,} bytes), not {expected}: damaged or another version"
        )


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive but for strays.

    Members that would land outside ``folder``, links out of it and devices are refused.

    Raises
    ------
    DatasetError
        The file is no archive, is damaged or protected by a password, or holds an unsafe member.
    """
    with archive.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise DatasetError(f"{archive.name} is empty")
    if head.startswith(ZIP):
        with opened_zip(archive) as bundle:
            for member in bundle.infolist():
                _unzip(bundle, member, folder)
    else:
        _untar(archive, head, folder)


def opened_zip(archive: Path) -> zipfile.ZipFile:
    """Open a zip archive to read its members.

    Raises
    ------
    DatasetError
        The archive is damaged, or some member is protected by a password.
    """
    with told_as(f"{archive.name} is damaged or incomplete"):
        bundle = zipfile.ZipFile(archive)
    protected = next((member.filename for member in bundle.infolist() if member.flag_bits & ENCRYPTED), None)
    if protected is not None:
        bundle.close()
        raise DatasetError(f"{archive.name} is protected by a password: its member {protected} cannot be read")
    return bundle


def _unzip(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    archive = Path(bundle.filename or "").name
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename.split("/")[0]:
        raise DatasetError(f"{archive} is unsafe: its member {member.filename} would land outside the folder")
    if not any(is_stray(part) for part in path.parts):
        with told_as(f"{archive} is damaged or incomplete: {member.filename}"):
            bundle.extract(member, folder)


def _untar(archive: Path, head: bytes, folder: Path) -> None:
    if not head.startswith(COMPRESSED) and not tarfile.is_tarfile(archive):
        raise DatasetError(f"{archive.name} is neither a zip nor a tar archive: it begins with {head!r}")
    with told_as(f"{archive.name} is damaged or incomplete"), tarfile.open(archive) as tar:
        try:
            tar.extractall(folder, filter=_kept)
        except tarfile.FilterError as error:
            raise DatasetError(f"{archive.name} is unsafe: {error}") from None
        assert tar.fileobj is not None
        while tar.fileobj.read(2**20):  # to the end, where a compressed file keeps its checksum
            pass


def _kept(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Leave strays out, and judge every other member as the data filter does."""
    return None if any(is_stray(part) for part in PurePosixPath(member.name).parts) else tarfile.data_filter(member, folder)


def _sources(dataset: Dataset, archives: list[Path]) -> list[dict[str, Any]]:
    return [
        {"file": source.file, "url": source.url, "size": path.stat().st_size, "sha256": _sha256(path)}
        for source, path in zip(dataset.sources, archives, strict=True)
    ]


def _adopt(dataset: Dataset, root: Path) -> Manifest:
    """Check a user-supplied folder, and write a manifest of what it holds."""
    assert dataset.check is not None
    with told_as(f"{dataset.name}: {root / dataset.name} is not as expected", DatasetLayoutError):
        dataset.check(root / dataset.name)
    look = look_at(root, dataset.name, CONTENTS_LIMIT)
    manifest = describe_together(dataset.name, look)
    _keep(manifest, root, look)
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
