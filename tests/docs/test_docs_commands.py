"""Every command of the documentation works in a fresh clone, or could not be run here and is checked without being run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkouts import Checkout
from documents import ABSENT, SHELL, Block, Page, commands_of, pages

ROOT = Path(__file__).resolve().parents[2]
EXTENDING = "docs/extending.md"
PAGES = {page.name: page for page in pages(ROOT) if page.commands or any(block.language in SHELL for block in page.blocks)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh clone of the checkout, for what changes nothing in it."""
    return Checkout.clone(ROOT, tmp_path_factory.mktemp("clone") / "atlas")


def changes(page: Page) -> bool:
    """Whether following a page writes files."""
    return any(block.kind == "file" or (block.language in SHELL and block.kind is None) for block in page.blocks)


def follow(page: Page, clone: Checkout) -> list[str]:
    """Do what a page says, in its order, and return what is wrong with what could only be checked."""
    problems: list[str] = []
    for block in page.blocks:
        if block.kind == "file":
            clone.write(block)
        elif block.language in SHELL and block.kind is None:
            clone.run(block)
        elif block.language in SHELL and block.kind in (*ABSENT, "long"):
            problems += clone.check_script(block)
    for command in dict.fromkeys(page.commands):
        problems += clone.check(commands_of(command), page.name)
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PAGES) - {EXTENDING}))
def test_commands_work(name: str, clone: Checkout, tmp_path: Path) -> None:
    page = PAGES[name]
    own = Checkout.clone(ROOT, tmp_path / "atlas") if changes(page) else clone
    assert follow(page, own) == []


@pytest.mark.slow
def test_a_method_is_added_as_its_page_says(tmp_path: Path) -> None:
    clone = Checkout.clone(ROOT, tmp_path / "atlas")
    assert follow(PAGES[EXTENDING], clone) == []
    results = clone.folder / "results" / "tiny"
    metrics = json.loads((results / "runs/image-classification/digits/my-method/seed0/metrics.json").read_text())
    assert metrics["settings"]["settings"]["my-method"] == {"strength": 0.2}
    assert "MyMethod" in (results / "tables/image-classification/digits.md").read_text()
    assert "my-paper.accuracy" in (results / "claims.csv").read_text()
    assert (clone.folder / "checkpoints/tiny/image-classification/digits/my-stage/seed0/model.safetensors").is_file()

    # what a reader forgets most easily is said in one line, by every command
    (clone.folder / "src/atlas/methods/my_paper/__init__.py").unlink()
    for command in ("snakemake -n --config tier=tiny", "atlas list methods"):
        done = clone.call(command.split())
        assert done.returncode != 0
        assert "src/atlas/methods/my_paper/entry.py is never read" in done.stdout + done.stderr


# The runner itself: what it must refuse, and what it must not.


@pytest.mark.slow
def test_wrong_commands_are_found(clone: Checkout) -> None:
    right = [
        "atlas train",
        "atlas train RUN --set lr_multiplier=2",
        "srun --gpus=1 .venv/bin/atlas doctor",
        "atlas acquire DATASET",
        "make demo",
        "dvc repro tables",
        "python benchmarks/uvc.py",
        "python -m benchmarks vfds uvc",
        "snakemake --config tier=TIER -- results/lab/claims.csv",
        "snakemake -- results/demo/runs/RUN/metrics.json",
        "atlas compare HEAD results/demo",
        "atlas plan --data DATASET",
    ]
    wrong = {
        "atlas trian": "there is no verb trian",
        "atlas list --tier nowhere papers": "nowhere",
        "atlas list nonsense --tier demo": "nonsense",
        "atlas train --teir demo RUN": "--teir",
        "atlas train image-classification/digits/atnscale/seed10": "atnscale",
        "atlas train RUN --set no_such_setting=1": "no_such_setting",
        "atlas acquire digitz": "digitz",
        "atlas table image-classification/digitz": "digitz",
        "atlas rehearse --gpu A1": "A1",
        "make dmeo": "dmeo",
        "dvc repor": "repor",
        "python benchmarks/nothing.py": "benchmarks/nothing.py",
        "python -m nothing": "no package or module nothing",
        "frobnicate": "frobnicate",
        "snakemake --config tier=lab results/lab/claims.csv": "Invalid config definition",
        "snakemake -- results/demo/tables/image-classification/digitz.md": "digitz is not a table of config/demo.yaml",
        "snakemake -- results/demo/runs/image-classification/digits/attnscale/seed99/metrics.json": "seed99 is not a run",
        "atlas compare HEAD results/nowhere": "results/nowhere",
        "atlas compare HAED results/demo": "HAED",
        "atlas plan --data digitz": "digitz",
    }
    assert clone.check([word for command in right for word in commands_of(command)], "p.md") == []
    for command, said in wrong.items():
        problems = clone.check(commands_of(command), "p.md")
        assert len(problems) == 1, command
        assert said in problems[0]


@pytest.mark.slow
def test_a_command_that_fails_is_named(clone: Checkout) -> None:
    block = Block("p.md", 5, "sh", "true\nls nothing-of-this-name\necho not-reached\n")
    with pytest.raises(AssertionError, match=r"(?s)p\.md:5: exit status 2.*ls nothing-of-this-name") as caught:
        clone.run(block)
    assert "not-reached" not in str(caught.value)
    assert clone.check_script(Block("p.md", 5, "sh", "if true; then\n", "cluster"))


@pytest.mark.slow
def test_a_clone_holds_what_is_not_yet_committed(clone: Checkout) -> None:
    for page in pages(ROOT):
        assert (clone.folder / page.name).read_text() == (ROOT / page.name).read_text()
    assert (clone.folder / ".venv" / "bin" / "python").exists()
