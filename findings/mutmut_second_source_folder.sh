#!/usr/bin/env bash
# mutmut 3.8.1 (from PyPI): in a workspace, the second package's tests count for nothing.
#
# Expected: `source_paths` takes several folders, so a repository of two packages (src/ and plugins/extra/src/, both with their tests)
#   gets one score; a fault on which a test fails is killed, in whichever package it is.
# Seen: faults of src/ are named after the module (alpha.double), those of the other folder after the path
#   (plugins.extra.src.beta.double). What tests call is beta.double, so no test belongs to them: every one of them is reported as
#   "no tests", and none is ever run. From within the folder of the second package the same faults are killed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q mutmut==3.8.1 pytest==9.2.0
mkdir -p src tests plugins/extra/src plugins/extra/tests
printf 'def double(x):\n    return x * 2\n' | tee src/alpha.py > plugins/extra/src/beta.py
printf 'import alpha\n\n\ndef test_double():\n    assert alpha.double(3) == 6\n' > tests/test_alpha.py
printf 'import beta\n\n\ndef test_double():\n    assert beta.double(3) == 6\n' > plugins/extra/tests/test_beta.py
cat > pyproject.toml << 'TOML'
[tool.mutmut]
source_paths = ["src/", "plugins/extra/src/"]
also_copy = ["plugins/"]
pytest_add_cli_args_test_selection = ["tests", "plugins/extra/tests"]

[tool.pytest.ini_options]
pythonpath = ["src", "plugins/extra/src"]
TOML
cat > plugins/extra/pyproject.toml << 'TOML'
[tool.mutmut]
source_paths = ["src/"]

[tool.pytest.ini_options]
pythonpath = ["src"]
TOML
env/bin/python -m pytest -q tests plugins/extra/tests
whole=$(env/bin/python -m mutmut run > log 2>&1 || { cat log; exit 1; }; env/bin/python -m mutmut results --all true)
alone=$(cd plugins/extra && ../../env/bin/python -m mutmut run > log 2>&1 && ../../env/bin/python -m mutmut results --all true)
echo "from the root:"
echo "$whole"
echo "from the second package's folder:"
echo "$alone"
echo "$whole" | grep -q "alpha.x_double__mutmut_1: killed" || { echo "changed: the first package's faults are not killed"; exit 1; }
echo "$whole" | grep -q "plugins.extra.src.beta.x_double__mutmut_1: no tests" || { echo "changed: the second package's tests count"; exit 1; }
echo "$alone" | grep -q "beta.x_double__mutmut_1: killed" || { echo "changed: alone its faults are not killed"; exit 1; }
