"""The manifest of an acquired data set: what lies under ``data/<name>/``, the same on every machine that holds the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlas.datasets.base import DatasetLayoutError, all_datasets
from atlas.datasets.looks import MANIFEST, FolderLook, recall, walk

MANY_FILES = 50_000
"""Number of files above which the plan looks at the times of folders alone."""
WHOLE = "."
"""Path of the one entry of a manifest that describes all files of a user-supplied set together."""


@dataclass(frozen=True)
class Manifest:
    """What lies under ``data/<name>/``; equal data give equal manifests, byte for byte.

    Attributes
    ----------
    sources : list of dict
        file, size in bytes, sha256 and url of every download. Of a person's own data, one entry for all of them, with what the
        study declares of them (declared).
    files : list of dict
        path, size and sha256 of every prepared file. Of a user-supplied set, which may hold a million files, one entry: the
        path ``.``, the number of files (count), their size together, and a SHA-256 over their names and sizes (listing).
    sha256 : str
        One hash over all files.
    """

    dataset: str
    sources: list[dict[str, Any]]
    files: list[dict[str, Any]]
    sha256: str

    @property
    def text(self) -> str:
        """The manifest as the text of its JSON file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def together(self) -> bool:
        """Whether one entry describes all files together."""
        return [file["path"] for file in self.files] == [WHOLE]

    @property
    def count(self) -> int:
        """Number of files that it describes."""
        return self.files[0].get("count", 0) if self.together else len(self.files)

    def difference(self, sizes: Mapping[str, int]) -> str | None:
        """What tells files, path to size in bytes, from those that it describes; ``None`` where names and sizes agree."""
        if not self.together:
            return first_difference({file["path"]: file["size"] for file in self.files}, sizes)
        return None if self.files[0].get("listing") == _listing(sizes) else "names or sizes of its files changed"


def describe(name: str, sources: list[dict[str, Any]], look: FolderLook) -> Manifest:
    """A manifest that names every file of a look."""
    files = _entries(look)
    return Manifest(name, sources, files, _total(files))


def describe_together(name: str, look: FolderLook) -> Manifest:
    """A manifest that has one entry for all files of a look."""
    sizes = look.sizes
    whole = {"path": WHOLE, "count": len(sizes), "size": sum(sizes.values()), "listing": _listing(sizes)}
    return Manifest(name, [], [whole], _total(_entries(look)))


def read_manifest(root: Path, name: str) -> Manifest | None:
    """Return the manifest of an acquired dataset, or ``None`` if there is none, or none that can be read."""
    try:
        return parse_manifest(json.loads((Path(root) / name / MANIFEST).read_text()))
    except (OSError, ValueError):
        return None


def parse_manifest(content: Any) -> Manifest | None:
    """A manifest from its plain values, or ``None`` if they are none."""
    try:
        manifest = Manifest(**content)
        entries = [(file["path"], file["size"]) for file in manifest.files]
    except (TypeError, KeyError):
        return None
    sound = all(isinstance(path, str) and isinstance(size, int) for path, size in entries)
    return manifest if sound and isinstance(manifest.sha256, str) else None


def stale_data(name: str, root: Path | str = Path("data")) -> str | None:
    """Why the files of a data set are no longer those that its manifest describes, judged without reading them; or ``None``.

    Names and sizes are held against the manifest, and against what this machine remembers of its last look also times of
    modification. Where nothing is remembered, as after a clone, names and sizes alone count; of a set of more than
    :data:`MANY_FILES` files only the remembered times of its folders do. A data set that has not been acquired is not stale.
    A person's own data are also held against what they were copied from (:func:`changed_origin`), where that was noted.
    """
    root = Path(root)
    manifest = read_manifest(root, name)
    if manifest is None:
        return "its manifest cannot be read" if (root / name / MANIFEST).is_file() else None
    if manifest.together and "listing" not in manifest.files[0]:
        return "it was acquired before contents were looked at"
    if manifest.sources and (reason := changed_origin(manifest, root)):
        return reason
    look = recall(root, name, files=manifest.count <= MANY_FILES)
    if look is not None and look.manifest != asdict(manifest):
        look = None
    if manifest.count > MANY_FILES:
        return None if look is None else _changed_folder(root / name, look)
    try:
        present = walk(root / name).files
    except DatasetLayoutError as error:
        return str(error)
    sizes = {path: stamp.size for path, stamp in present.items()}
    if look is None:
        return manifest.difference(sizes)
    touched = (path for path in present if path in look.files and not present[path].as_read(look.files[path][0]))
    return first_difference(look.sizes, sizes) or next((f"{path} was modified" for path in touched), None)


def changed_origin(manifest: Manifest, root: Path) -> str | None:
    """Why a person's own data are no longer what was copied, or ``None``; data of other origins do not change there.

    Contents are compared, not times; what this machine has read before, and that has not been changed since, is not read again.
    """
    dataset = all_datasets().get(manifest.dataset)
    if dataset is None or dataset.made_of is None:
        return None
    try:
        now = dataset.made_of(root)
    except DatasetLayoutError as error:
        return str(error)
    if manifest.sources == now:
        return None
    if [source.get("declared") for source in manifest.sources] != [source["declared"] for source in now]:
        return "the study declares it otherwise than when it was copied"
    return f"{now[0]['file']} holds other files than were copied"


def first_difference(expected: Mapping[str, int], actual: Mapping[str, int]) -> str | None:
    """The first file, by name, that is missing, new or of another size; both map a path to a size in bytes."""
    for path in sorted(expected.keys() | actual.keys()):
        if path not in actual:
            return f"{path} is missing"
        if path not in expected:
            return f"{path} is new"
        if actual[path] != expected[path]:
            return f"{path} has {actual[path]:,} bytes, not {expected[path]:,}"
    return None


def _changed_folder(folder: Path, look: FolderLook) -> str | None:
    """The first folder to which something was added or from which something was removed; the set's own holds its manifest."""
    for below, modified in look.folders.items():
        try:
            if below and (folder / below).stat().st_mtime_ns != modified:
                return f"{below}/ was modified"
        except OSError:
            return f"{below}/ is missing"
    return None


def _entries(look: FolderLook) -> list[dict[str, Any]]:
    """Path, size and hash of every file; the hash is named after what it covers."""
    key = "sha256" if look.reading == "contents" else "sha256_of_ends"
    return [{"path": path, "size": stamp.size, key: digest} for path, (stamp, digest) in look.files.items()]


def _total(files: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _listing(sizes: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()
