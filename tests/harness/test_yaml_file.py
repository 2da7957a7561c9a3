"""YAML as it is read: what its own readers would lose or trip over is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness import claims
from atlas.harness.registry import load
from atlas.harness.yaml_file import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml: a stands twice, in line 1 and in line 3; keep one of them"),
        ("claims:\n- {id: a}\n- {id: b, id: c}\n", "x.yaml: claims.1.id stands twice, in line 3 and in line 3; keep one of them"),
        ("true: 1\nyes: 2\n", "x.yaml: True stands twice, in line 1 and in line 2; keep one of them"),
        ("a: &x [*x]\n", "x.yaml: a.0, line 1, refers to itself"),
        ("a: &x {b: {c: *x}}\n", "x.yaml: a.b.c, line 1, refers to itself"),
        ("a: 1\n---\nb: 2\n", "x.yaml is not YAML: expected a single document"),
        ("a: [1", "x.yaml is not YAML: "),
        ("a:\n\tb: 1", "x.yaml is not YAML: "),
        ("a: 2026-13-45", "x.yaml is not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "x.yaml is not YAML: could not determine a constructor"),
        ("? [1, {a: 2}]\n: 3\n", "x.yaml is not YAML: while constructing a mapping"),
        ("a: \0", "x.yaml is not YAML: "),
        ("[" * 100_000, "x.yaml "),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_read(tmp_path: Path) -> None:
    text = "\ufeffbase: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\nagain: [*b, *b]\nempty:\n"
    content = {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}, "again": [{"x": 1, "y": 2}] * 2, "empty": None}
    assert parse_yaml(text, "x.yaml") == content
    assert parse_yaml("", "x.yaml") is None
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml", "x.yaml") == content


def test_claims_are_read_so_too(tmp_path: Path) -> None:
    path = tmp_path / "uvc/claims.yaml"
    path.parent.mkdir()
    path.write_text("claims:\n- id: a\n  task: x\n  id: b\n")
    with pytest.raises(UserError, match=r"^methods/uvc/claims\.yaml: claims\.0\.id stands twice, in line 2 and in line 4"):
        claims._read(replace(load().papers["uvc"], claims=path))


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("name: Zürich\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^x\.yaml is not text in UTF-8: its byte 7 is 0xfc$"):
        read_yaml(tmp_path / "x.yaml", "x.yaml")
