"""Verbs of the ``atlas`` command. Each imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas.errors import EXIT_FAILURE, AtlasError, Interrupted, UserError, refusal

if TYPE_CHECKING:
    from atlas.study import Run, Study

app = typer.Typer(
    name="atlas",
    help="Ten methods for learning efficiently and robustly, compared under one protocol.\n\n"
    "A RUN is task/dataset/method/seed<k>, for example image-classification/digits/attnscale/seed10, or a part of that: "
    "image-classification/digits/attnscale is a row with all its seeds, 'digits/attnscale*' a pattern, vfds all of a paper. "
    "'atlas list runs' shows all of a study.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Tier = Annotated[str, typer.Option("--tier", "-t", help="Study to work on: config/<tier>.yaml.")]
Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="task/dataset/method/seed<k>, or a part of it, with * and ?: a row is all its seeds."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A trial with another setting, for example protocol.epochs=2; 'atlas describe' shows a method's.",
    ),
]

Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="GPUs of this machine to train on together, whatever the study says.")
]
Ranks = Annotated[
    int | None,
    typer.Option("--ranks", envvar="ATLAS_RANKS", min=1, help="Processes that train together, on CPUs, where GPUs are few."),
]


class Again(StrEnum):
    """Which complete trainings are repeated on request."""

    here = "here"
    code = "code"


@app.callback()
def options(
    directory: Annotated[Path, typer.Option("--directory", "-C", help="Work in this checkout.")] = Path(),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Handle the options that every verb shares, before the verb runs."""
    from atlas.harness.kernels import hold_kernels

    hold_kernels()
    if directory != Path():
        if not directory.is_dir():
            raise UserError(f"--directory {directory} is not a folder")
        os.chdir(directory)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(metavar="papers|tasks|methods|datasets|claims|runs|backbones")],
    tier: Tier = "demo",
) -> None:
    """Show what there is: papers, tasks, methods, datasets, claims, the runs of a study, or the backbones that methods act on."""
    from atlas.cli.listing import show

    show(what, tier)


@app.command()
def describe(
    names: Annotated[list[str], typer.Argument(metavar="METHOD...", help="A method, a task (its protocol), or a paper.")],
) -> None:
    """Say what a method is: settings with defaults and ranges, source, and a row to paste into a study."""
    from atlas.cli.describing import describe as described

    print("\n\n".join(map(described, names)))


new = typer.Typer(
    help="Write the folder of a new method, or of a new data set, that passes its own tests as it is.", rich_markup_mode=None
)
app.add_typer(new, name="new", no_args_is_help=True)


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and hyphens.")],
    task: Annotated[
        str, typer.Option(help="Task in whose tables it stands; 'atlas list tasks' shows them.")
    ] = "image-classification",
) -> None:
    """Write src/atlas/methods/<name>/ with a working method to change, and tests/methods/<name>/."""
    from atlas.cli import creating

    files = creating.new_method(name, task)
    print("\n".join(map(str, files)))
    print(f"\nIts tests:  pytest {files[-1]}\n            pytest tests/conformance -k {name}\nA row:      atlas describe {name}")


@new.command("dataset")
def new_dataset(name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and hyphens.")]) -> None:
    """Write src/atlas/datasets/<name>.py, which makes a small set of images to replace, and its test."""
    from atlas.cli import creating

    files = creating.new_dataset(name)
    print("\n".join(map(str, files)))
    print(f"\nIts tests:  pytest {files[-1]}\nThen:       atlas acquire {name}")


@app.command()
def acquire(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...")],
    mirror: Annotated[
        str | None,
        typer.Option(envvar="ATLAS_DATA_MIRROR", help="Folder or URL that holds the archives, instead of their origins."),
    ] = None,
    tier: Annotated[
        str | None, typer.Option("--tier", "-t", help="Study whose own data are meant, where several call theirs alike.")
    ] = None,
) -> None:
    """Download, verify and unpack datasets into data/<dataset>/; what is there already is looked at again."""
    from atlas.datasets import acquire as fetch
    from atlas.datasets import dataset_names
    from atlas.harness.study import CONFIG_FOLDER, checkout_hint, declare_own

    if not CONFIG_FOLDER.is_dir() and (hint := checkout_hint(Path())).startswith("the checkout"):
        raise UserError(f"{Path.cwd().name} is a folder of a checkout, and data/ would land in it; {hint}")
    for dataset in datasets:
        if dataset not in dataset_names():
            declare_own(dataset, Path(), tier)
        manifest = fetch(dataset, root=Path("data"), mirror=mirror)
        print(f"{dataset}: data/{dataset} ({manifest.sha256[:12]})")


@app.command()
def train(
    runs: Runs,
    tier: Tier = "demo",
    overrides: Overrides = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    force: Annotated[bool, typer.Option("--force", help="Train again, from the beginning.")] = False,
    again: Annotated[
        Again | None,
        typer.Option(help="Train again what was trained on another machine (here), or with other code (code)."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also evaluate what has no metrics yet, while all is loaded.")
    ] = False,
) -> None:
    """Train runs; an interrupted one goes on where it was.

    With --set it is a trial: it goes to checkpoints/<tier>-trial/ and results/<tier>-trial/, and never enters the study.
    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C make it save its state and stop with exit code 75.
    """
    from atlas.harness.execute import evaluation_due, train_run, train_stack
    from atlas.harness.startup import defer_compiler

    defer_compiler()
    why = again.value if again else None
    selected = _together(_selected(tier, runs, overrides), gpus, ranks)
    stacked: dict[str, bool | Exception] = {}

    def trained_now(run: Run) -> bool:
        if not run.stacked:
            return train_run(run, force=force, again=why)
        if run.cell not in stacked:
            seeds = [other for other in selected if other.stacked and other.row == run.row]
            stacked.update(train_stack(seeds, force=force, again=why))
        outcome = stacked[run.cell]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def one(run: Run) -> None:
        trained = trained_now(run)
        _say(run, trained)
        if evaluate and ((trained and run.declared_metrics) or evaluation_due(run, why)):
            _evaluate(run)

    _each("train", selected, one)


@app.command()
def evaluate(runs: Runs, tier: Tier = "demo", overrides: Overrides = None, gpus: Gpus = None, ranks: Ranks = None) -> None:
    """Evaluate trained runs on the test split and write their metrics.json; a trial's with the --set of its training."""
    from atlas.harness.startup import defer_compiler

    selected = _together(_selected(tier, runs, overrides), gpus, ranks)
    defer_compiler()
    _each("evaluate", selected, _evaluate)


def _evaluate(run: Run) -> None:
    from atlas.harness.execute import evaluate_run

    headline = run.declared_metrics[0] if run.declared_metrics else None
    if headline is None:
        raise UserError(f"{run.cell} is a stage: it has no metrics to evaluate")
    value = evaluate_run(run)["metrics"].get(headline.name)
    print(f"{run.cell}: {headline.label} {'not finite' if value is None else format(value, headline.format)}")


@app.command()
def table(
    tables: Annotated[list[str], typer.Argument(metavar="TASK/DATASET...")],
    tier: Tier = "demo",
) -> None:
    """Write results/<tier>/tables/<task>/<dataset>.{csv,md,tex} and the figures from the runs that are evaluated."""
    from atlas.report import write_figures, write_table

    study = _study(tier)
    for name in tables:
        task, dataset = study.find_table(name)
        write_table(study, task, dataset)
        write_figures(study, task, dataset)
        print((study.results / "tables" / task / f"{dataset}.md").read_text())


@app.command()
def claims(
    tier: Tier = "demo",
    every: Annotated[bool, typer.Option("--all", help="All tiers side by side, to results/claims.md.")] = False,
    other_kernels: Annotated[
        str,
        typer.Option(
            metavar="RESULTS",
            help="Results of this study under other kernels, a folder or git revision: keep their verdicts in "
            "results/<tier>/kernels.csv, and call fragile what differs.",
        ),
    ] = "",
) -> None:
    """Judge every claim on the runs that are evaluated, and print the verdicts."""
    from atlas.report import note_kernels, print_claims, write_all_claims, write_claims

    if every:
        print(write_all_claims())
        return
    study = _study(tier)
    if other_kernels:
        note_kernels(study, other_kernels)
    write_claims(study)
    print_claims(study)


@app.command()
def coverage() -> None:
    """Write docs/coverage.md: every sentence of the abstracts, the rows and claims that answer it, and what came out."""
    from atlas.report import write_coverage

    print(write_coverage(Path()))


@app.command()
def report(
    tier: Tier = "demo",
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write results/<tier>/report.html and report.md from whatever has been evaluated."""
    from atlas.report import write_report

    page = write_report(_study(tier))
    print(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A results folder, or a git revision.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all of it to this file, .md or .html, instead of a summary here.")
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Say it in one line.")] = False,
) -> None:
    """Compare two sets of results: runs of one alone, numbers in units of their spread over seeds, verdicts.

    'atlas compare HEAD results/demo' tells what this machine's results have to do with the committed ones. The exit code is 0 if
    the verdicts agree, 1 if not, and 2 if there is nothing to compare.
    """
    from atlas.report import compare as compare_results

    if output is not None and output.suffix not in (".md", ".html"):
        raise UserError(f"--output {output}: name a file that ends in .md or .html")
    comparison = compare_results(first, second)
    if brief:
        print(f"{first} and {second}: {comparison.headline}")
    elif output is None:
        print(comparison.markdown(limit=20), end="")
    else:
        from atlas.harness.files import write_text

        write_text(output, comparison.html() if output.suffix == ".html" else comparison.markdown())
        print(comparison.headline)
    if comparison.verdicts:
        sys.exit(EXIT_FAILURE)


@app.command()
def plan(
    tier: Tier = "demo",
    data: Annotated[str | None, typer.Option(metavar="DATASET", help="Write the hash of an acquired dataset instead.")] = None,
) -> None:
    """Write workflow/plan.yaml, the study as 'dvc repro' reads it; to be called after a benchmark was added or removed."""
    from atlas.cli.plan import write_data_hash, write_plan

    print(write_data_hash(data) if data else write_plan(_study(tier)))


@app.command()
def rehearse(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Only the rows of these runs.")] = None,
    tier: Tier = "paper",
    gpu: Annotated[str, typer.Option(help="GPU whose hours and memory are estimated.")] = "A100-80GB",
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Benchmarks at a time; by default what cores and memory allow.")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Also estimate hours on so many GPUs, and step on two ranks.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat what an earlier, interrupted rehearsal has done.")] = False,
) -> None:
    """Build every run at full size and take one step of each, on stand-in data; say what each will cost.

    Counts are held against the published ones. The whole study's table goes to results/<tier>/rehearsal.{csv,md}.
    """
    from atlas.cli.rehearse import rehearse_study

    rehearse_study(_study(tier), runs or [], gpu, jobs, fresh=fresh, gpus=gpus)


@app.command()
def doctor(
    tier: Tier = "demo",
    fix: Annotated[bool, typer.Option("--fix", help="Configure a local DVC remote where there is none.")] = False,
) -> None:
    """Say what this machine can do, and what to do about what is missing."""
    from atlas.cli.doctor import examine

    examine(_study(tier), fix=fix)


def _study(tier: str) -> Study:
    from atlas.study import read_once

    return read_once(tier)


def _selected(tier: str, cells: list[str], overrides: list[str] | None) -> list[Run]:
    from atlas.cli.overrides import apply_overrides
    from atlas.study import select

    study = _study(tier)
    runs = select(study, cells)
    if len(runs) > len(cells):
        print(f"{len(runs)} runs, from {runs[0].cell} to {runs[-1].cell}", file=sys.stderr)
    return [apply_overrides(run, overrides or []) for run in runs]


def _together(runs: list[Run], gpus: int | None, ranks: int | None) -> list[Run]:
    """The runs with another number of processes than the study says; ``ranks`` for those rows that can use several."""
    from dataclasses import replace

    from atlas.harness.launch import shares_work

    def asked(run: Run) -> Run:
        resources = run.resources
        if gpus is not None:
            resources = resources.model_copy(update={"gpus": gpus, "nodes": 1})
        if ranks is not None:
            resources = resources.model_copy(update={"ranks": ranks if shares_work(run) else 1})
        return replace(run, resources=resources)

    return [asked(run) for run in runs]


def _each(verb: str, runs: list[Run], act: Callable[[Run], None]) -> None:
    """Do every run, also after one failed, and say in the end which did; an interruption stops at once."""
    failures = []
    for run in runs:
        try:
            act(run)
        except (Interrupted, KeyboardInterrupt, UserError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and refusal(error) is not None:
                raise  # the other runs would fare no better
            known = isinstance(error, AtlasError)
            said = str(error) if known and str(error).startswith(run.cell) else f"{run.cell}: {error}"
            if known and len(runs) == 1:
                raise AtlasError(said) from error  # one error, in one line
            if "--debug" in sys.argv or not known:
                traceback.print_exc()
            failures.append(said)
            print(f"error: {said}", file=sys.stderr)
    if failures:
        raise AtlasError(f"{len(failures)} of {len(runs)} runs failed to {verb}: {'; '.join(failures)}")


def _say(run: Run, trained: bool) -> None:
    done = "trained" if trained else "already trained; --force trains again"
    of_trial = f" (a trial: {run.checkpoint.relative_to(run.root)})" if run.trial else ""
    print(f"{run.cell}: {done}{of_trial}", file=sys.stderr)


def main() -> None:
    """Entry point: one line per error, and an exit code that a workflow can act on."""
    try:
        app(standalone_mode=True)
    except AtlasError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        if error.errno is None or "--debug" in sys.argv:
            raise
        print(f"error: {refusal(error) or error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
