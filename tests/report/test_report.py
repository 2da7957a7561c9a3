"""Tables, figures and the page on made-up results: right numbers, right gaps, nothing executable."""

from __future__ import annotations

import base64
import cProfile
import csv
import io
import json
import pstats
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest_report import CONFIG, EVIL, TOY, write_metrics
from matplotlib.figure import Figure
from PIL import Image

from atlas.harness import plots
from atlas.harness.plots import FigureData, Film, figure
from atlas.harness.run import Run
from atlas.harness.stale import page_gap
from atlas.harness.study import Study
from atlas.report import write_all_claims, write_claims, write_figures, write_report, write_table
from atlas.report.collect import collect_cell, collect_table
from atlas.report.general import _focus
from atlas.report.told import COLUMNS

TABLE = ("image-classification", "digits")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as stream:
        return {next(iter(row.values())): row for row in csv.DictReader(stream)}


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return text.replace("\u202f", " ").replace("\u00a0", " ")


def by_name(study: Study) -> dict[tuple[str, int], Run]:
    return {(run.method, run.seed): run for run in study.runs}


def write_all(study: Study) -> str:
    """Everything that the workflow writes; returns the page."""
    for table in study.tables:
        write_table(study, *table)
        write_figures(study, *table)
    write_claims(study)
    return write_report(study).read_text()


class Reader(HTMLParser):
    """The page as a tree-less reader sees it: tags with attributes, identifiers, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def test_tables_hold_means_deviations_and_marks(study: Study) -> None:
    write_table(study, *TABLE)
    folder = study.results / "tables" / TABLE[0]
    table = rows(folder / "digits.csv")
    assert float(table["deit"]["top1"]) == pytest.approx(0.82)
    assert float(table["deit"]["top1_sd"]) == pytest.approx(0.02)
    assert table["deit"]["n_seeds"] == "3"
    markdown = plain((folder / "digits.md").read_text())
    assert "**84.1 ± 2.1 %**†" in markdown  # best, and its paired difference excludes 0
    assert "| 82.0 ± 2.0 % |" in markdown
    latex = (folder / "digits.tex").read_text()
    assert r"\toprule" in latex
    assert r"\textbf{84.1 $\pm$ 2.1\,\%}$^\dagger$" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body}) == 1
    details = json.loads((folder / "digits.json").read_text())
    assert details["baseline"] == "deit"
    assert details["differences"]["attnscale"]["top1"]["effect"] == pytest.approx(0.021)
    assert details["differences"]["attnscale"]["top1"]["n_seeds"] == 3


def test_claims_have_the_columns_and_the_verdicts(study: Study) -> None:
    for run in study.runs:
        if run.method == "featscale":
            write_metrics(run, top1=0.70 + 0.021 * run.seed, parameters=100.0)
    write_claims(study)
    table = rows(study.results / "claims.csv")
    assert tuple(next(iter(table.values()))) == COLUMNS
    # AttnScale gains 0.02, but FeatScale loses 0.10 where 0.03 are allowed: the conjunction fails
    assert table["aos.acc-d12"]["verdict"] == "contradicted"
    assert table["aos.acc-d12"]["method"] == "featscale"
    assert float(table["aos.acc-d12"]["effect"]) == pytest.approx(-0.099)
    assert table["aos.params"]["verdict"] == "contradicted"
    assert table["aos.acc-d24"]["verdict"] == "not run"
    assert table["aos.lowpass-collapse"]["verdict"] == "not run"
    assert "demo tier" in (study.results / "claims.md").read_text()


def test_the_first_line_counts_kinds_of_evidence_and_is_no_score(study: Study) -> None:
    page = plain(write_all(study))
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading
    assert re.fullmatch(r"\d+ claims judged: \d+ on real data, \d+ by arithmetic", heading[1])
    assert "supported" not in heading[1]
    assert plain((study.results / "report.md").read_text()).startswith(f"# Atlas, demo study: {heading[1]}")


def test_findings_against_the_methods_have_a_section(study: Study) -> None:
    for run in study.runs:
        if run.method == "featscale":
            write_metrics(run, top1=0.70 + 0.021 * run.seed, parameters=100.0)
    page = write_all(study)
    section = page[page.index('<section id="findings">') : page.index('<section id="claims">')]
    assert "It does not hold that: At depth 12" in section
    assert 'href="#claim-aos.acc-d12"' in section
    assert "Findings against the methods" in (study.results / "claims.md").read_text()


def test_the_values_of_every_seed_can_be_read_and_downloaded(study: Study) -> None:
    import base64

    page = write_all(study)
    written = (study.results / "claims-values.csv").read_bytes()
    found = re.search(r'download="claims-values.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    assert found
    assert base64.b64decode(found[1]) == written
    lines = list(csv.DictReader(written.decode().splitlines()))
    mine = [line for line in lines if line["id"] == "aos.acc-d12" and line["method"] == "attnscale"]
    assert [line["seed"] for line in mine] == ["0", "1", "2"]
    assert [float(line["effect"]) for line in mine] == pytest.approx([0.02, 0.021, 0.022])
    effects = [float(line["method_value"]) - float(line["baseline_value"]) for line in mine]
    assert effects == pytest.approx([float(line["effect"]) for line in mine])
    row = page[page.index('<tr id="claim-aos.acc-d12">') :]
    row = row[: row.index("every seed")]
    assert row.count('<circle class="seed"') == 6  # three seeds of two parts


def test_what_cannot_be_measured_is_not_doubtful(study: Study) -> None:
    run = by_name(study)["deit", 0]
    metrics = run.task_entry.metrics
    optional = tuple(replace(metric, optional=metric.name == "ece") for metric in metrics)
    lenient = replace(run, task_entry=replace(run.task_entry, metrics=optional))
    write_metrics(run, ece=None)
    assert collect_cell(run).problem == "not finite: ece"
    assert collect_cell(lenient).problem == ""
    assert collect_cell(lenient).why_missing("ece") == "not applicable"
    assert collect_cell(lenient).why_missing("top1") == ""


def test_a_substitute_is_named_in_every_table_and_claim(make_study: Callable[..., Study]) -> None:
    study = make_study(config="substitutes: {{digits: mnist}}" + CONFIG)
    for run in study.runs:
        write_metrics(run, top1=0.8 + 0.01 * run.seed)
    write_table(study, *TABLE)
    folder = study.results / "tables" / TABLE[0]
    assert {row["data"] for row in rows(folder / "digits.csv").values()} == {"mnist in place of digits"}
    for ending in ("md", "tex", "json"):
        assert "mnist in place of digits" in (folder / f"digits.{ending}").read_text()
    write_claims(study)
    judged = [row for row in rows(study.results / "claims.csv").values() if row["n_seeds"] != "0"]
    assert judged
    assert all("Data: mnist in place of digits." in row["note"] for row in judged)
    assert "(mnist in place of digits)" in (study.results / "claims.md").read_text()
    assert "mnist in place of digits" in write_report(study).read_text()


def test_claims_of_all_tiers_stand_in_one_row(study: Study) -> None:
    larger = study.root / "config" / "lab.yaml"
    larger.write_text((study.root / "config" / "demo.yaml").read_text().replace("digits:", "cifar10:"))
    lines = write_all_claims(study.root).read_text().splitlines()
    assert "| claim | statement | demo | lab |" in lines
    (told,) = (line for line in lines if line.startswith("| aos.params "))
    assert [cell.strip() for cell in told.split("|")][4:] == ["not run", ""]
    (deep,) = (line for line in lines if line.startswith("| aos.acc-d24 "))
    assert [cell.strip() for cell in deep.split("|")][3:5] == ["·", "not run"]
    (judged,) = (line for line in lines if line.startswith("| aos.acc-d12 "))
    cells = [cell.strip() for cell in judged.split("|")]
    assert plain(cells[3]).startswith("inconclusive: −10.0 points")  # FeatScale's accuracy, the same on every seed
    assert cells[3].endswith("(3 seeds)")
    assert cells[4] == "not run"


def test_missing_failed_and_infinite_runs_are_said_in_their_cells(study: Study) -> None:
    runs = by_name(study)
    runs["deit", 0].metrics.unlink()
    failed = runs["attnscale", 1]
    failed.metrics.unlink()
    failure = {"stage": "train", "error": "the loss is not finite at step 7", "log": "logs/x", "tail": ["line one", "boom"]}
    failed.failure.write_text(json.dumps(failure))
    write_metrics(runs["featscale", 2], top1=None)
    runs["featscale", 1].metrics.write_text("{ damaged")
    page = write_all(study)
    table = rows(study.results / "tables" / TABLE[0] / "digits.csv")
    assert table["deit"]["n_seeds"] == "2"
    assert table["deit"]["missing"] == "seed 0: not run"
    assert table["attnscale"]["missing"] == "seed 1: failed to train: the loss is not finite at step 7"
    assert "seed 2: not finite: top1" in table["featscale"]["missing"]
    assert "seed 1: not run: its metrics.json is damaged" in table["featscale"]["missing"]
    for text in (page, (study.results / "report.md").read_text()):
        assert "failed to train: the loss is not finite at step 7" in text
        assert "boom" in text
        assert "9 of 12 evaluated, 1 failed, 2 not run, 1 doubtful" in text
        assert "n = 1" in text
    assert "2 of 3" in page
    assert "logs/x" in page


def test_a_row_without_any_value_says_why_in_its_cells(study: Study) -> None:
    for seed in range(3):
        by_name(study)["featscale", seed].metrics.unlink()
    by_name(study)["featscale", 0].failure.write_text('{"stage": "train", "error": "out of memory", "tail": 5}')
    page = write_all(study)
    row = page[page.index('<tr data-method="featscale">') :]
    row = row[: row.index("</tr>")]
    assert ">not run<" in row
    assert "0 of 3" in row
    assert "seed 0: failed to train: out of memory" in row
    assert 'data-value=""' in row


def test_metrics_of_wrong_types_do_not_stop_the_report(study: Study) -> None:
    runs = by_name(study)
    made_of = json.loads(runs["deit", 1].metrics.read_text())["run"]
    runs["deit", 0].metrics.write_text('{"metrics": [1, 2], "provenance": "none", "run": 3, "settings": null}')
    runs["deit", 1].metrics.write_text(
        f'{{"metrics": {{"top1": NaN, "nll": "0.3", "ece": true}}, "run": {json.dumps(made_of)}, "settings": null}}'
    )
    runs["deit", 2].metrics.write_bytes(b"\xff\xfe")
    assert "1 of 3" in write_all(study)
    table = rows(study.results / "tables" / TABLE[0] / "digits.csv")
    assert table["deit"]["top1"] == ""
    assert "seed 0: out of date: what it was made of is not recorded" in table["deit"]["missing"]
    assert "seed 1: not finite: top1, nll, ece; lacks:" in table["deit"]["missing"]


def test_nothing_at_all_is_still_a_page(make_study: Callable[..., Study]) -> None:
    page = write_all(make_study())
    assert "No claim has been judged yet" in page
    assert "0 of 12 evaluated, 12 not run" in page


def test_results_of_other_settings_are_called_out_of_date(study: Study) -> None:
    """And are no part of means and verdicts: seeds of two settings in one number would be neither's."""
    run = by_name(study)["attnscale", 1]
    content = json.loads(run.metrics.read_text())
    content["run"]["fingerprint"] = "other"
    content["metrics"]["top1"] = 1e6
    run.metrics.write_text(json.dumps(content))
    page = write_all(study)
    assert "seed 1: out of date: its settings changed" in page
    assert "11 of 12 evaluated, 1 out of date" in page
    assert float(rows(study.results / "tables" / TABLE[0] / "digits.csv")["attnscale"]["top1"]) < 1
    judged = [row for row in csv.DictReader((study.results / "claims-values.csv").open()) if "attnscale" in str(row)]
    assert judged
    assert not any("1000000" in value for row in judged for value in row.values())


def test_a_page_that_is_written_alone_takes_the_files_of_verdicts_with_it(study: Study) -> None:
    """For the page says what is up to date, also where the workflow stops and writes only it."""
    write_all(study)
    paths = [study.results / name for name in ("claims.csv", "claims-values.csv", "claims.md")]
    written = [path.read_text() for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    write_report(study)
    assert [path.stat().st_mtime_ns for path in paths] == times
    paths[0].write_text("older verdicts\n")
    paths[2].unlink()
    write_report(study)
    assert [path.read_text() for path in paths] == written
    assert page_gap(study) is None


@pytest.mark.parametrize("change", [{"limits": ("It cannot show speed.",)}, {"description": "Something else."}])
def test_a_page_is_due_where_the_study_says_something_else_of_itself(study: Study, change: dict[str, Any]) -> None:
    write_all(study)
    assert page_gap(study) is None
    assert page_gap(replace(study, **change)) == "its metrics, claims or limits changed"


def test_a_failed_stage_explains_the_runs_that_wait_for_it(two_tasks: Study) -> None:
    runs = by_name(two_tasks)
    stage = runs["search", 1]
    stage.failure.parent.mkdir(parents=True, exist_ok=True)
    stage.failure.write_text(
        json.dumps({"stage": "train", "error": "no candidate left", "log": "l", "tail": ["search: nothing"]})
    )
    runs["fast", 1].metrics.unlink()
    page = write_all(two_tasks)
    assert "not run: its found, toy-task/curve/search/seed1, failed: no candidate left" in page
    assert "search: nothing" in page


def test_costs_stand_apart_and_count_what_a_row_builds_on(two_tasks: Study) -> None:
    page = plain(write_all(two_tasks))
    compared = page[page.index(f'data-table="{TOY}/curve"') :]
    compared = compared[: compared.index("</table>")]
    assert "training FLOPs" not in compared
    costs = page[page.index('aria-label="Costs on curve"') :]
    costs = costs[: costs.index("</table>")]
    assert "training FLOPs" in costs
    assert "time of a step" in costs
    assert "what it builds on" in costs
    assert ">100 G<" in costs
    assert ">30 s<" in costs
    # 6 + 6 runs of 14 s, and 3 stages of 30 s that are counted once each
    assert "4 min of training and evaluation" in page
    figures = two_tasks.results / "figures" / TOY / "curve"
    assert {path.name for path in figures.glob("*.svg")} == {"headline.svg", "cost.svg"}
    assert "training FLOPs" in (figures / "cost.svg").read_text()


def test_page_is_self_contained_and_escapes_what_it_shows(study: Study) -> None:
    by_name(study)["deit", 1].metrics.unlink()
    failure = {
        "stage": "train",
        "error": EVIL,
        "log": "<img src=x onerror=alert(1)>",
        "tail": ["</pre><script>alert(2)</script>"],
    }
    by_name(study)["deit", 1].failure.write_text(json.dumps(failure))
    page = write_all(study)
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;-script&gt;" in page
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert any("</pre><script>alert(2)</script>" in words for words in reader.words)
    allowed = ("data:", "#", "https://arxiv.org/", "https://proceedings.", "https://openreview.net/", "https://doi.org/")
    for link in [*reader.values("src"), *reader.values("href")]:
        assert link.startswith(allowed), link
    assert not [tag for tag, attributes in reader.tags if tag == "link" and attributes.get("rel") != "icon"]
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page.replace("&#39;", "'")
    markdown = (study.results / "report.md").read_text()
    assert EVIL not in markdown


def test_identifiers_are_unique_and_figures_are_described(two_tasks: Study) -> None:
    reader = Reader(write_all(two_tasks))
    identifiers = reader.values("id")
    assert len(identifiers) == len(set(identifiers))
    anchors = {link[1:] for link in reader.values("href") if link.startswith("#")}
    assert anchors <= set(identifiers)
    pictures = [attributes for tag, attributes in reader.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) >= 3
    assert all(attributes["aria-label"] for attributes in pictures)


def test_page_shows_what_the_csv_holds(two_tasks: Study) -> None:
    page = write_all(two_tasks)
    compared = 0
    for task, dataset in two_tasks.tables:
        table = rows(two_tasks.results / "tables" / task / f"{dataset}.csv")
        body = page[page.index(f'data-table="{task}/{dataset}"') :]
        body = body[: body.index("</table>")]
        names = re.findall(r'data-metric="([^"]+)"', body)
        for method, row in table.items():
            line = body[body.index(f'<tr data-method="{method}">') :]
            values = re.findall(r'data-value="([^"]*)"', line[: line.index("</tr>")])
            assert values == [row["n_seeds"], *(row[name] for name in names)]
            compared += len(values)
    assert compared >= 10
    claims = rows(two_tasks.results / "claims.csv")
    for identifier, claim in claims.items():
        idle = claim["verdict"] == "not run"
        line = page[page.index(f'<{"li" if idle else "tr"} id="claim-{identifier}">') :]
        assert claim["verdict"] in line[: line.index("</li>" if idle else "</tr>")]


def test_the_tables_inside_the_page_are_the_files(study: Study) -> None:
    import base64

    page = write_all(study)
    found = re.search(r'download="image-classification-digits.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    assert found
    assert base64.b64decode(found[1]) == (study.results / "tables" / TABLE[0] / "digits.csv").read_bytes()


def test_everything_is_written_again_byte_for_byte(study: Study) -> None:
    def write() -> dict[str, bytes]:
        write_all(study)
        written = (path for path in study.results.rglob("*") if path.is_file())
        return {str(path.relative_to(study.results)): path.read_bytes() for path in written}

    first = write()
    assert "figures/image-classification/digits/headline.svg" in first
    assert write() == first


def test_figures_of_other_results_are_not_shown(study: Study) -> None:
    before = write_all(study)
    write_metrics(by_name(study)["deit", 0], top1=0.5)
    written = study.results / "figures" / TABLE[0] / "digits" / "headline.svg"
    old = written.read_bytes()
    page = write_report(study).read_text()
    means = [re.search(r"Dot plot of top-1[^\"]*", text) for text in (before, page)]
    assert means[0]
    assert means[1]
    assert means[0][0] != means[1][0]
    assert "made of other results" in page
    assert written.read_bytes() == old  # the workflow owns that file


def test_a_figure_that_cannot_be_drawn_is_left_out(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plots.figures_of(TABLE[0])
    monkeypatch.setattr(plots, "_figures", dict(plots._figures))

    @figure("broken", task=TABLE[0], title="Broken", caption="", alt="Broken.")
    def broken(data: FigureData) -> None:
        raise ValueError("no such column")

    write_figures(study, *TABLE)
    assert caplog.messages == ["image-classification/digits: the figure broken cannot be drawn: no such column"]
    names = [
        item["name"] for item in json.loads((study.results / "figures" / "/".join(TABLE) / "index.json").read_text())["figures"]
    ]
    assert "headline" in names
    assert "broken" not in names


def test_a_film_is_strips_of_frames_behind_windows() -> None:
    from atlas.report.film import film_svg

    frames = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    text = film_svg(Film({"the reference": frames[0], "a row <b> of a rather long name": frames}, pause=100))
    assert text == film_svg(Film({"the reference": frames[0], "a row <b> of a rather long name": frames}, pause=100))
    root = ElementTree.fromstring(text)
    still, strip = root.iter("{http://www.w3.org/2000/svg}image")
    assert float(strip.get("width", "")) == pytest.approx(4 * float(still.get("width", "")))
    for image, shown in ((still, frames[0]), (strip, np.concatenate(list(frames), axis=1))):
        kept = Image.open(io.BytesIO(base64.b64decode((image.get("href") or "").partition(",")[2]))).convert("RGB")
        assert np.array_equal(np.asarray(kept), shown)
    assert "animation: film 400ms steps(4) infinite" in text
    assert "prefers-reduced-motion: reduce" in text
    assert "&lt;b&gt;" in text


@pytest.mark.parametrize(
    ("drawn", "values", "shown"),
    [
        ((-10, 10), [3.0, 1.0], (0.3, 3.7)),
        ((0.5, 2), [3.0, 1.0], (0.5, 2)),
        ((-10, 10), [4.0, 4.0], (3.8, 4.2)),
        ((-10, 10), [0.0, 0.0], (-0.5, 0.5)),
    ],
)
def test_the_seeds_fill_the_axis(drawn: tuple[float, float], values: list[float], shown: tuple[float, float]) -> None:
    axes = Figure().subplots()
    axes.set_xlim(*drawn)
    _focus(axes, values)
    assert axes.get_xlim() == pytest.approx(shown)


def test_rasters_keep_their_colours() -> None:
    from atlas.report.inline import inline

    line = '<svg width="10pt" viewBox="0 0 10 5"><path id="a" style="stroke: #0072b2"/><use href="#a"/></svg>'
    assert inline(line, "p-", "label").count("p-a") == 2
    assert "var(--series-0)" in inline(line, "p-", "label")
    assert inline(line.replace("<use", "<image"), "p-", "label").startswith('<img class="card" src="data:image/svg+xml;base64,')
    assert "<script" not in inline(line.replace("<use", "<script>1</script><use"), "p-", "label")


def test_series_for_dvc(study: Study) -> None:
    write_report(study)
    summary = json.loads((study.results / "metrics" / "image-classification" / "digits.json").read_text())
    assert summary["baseline"] == pytest.approx(0.82)
    assert set(summary) == {"baseline", "best", "runs"}
    curves = (study.results / "plots" / "curves" / "image-classification--digits.csv").read_text().splitlines()
    assert curves[:2] == ["step,method,value", "1,deit,2.5"]


def test_building_the_report_needs_no_torch(study: Study) -> None:
    code = (
        "import sys; from atlas.study import Study; import atlas.report as r; s = Study.read('demo', sys.argv[1]);"
        "r.write_table(s, 'image-classification', 'digits'); r.write_figures(s, 'image-classification', 'digits');"
        "r.write_claims(s); r.write_report(s); print({'torch', 'timm', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study.root)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def wide(parts: int) -> str:
    """A study of ten rows on each of many data sets."""
    rows = ", ".join(f"row{row}: {{{{method: layerscale}}}}" for row in range(9))
    return "description: Many rows.\nseeds: [{seeds}]\nimage-classification:\n  datasets:\n" + "".join(
        f"    part{part}:\n      data: digits\n      methods: {{{{deit: {{{{}}}}, {rows}}}}}\n" for part in range(parts)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [((125, CONFIG), (250, CONFIG)), ((5, wide(10)), (5, wide(20)))], ids=["many seeds", "many tables"]
)
def test_the_report_grows_with_the_runs_and_not_faster(
    make_study: Callable[..., Study], sizes: tuple[tuple[int, str], tuple[int, str]]
) -> None:
    """Calls of functions are counted, not seconds, so that no machine and no load decides: 500 runs, then 1,000."""
    calls = []
    for seeds, config in sizes:
        study = make_study(seeds, config)
        for run in study.runs:
            write_metrics(run, top1=0.8 + 0.0001 * run.seed)
        with cProfile.Profile() as profile:
            write_all(study)
        calls.append(pstats.Stats(profile).total_calls)
        assert collect_table(study, *study.tables[0]).rows[0].evaluated == seeds
    assert len(study.runs) == 1000
    assert calls[1] < 2.2 * calls[0]


def test_what_a_study_does_not_judge_is_folded_away(study: Study) -> None:
    page = write_all(study)
    shown, folded = page[page.index('<section id="claims">') :].split('<details class="idle" id="silent">')
    assert 'id="paper-anti-oversmoothing"' in shown
    assert 'id="paper-vfds"' in folded
    assert 'href="#paper-vfds"' not in page
    markdown = (study.results / "claims.md").read_text()
    before, after = markdown.split("<details>\n<summary>")
    assert "not run, and why" in after
    assert "- vfds." in after
    assert "- vfds." not in before


def test_a_claim_links_to_its_table_and_a_row_says_what_makes_it_again(study: Study) -> None:
    page = write_all(study)
    links = {value for value in Reader(page).values("href") if value.startswith("#image-classification-")}
    assert links <= {f"#{value}" for value in Reader(page).values("id")}
    assert '<a href="#image-classification-digits">image-classification/digits</a>' in page
    assert "atlas train --tier demo --force --evaluate image-classification/digits/attnscale</code>" in page


def test_a_study_says_what_it_cannot_show(make_study: Callable[..., Study]) -> None:
    from dataclasses import replace

    study = replace(make_study(), limits=("Nothing <at> all.",))
    page = write_all(study)
    assert "<li>Nothing &lt;at&gt; all.</li>" in page
    assert "What this study cannot show:" in (study.results / "report.md").read_text()
