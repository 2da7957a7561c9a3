"""Cost of AttnScale and FeatScale on every family of timm's transformers: a training step beside the plain model's.

Theory. Rewriting values is O(n·C) beside O(n·C²) of a block's layers: a mean, a difference, a sum and a copy of what qkv gives
are 13 times n·C numbers that are read or written, their gradients some 20 times. At C = 384 that is a hundredth of the arithmetic
of a block; where blocks are as narrow as 96 and widen before they pool (Hiera, SAM 2's Hiera), a tenth. There the weights are
scaled in place of the values: 14 times n·C are left, and some 20 times the layer's weights, fewer where tokens are many.
Shifted windows add the means of at most four regions per window. In XCiT the weights are scaled as well, C² numbers. The bound is
1.06 for every family.

Models have few blocks, of the width that is usual for "small" (384 channels, or 96 in the first of several stages), and some 200
tokens. A step takes a batch of four images: with a single one, what is done once per step (weights scaled, operations started)
would count more than in any training, whose batches are a hundred times as large. Steps are one thread's, timed by the
process's CPU time, so that other work on the machine does not count; plain and treated models take turns, and a ratio is that
of steps that follow each other. Given are medians and their 95 % intervals, from order statistics. Where an interval holds the
bound, four times as many pairs are taken anew.

    python benchmarks/backbones.py [--pairs N] [--anew] [ENTRYPOINT ...]

Rows go to ``results/performance/backbones.csv`` one by one, and those that are there are not measured again; a table of all goes
to ``results/performance/backbones.md``.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import math
import re
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import interleaved
from timm.models import create_model
from torch import Tensor, nn

from atlas.cli.backbones import CHANNELS, WORKS, Backbones
from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale
from atlas.nn.families import look
from atlas.nn.t2t import T2TViT

BOUND = 1.06
BATCH = 4
FOLDER = Path(__file__).resolve().parent.parent / "results" / "performance"
T2T = "t2t_vit_14"
METHODS = ("attnscale", "featscale")
NAMES = ("entrypoint", "family", "plain_ms", *(f"{method}{part}" for method in METHODS for part in ("", "_low", "_high")))
VIT = {"embed_dim": 384, "depth": 2, "num_heads": 6}
STAGES = {"embed_dim": 96, "depths": (2, 2), "num_heads": (3, 6), "img_size": 112, "window_size": 7}
SIZES: dict[str, dict[str, Any]] = {
    "CrossVit": {"embed_dim": (192, 384), "num_heads": (6, 6), "depth": ((1, 2, 0),)},
    "Hiera": {"stages": (1, 1, 2, 1)},
    "HieraDet": {"stages": (1, 2, 2, 1), "global_att_blocks": (4,)},
    "SwinTransformer": STAGES,
    "SwinTransformerV2": STAGES | {"img_size": 128, "window_size": 8},
    "SwinTransformerV2Cr": STAGES,
    "TNT": {"depth": 2, "img_size": 224},
    "Twins": {"depths": (1, 1, 2, 1), "img_size": 224},
    "VisionTransformerSAM": VIT | {"window_size": 7, "global_attn_indexes": (1,)},
}
"""Arguments for the model of a class; of all others ``VIT``."""


def built(name: str) -> tuple[str, nn.Module, Tensor]:
    """The words for an entrypoint's family, its model with few blocks, and images of the size that it wants."""
    torch.manual_seed(0)
    if name == T2T:
        return "T2TViT", T2TViT(depth=2), torch.randn(BATCH, 3, 224, 224)
    found = look(name)
    options = dict(SIZES.get(found.model, VIT))
    side = int(options.get("img_size", 14 * (found.patch or 16)))
    if "HybridEmbed" in found.family or found.model in ("CrossVit", "Hiera", "HieraDet"):
        side = 240 if found.model == "CrossVit" else 224
    if found.model not in ("CrossVit", "Hiera", "HieraDet") and not re.match("NaFlexVit|Qwen3", found.model):
        options["img_size"] = side
    if "AttentionRope (separate projections" in found.family:
        options["num_kv_heads"] = (6, 3) if "shared values" in found.family else (6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = create_model(name, **options)
    return found.family, model, torch.randn(BATCH, int(getattr(model, "in_chans", 3) or 3), side, side)


def step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward and backward pass and an SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        found = model(images)
        parts = found if isinstance(found, tuple | list) else [found]
        sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
        optimizer.step()

    return run


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """A sample's median, and order statistics between which that of its distribution lies with a probability of 95 %."""
    ordered, n = sorted(values), len(values)
    tail, rank = 0.5**n, 0
    while tail + math.comb(n, rank + 1) * 0.5**n <= 0.025:
        rank += 1
        tail += math.comb(n, rank) * 0.5**n
    return statistics.median(ordered), ordered[rank], ordered[n - 1 - rank]


def measured(name: str, pairs: int) -> dict[str, str]:
    """One row of the table."""
    family, model, images = built(name)
    treated = {"attnscale": apply_attnscale(copy.deepcopy(model)), "featscale": apply_featscale(copy.deepcopy(model))}
    steps = {"plain": step(model, images), **{method: step(own, images) for method, own in treated.items()}}

    def take(count: int) -> tuple[dict[str, list[float]], dict[str, tuple[float, float, float]]]:
        seconds = interleaved(steps, count)
        ratios = {m: [own / plain for own, plain in zip(seconds[m], seconds["plain"], strict=True)] for m in treated}
        return seconds, {method: median_interval(values) for method, values in ratios.items()}

    seconds, found = take(pairs)
    if any(low <= BOUND <= high for _, low, high in found.values()):
        seconds, found = take(4 * pairs)
    row = {"entrypoint": name, "family": family, "plain_ms": f"{1e3 * statistics.median(seconds['plain']):.1f}"}
    for method, values in found.items():
        row |= {f"{method}{part}": f"{value:.3f}" for part, value in zip(("", "_low", "_high"), values, strict=True)}
    return row


def processor() -> str:
    """The processor's name, as Linux knows it."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else "a processor of unknown name"


def page(rows: list[dict[str, str]], families: int) -> str:
    """The table of all rows; of so many families that there are."""
    lines = [
        f"| `{row['entrypoint']}` | {row['plain_ms']} | "
        + " | ".join(f"{row[m]} ({row[m + '_low']} to {row[m + '_high']})" for m in METHODS)
        + f" | {row['family']} |"
        for row in rows
    ]
    above = [row["entrypoint"] for row in rows if max(float(row["attnscale"]), float(row["featscale"])) > BOUND]
    verdict = f"Above {BOUND}: {', '.join(above)}." if above else f"No median is above {BOUND}."
    if len(rows) < families:
        verdict += f" Measured so far: {len(rows)} of {families} families."
    return f"""# What AttnScale and FeatScale cost on each family of backbones

A training step on {BATCH} images beside the plain model's: median of the ratios of interleaved pairs and its 95 % interval, one
thread, CPU time, on {processor()}, beside other work. Written by `benchmarks/backbones.py`, which says how the models were
chosen. {verdict}

| smallest entrypoint | plain step, ms | AttnScale | FeatScale | family |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def keep(rows: list[dict[str, str]], families: int) -> None:
    """Write what was measured so far."""
    with (FOLDER / "backbones.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (FOLDER / "backbones.md").write_text(page(rows, families))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps for each ratio")
    parser.add_argument("--anew", action="store_true", help="measure also what was measured before")
    parser.add_argument("entrypoints", nargs="*", help="by default the smallest of every family that both methods act on")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    families = Backbones.read().families
    supported = [each.example for each in families if {each.verdicts[method] for method in METHODS} <= {WORKS, CHANNELS}]
    path = FOLDER / "backbones.csv"
    rows: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open() as stream:
            rows = {row["entrypoint"]: row for row in csv.DictReader(stream)}
    print(f"{'step ÷ plain step (median, 95 % interval)':<44}{'AttnScale':>24}{'FeatScale':>24}", flush=True)
    for name in chosen.entrypoints or [*supported, T2T]:
        if chosen.anew or name not in rows:
            rows[name] = measured(name, chosen.pairs)
            gc.collect()
            keep([rows[known] for known in [*supported, T2T] if known in rows], len(supported) + 1)
        row = rows[name]
        marks = {method: " !" if float(row[method]) > BOUND else "" for method in METHODS}
        cells = [f"{row[m]} ({row[m + '_low']}–{row[m + '_high']}){mark}" for m, mark in marks.items()]
        print(f"{name:<44}{cells[0]:>24}{cells[1]:>24}", flush=True)


if __name__ == "__main__":
    main()
