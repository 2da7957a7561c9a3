#!/usr/bin/env bash
# DVC 3.67.1 (with dulwich 1.2.21, git 2.39 or newer; from PyPI): a folder whose subfolders are ignored by git is never looked into.
#
# Expected: a .gitignore line "/data/*/" ignores the folders inside data/ (the data that DVC carries) and nothing else; git agrees
#   (`git check-ignore data/set.dvc` finds no match), so `dvc push` sends what data/set.dvc names and a clone can pull it.
# Seen: DVC asks dulwich whether the path "data/" is ignored, is told that it is, and leaves out the whole of data/. `dvc push` sends
#   nothing and `dvc pull` in a clone brings nothing, both with exit status 0; `dvc status` says that there is nothing to track.
#   Naming the file (`dvc push data/set.dvc`) works, and so does the pattern "/data/set".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python dvc==3.67.1 dulwich==1.2.21
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1 GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null

mkdir store
git init -q repository
cd repository
git config user.name nobody
git config user.email nobody@example.org
dvc init -q
dvc config core.analytics false
dvc remote add -q -d store "$work/store"
echo '/data/*/' > .gitignore
mkdir -p data/set
echo 1 > data/set/numbers.txt
dvc add -q data/set
git add --all
git commit -qm "Track a folder"

sent() { find "$work/store" -type f | wc -l; }

git check-ignore -q data/set.dvc && by_git=yes || by_git=no
push=$(dvc push 2>&1)
after_push=$(sent)
dvc push -q data/set.dvc
after_named=$(sent)
git clone -q "$work/repository" "$work/clone"
(cd "$work/clone" && dvc pull -q)
[ -e "$work/clone/data/set" ] && pulled=yes || pulled=no
(cd "$work/clone" && sed -i 's,.*,/data/set,' .gitignore && dvc pull -q)
[ -e "$work/clone/data/set" ] && pulled_by_name=yes || pulled_by_name=no

echo "data/set.dvc is ignored, says git:        $by_git"
echo "dvc push says:                            $push"
echo "files in the remote after dvc push:       $after_push"
echo "  ... after dvc push data/set.dvc:        $after_named"
echo "a clone has the data after dvc pull:      $pulled"
echo "  ... once .gitignore says /data/set:     $pulled_by_name"
[ "$by_git $after_push $after_named $pulled $pulled_by_name" = "no 0 2 no yes" ] || { echo "changed: DVC no longer behaves as described" >&2; exit 1; }
