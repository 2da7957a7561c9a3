"""What an optimizer does, as rows for regression: windows of features and the update that followed.

Zheng et al., ICLR 2022, stage 2. A policy trains optimizees without being trained; the features of some coordinates, and the
update before its scale, are kept at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from atlas.l2o import Features, Optimizee, Policy
from atlas.l2o.optimizees import require_problem
from atlas.l2o.policies import require_policy
from atlas.methods.symbolic_l2o.rules import column_names
from atlas.methods.symbolic_l2o.settings import RecordSettings
from atlas.nn.bars import track
from atlas.nn.kinds import require_whole

DEFAULT = RecordSettings()


@dataclass(frozen=True)
class Records:
    """Rows for regression.

    Attributes
    ----------
    X : ndarray
        (rows, lags · features), columns by ``names``: all features of the present step, then of the step before, and so on.
    y : ndarray
        (rows,): the update over the policy's ``lr``.
    run, coordinate, step : ndarray
        (rows,) of int: where the row is from; ``step`` is that of the update, from 1.
    names : tuple of str
        ``"{feature}_{lag}"``.
    """

    X: np.ndarray
    y: np.ndarray
    run: np.ndarray
    coordinate: np.ndarray
    step: np.ndarray
    names: tuple[str, ...]

    def of_runs(self, runs: Sequence[int]) -> Records:
        """The rows that were recorded in some of the runs."""
        keep = np.isin(self.run, list(runs))
        return Records(self.X[keep], self.y[keep], self.run[keep], self.coordinate[keep], self.step[keep], self.names)

    def lags(self, features: Sequence[str]) -> int:
        """Number of steps that a row holds of each of these features, which are all of its features."""
        return len(self.names) // len(features)

    def split(self) -> tuple[Records, Records]:
        """All runs but the last, and the last: rows of one trajectory never stand on both sides.

        Raises
        ------
        ValueError
            There is one run only.
        """
        runs = np.unique(self.run).tolist()
        if len(runs) < 2:
            raise ValueError("rows of at least 2 runs are needed: one is held out")
        return self.of_runs(runs[:-1]), self.of_runs(runs[-1:])

    def save(self, path: Path | str | IO[bytes]) -> None:
        """Write everything to an ``.npz`` file of plain arrays."""
        np.savez_compressed(
            path, X=self.X, y=self.y, run=self.run, coordinate=self.coordinate, step=self.step, names=np.array(self.names)
        )

    @classmethod
    def load(cls, path: Path | str) -> Records:
        """Read the file that :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in ("X", "y", "run", "coordinate", "step")}
            return cls(**columns, names=tuple(str(name) for name in stored["names"]))


def trace(
    policy: Policy, problem: Optimizee, *, features: Sequence[str], steps: int, coordinates: Tensor, gen: torch.Generator
) -> dict[str, np.ndarray]:
    """Let a policy train one optimizee, and keep what some coordinates see and do.

    Returns
    -------
    dict
        ``z`` (steps, coordinates, features), ``update`` and ``gradient`` (steps, coordinates).
    """
    inputs = Features(features, getattr(getattr(policy, "features", None), "betas", (0.95, 0.95)))
    theta = problem.init(1, gen)
    state = policy.init_state(theta, problem.layout)
    moments = inputs.init_state(theta)
    kept: dict[str, list[Tensor]] = {"z": [], "update": [], "gradient": []}
    with torch.no_grad():
        for batch in problem.stream(1, steps, gen):
            _, g = problem.gradients(theta, batch)
            z, moments = inputs.step(g, moments)
            update, state = policy.step(g, state)
            theta = theta + update
            kept["z"].append(z[0, coordinates])
            kept["update"].append(update[0, coordinates] / policy.lr)
            kept["gradient"].append(g[0, coordinates])
    return {name: torch.stack(values).cpu().numpy() for name, values in kept.items()}


def features_of(policy: Policy, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The features to record: those that are asked for, else those that a policy is fed, else m̃ and g̃."""
    if asked is not None:
        return tuple(asked)
    own = getattr(policy, "features", None)
    return own.names if isinstance(own, Features) else ("m", "g")


def pick_coordinates(problem: Optimizee, count: int, random: np.random.Generator) -> Tensor:
    """Indices (coordinates,) of some coordinates of every tensor of a problem, all of a smaller one."""
    index = problem.tensor_index().cpu().numpy()
    picked = []
    for tensor in np.unique(index):
        members = np.flatnonzero(index == tensor)
        picked.append(np.sort(random.choice(members, min(count, len(members)), replace=False)))
    return torch.from_numpy(np.concatenate(picked))


def window_ends(length: int, lags: int, random: np.random.Generator) -> np.ndarray:
    """Last steps (from 0) of ⌊length/lags⌋ − 2 windows of ``lags`` steps that do not overlap, with random gaps between them."""
    count = length // lags - 2
    if count < 1:
        return np.array([], dtype=int)
    slack = length - count * lags
    gaps = random.random(count + 1)
    before = np.floor(np.cumsum(gaps / gaps.sum() * slack))[:-1].astype(int)
    return before + lags * np.arange(1, count + 1) - 1


def windows(
    traced: dict[str, np.ndarray], lags: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a trace into rows: (X, y, coordinate, step).

    A row holds a window from its last step backwards, and the update of that last step. A window whose gradient is exactly 0 at
    the probe, index (lags // 4) · 3 − 1, is of a dead coordinate and is dropped.
    """
    z, update, gradient = traced["z"], traced["update"], traced["gradient"]
    probe = max(0, (lags // 4) * 3 - 1)
    rows, targets, coordinates, steps = [], [], [], []
    for coordinate in range(z.shape[1]):
        for end in window_ends(len(z), lags, random):
            start = end - lags + 1
            if gradient[start + probe, coordinate] == 0:
                continue
            rows.append(z[start : end + 1, coordinate][::-1].reshape(-1))
            targets.append(update[end, coordinate])
            coordinates.append(coordinate)
            steps.append(end + 1)
    width = lags * z.shape[2]
    return np.array(rows).reshape(-1, width), np.array(targets), np.array(coordinates, dtype=int), np.array(steps, dtype=int)


WindowsOfRun = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
"""What :func:`windows` returns for one run, and the run's number."""


def join_windows(parts: Sequence[WindowsOfRun], features: Sequence[str], lags: int) -> Records:
    """Join the windows of several runs; no rows where no run has a window."""
    X, y, coordinate, step = (np.concatenate([part[column] for part in parts]) for column in range(4))
    run = np.concatenate([np.full(len(part[1]), part[4]) for part in parts])
    return Records(X, y, run, coordinate, step, tuple(column_names(features, lags)))


def record(
    policy: Policy,
    problems: Optimizee | Sequence[Optimizee],
    *,
    features: Sequence[str] | None = None,
    lags: int = DEFAULT.lags,
    runs: int = DEFAULT.runs,
    steps: int = DEFAULT.steps,
    coordinates: int = DEFAULT.coordinates,
    seed: int = 0,
    progress: bool | None = None,
) -> Records:
    """Record a policy over some runs.

    Parameters
    ----------
    problems : Optimizee or sequence of Optimizee
        Run i is on problem i, then again from the first.
    features : sequence of str, optional
        By default those that the policy is fed, else m̃ and g̃.
    lags : int
        Steps in a window, the present one included.
    coordinates : int
        Of every tensor, fixed during a run.
    progress : bool, optional
        Whether to draw a bar; by default on a terminal.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        ``runs`` < 2, ``lags`` < 1, or the runs are too short for a window.
    """
    require_policy(policy=policy)
    require_whole(lags=lags, runs=runs, steps=steps, coordinates=coordinates)
    if runs < 2:
        raise ValueError(f"runs must be at least 2, so that one can be held out, not {runs}")
    if lags < 1:
        raise ValueError(f"lags must be at least 1, not {lags}")
    chosen: list[Any] = list(problems) if isinstance(problems, list | tuple) else [problems]
    require_problem(**{f"problem {index}": problem for index, problem in enumerate(chosen)})
    names = features_of(policy, features)
    random = np.random.default_rng(seed)
    parts: list[WindowsOfRun] = []
    for index in track(range(runs), "record", runs, progress):
        problem = chosen[index % len(chosen)]
        gen = torch.Generator().manual_seed(int(random.integers(2**62)))
        picked = pick_coordinates(problem, coordinates, random)
        traced = trace(policy, problem, features=names, steps=steps, coordinates=picked, gen=gen)
        X, y, coordinate, step = windows(traced, lags, random)
        parts.append((X, y, picked.numpy()[coordinate], step, index))
    records = join_windows(parts, names, lags)
    if not len(records.y):
        raise ValueError(f"no window of {lags} steps fits runs of {steps}; at least {3 * lags} steps are needed")
    return records
