"""Every block of the documentation says what it is, and Python blocks run as they are written and print what the page shows."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import Block, DocumentError, Page, Program, check_blocks, pages, programs, read_page

from atlas.harness.registry import load
from atlas.study import Study

ROOT = Path(__file__).resolve().parents[2]
PAGES = pages(ROOT)
PROGRAMS = [program for page in PAGES for program in programs(page)]
YAML = [block for page in PAGES for block in page.blocks if block.language == "yaml" and block.kind is None]
NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def run(program: Program, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process and a folder of its own."""
    script = folder / "program" / Path(program.blocks[0].page).name
    script.parent.mkdir()
    script.write_text(program.source)
    work = folder / "work"
    work.mkdir()
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(script)], cwd=work, env=environment, capture_output=True, text=True, timeout=400)


def shows(expected: str, printed: str) -> bool:
    """Whether a page shows what was printed: the same words, … for anything, and numbers within a half or 0.1 of each other."""
    wanted = re.findall(NUMBER, expected)
    pieces = re.split(f"(…|{NUMBER})", expected.strip())
    pattern = "".join(".*" if piece == "…" else f"({NUMBER})" if piece in wanted else re.escape(piece) for piece in pieces)
    found = re.fullmatch(pattern, printed.strip(), flags=re.DOTALL)
    pairs = zip(wanted, found.groups(), strict=True) if found else ()
    return found is not None and all(math.isclose(float(one), float(other), rel_tol=0.5, abs_tol=0.1) for one, other in pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Page) -> None:
    check_blocks(page)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md")))
def test_a_methods_page_opens_with_a_program_and_what_it_prints(name: str) -> None:
    page = next(page for page in PAGES if page.name == f"docs/methods/{name}.md")
    first, second = page.blocks[:2]
    assert (first.language, first.kind, second.language) == ("python", None, "output")
    assert f"atlas.methods.{name} import" in first.text


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.place)
def test_python_runs_as_it_is_written(program: Program, tmp_path: Path) -> None:
    absent = [package for package in program.extra if importlib.util.find_spec(package) is None]
    if absent:
        pytest.skip(f"{program.place} needs {', '.join(absent)}")
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    if program.output is not None:
        assert shows(program.output, done.stdout), f"{program.place} shows\n{program.output}\nand prints\n{done.stdout}"


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_yaml_is_what_it_claims_to_be(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if set(content) <= set(load().tasks):
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "example.yaml").write_text("seeds: [0]\n" + block.text)
        assert Study.read("example", tmp_path).runs
    else:
        shipped = (ROOT / "slurm" / "config.yaml").read_text()
        assert set(content) <= set(yaml.safe_load(shipped))
        for name, values in content.items():
            assert all(re.search(rf"- {value.partition('=')[0]}=", shipped) for value in values), f"{block.place}: {name}"


# The runner itself: what it must refuse, and what it must not.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```fortran\nEND\n```\n", "p.md:2: no block is in the language fortran"),
        ("<!-- run: someday -->\n```sh\nls\n```\n", "p.md:3: there is no mark someday"),
        ("<!-- run: long -->\n```sh\nmake demo && make lint\n```\n", "may be marked long"),
        ("<!-- run: file -->\n```python\nx = 1\n```\n", "marked with its path"),
        ("<!-- run: continues -->\n```python\nx = 1\n```\n", "only after another"),
        ("```output\n1\n```\n", "follows the Python block"),
        ("<!-- run: extra -->\n```python\nx = 1\n```\n", "an extra with its packages"),
        ("<!-- run: extra onnx -->\n```sh\nls\n```\n", "only a Python block needs an extra"),
        ("```python\nx = = 1\n```\n", "p.md:2: invalid syntax"),
        ("```yaml\na: [1\n```\n", "p.md:2: "),
        ("<!-- run: cluster -->\n\n```sh\nls\n```\n", "on the line before"),
    ],
)
def test_what_is_wrong_with_a_block_is_said(text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(said)):
        check_blocks(read_page(text, "p.md"))


def test_blocks_run_apart_unless_they_continue(tmp_path: Path) -> None:
    text = """\
```python
x = 1
print("x")
```

```output
x
```

<!-- run: continues -->
```python
print(x)
```

```output
1
```

<!-- run: extra nothing_of_this_name -->
```python
import nothing_of_this_name
```

```python
print(x)
```
"""
    first, optional, second = programs(read_page(text, "p.md"))
    assert first.output == "x\n1\n"
    (tmp_path / "a").mkdir()
    assert run(first, tmp_path / "a").stdout == "x\n1\n"
    assert optional.extra == ("nothing_of_this_name",)
    (tmp_path / "b").mkdir()
    failed = run(second, tmp_path / "b")
    assert 'p.md", line 25' in failed.stderr
    assert "NameError" in failed.stderr


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.50", "loss 0.55", True),
        ("loss 0.50", "loss -0.55", False),
        ("loss 1e-7", "loss 0", True),
        ("loss 50", "loss 500", False),
        ("loss 0.5", "accuracy 0.5", False),
        ("loss 0.5", "loss nan", False),
        ("loss 0.5", "", False),
        ("rule …\nx 1 (a-b)", "rule f(3)\nand more\nx 1 (a-b)", True),
        ("rule …\nx 1", "rule f(3)\ny 1", False),
    ],
)
def test_printed_numbers_may_differ_a_little_and_words_not(expected: str, printed: str, same: bool) -> None:
    assert shows(expected, printed) is same
