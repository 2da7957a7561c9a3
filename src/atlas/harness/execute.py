"""Carry out a planned run: train it, evaluate it, and leave behind what was done, or why it failed."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness.files import sha256, write_json
from atlas.harness.provenance import provenance
from atlas.harness.resume import clear_state, elapsed_seconds
from atlas.harness.seeds import pick_device, seed_everything
from atlas.harness.stale import data_hash, read_json, stale_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas.harness.study import Run


def train_run(run: Run, *, force: bool = False) -> bool:
    """Train one run, going on from its saved state if there is one; return whether there was anything to do.

    Leaves ``model.safetensors``, ``settings.json`` and the curves. The resume state stays until :func:`finish`, so that
    a failure beside it costs nothing.

    Raises
    ------
    UserError
        A dataset or another run that this one needs is not there.
    Interrupted
        A signal asked it to stop; the state is saved.
    """
    if run.record.is_file() and not force and not stale_record(run):
        return False
    _require_inputs(run)
    if force:
        clear_state(run)
    run.record.unlink(missing_ok=True)
    with _recorded_failure(run, "train"):
        seed_everything(run.seed, run.resources.threads)
        began = time.monotonic()
        summary = dict(_function(run, "train")(run) or {})
        seconds = max(time.monotonic() - began, elapsed_seconds(run))
        write_json(run.record, _record(run, summary, seconds))
    return True


def finish(run: Run) -> None:
    """Drop the resume state of a run that is completely trained."""
    clear_state(run)


def evaluate_run(run: Run) -> dict[str, Any]:
    """Evaluate one trained run on the test split, write its ``metrics.json`` and return its content.

    What :func:`evaluate_ahead` left for this very training is taken, once.

    Raises
    ------
    UserError
        The run has not been trained, or was trained with other settings.
    AtlasError
        The evaluation does not return exactly the declared metrics.
    """
    if not run.record.is_file():
        raise UserError(f"{run.cell} has not been trained; run: atlas train --tier {run.tier} {run.cell}")
    if reason := stale_record(run):
        raise UserError(f"{run.cell} must be trained again, {reason}: atlas train --tier {run.tier} {run.cell}")
    with _recorded_failure(run, "evaluate"):
        content = evaluated_ahead(run) or _evaluated(run)
    write_json(run.metrics, content)
    _ahead(run).unlink(missing_ok=True)
    return content


def evaluate_ahead(run: Run) -> None:
    """Evaluate a run in the process that has just trained it, for the evaluation to come; where that fails, it will say why.

    A short run's process spends more time on loading than on evaluating.
    """
    _ahead(run).unlink(missing_ok=True)
    if run.declared_metrics:
        with suppress(Exception):
            write_json(_ahead(run), {"record": sha256(run.record), "content": _evaluated(run)})


def evaluated_ahead(run: Run) -> dict[str, Any] | None:
    """What :func:`evaluate_ahead` left for the present training of a run, if anything."""
    left = read_json(_ahead(run))
    content = left.get("content")
    return content if isinstance(content, dict) and left.get("record") == sha256(run.record) else None


def _ahead(run: Run) -> Path:
    return run.checkpoint / "evaluation.json"


def _evaluated(run: Run) -> dict[str, Any]:
    seed_everything(run.seed, run.resources.threads)
    began = time.monotonic()
    values = dict(_function(run, "evaluate")(run) or {})
    return _metrics(run, values, time.monotonic() - began)


def training_summary(run: Run) -> dict[str, Any]:
    """Return what the training reported about itself; a number that was not finite is NaN."""
    found = read_json(run.record).get("training", {})
    return {name: math.nan if value is None else value for name, value in found.items()}


def _function(run: Run, verb: str) -> Callable[[Run], Mapping[str, Any] | None]:
    """The method's own function for a verb where it has one, else the task's."""
    for entry in run.method_entries:
        own = getattr(entry, verb)
        if own is not None:
            return own
    return getattr(run.task_entry, verb)


def _require_inputs(run: Run) -> None:
    if run.data and data_hash(run) is None:
        raise UserError(f"the dataset {run.data} is not there; run: atlas acquire {run.data}")
    for role, needed in run.needs.items():
        if not needed.record.is_file():
            raise UserError(f"{run.cell} needs {needed.cell} as its {role}; run: atlas train --tier {run.tier} {needed.cell}")


def _record(run: Run, summary: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    artefacts = sorted(path for path in run.checkpoint.glob("*") if path.is_file() and path != run.record)
    return {
        **run.described(),
        "data_hash": data_hash(run),
        "files": {path.name: sha256(path) for path in artefacts if not path.name.startswith(".")},
        "training": {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in summary.items()
        },
        "settings": _settings(run),
        "provenance": {
            **provenance(run.root, str(pick_device(run.resources.device))),
            "train_seconds": round(seconds, 3),
            "finished": _now(),
        },
    }


def _settings(run: Run) -> dict[str, Any]:
    return {
        "protocol": dict(run.protocol),
        "settings": {name: dict(values) for name, values in run.settings.items()},
        "resources": run.resources.model_dump(),
    }


def _metrics(run: Run, values: Mapping[str, float], seconds: float) -> dict[str, Any]:
    declared = {metric.name: metric for metric in run.declared_metrics}
    if set(values) != set(declared):
        missing = ", ".join(sorted(set(declared) - set(values))) or "none"
        extra = ", ".join(sorted(set(values) - set(declared))) or "none"
        raise AtlasError(f"{run.cell}: its evaluation differs from what it declares (missing: {missing}; extra: {extra})")
    numbers = {name: float(values[name]) if math.isfinite(values[name]) else None for name in declared}
    trained = read_json(run.record).get("provenance", {})
    return {
        "run": run.described(),
        "metrics": {name: value for name, value in numbers.items() if not declared[name].measured},
        "timings": {name: value for name, value in numbers.items() if declared[name].measured},
        "settings": _settings(run),
        "provenance": {
            **provenance(run.root, str(pick_device(run.resources.device))),
            "data_hash": data_hash(run),
            "train_seconds": trained.get("train_seconds"),
            "evaluate_seconds": round(seconds, 3),
            "peak_memory_mebibytes": trained.get("peak_memory_mebibytes"),
            "needed_seconds": _needed_seconds(run),
            "finished": _now(),
        },
    }


def _needed_seconds(run: Run) -> dict[str, float | None]:
    """Training time of every run that this one builds upon, by its cell."""
    found: dict[str, float | None] = {}
    for needed in run.needs.values():
        found |= _needed_seconds(needed)
        found[needed.cell] = read_json(needed.record).get("provenance", {}).get("train_seconds")
    return found


@contextmanager
def _recorded_failure(run: Run, stage: str) -> Iterator[None]:
    """Leave ``failure.json`` when the block fails, and remove an old one when it succeeds."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        message = str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
        tail = traceback.format_exc().replace(str(Path.cwd()) + "/", "").splitlines()[-12:]
        log = run.logs.relative_to(run.root) / f"{stage}.log"
        with suppress(OSError):  # the first failure is the one to tell
            run.metrics.unlink(missing_ok=True)
            write_json(run.failure, {"stage": stage, "error": " ".join(message.split()), "log": str(log), "tail": tail})
        raise
    run.failure.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
