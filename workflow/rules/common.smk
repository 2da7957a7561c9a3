"""The study, and the functions with which rules read it."""

import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from atlas.errors import UserError
from atlas.study import Study, mark_stale, settle_times

TIER = config.get("tier", "demo")
# Jobs use the environment in which Snakemake runs; with --sdm conda that of workflow/envs, and Atlas from the checkout. The
# command is the same wherever the environment lies, because a changed parameter reruns jobs.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
ATLAS = (
    "env PYTHONPATH=src python -m atlas"
    if workflow.deployment_settings.deployment_method
    else "python -m atlas"
)
RESULTS = f"results/{TIER}"

try:
    STUDY = Study.read(TIER)
except UserError as error:
    raise WorkflowError(str(error)) from None

# A job is one row with all its seeds where runs are shorter than starting a process, else one run.
ROW = "{task}/{dataset}/{method}"
JOB = ROW if STUDY.batch_seeds else f"{ROW}/seed{{seed}}"
RUNS = [f"{ROW}/seed{seed}" for seed in STUDY.seeds] if STUDY.batch_seeds else [JOB]

# Judged by content: times say nothing after a clone, and a clone has no record of earlier parameters.
settle_times(STUDY)
STALE = mark_stale(STUDY)


wildcard_constraints:
    task="[^/]+",
    dataset="[^/]+",
    method="[^/]+",
    seed=r"\d+",


def runs_of(wildcards):
    """The runs of a job."""
    row = STUDY.by_row.get((wildcards.task, wildcards.dataset, wildcards.method))
    if row is None:
        raise WorkflowError(
            f"{wildcards.task}/{wildcards.dataset}/{wildcards.method} is not a row of {STUDY.source}"
        )
    return [
        run for run in row if getattr(wildcards, "seed", None) in (None, str(run.seed))
    ]


def cells(wildcards):
    """What the command line is told to do."""
    return [run.cell for run in runs_of(wildcards)]


def fingerprints(wildcards):
    """Everything that determines the runs' numbers; a change reruns them."""
    return [run.fingerprint for run in runs_of(wildcards)]


def dataset_of(wildcards):
    """The acquired dataset that the job reads; none where data is generated on the fly."""
    data = runs_of(wildcards)[0].data
    return f"data/{data}/manifest.json" if data else []


def needed_records(wildcards):
    """Records of the runs whose artefacts the job reads."""
    return sorted(
        {
            str(needed.record)
            for run in runs_of(wildcards)
            for needed in run.needs.values()
        }
    )


def asked(name, sum_seeds=False):
    """A resource of the job, from the study; time adds up over the seeds of a job."""

    def resource(wildcards):
        values = [getattr(run.resources, name) for run in runs_of(wildcards)]
        return sum(values) if sum_seeds else max(values)

    return resource


def table_file(task, dataset, ending):
    """Path of a table."""
    return f"{RESULTS}/tables/{task}/{dataset}.{ending}"


def evaluated(runs):
    """Metrics of the runs that have any; stages have none."""
    return [str(run.metrics) for run in runs if run.declared_metrics]


def table_fingerprints(wildcards):
    """What a table is made of; a change of any row, or of which rows there are, makes it again."""
    return [
        run.fingerprint for run in STUDY.matching(wildcards.task, wildcards.dataset)
    ]


def changed(*paths):
    """Markers for the outdated files among a job's outputs; a job that waits for a marker is done again."""
    return [STALE[path] for path in paths if path in STALE]


def changed_records(wildcards):
    """Markers of runs that were trained with other settings or data."""
    return changed(*(str(run.record) for run in runs_of(wildcards)))


def changed_metrics(wildcards):
    """Markers of runs that were evaluated with other settings or data."""
    return changed(*(str(run.metrics) for run in runs_of(wildcards)))
