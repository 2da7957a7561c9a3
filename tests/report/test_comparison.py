"""Two results side by side: numbers in units of their spread, verdicts, and what only one has."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.report.comparison import Results, ResultsComparison, _machine, compare

ROW = "runs/image-classification/digits/deit"


def files(values: dict[int, float | None], verdict: str = "supported", row: str = ROW) -> dict[str, str]:
    runs = {f"{row}/seed{seed}/metrics.json": json.dumps({"metrics": {"top1": value}}) for seed, value in values.items()}
    return {**runs, "claims.csv": f'id,statement,verdict\na.b,"One, two",{verdict}\n'}


def comparison(first: dict[str, str], second: dict[str, str]) -> ResultsComparison:
    return ResultsComparison.of(Results.read("A", first), Results.read("B", second))


def test_equal_results_are_alike() -> None:
    found = comparison(files({0: 0.5, 1: None}), files({0: 0.5, 1: None}))
    assert found.headline == "2 of 2 numbers alike, 1 of 1 verdicts alike"
    assert found.only() == [("A", []), ("B", [])]


def test_a_drift_is_told_in_standard_deviations_over_seeds() -> None:
    # both sides have a standard deviation of 1 over seeds 0, 1, 2; the pooled one is 1
    found = comparison(files({0: 1.0, 1: 2.0, 2: 3.0}), files({0: 1.5, 1: 2.5, 2: 3.5}))
    assert [one.drift for one in found.differences] == pytest.approx([0.5, 0.5, 0.5])
    assert (
        found.headline
        == "1 of 1 verdicts alike, 0 of 3 numbers alike, largest drift 0.5 sd (image-classification/digits/deit top1)"
    )


def test_without_spread_a_difference_is_shown_and_not_scaled() -> None:
    found = comparison(files({0: 1.0}), files({0: 1.5}))
    assert math.isnan(found.differences[0].drift)
    assert "no spread" in found.markdown()
    assert found.headline == "1 of 1 verdicts alike, 0 of 1 numbers alike"


def test_verdicts_that_differ_and_what_only_one_has() -> None:
    second = files({0: 0.1}, row=f"{ROW}x") | files({0: 0.5, 1: 0.5}, "inconclusive")
    second["claims.csv"] += "c.d,Three,supported\n"
    found = comparison(files({0: 0.5}), second)
    assert found.verdicts == [("a.b", "supported", "inconclusive")]
    runs = ["image-classification/digits/deit/seed1", "image-classification/digits/deitx/seed0"]
    assert found.only() == [("A", []), ("B", [*runs, "claim c.d"])]
    for text in (found.markdown(), found.html()):
        assert "a.b" in text
        assert "deitx" in text


def test_names_cannot_smuggle_markup() -> None:
    page = comparison(files({0: 1.0}, row="runs/t/d/<script>"), files({0: 2.0}, row="runs/t/d/<script>")).html()
    assert "<script>" not in page


def write(folder: Path, content: dict[str, str]) -> Path:
    """Lay files out below a folder."""
    for path, text in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def commit(folder: Path) -> None:
    """Make a folder a git repository that holds all that lies in it."""
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "1"],
    ):
        subprocess.run(["git", *command], check=True, cwd=folder)


def test_a_folder_and_a_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results/demo", files({0: 0.5}))
    commit(tmp_path)
    same = compare("HEAD", "results/demo")
    assert (same.differences, same.first.name, same.second.name) == ([], "HEAD", "results/demo")
    (tmp_path / "results/demo" / ROW / "seed0/metrics.json").write_text('{"metrics": {"top1": 0.25}}')
    assert [one.second for one in compare("HEAD", "results/demo").differences] == [0.25]
    assert [one.first for one in compare("results/demo", "HEAD:results/demo").differences] == [0.25]


def test_a_revision_is_asked_for_the_folder_that_stands_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the folder is written, and from wherever: another study's results would be told as if they were meant."""
    checkout = tmp_path / "atlas"
    write(checkout / "results/demo", files({0: 0.25}))
    desk = write(checkout / "results/desk", files({0: 0.5}))
    commit(checkout)
    (tmp_path / "link").symlink_to(checkout)
    monkeypatch.chdir(checkout)
    for folder in ("results/desk", "results/desk/", "../atlas/results/desk", str(desk), str(tmp_path / "link/results/desk")):
        assert compare("HEAD", folder).headline.startswith("1 of 1 numbers alike"), folder
        assert compare(folder, "HEAD").headline.startswith("1 of 1 numbers alike"), folder
    assert compare("HEAD:results/desk", "HEAD").headline.startswith("1 of 1 numbers alike")
    desk.rename(tmp_path / "disk")
    desk.symlink_to(tmp_path / "disk")
    assert compare("HEAD", "results/desk").headline.startswith("1 of 1 numbers alike")
    monkeypatch.chdir(checkout / "results")
    assert compare("HEAD", "desk").headline.startswith("1 of 1 numbers alike")


def test_a_folder_outside_the_checkout_has_no_like_in_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "atlas/results/demo", files({0: 0.5}))
    commit(tmp_path / "atlas")
    monkeypatch.chdir(tmp_path / "atlas")
    brought = str(write(tmp_path / "brought", files({0: 0.5})))
    with pytest.raises(UserError, match=r"outside this checkout.*for example HEAD:results/demo"):
        compare("HEAD", brought)
    assert compare("HEAD:results/demo", brought).differences == []


def test_what_neither_judges_is_no_agreement() -> None:
    sides = [{"claims.csv": f"id,verdict\na.b,supported\nc.d,not run\ne.f,{verdict}\n"} for verdict in ("supported", "not run")]
    found = comparison(*sides)
    assert found.headline == "0 of 0 numbers alike, 1 of 2 verdicts alike"
    assert found.verdicts == [("e.f", "supported", "not run")]


@pytest.mark.parametrize("verdict", ["", "not run"])
def test_results_that_share_nothing_are_refused(verdict: str, tmp_path: Path) -> None:
    sides = [files({0: 0.5}, verdict, row) for row in (ROW, f"{ROW}x")]
    if not verdict:
        del sides[1]["claims.csv"]
    places = [str(write(tmp_path / name, content)) for name, content in zip("ab", sides, strict=True)]
    with pytest.raises(UserError, match=r"nothing to compare; name results of the same study, judged by 'atlas claims'"):
        compare(*places)


@pytest.mark.parametrize(("place", "said"), [("nowhere", "neither a folder nor a git revision"), (".", "holds no results")])
def test_a_wrong_place_is_one_line(place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        compare(place, place)


def test_a_damaged_file_is_named() -> None:
    with pytest.raises(UserError, match="seed0/metrics.json is damaged"):
        Results.read("A", {f"{ROW}/seed0/metrics.json": "{"})


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (("supported", ""), ("inconclusive", ""), True),
        (("supported", "not without seed 1"), ("inconclusive", ""), False),  # what is fragile claims no more than what is open
        (("supported", "not without seed 1"), ("supported", ""), False),
        (("supported", "not without seed 1"), ("contradicted", "not without seed 2"), True),
        (("not run", ""), ("supported", "not without seed 1"), True),
    ],
)
def test_a_fragile_verdict_differs_from_its_opposite_only(first: tuple[str, str], second: tuple[str, str], differ: bool) -> None:
    sides = [{"claims.csv": f"id,verdict,fragile\na.b,{word},{fragile}\n"} for word, fragile in (first, second)]
    found = comparison(*sides)
    assert bool(found.verdicts) == differ
    assert ("1 of 1 verdicts alike" in found.headline) != differ


def test_a_machine_is_named_with_its_kernels() -> None:
    assert _machine({"hardware": "AMD EPYC, 2 cores", "kernels": "portable"}) == "AMD EPYC, 2 cores, portable kernels"
    assert _machine({"hardware": "AMD EPYC, 2 cores"}) == "AMD EPYC, 2 cores"
    assert _machine({}) == "unknown"
