"""How often verdicts err, and how often two independent sets of seeds disagree, by simulation.

Effects are drawn from a normal distribution of standard deviation 1 about a true effect, for as many seeds as a study has; a
claim asks for an effect of at least 0. A study that is made again with other seeds flips a verdict if the two differ by the rule
of ``atlas compare``: what is fragile claims no more than what is inconclusive. Beside it stands how many would flip if fragility
were not told.

    python benchmarks/verdict_errors.py --studies 4000
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from atlas.harness.claims import Claim, Comparison
from atlas.report.comparison import agree
from atlas.report.verdicts import Judged, Part

ASKED = {"metric": "top1", "method": "a", "compare": "value"}
TASK = "image-classification"
SEEDS = (3, 5, 20)
EFFECTS = (0.0, 0.5, 1.0, 2.0, 4.0)
COLUMNS = ("supported", "contradicted", "supported, fragile", "contradicted, fragile", "inconclusive")


def told(effects: np.ndarray) -> str:
    """Verdict on one simulated study, as it is printed."""
    part = Part(Comparison(**ASKED), TASK, None, dict(enumerate(map(float, effects))))
    claim = Claim(id="simulated", statement="", task=TASK, paper="", **ASKED)
    return Judged(claim, "", "", (part,), "").told


def line(seeds: int, effect: float, studies: int) -> str:
    """One line of the table: rates of verdicts over all studies, and of flips over pairs of them."""
    draws = np.random.default_rng([seeds, round(100 * effect)]).normal(effect, 1.0, (2, studies, seeds))
    first, second = ([told(study) for study in half] for half in draws)
    counts = Counter([*first, *second])
    pairs = list(zip(first, second, strict=True))
    flips = sum(not agree(one, other) for one, other in pairs)
    plain = sum(one.partition(",")[0] != other.partition(",")[0] for one, other in pairs)
    rates = [counts[name] / (2 * studies) for name in COLUMNS] + [flips / studies, plain / studies]
    return f"| {seeds} | {effect:g} | " + " | ".join(f"{100 * rate:.1f} %" for rate in rates) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000, help="pairs of studies per line")
    options = parser.parse_args()
    print("| seeds | true effect / sd | " + " | ".join(COLUMNS) + " | flips | flips, fragility ignored |")
    print("|" + " ---: |" * (len(COLUMNS) + 4))
    for seeds in SEEDS:
        for effect in EFFECTS:
            print(line(seeds, effect, options.studies), flush=True)


if __name__ == "__main__":
    main()
