"""What a training begins with: settings, code, data and needs, and a saved state only if it is of the same.

What a state is of lies beside it, and is held against what is there now before a training goes on. Otherwise an interrupted run
would take its first steps with one loss or one set of images and its last ones with another, and its record would name the
second.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atlas.harness.agenda import trained_with_other_code
from atlas.harness.code import code_of
from atlas.harness.files import write_json
from atlas.harness.resume import SLOTS, clear_state
from atlas.harness.stale import data_hash, needed_digests, read_json

if TYPE_CHECKING:
    from atlas.harness.run import Run

NOTE = "made_of.json"


def begin_training(run: Run) -> dict[str, Any]:
    """Return what a training that begins or goes on now is made of; forget a saved state of something else, and say why."""
    now = made_of(run)
    folder = run.checkpoint / "state"
    saved = any(path.name in SLOTS for path in folder.glob("*/*"))
    if saved and (other := _difference(read_json(folder / NOTE), now)):
        print(f"{run.cell}: starts anew, because its saved state {other}", file=sys.stderr)
        clear_state(run)
    write_json(folder / NOTE, now)
    return now


def made_of(run: Run) -> dict[str, Any]:
    """What determines a training's numbers: the fingerprint of its settings, and hashes of its code, data and needs."""
    return {
        "fingerprint": run.fingerprint,
        "code": code_of(run),
        "data_hash": data_hash(run),
        "needs": needed_digests(run),
    }


def code_upon_needs(run: Run, code: Mapping[str, str]) -> dict[str, str]:
    """The code that a run's weights come from: its own, and that of its needs where they were trained with other than now.

    Such a package has both hashes, which are like no single one: the run is of other code until it is trained again.
    """
    found = dict(code)
    for needed in run.needs.values():
        known = read_json(needed.record).get("provenance", {}).get("code", {})
        found |= {name: f"{code.get(name)} upon {known.get(name)}" for name in trained_with_other_code(needed)}
    return found


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What tells a state from a training that would begin now, as the end of a sentence about the state."""
    if before.keys() != now.keys():
        return "does not say what it is of"
    if before["fingerprint"] != now["fingerprint"]:
        return "is of other settings"
    if before["data_hash"] != now["data_hash"]:
        return "is of other data"
    if roles := _differing(before["needs"], now["needs"]):
        return f"builds upon another {', '.join(roles)}"
    if packages := _differing(before["code"], now["code"]):
        return f"is of other code of {', '.join(packages)}"
    return None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
