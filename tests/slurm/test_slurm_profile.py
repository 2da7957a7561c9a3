"""The profile that is shipped for clusters."""

from __future__ import annotations

from pathlib import Path

import yaml

from snakemake_executor_plugin_submitit.settings import ExecutorSettings


def test_the_profile_sets_what_exists(checkout: Path) -> None:
    profile = yaml.safe_load((checkout / "slurm" / "config.yaml").read_text())
    own = {
        key.removeprefix("submitit-").replace("-", "_"): value for key, value in profile.items() if key.startswith("submitit-")
    }
    settings = ExecutorSettings(**{**own, "requeue": str(own["requeue"])})
    assert settings == ExecutorSettings(), "the profile shows the defaults"
    assert profile["executor"] == "submitit"
    assert profile["rerun-incomplete"] is True
