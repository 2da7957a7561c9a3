"""Carry out a planned run: train it, evaluate it, and leave behind what was done, or why it failed."""

from __future__ import annotations

import math
import shlex
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas.datasets import stale_data
from atlas.errors import AtlasError, Interrupted, UserError
from atlas.harness.agenda import made_here, note_made_here, trained_with_other_code
from atlas.harness.begin import begin_training, code_upon_needs
from atlas.harness.files import sha256, write_json
from atlas.harness.launch import carry_out, function_of
from atlas.harness.provenance import cpu_seconds, provenance
from atlas.harness.registry import resolve
from atlas.harness.resume import clear_state, spent
from atlas.harness.seeds import pick_device, seed_everything
from atlas.harness.stale import artefacts_digest, data_hash, evaluation_gap, read_json, training_gap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas.harness.run import Run


def train_run(run: Run, *, force: bool = False, again: str | None = None) -> bool:
    """Train one run, going on from its saved state if there is one; return whether there was anything to do.

    A state that is of other settings, code, data or needs is forgotten (:mod:`atlas.harness.begin`). Leaves
    ``model.safetensors``, ``settings.json`` and the curves.

    Parameters
    ----------
    run : Run
        What to train.
    force : bool
        Train again from the beginning, whatever is there.
    again : str, optional
        Why a complete training that fits the plan does not count: see :func:`due_again`.

    Raises
    ------
    UserError
        A dataset or another run that this one needs is not there, or must be made again.
    Interrupted
        A signal asked it to stop; the state is saved.
    """
    if run.stacked:
        outcome = train_stack([run], force=force, again=again)[run.cell]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
    if not force and training_gap(run, thorough=True) is None and not due_again(run, again):
        clear_state(run)
        return False
    _require_inputs(run, again)
    if force:
        clear_state(run)
    made_of = begin_training(run)
    run.record.unlink(missing_ok=True)
    with _recorded_failure(run, "train"):
        seed_everything(run.seed, run.resources.threads)
        clock = _Clock()
        summary = carry_out(run, "train")
        now, over_all = clock.read(), spent(run)
        write_json(run.record, _record(run, made_of, summary, {name: max(now[name], over_all[name]) for name in now}))
    clear_state(run)
    note_made_here(run, "record", run.record)
    return True


def train_stack(runs: Sequence[Run], *, force: bool = False, again: str | None = None) -> dict[str, bool | Exception]:
    """Train several seeds of a row at once, as :func:`train_run` does each: a stack of models (:attr:`Run.stacked`).

    Returns
    -------
    dict
        Run's cell to whether there was anything to do, or to the error with which it failed; one that fails leaves the others be.

    Raises
    ------
    UserError, Interrupted
        As for :func:`train_run`, for any of the runs.
    """
    outcomes: dict[str, bool | Exception] = {}
    due = []
    for run in runs:
        if force or training_gap(run, thorough=True) is not None or due_again(run, again):
            _require_inputs(run, again)
            due.append(run)
        else:
            clear_state(run)
            outcomes[run.cell] = False
    if not due:
        return outcomes
    made_of = {}
    for run in due:
        if force:
            clear_state(run)
        made_of[run.cell] = begin_training(run)
        run.record.unlink(missing_ok=True)
    together = resolve(due[0].task_entry.together, due[0].task_entry.package)
    with ExitStack() as failures:
        for run in due:
            failures.enter_context(_recorded_failure(run, "train"))
        clock = _Clock()
        summaries = together(due)
        now = {name: value / len(due) for name, value in clock.read().items()}
    for run, summary in zip(due, summaries, strict=True):
        try:
            with _recorded_failure(run, "train"):
                if isinstance(summary, Exception):
                    raise summary
                over_all = spent(run)
                took = {name: max(now[name], over_all[name]) for name in now}
                write_json(run.record, _record(run, made_of[run.cell], summary, took, trained_at_once=len(due)))
        except AtlasError as error:
            outcomes[run.cell] = error
            continue
        clear_state(run)
        note_made_here(run, "record", run.record)
        outcomes[run.cell] = True
    return outcomes


def due_again(run: Run, again: str | None) -> bool:
    """Whether a training that fits the plan must be repeated for a person who asks for ``"here"`` or ``"code"``.

    ``"here"``: unless it was done on this machine. ``"code"``: if the code of its method or task has changed since.
    """
    if again == "here":
        return not made_here(run, "record", run.record)
    return again == "code" and bool(trained_with_other_code(run))


def evaluation_due(run: Run, again: str | None = None) -> bool:
    """Whether a run that is trained lacks metrics that fit, or, for ``again="here"``, metrics that this machine made."""
    if evaluation_gap(run):
        return True
    return again == "here" and bool(run.declared_metrics) and not made_here(run, "metrics", run.metrics)


def evaluate_run(run: Run) -> dict[str, Any]:
    """Evaluate one trained run on the test split, write its ``metrics.json`` and return its content.

    Raises
    ------
    UserError
        The run has not been trained, or was trained with other settings.
    AtlasError
        The evaluation does not return exactly the declared metrics.
    """
    if reason := training_gap(run, thorough=True):
        raise UserError(f"{run.cell} must be trained first ({reason}): {command('train', run)}")
    with _recorded_failure(run, "evaluate"):
        seed_everything(run.seed, run.resources.threads)
        clock = _Clock()
        values = carry_out(run, "evaluate")
        content = _metrics(run, values, clock.read())
    write_json(run.metrics, content)
    note_made_here(run, "metrics", run.metrics)
    return content


def import_code(run: Run) -> None:
    """Import the code with which training and evaluating a run begin, and so the libraries that it stands on."""
    function_of(run, "train")
    if run.stacked:
        resolve(run.task_entry.together, run.task_entry.package)
    if run.declared_metrics:
        function_of(run, "evaluate")
    for entry in run.method_entries:
        if entry.plugin:
            resolve(entry.plugin, entry.package)


def command(verb: str, run: Run) -> str:
    """The command with which a person does something for a run, or for a trial of it."""
    settings = [word for override in run.overrides for word in ("--set", override)]
    return shlex.join(["atlas", verb, "--tier", run.tier, run.cell, *settings])


def training_summary(run: Run) -> dict[str, Any]:
    """Return what the training reported about itself; a number that was not finite is NaN."""
    summary = read_json(run.record).get("training", {})
    return {name: math.nan if value is None else value for name, value in summary.items()}


def _require_inputs(run: Run, again: str | None) -> None:
    if run.data and data_hash(run) is None:
        raise UserError(f"the dataset {run.data} is not there; run: atlas acquire {run.data}")
    if run.data and (reason := stale_data(run.data, run.root / "data")):
        raise UserError(f"the dataset {run.data} must be looked at again ({reason}); run: atlas acquire {run.data}")
    for role, needed in run.needs.items():
        if reason := training_gap(needed, thorough=True):
            raise UserError(f"{run.cell} needs {needed.cell} as its {role} ({reason}); run: {command('train', needed)}")
        if reason := _not_as_asked(needed, again):
            told = f"{command('train', needed)} --again {again}"
            raise UserError(f"{run.cell} needs {needed.cell} as its {role} ({reason}); run: {told}")


def _not_as_asked(needed: Run, again: str | None) -> str | None:
    """Why a person who asks for ``"here"`` or ``"code"`` does not want a row upon a run that fits the plan, or ``None``."""
    if not due_again(needed, again):
        return None
    packages = ", ".join(trained_with_other_code(needed))
    return "not trained on this machine" if again == "here" else f"trained with other code of {packages}"


def _record(
    run: Run, made_of: Mapping[str, Any], summary: Mapping[str, Any], took: Mapping[str, float], **more: int
) -> dict[str, Any]:
    artefacts = sorted(path for path in run.checkpoint.glob("*") if path.is_file() and path != run.record)
    return {
        **run.described(),
        "data_hash": made_of["data_hash"],
        "needs": made_of["needs"],
        "files": {path.name: sha256(path) for path in artefacts if not path.name.startswith(".")},
        "training": {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in summary.items()
        },
        "settings": _settings(run),
        "provenance": {
            **provenance(run.root, str(pick_device(run.resources.device))),
            "code": code_upon_needs(run, made_of["code"]),
            **{f"train_{name}": round(value, 3) for name, value in took.items()},
            **more,
            "finished": _now(),
        },
    }


def _settings(run: Run) -> dict[str, Any]:
    return {
        "protocol": dict(run.protocol),
        "settings": {name: dict(values) for name, values in run.settings.items()},
        "resources": run.resources.model_dump(),
    }


def _metrics(run: Run, values: Mapping[str, float], took: Mapping[str, float]) -> dict[str, Any]:
    declared = {metric.name: metric for metric in run.declared_metrics}
    if set(values) != set(declared):
        missing = ", ".join(sorted(set(declared) - set(values))) or "none"
        extra = ", ".join(sorted(set(values) - set(declared))) or "none"
        raise AtlasError(f"{run.cell}: its evaluation differs from what it declares (missing: {missing}; extra: {extra})")
    numbers = {name: float(values[name]) if math.isfinite(values[name]) else None for name in declared}
    record = read_json(run.record)
    trained = record.get("provenance", {})
    return {
        "run": run.described(),
        "metrics": {name: value for name, value in numbers.items() if not declared[name].measured},
        "timings": {name: value for name, value in numbers.items() if declared[name].measured},
        "settings": _settings(run),
        "provenance": {
            **provenance(run.root, str(pick_device(run.resources.device))),
            "data_hash": data_hash(run),
            **({"substitution": run.substitution} if run.substitution else {}),
            "code": trained.get("code"),
            "trained": artefacts_digest(record),
            "needs": record.get("needs"),
            **{f"train_{name}": trained.get(f"train_{name}") for name in took},
            **{name: trained[name] for name in ("trained_at_once",) if name in trained},
            **{f"evaluate_{name}": round(value, 3) for name, value in took.items()},
            "peak_memory_mebibytes": trained.get("peak_memory_mebibytes"),
            "needed_seconds": _needed_seconds(run),
            "finished": _now(),
        },
    }


class _Clock:
    """Measures time, and time of processors, from when it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic(), cpu_seconds()

    def read(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` since."""
        return {"seconds": time.monotonic() - self.began[0], "cpu_seconds": cpu_seconds() - self.began[1]}


def _needed_seconds(run: Run) -> dict[str, float | None]:
    """Training time of every run that this one builds upon, by its cell."""
    seconds: dict[str, float | None] = {}
    for needed in run.needs.values():
        seconds |= _needed_seconds(needed)
        seconds[needed.cell] = read_json(needed.record).get("provenance", {}).get("train_seconds")
    return seconds


@contextmanager
def _recorded_failure(run: Run, stage: str) -> Iterator[None]:
    """Leave ``failure.json`` when the block fails, and remove an old one when it succeeds."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as raised:
        error = _misfit(run, raised) or raised
        message = str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
        tail = traceback.format_exc().replace(str(Path.cwd()) + "/", "").splitlines()[-12:]
        log = run.logs.relative_to(run.root) / f"{stage}.log"
        with suppress(OSError):  # the first failure is the one to tell
            run.metrics.unlink(missing_ok=True)
            write_json(run.failure, {"stage": stage, "error": " ".join(message.split()), "log": str(log), "tail": tail})
        if error is raised:
            raise
        raise error from raised
    run.failure.unlink(missing_ok=True)


def _misfit(run: Run, error: Exception) -> UserError | None:
    """What torch's lines about each tensor mean where a trial reads weights of another size than its settings give a network."""
    if not (run.trial and run.needs and isinstance(error, RuntimeError) and "loading state_dict" in str(error)):
        return None
    needs = " and ".join(f"{needed.cell}, its {role}" for role, needed in run.needs.items())
    return UserError(
        f"{run.cell} does not fit {needs}, which keeps the study's settings in a trial, too: take back the --set that changes "
        f"the network's form, or change it for all rows in a study of its own, a copy of config/{run.tier}.yaml"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
