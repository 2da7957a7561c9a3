#!/usr/bin/env bash
# submitit 1.5.4 (from PyPI), Python 3.11: two jobs of the debug executor can have one id, and then one log and one result's path.
#
# Expected: every job that an executor submits has an id of its own; its files in the folder are named after it.
# Seen: the debug executor names a job by the address in memory of its submission. A loop that collects each result and keeps nothing
#   frees it, and the next job gets the address, the id and the files. Of fifty jobs in a row few ids remain. Whoever keeps the jobs
#   has fifty. A test that submits by the debug executor what later goes to a cluster finds fewer logs than jobs, now and then.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q submitit==1.5.4
cat > seen.py << 'PYTHON'
import logging

import submitit

logging.disable(logging.CRITICAL)
executor = submitit.DebugExecutor("logs")


def submitted(value):
    job = executor.submit(abs, value)
    assert job.result() == value
    return job


dropped = [submitted(value).job_id for value in range(50)]
kept = [submitted(value) for value in range(50)]
print(f"50 jobs that nobody keeps: {len(set(dropped))} ids")
print(f"50 jobs that are kept: {len({job.job_id for job in kept})} ids")
assert len(set(dropped)) < 50
assert len({job.job_id for job in kept}) == 50
PYTHON
env/bin/python seen.py
