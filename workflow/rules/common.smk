"""The study, what there is to do in it, and the functions with which rules read both.

What must be made is judged by content (atlas.study.agenda), not by Snakemake's records and timestamps, which a clone does not
have. Only what is on the agenda has inputs: first of all a marker that is newer than anything, so that its job is done.
"""

import fcntl
import os
import shlex
import shutil
import sys
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from atlas.datasets import dataset_names, get_dataset
from atlas.errors import UserError
from atlas.study import (
    MARKER,
    Demands,
    Study,
    Watch,
    WorkflowOptions,
    agenda,
    declare_own,
    select,
)
from atlas.warm import OWNER


@contextmanager
def wrong_names_refused():
    """End Snakemake with the one line that says what would be right."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error)) from None


with wrong_names_refused():
    OPTIONS = WorkflowOptions.read(config)
    TIER, ONLY = OPTIONS.tier, OPTIONS.only
    STUDY = Study.read(TIER)
    select(STUDY, ONLY)

# Jobs use the environment in which Snakemake runs; with --sdm conda that of workflow/envs, and Atlas from the checkout.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
ATLAS = (
    "env PYTHONPATH=src python -m atlas"
    if workflow.deployment_settings.deployment_method
    else "python -m atlas"
)
DONE = f".atlas/done/{TIER}"
READY_JOBS = 16


def alive():
    """Say that this Snakemake is alive, and forget the locks of those that were killed: they would stop every later one.

    The system lets go of what a process holds when it ends, however it ends; Snakemake's own locks are files, and stay.
    """
    Path(".atlas").mkdir(exist_ok=True)
    held = open(".atlas/alive", "a")
    with suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(".snakemake/locks", ignore_errors=True)
    fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return held


if workflow.is_main_process:
    with suppress(
        OSError
    ):  # in a folder that cannot be written there is nothing to keep apart
        ALIVE = alive()


def results_folder():
    """Where results are written. Where one may not (an archived or shared copy), a dry run still says what there is to do:

    Snakemake refuses to plan files that are there and closed, so it is told of others, which nothing ever makes.
    """
    folder = Path("results", TIER)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    closed = not os.access(there, os.W_OK)
    return (
        f".atlas/closed/{TIER}"
        if closed and agenda(STUDY, Demands(only=ONLY)).anything
        else folder.as_posix()
    )


RESULTS = results_folder()


def forced():
    """Whether a person asks for all trainings again: snakemake -F, or -R train."""
    settings = workflow.dag_settings
    return settings.forceall or bool({"train", "evaluate"} & set(settings.forcerun))


def spare_the_scheduler():
    """Let Snakemake's own process cost the same for every job, whatever their number, where jobs are processes of this machine.

    A round looks at all jobs that are ready, and there is one for every job that ends: twice as many as may run are enough. And
    every round would leave a timer behind that starts another one, for the sake of a limit of starts per second that nothing here
    comes near. What a round does with the jobs is the profile's choice (profiles/default).
    """
    # to make its own report Snakemake schedules nothing
    if workflow.scheduling_settings and workflow.local_exec and not workflow.dryrun:
        cores = workflow.global_resources["_cores"].value or 0
        workflow.scheduling_settings.subsample = max(READY_JOBS, 2 * cores)
        workflow.scheduling_settings.max_jobs_per_timespan = None


def follow(found):
    """Say how long it will take, and follow the jobs, unless nothing is to be said at all."""
    if Quietness.ALL in (workflow.output_settings.quiet or ()):
        return
    limits = workflow.global_resources
    workers = next(filter(None, (limits[one].value for one in ("_nodes", "_cores"))), 1)
    watch = Watch(found, workers=workers)
    if watch.summary():
        logger.warning(watch.summary())
    if not workflow.dryrun:
        watch.before(logger)


@cache
def todo():
    """What there is to do, found out once, when the first job is planned; its marker is then newer than every file."""
    demands = Demands(
        everything=forced(),
        here=OPTIONS.here,
        new_code=OPTIONS.code == "new",
        only=ONLY,
    )
    found = agenda(STUDY, demands)
    if RESULTS.startswith(".atlas") and not workflow.dryrun:
        raise WorkflowError(f"results/{TIER} cannot be written")
    if workflow.is_main_process:
        spare_the_scheduler()
        found.mark()
        for line in found.lines():
            logger.warning(line)
        follow(found)
    return found


def again():
    """How the command line is told that a complete training does not count."""
    if forced():
        return "--force"
    if OPTIONS.here:
        return "--again here"
    return "--again code" if OPTIONS.code else ""


# A job is one row with all its seeds where runs are shorter than starting a process, else one run.
ROW = "{task}/{dataset}/{method}"
JOB = ROW if STUDY.batch_seeds else f"{ROW}/seed{{seed}}"


wildcard_constraints:
    task="[^/]+",
    dataset="[^/]+",
    method="[^/]+",
    seed=r"\d+",


def job_of(run):
    """Path of the job that a run belongs to."""
    return run.cell.rpartition("/")[0] if STUDY.batch_seeds else run.cell


def stamps(runs, trained=False):
    """Marks that the jobs of some runs leave: those that are planned, or only those that train."""
    found = {}
    for run in runs:
        if run.cell in todo().training:
            found[f"{DONE}/{job_of(run)}/trained"] = True
        elif not trained and run.cell in todo().evaluation:
            found[final_stamp(run)] = True
    return list(found)


def final_stamp(run):
    """The mark of the job that evaluates a run: where any run of its job is trained, that one evaluates all of them."""
    row = STUDY.by_row[run.task, run.dataset, run.method]
    trains = any(
        one.cell in todo().training for one in row if job_of(one) == job_of(run)
    )
    return f"{DONE}/{job_of(run)}/{'trained' if trains else 'evaluated'}"


def runs_of(wildcards):
    """The runs of a job: those of a row, or one of its seeds."""
    row = f"{wildcards.task}/{wildcards.dataset}/{wildcards.method}"
    with wrong_names_refused():
        runs = STUDY.find_row(row)
        if hasattr(wildcards, "seed"):
            return [STUDY.find(f"{row}/seed{wildcards.seed}")]
    return runs


def measured_run(wildcards):
    """The run whose metrics are a target, alone in a list."""
    runs = runs_of(wildcards)
    if not runs[0].declared_metrics:
        raise WorkflowError(f"{runs[0].cell} is a stage: it has no metrics")
    return runs


def runs_of_table(wildcards):
    """The runs that a table shows."""
    with wrong_names_refused():
        return STUDY.matching(
            *STUDY.find_table(f"{wildcards.task}/{wildcards.dataset}")
        )


def dataset_due(wildcards):
    """Whether a dataset is on the agenda; it may be one of another study, or a person's own there."""
    with wrong_names_refused():
        if wildcards.dataset not in dataset_names():
            declare_own(wildcards.dataset, Path())
        return get_dataset(wildcards.dataset).name in todo().datasets


def planned_runs(wildcards):
    """The runs of a job that something is to be done for; all, where a job starts again after they are done."""
    runs = runs_of(wildcards)
    planned = [
        run
        for run in runs
        if run.cell in todo().training or run.cell in todo().evaluation
    ]
    return planned or runs


def cells(wildcards):
    """What the command line is told to do."""
    return [run.cell for run in planned_runs(wildcards)]


def due(planned):
    """The marker, for what is on the agenda."""
    return [str(MARKER)] if planned else []


def dataset_of(wildcards):
    """The acquired dataset that the job reads; none where data is generated on the fly."""
    data = runs_of(wildcards)[0].data
    return f"data/{data}/manifest.json" if data else []


def dataset_to_train_on(made_now):
    """The dataset of a training if it is acquired now, or if it is kept: Snakemake leaves out what ancient() asks of a new file."""

    def dataset(wildcards):
        planned = runs_of(wildcards)[0].data in todo().datasets
        return dataset_of(wildcards) if planned == made_now else []

    return dataset


def needed_by(wildcards):
    """Marks of the runs whose artefacts the job reads, where they are trained now."""
    needed = [need for run in planned_runs(wildcards) for need in run.needs.values()]
    return stamps(needed, trained=True)


def asked(name, sum_seeds=False):
    """A resource of the job, from the study; time adds up over the seeds of a job."""

    def resource(wildcards):
        values = [getattr(run.resources, name) for run in planned_runs(wildcards)]
        return sum(values) if sum_seeds else max(values)

    return resource


def table_file(task, dataset, ending):
    """Path of a table."""
    return f"{RESULTS}/tables/{task}/{dataset}.{ending}"


def shown_files(made_now):
    """Tables and verdicts that the page shows: those that are made again now, or the others."""
    files = [
        table_file(task, dataset, "csv")
        for task, dataset in STUDY.tables
        if ((task, dataset) in todo().tables) == made_now
    ]
    files += [f"{RESULTS}/claims.csv"] * (bool(todo().page) == made_now)
    return [file for file in files if made_now or not ONLY or Path(file).exists()]
