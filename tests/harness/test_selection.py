"""Some runs of a study, by a part of their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness.agenda import Demands, agenda
from atlas.harness.selection import select
from atlas.harness.study import Study


@pytest.fixture(scope="module")
def demo(checkout: Path) -> Study:
    return Study.read("demo", checkout)


def rows(study: Study, *patterns: str) -> set[str]:
    return {run.cell.rpartition("/")[0] for run in select(study, patterns)}


def test_a_row_is_all_its_seeds(demo: Study) -> None:
    found = select(demo, ["image-classification/digits/attnscale"])
    assert [run.seed for run in found] == list(demo.seeds)
    assert {run.method for run in found} == {"attnscale"}
    assert select(demo, ["image-classification/digits/attnscale/seed10/"]) == [found[0]]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            "image-classification/*/attnscale*",
            lambda run: run.task == "image-classification" and run.method.startswith("attnscale"),
        ),
        ("digits/attnscale", lambda run: (run.dataset, run.method) == ("digits", "attnscale")),
        ("novel-view-synthesis", lambda run: run.task == "novel-view-synthesis"),
        ("handover", lambda run: run.dataset == "handover"),
        ("attnscale/seed1?", lambda run: run.method == "attnscale" and 10 <= run.seed < 20),
        ("seed10", lambda run: run.seed == 10),
    ],
)
def test_parts_and_patterns(demo: Study, pattern: str, expected: object) -> None:
    wanted = {run.cell for run in demo.runs if expected(run)}  # type: ignore[operator]
    assert wanted
    assert {run.cell for run in select(demo, [pattern])} == wanted


def test_a_word_may_be_a_paper_a_method_or_acquired_data(demo: Study) -> None:
    assert {run.task for run in select(demo, ["vfds"])} == {"feature-acquisition"}
    assert any(row.endswith("/attnscale+diverse-vit+uvc") for row in rows(demo, "uvc"))  # a recipe with it
    assert "image-classification/digits-compressed/uvc-b35" in rows(demo, "uvc")  # a row of another name
    assert {run.dataset for run in select(demo, ["basic-motions"])} == {"basic-motions", "handover"}


def test_what_others_need_comes_first(demo: Study) -> None:
    found = [run.method for run in select(demo, ["digits-compressed/uvc-b35/seed10", "digits-compressed/deit/seed10"])]
    assert found == ["deit", "uvc-b35"]
    assert len(select(demo, ["vfds", "vfds"])) == len(select(demo, ["vfds"]))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("vdfs", "did you mean vfds?"),
        ("image-classification/digits/atnscale", "did you mean image-classification/digits/attnscale?"),
        ("digits/atnscale/seed10", "did you mean digits/attnscale/seed10?"),
        ("a/b/c/d/e", "atlas list runs shows them"),
        ("s/e/e/d10", "atlas list runs shows them"),  # seed10 is near, but has fewer parts
    ],
)
def test_a_pattern_that_fits_nothing(demo: Study, pattern: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        select(demo, ["vfds", pattern])
    assert str(caught.value) == f"{pattern} is not a run of config/demo.yaml, nor a part of one's name; {said}"


STUDY = """
seeds: [0]
image-classification:
  datasets:
    toy: {data: null, methods: {deit: {}, attnscale: {}, uvc: {}}}
    other: {data: null, methods: {deit: {}}}
"""


def test_the_agenda_of_some_rows_holds_what_they_need_and_their_table(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text(STUDY)
    found = agenda(Study.read("mine", tmp_path), Demands(only=("uvc",)))
    assert list(found.training) == ["image-classification/toy/deit/seed0", "image-classification/toy/uvc/seed0"]
    assert set(found.tables) == {("image-classification", "toy")}
    assert found.page


def test_a_whole_name_is_one_run_whatever_its_letters_mean_in_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text(STUDY.replace("uvc: {}", '"uvc[1]": {method: uvc}, uvc1: {method: uvc}'))
    study = Study.read("mine", tmp_path)
    assert [run.method for run in select(study, ["image-classification/toy/uvc[1]/seed0"])] == ["uvc[1]"]
    assert [run.method for run in select(study, ["toy/uvc[1]/seed0"])] == ["uvc1"], "in a part of a name they are a pattern"
