"""What a job asks for, and what the plugin refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit.resources import request, requeue_count
from snakemake_executor_plugin_submitit.settings import ExecutorSettings


def test_resources_become_options_of_sbatch() -> None:
    asked = request(
        {
            "mem_mb": 4000,
            "runtime": 90,
            "gpu": 2,
            "gpu_model": "a100",
            "slurm_partition": "gpu",
            "slurm_account": "me",
            "qos": "long",
            "constraint": "ib",
            "slurm_extra": "--mail-type=END --exclusive --comment='two words'",
        },
        threads=4,
        requeues=10,
        rule="train",
    )
    assert dict(asked.parameters) == {
        "mem": "4000M",
        "cpus_per_task": 4,
        "partition": "gpu",
        "account": "me",
        "qos": "long",
        "constraint": "ib",
    }
    assert dict(asked.extra) == {"gpus": "a100:2", "mail-type": "END", "exclusive": True, "comment": "two words"}
    assert (asked.minutes, asked.requeues) == (90, 10)


def test_a_gpu_is_asked_for_only_where_the_job_says_so() -> None:
    assert "gpus" not in dict(request({"gpu": 0, "gpu_model": "a100"}, 1, 10, "train").extra)


def test_gpus_of_several_nodes_are_dealt_out_evenly() -> None:
    asked = request({"gpu": 16, "nodes": 2, "tasks": 2, "gpu_model": "h100"}, 32, 10, "train")
    assert dict(asked.extra) == {"gpus-per-node": "h100:8", "ntasks": 2}
    assert dict(asked.parameters) == {"nodes": 2, "cpus_per_task": 32}
    with pytest.raises(WorkflowError, match="rule train: gpu is 9, which 2 nodes cannot share evenly"):
        request({"gpu": 9, "nodes": 2}, 1, 10, "train")


@pytest.mark.parametrize(("value", "expected"), [("false", 0), (False, 0), (0, 0), ("true", 10), (True, 10), ("25", 25), (3, 3)])
def test_requeue_is_a_number_or_a_word(value: object, expected: int) -> None:
    assert requeue_count(value) == expected
    assert request({"requeue": value}, 1, 7, "train").requeues == expected


def test_mistakes_are_named() -> None:
    with pytest.raises(WorkflowError, match="rule train: slurm_extra holds '-p'"):
        request({"slurm_extra": "-p gpu"}, 1, 10, "train")
    with pytest.raises(WorkflowError, match="requeue is 'sometimes'"):
        requeue_count("sometimes")
    with pytest.raises(WorkflowError, match="rule train: runtime is 'long'"):
        request({"runtime": "long"}, 1, 10, "train")
    with pytest.raises(WorkflowError, match="one of slurm, local, debug"):
        ExecutorSettings(cluster="pbs")
    with pytest.raises(WorkflowError, match="--submitit-array-size must be at least 1"):
        ExecutorSettings(array_size=0)


def test_a_job_on_the_node_starts_without_snakemake() -> None:
    code = "import sys, snakemake_executor_plugin_submitit.job; print([name for name in sys.modules if 'snakemake' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "snakemake_interface_executor_plugins" not in done.stdout
    assert "'snakemake'" not in done.stdout
