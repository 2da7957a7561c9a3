"""Settings of the executor, each an option ``--submitit-…`` of Snakemake and a line of a profile."""

# Snakemake reads the fields' types as objects, so annotations are evaluated here.
from dataclasses import dataclass, field

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

from .resources import requeue_count
from .session import forget_dead_locks

CLUSTERS = ("slurm", "local", "debug")
MINIMUM = {"array_size": 1, "array_parallel": 1, "patience": 0, "poll_seconds": 0.1, "stop_seconds": 1}


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """How jobs are submitted and followed; what a job asks for are its resources."""

    cluster: str = field(
        default="slurm",
        metadata={"help": "Where jobs run: slurm; local (processes of this machine); debug (in this process, one by one)."},
    )
    array_size: int = field(
        default=500,
        metadata={"help": "Most jobs in one job array (SLURM's MaxArraySize is 1001 by default); 1 for no arrays."},
    )
    array_parallel: int = field(
        default=256,
        metadata={"help": "Most jobs of one array that run at a time."},
    )
    requeue: str = field(
        default="10",
        metadata={
            "help": "How often a preempted, timed-out or lost job is started again; false: never. A rule's resource overrides."
        },
    )
    patience: float = field(
        default=60.0,
        metadata={"help": "Minutes for which a scheduler that does not answer is asked again."},
    )
    poll_seconds: float = field(
        default=20.0,
        metadata={"help": "Seconds between two queries of the queue. Ends of jobs are seen without one, within two seconds."},
    )
    stop_seconds: int = field(
        default=120,
        metadata={"help": "Seconds before its time limit at which a job is told to save its state."},
    )

    def __post_init__(self) -> None:
        """Check the values, and drop the locks of a Snakemake of ours that was killed.

        Snakemake locks the working directory after the settings are read and before the executor is made, so this is the one
        place from which a restart after ``kill -9`` can go on without ``--unlock``.
        """
        if self.cluster not in CLUSTERS:
            raise WorkflowError(f"--submitit-cluster is {self.cluster!r}; it is one of {', '.join(CLUSTERS)}")
        for name, minimum in MINIMUM.items():
            if getattr(self, name) < minimum:
                raise WorkflowError(f"--submitit-{name.replace('_', '-')} must be at least {minimum}")
        requeue_count(self.requeue)
        forget_dead_locks()
