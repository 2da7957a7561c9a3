#!/usr/bin/env bash
# safetensors 0.8.0 and DVC 3.67.0 (from PyPI; safetensors' issue 584 tells of the order).
#
# Expected: saving the same tensors with the same metadata twice gives the same file, as tensors are sorted by name; so a store that goes by
#   content, such as DVC's, keeps a model once that is trained again to the last bit.
# Seen: with two entries of metadata or more their order is drawn anew for every save, within one process too, and the file's hash with
#   it: DVC says that such a model has changed, and its store grows by a copy. With one entry, or none, saves are alike; one entry that
#   holds sorted JSON is a way out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python safetensors==0.8.0 numpy==2.3.5 dvc==3.67.0
export PATH="$work/env/bin:$PATH"

cat > save.py << 'PYTHON'
import sys

import numpy as np
from safetensors.numpy import save_file

names = sys.argv[1].split(",")
save_file({"weight": np.arange(4, dtype=np.float32)}, "model.safetensors", metadata={name: f"of {name}" for name in names})
PYTHON

git init -q .
dvc init -q
dvc config core.analytics false
kinds() { # names of the metadata: how many different files DVC has kept of twelve saves
    rm -rf .dvc/cache
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        python save.py "$1"
        dvc add -q model.safetensors
    done
    find .dvc/cache/files -type f | wc -l
}
one=$(kinds policy)
five=$(kinds policy,options,seed,task,commit)
echo "twelve saves of one model: with one entry of metadata DVC keeps $one file, with five entries $five"
[ "$one" = 1 ] && [ "$five" -gt 1 ] || { echo "changed: metadata have one order" >&2; exit 1; }
