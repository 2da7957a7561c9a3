"""Wall-clock time of a few things beside each other, on machines that other work shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


@torch.no_grad()
def interleaved_seconds(
    calls: Sequence[Callable[[], object]], rounds: int, *, device: torch.device | str = "cpu", warmup: int = 1
) -> list[list[float]]:
    """Time some calls round after round, so that a slow moment of the machine hits all alike.

    Parameters
    ----------
    calls : sequence of callables
        What is timed; each is called once per round, without gradients.
    rounds, warmup : int
        Rounds that count, and rounds before them that do not.
    device : torch.device
        Where the calls compute; a GPU is waited for.

    Returns
    -------
    list of list of float
        Seconds of every round, for each call.
    """
    waits = torch.device(device).type == "cuda"

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if waits:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(warmup):
        for call in calls:
            seconds(call)
    measured: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, values in zip(calls, measured, strict=True):
            values.append(seconds(call))
    return measured


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median over rounds of one call's time divided by another's in the same round."""
    return statistics.median(mine / other for mine, other in zip(seconds, reference, strict=True))
