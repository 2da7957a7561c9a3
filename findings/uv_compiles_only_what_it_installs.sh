#!/usr/bin/env bash
# uv 0.13.9 beside 0.6.17 (from PyPI; pull request 19914 of astral-sh/uv, July 2026): bytecode for an environment that is there.
#
# Expected: `uv pip install --compile-bytecode` leaves an environment in which every module is compiled, as older releases
#   did whenever they installed anything.
# Seen: the newer one compiles the packages that this very call installs. Of an environment that was made without the option nothing
#   is compiled when everything is installed already, and nothing but the new package when one is added. Where
#   PYTHONDONTWRITEBYTECODE is set (containers) or the environment is read-only (clusters), each start of Python then compiles all
#   that it imports again, and nothing says so: 10 s of CPU for timm with PyTorch. `python -m compileall` repairs it.
set -euo pipefail
export PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

compiled() { find "$1" -path "*site-packages/$2*" -name '*.pyc' | wc -l; }

for version in 0.6.17 0.13.9; do
    python3 -m venv "tool-$version"
    "tool-$version/bin/pip" install -q uv=="$version"
    uv="tool-$version/bin/uv"
    "$uv" venv -q "env-$version"
    install=("$uv" pip install -q --python "env-$version/bin/python")
    "${install[@]}" attrs==25.3.0
    "${install[@]}" --compile-bytecode attrs==25.3.0
    again=$(compiled "env-$version" attr)
    "${install[@]}" --compile-bytecode tqdm==4.67.1
    beside=$(compiled "env-$version" attr)
    new=$(compiled "env-$version" tqdm)
    echo "uv $version: attrs, when it is asked for again: $again; when another is added: $beside; that other, tqdm: $new"
    seen+=("$((again > 0)) $((beside > 0)) $((new > 0))")
done
[ "${seen[0]}" = "0 1 1" ] || { echo "changed: 0.6.17"; exit 1; }
[ "${seen[1]}" = "0 0 1" ] || { echo "changed: 0.13.9"; exit 1; }
