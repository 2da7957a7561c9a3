"""Reading YAML as people mean it: a key that stands twice is a mistake, where YAML's own readers silently keep the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from atlas.errors import UserError


def read_yaml(path: Path, shown: Path | str) -> Any:
    """Read a file of one YAML document; ``shown`` is how messages name it.

    Raises
    ------
    UserError
        One line: the file is not UTF-8, or is refused by :func:`parse_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not text in UTF-8: its byte {error.start} is {error.object[error.start]:#x}") from None
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: Path | str) -> Any:
    """Read one YAML document; nothing at all is ``None``.

    Raises
    ------
    UserError
        One line: the text is not YAML, a key stands twice in one mapping, or a part refers to itself.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twins(loader, node, str(shown), (), set())
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{shown} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{shown} is nested too deeply") from None
    finally:
        loader.dispose()


def _refuse_twins(loader: Any, node: yaml.Node, shown: str, above: tuple[tuple[yaml.Node, str], ...], done: set[int]) -> None:
    """Walk a document before anything of it is merged or lost; ``above`` leads to ``node``: parents, each with a key."""
    where = ".".join(key for _, key in above)
    if any(node is parent for parent, _ in above):
        raise UserError(f"{shown}: {where}, line {node.start_mark.line + 1}, refers to itself")
    if id(node) in done or isinstance(node, yaml.ScalarNode):
        return
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = _name(loader, key), key.start_mark.line + 1
            if name in lines:
                twin = f"{where}.{name}".strip(".")
                raise UserError(f"{shown}: {twin} stands twice, in line {lines[name]} and in line {line}; keep one of them")
            lines[name] = line
            _refuse_twins(loader, value, shown, (*above, (node, name)), done)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _refuse_twins(loader, value, shown, (*above, (node, str(index))), done)
    done.add(id(node))


def _name(loader: Any, key: yaml.Node) -> str:
    """A key as text, which is what the programs that read the file make of it: 1 and "1" are the same."""
    if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
        return str(loader.construct_object(key))
    return str(key.value)
