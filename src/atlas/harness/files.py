"""Writing files so that a reader, or a run that starts after a crash, never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import UserError
from atlas.nn.ranks import here

if TYPE_CHECKING:
    import torch


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically: a crash leaves the old file or the new one, on disk and complete.

    Of several ranks that train one run, the first one writes, and the others come to the same content.

    Raises
    ------
    OSError
        It cannot be written; the error names ``path``, whatever step failed.
    """
    if not here().first:
        return
    try:
        _replace(path, content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Replace a text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; keys keep their order, numbers their full precision."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace a safetensors file atomically; tensors of any shapes (…) are moved to the CPU and made contiguous."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file: tensors of any shapes (…) by name, on the CPU.

    Raises
    ------
    UserError
        What is there is no such file, or is cut off.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}); make it again") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
