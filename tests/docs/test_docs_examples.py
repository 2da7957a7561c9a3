"""The example programs run as a reader would run them, and end with what they are there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {
    "compress_my_vit": [
        r"dense: accuracy 0\.[89]\d",
        r"compressed: 0\.[45]\d of the multiply-accumulates, \d of 6 blocks",
        r"loaded: accuracy 0\.[89]\d, \d+ KiB",
    ],
    "choose_my_sensors": [
        r"price 0: accuracy 0\.9\d; read lamp .*",
        r"price 0\.3: accuracy 0\.[89]\d; read lamp .*",
        r"the first step reads 5 sensors, later ones .*",
    ],
    "train_with_a_rule": [
        r"the rule: .*m_0.*",
        r"the rule: accuracy 0\.[89]\d",
        r"Adam as a rule: accuracy 0\.[89]\d",
        r"torch's Adam: accuracy 0\.[89]\d",
        r"the two Adams differ by \de-0[4-9] in their logits",
    ],
}


def test_every_example_is_tried() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_examples_run_and_show_what_they_are_for(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(SHOWN[name]), done.stdout
    for line, expected in zip(lines, SHOWN[name], strict=True):
        assert re.fullmatch(expected, line), done.stdout
    assert list(tmp_path.iterdir()) == []
