"""The table of backbones: complete for the installed timm, without failures, and the page is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm.models import list_models

from atlas.cli.backbones import METHODS, WORKS, Backbones, page, rows, verdicts
from atlas.errors import UserError
from atlas.nn.families import look

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"


@pytest.fixture(scope="module")
def table() -> Backbones:
    return Backbones.read()


def test_every_entrypoint_of_timm_is_supported_or_refused_by_name(table: Backbones) -> None:
    """A new timm fails here until ``python -m atlas.cli.backbones`` has looked at what is new."""
    known = [entrypoint for family in table.families for entrypoint in family.entrypoints] + table.others
    assert len(known) == len(set(known))
    assert set(known) == set(list_models())


def test_no_family_ends_in_anything_but_works_or_a_refusal(table: Backbones) -> None:
    for family in table.families:
        assert set(family.verdicts) == set(METHODS)
        assert not [verdict for verdict in family.verdicts.values() if verdict.startswith("fails")], family


@pytest.mark.parametrize("method", ["attnscale", "featscale"])
def test_nearly_all_transformers_are_supported(table: Backbones, method: str) -> None:
    count, total = table.share(method)
    assert total >= 437
    assert count >= 0.95 * total


def test_what_the_table_says_is_found_again(table: Backbones) -> None:
    """For a family that all methods act on, and one that they refuse."""
    for name in ("test_vit", "gemma4_vit_167m_enc"):
        found = look(name)
        family = next(family for family in table.families if name in family.entrypoints)
        assert family.words == found.family
        assert verdicts(family.example, look(family.example)) == family.verdicts
    assert look("resnet18").family == ""
    assert "resnet18" in table.others
    transformers = {entrypoint for family in table.families for entrypoint in family.entrypoints}
    assert {"convit_tiny", "qwen3_vit_88m"} <= transformers, "of modules without a class that is called an attention"


@pytest.mark.slow
def test_all_that_the_table_says_is_found_again(table: Backbones) -> None:
    """No family fails, and a refusal leaves the model as it was: else the verdict would say so."""
    for family in table.families:
        assert verdicts(family.example, look(family.example)) == family.verdicts, family.example


def test_the_page_and_the_listing_show_the_table(table: Backbones) -> None:
    assert PAGE.read_text() == page(table), "write it anew with `python -m atlas.cli.backbones`"
    header, lines = rows()
    assert header[2:-1] == tuple(METHODS.values())
    assert len(lines) == len(table.families)
    assert any(line[2:-1] == (WORKS,) * len(METHODS) for line in lines)


def test_a_table_of_another_timm_says_so(table: Backbones, tmp_path: Path) -> None:
    Backbones("0.0.1", table.families, table.others).write(tmp_path / "table.json")
    with pytest.raises(UserError, match=r"made with timm 0\.0\.1, installed is .*python -m atlas\.cli\.backbones"):
        Backbones.read(tmp_path / "table.json")
