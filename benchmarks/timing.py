"""Timing of things side by side in the same run, on machines that other work shares: medians, and medians of ratios.

Rounds are interleaved, so that a slow moment of the machine hits all competitors alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(competitors: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Return the seconds of every round of every competitor, by name; CPU time of this process."""
    for _ in range(warmup):
        for run in competitors.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, run in competitors.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return seconds


def show(title: str, seconds: dict[str, list[float]], baseline: str) -> None:
    """Print median milliseconds and the median ratio to the baseline, with its quartiles."""
    print(f"\n{title}")
    print(f"  {'':<34}{'median ms':>10}{'ratio':>8}   quartiles of the ratio")
    for name, values in seconds.items():
        ratios = [mine / base for mine, base in zip(values, seconds[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {name:<34}{1e3 * statistics.median(values):>10.2f}{middle:>8.3f}   {low:.3f} to {high:.3f}")
