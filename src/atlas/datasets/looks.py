"""Looking at a data set's folder: which files lie there, what they hold, and what this machine remembers of the last look.

Contents are read once. Their hashes are kept with each file's size, times and inode in ``.atlas/looks/<dataset>.jsonl`` beside
the folder of all data sets, so that a second look reads only what has changed since. What is remembered concerns this machine
alone and is no part of the data: losing it costs time and nothing else.

The remembered file has two lines of JSON. The first is short and tells what was looked at and when; the second holds every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from atlas.datasets.base import DatasetLayoutError

Reading = Literal["contents", "ends"]

LOOKS = Path(".atlas/looks")
MANIFEST = "manifest.json"
ORIGIN = "origin"
"""What a copy's name is followed by where it is remembered what was copied; no data set's name holds the stroke between."""
ENDS = 4096
"""Bytes at the beginning and at the end of a file that are read where whole contents would take hours."""
SETTLED_NS = 2 * 10**9
"""Age in nanoseconds from which a file's time tells of every later change; the coarsest file systems count in 2 seconds."""


class Stamp(NamedTuple):
    """What the file system says of a file: bytes, time of modification (ns), inode, time of any change (ns)."""

    size: int
    modified: int
    inode: int
    changed: int

    def as_read(self, before: Stamp) -> bool:
        """Whether it is the same file with the same modification time; a change of rights or of its number of links is none."""
        return self[:3] == before[:3]


class Tree(NamedTuple):
    """Files of a folder and times of its folders (ns), by path below it; links are followed."""

    files: dict[str, Stamp]
    folders: dict[str, int]


def is_stray(name: str) -> bool:
    """Whether a file's or folder's name is one that file managers and other tools leave behind: hidden ones and ``__MACOSX``."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def walk(folder: Path) -> Tree:
    """List every file below a folder but its manifest and strays.

    Raises
    ------
    DatasetLayoutError
        A link leads nowhere or round in a circle, something is neither file nor folder, or a folder may not be listed.
    """
    tree = Tree({}, {})
    _list(folder, "", (), tree)
    return Tree(_in_order(tree.files), _in_order(tree.folders))


def _in_order(entries: dict[str, Any]) -> dict[str, Any]:
    """Sorted by path, a folder's files before those of a folder whose name goes on where its own ends."""
    return dict(sorted(entries.items(), key=lambda item: item[0].split("/")))


def _list(folder: Path, below: str, above: tuple[tuple[int, int], ...], tree: Tree) -> None:
    try:
        own = folder.stat()
        if (own.st_dev, own.st_ino) in above:
            raise DatasetLayoutError(f"{folder} is a link to a folder that holds it: remove the link")
        tree.folders[below] = own.st_mtime_ns
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if is_stray(entry.name) or path == MANIFEST:
                    continue
                if entry.is_dir():
                    _list(folder / entry.name, path, (*above, (own.st_dev, own.st_ino)), tree)
                else:
                    tree.files[path] = _stamp(folder / entry.name, entry)
    except OSError as error:
        raise DatasetLayoutError(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _stamp(path: Path, entry: os.DirEntry[str] | Path) -> Stamp:
    try:
        status = entry.stat()
    except FileNotFoundError:
        raise DatasetLayoutError(f"{path} is a link to nothing: is what it names still there?") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetLayoutError(f"{path} is neither a file nor a folder: remove it")
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True)
class FolderLook:
    """What was seen at one look.

    Attributes
    ----------
    folder : str
        The folder that was looked at; what is remembered of another one says nothing.
    began : int
        When, in nanoseconds since 1970.
    reading : {"contents", "ends"}
        What the hashes cover: whole files, or sizes and the first and last :data:`ENDS` bytes.
    folders : dict
        Folder to its time of modification (ns).
    files : dict
        File to its stamp and SHA-256; empty where only the short part of what is remembered was asked for.
    manifest : dict
        The manifest that was found to describe all this, as plain values.
    """

    folder: str
    began: int
    reading: Reading
    folders: dict[str, int]
    files: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file, by its path."""
        return {path: stamp.size for path, (stamp, _) in self.files.items()}

    def known(self, path: str, stamp: Stamp, reading: Reading) -> str | None:
        """Hash of a file that is as it was, or ``None`` where it must be read.

        A file that was changed within :data:`SETTLED_NS` before the look is read again: a further change may carry the same time.
        """
        before, digest = self.files.get(path, (None, ""))
        settled = stamp.modified + SETTLED_NS < self.began
        return digest if before == stamp and settled and reading == self.reading else None


def look_at(root: Path, name: str, limit: int | None = None) -> FolderLook:
    """Read every file of ``<root>/<name>`` that is not as it was when this machine last looked.

    Parameters
    ----------
    limit : int, optional
        Bytes of all files together above which only the ends of each are read; by default contents are read at any size.

    Raises
    ------
    DatasetLayoutError
        A file or a folder cannot be read; see also :func:`walk`.
    """
    before, began = recall(root, name), time.time_ns()
    tree = walk(root / name)
    total = sum(stamp.size for stamp in tree.files.values())
    reading: Reading = "contents" if limit is None or total <= limit else "ends"
    files = _read(root / name, tree.files, reading, before)
    return FolderLook(_folder(root, name), began, reading, tree.folders, files)


def look_at_origin(root: Path, name: str, folder: Path, paths: Iterable[str]) -> FolderLook:
    """Read files of a folder elsewhere, of which ``<root>/<name>`` is a copy, but for those that are as when last looked at.

    Raises
    ------
    DatasetLayoutError
        A file cannot be read.
    """
    place = f"{name}/{ORIGIN}"
    before, began = recall(root, place), time.time_ns()
    try:
        stamps = {path: _stamp(folder / path, folder / path) for path in paths}
    except OSError as error:
        raise DatasetLayoutError(f"{error.filename} cannot be read: {error.strerror}") from None
    look = FolderLook(_folder(root, place), began, "contents", {}, _read(folder, stamps, "contents", before))
    if before is None or before.files != look.files:
        remember(root, place, look, {})
    return look


def _read(folder: Path, stamps: Mapping[str, Stamp], reading: Reading, before: FolderLook | None) -> dict[str, tuple[Stamp, str]]:
    """Stamp and hash of files; those that are as they were before are not read."""
    files = {}
    for path, stamp in stamps.items():
        known = None if before is None else before.known(path, stamp, reading)
        files[path] = (stamp, known or _digest(folder / path, reading))
    return files


def recall(root: Path, name: str, *, files: bool = True) -> FolderLook | None:
    """What this machine remembers of ``<root>/<name>``, if anything; without ``files`` only the short part of it."""
    try:
        with _place(root, name).open(encoding="ascii") as stream:
            short = json.loads(stream.readline())
            long = json.loads(stream.readline()) if files else {}
        look = FolderLook(**short, files={path: (Stamp(*stamp), digest) for path, (*stamp, digest) in long.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return look if look.folder == _folder(root, name) else None


def remember(root: Path, name: str, look: FolderLook, manifest: dict[str, Any]) -> None:
    """Keep a look, and the manifest that describes what it saw; where nothing can be kept, the next look reads everything."""
    short = {
        "folder": _folder(root, name),
        "began": look.began,
        "reading": look.reading,
        "folders": look.folders,
        "manifest": manifest,
    }
    long = {path: [*stamp, digest] for path, (stamp, digest) in look.files.items()}
    noted = _place(root, name)
    with suppress(OSError):
        noted.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=noted.parent, prefix=f".{noted.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(f"{json.dumps(short)}\n{json.dumps(long)}\n")
            Path(temporary).replace(noted)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _place(root: Path, name: str) -> Path:
    return root.absolute().parent / LOOKS / f"{name}.jsonl"


def _folder(root: Path, name: str) -> str:
    return str((root / name).resolve())


def _digest(path: Path, reading: Reading) -> str:
    try:
        with path.open("rb") as stream:
            if reading == "contents":
                return hashlib.file_digest(stream, "sha256").hexdigest()
            digest = hashlib.sha256(stream.read(ENDS))
            stream.seek(max(ENDS, path.stat().st_size - ENDS))
            digest.update(stream.read(ENDS))
            return digest.hexdigest()
    except OSError as error:
        raise DatasetLayoutError(f"{path} cannot be read: {error.strerror}") from None
