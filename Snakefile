"""Atlas from raw data to finished tables: acquire → train → evaluate → tabulate → judge claims → report.

snakemake                          the demo study, on this machine
snakemake --config tier=lab        another study: config/<tier>.yaml
snakemake --profile slurm          the same on a SLURM cluster
snakemake --config here=yes        also what was made on another machine
snakemake --config code=new        also what was trained with other code
snakemake --config warm=no         every job a process of its own, as on a cluster
snakemake --config only=vfds       only some rows: a method, paper, task, data set or pattern, and what they need
snakemake -- FILE                  what one table, page or metrics.json needs
"""

from snakemake.utils import min_version

min_version("9.5")


include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


localrules:
    all,
    tables,
    acquire,
    metrics,
    tabulate,
    judge,
    report,


rule all:
    default_target: True
    input:
        f"{RESULTS}/report.html",


rule tables:
    input:
        [table_file(task, dataset, "csv") for task, dataset in STUDY.tables],
        f"{RESULTS}/claims.csv",


include: "workflow/rules/acquire.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tabulate.smk"
include: "workflow/rules/report.smk"


onstart:
    # On this machine a job is a fork of a process that has loaded everything (atlas.warm), and which goes with this one.
    if workflow.is_main_process and workflow.local_exec and OPTIONS.warm:
        os.environ[OWNER] = str(os.getpid())


onerror:
    # What is there is still worth reading: the page names every missing cell and its reason.
    shell(f"{ATLAS} report --tier {TIER} >&2 || true")
