"""Seeds of a row at once: what a training step of M runs costs, stacked and one after the other, in the same run.

``python benchmarks/stacking.py`` prints CPU milliseconds on one thread for rows of the demo; ``--rows`` and ``--seeds`` choose,
``--quick`` takes few rounds. The studies' data must be there (``atlas acquire digits basic-motions``).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import torch
from timing import interleaved, show

from atlas.harness.kernels import hold_kernels
from atlas.harness.lockstep import Randomness
from atlas.harness.run import Run
from atlas.study import Study, select

ROWS = (
    "image-classification/digits/deit",
    "image-classification/digits/layerscale",
    "image-classification/digits/attnscale",
    "image-classification/digits/featscale",
    "image-classification/digits-mixed/deit",
    "image-classification/digits-mixed/diverse-vit",
    "feature-acquisition/handover/vfds",
    "feature-acquisition/synth/static",
    "feature-acquisition/synth/vanilla",
    "learned-optimization/digits/rp-small",
    "learned-optimization/digits/l2o-dm",
)
Step = Callable[[], object]


def image_step(run: Run) -> Step:
    """A training step of one run of image classification, with all that belongs to it."""
    from atlas.tasks.image_classification.ingredients import Batch
    from atlas.tasks.image_classification.training import Training

    with Randomness(run)():
        bench = Training(run)
        optimizer, scaler, _ = bench.prepare()
    batches = cycle(bench.data.train_batches(0))

    def step() -> None:
        images, labels = next(batches)
        bench.take_step(optimizer, scaler, Batch(images, labels, labels))

    return step


def image_steps(runs: list[Run]) -> Step:
    """The same of several runs, stacked."""
    from atlas.nn.stacked import Stack
    from atlas.tasks.image_classification.stacking import Together
    from atlas.tasks.image_classification.training import Training

    randomness = [Randomness(run) for run in runs]
    benches = [Training(run) for run in runs]
    stack = Stack([bench.model for bench in benches])
    prepared = [bench.prepare() for bench in benches]
    together = Together(stack, benches, [one[0] for one in prepared], [one[2] for one in prepared], randomness)
    stack.watch()
    batches = [cycle(bench.data.train_batches(0)) for bench in benches]
    return lambda: together.take_step(0, [next(stream) for stream in batches])


def stream_step(run: Run) -> Step:
    """A training step of one run of feature acquisition."""
    from atlas.tasks.feature_acquisition.training import PhaseFitting, make_bench

    bench, learner = make_bench(run), run.build()[0]
    phase = next(learner.phases(bench))
    fitting, steps = PhaseFitting(bench, phase, learner), count()

    def step() -> None:
        index = next(steps)
        losses = phase.loss(*bench.streams.batch(bench.protocol.batch_size, index, phase.name), index)
        fitting.optimizer.zero_grad()
        losses.total.sum().backward()
        fitting.optimizer.step()

    return step


def stream_steps(runs: list[Run]) -> Step:
    """The same of several runs, joined."""
    from atlas.tasks.feature_acquisition.stacking import Joined
    from atlas.tasks.feature_acquisition.training import PhaseFitting, make_bench

    fittings = []
    for run in runs:
        bench, learner = make_bench(run), run.build()[0]
        fittings.append(PhaseFitting(bench, next(learner.phases(bench)), learner))
    joint = fittings[0].phase.joined([fitting.phase for fitting in fittings])
    assert joint is not None
    joined, steps = Joined(fittings, joint), count()
    return lambda: joined.take_step(next(steps), range(len(runs)))


def window(run: Run) -> Step:
    """A window of one run of learned optimization, with its meta-step."""
    from atlas.tasks.learned_optimization.competitors import MetaFitting
    from atlas.tasks.learned_optimization.data import load_arena

    return MetaFitting(run.build()[0], load_arena(run)).trainer.window


def windows(runs: list[Run]) -> Step:
    """The same of several runs at once."""
    from atlas.l2o.meta import windows_at_once
    from atlas.tasks.learned_optimization.competitors import MetaFitting
    from atlas.tasks.learned_optimization.data import load_arena

    arena = load_arena(runs[0])
    trainers = [MetaFitting(run.build()[0], arena).trainer for run in runs]
    return lambda: windows_at_once(trainers)


STEPS = {
    "image-classification": (image_step, image_steps),
    "feature-acquisition": (stream_step, stream_steps),
    "learned-optimization": (window, windows),
}


def main() -> None:
    """Print a table for every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=(1, 3, 10), help="how many at once")
    parser.add_argument("--tier", default="demo")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study.read(options.tier)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(Path("data").absolute())
        for row in options.rows:
            run = replace(select(study, [row])[0], root=Path(folder))
            alone, at_once = STEPS[run.task]
            runs = {"one by itself": alone(run)}
            for number in options.seeds:
                seeds = [replace(run, seed=seed, stack_seeds=True) for seed in range(100, 100 + number)]
                runs[f"{number} at once"] = at_once(seeds)
            seconds = interleaved(runs, 5 if options.quick else 15)
            show(f"training step of {row}", seconds, "one by itself")
            base = seconds["one by itself"]
            for number in options.seeds:
                ratios = [number * own / together for own, together in zip(base, seconds[f"{number} at once"], strict=True)]
                print(f"  {number} at once: {statistics.median(ratios):.2f} times as fast for each")


if __name__ == "__main__":
    hold_kernels()
    main()
