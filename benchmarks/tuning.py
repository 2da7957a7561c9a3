"""How rows of the demo and the desk study are tuned: trials on validation data with seeds that no study uses, as many for all.

Learned optimizers are judged by the loss of the last quarter of their meta-training windows, over problems of the training half
of the data alone; federations by the validation accuracy of their clients in the last round; vision transformers by held-out
training images; radiance fields by views that are held out of training, around references that no study has; settings of
adversarial training by how far a dense network overfits held-out images, since that is what its study is about. What was chosen
stands in the study's file beside the row, with the number of trials, and the trials stand in ``results/performance/tuning.csv``;
what stands there is not tried again, unless ``--again`` says so.
Before there was that table, L2O-DM had 12 trials, HeteroFL, SHeteroFL and Split-Mix 4, and LayerScale 4 rates, which were within
noise.

    python -m benchmarks.tuning DATA [NAME…]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from atlas.harness.kernels import hold_kernels

SEEDS = (0, 1)
ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results/performance/tuning.csv"
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The trials of one row: its cell in a study, what is tried (settings and protocol), and what is read from its training."""

    cell: str
    settings: tuple[Settings, ...] = ({},)
    protocols: tuple[Settings, ...] = ({},)
    score: Callable[[Any], float] = lambda run: 0.0
    study: str = "demo"
    seeds: tuple[int, ...] = SEEDS


def last_quarter(column: str) -> Callable[[Any], float]:
    """Mean of a column over the last quarter of a training; smaller is better."""

    def score(run: Any) -> float:
        rows = [float(row[column]) for row in csv.DictReader(run.history.open()) if row.get(column)]
        return mean(rows[-max(len(rows) // 4, 1) :])

    return score


def last_validation(run: Any) -> float:
    """Error on the clients' validation shares at the end."""
    rows = [float(row["validation_accuracy"]) for row in csv.DictReader(run.history.open()) if row.get("validation_accuracy")]
    return 1 - rows[-1]


def robust_validation(run: Any) -> float:
    """Mean of the errors on the clients' validation shares at the end, as they are and under attack."""
    rows = [row for row in csv.DictReader(run.history.open()) if row.get("validation_robust")]
    return 1 - (float(rows[-1]["validation_accuracy"]) + float(rows[-1]["validation_robust"])) / 2


def robust_overfitting(run: Any) -> float:
    """How much robust accuracy on held-out images is lost from the best epoch to the last five, with the sign turned."""
    found = [float(row["val_ra"]) for row in csv.DictReader(run.history.open()) if row.get("val_ra")]
    return mean(found[-5:]) - max(found)


def held_out_error(run: Any) -> float:
    """Error of a classifier on held-out training images."""
    import torch

    from atlas.tasks.image_classification.data import load_data
    from atlas.tasks.image_classification.evaluate import accuracy, load_trained

    data = load_data(run, run.protocol_model(), torch.device("cpu"))
    return 1 - accuracy(load_trained(run, data), data.batches("validation"))


def held_out_views(run: Any) -> float:
    """PSNR of a field on the views that are held out, with the sign turned."""
    from atlas.tasks.novel_view_synthesis.training import evaluate

    return -evaluate(run)["psnr"]


def grid(**choices: Iterable[Any]) -> tuple[Settings, ...]:
    """Every combination."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def schedule(first: int, second: int) -> list[Settings]:
    """The two stages of the desk study's lego, with other numbers of steps."""
    return [{"steps": first, "stride": 3, "lr": 0.02}, {"steps": second, "stride": 2, "lr": 0.02}]


def overfitting(scale: float, images: int, epochs: int, batch_size: int = 64) -> Settings:
    """Adversarial training of a share of PreAct-ResNet-18's width on a number of images; the rate falls as in the paper."""
    return {
        "network": {"scale": scale},
        "data": {"train_size": images, "validation_size": 500},
        "epochs": epochs,
        "milestones": [epochs // 2, epochs * 3 // 4],
        "batch_size": batch_size,
    }


FREE_VIEWS = {"references": [29, 11], "test_limit": None, "test_stride": 2}
"""Two training views of lego and all within 30° of them: none is one that the desk study learns from or is tested on."""
META = {"windows": 100, "unroll": 20, "depth": 5, "instances": 2}
RATES = grid(learning_rate=(0.01, 0.03, 0.1, 0.3))
VIT_RATES = grid(learning_rate=(1e-3, 2e-3, 4e-3, 8e-3))
WIDER_RATES = (*RATES, *grid(learning_rate=(1.0,)))
HELD_OUT = ({"data": {"validation_fraction": 0.2}},)
COMPRESSIONS = {
    "digits-compressed/uvc-b52": tuple(
        {"learning_rate": rate, "search_learning_rate": rate, "pace": pace}
        for rate, pace in itertools.product((2e-3, 4e-3), (3, 5))
    ),
    "digits-compressed/s2vite-b52": grid(learning_rate=(2e-3, 4e-3), interval=(10, 30)),
    "digits/dynamic-vit-b52": grid(learning_rate=(2e-3, 6e-3), backbone_rate=(0.3, 1)),
}
"""The epochs of all of them are the same, and so is the number of trials."""
PLANS = {
    "l2o-dm": Plan(
        "learned-optimization/digits/l2o-dm",
        tuple(
            {"preprocess": each, "scale": scale, "meta": {**META, "lr": lr}}
            for each, scale, lr in itertools.product(("raw", "log-sign"), (0.01, 0.03, 0.1), (5e-3, 1e-2))
        ),
        score=last_quarter("loss"),
    ),
    "rp-small": Plan(
        "learned-optimization/digits/rp-small",
        tuple(
            {"scale": scale, "meta": {**META, "lr": lr}}
            for scale, lr in itertools.product((0.01, 0.03, 0.1, 0.3), (5e-3, 1e-2, 2e-2))
        ),
        score=last_quarter("loss"),
    ),
    **{
        name: Plan(f"federated-learning/digits-domains/{name}", protocols=RATES, score=last_validation)
        for name in ("split-mix", "heterofl", "sheterofl", "fedavg-w0125", "fedavg-w1")
    },
    **{
        name: Plan(f"federated-learning/digits-robust/{name}", protocols=WIDER_RATES, score=robust_validation)
        for name in ("fedavg-at-lam05", "fedavg-at-lam1", "fedavg-oat", "fedavg-dat", "split-mix-dat")
    },
    # trained without an attack, and validated without one
    "fedavg-at-lam0": Plan("federated-learning/digits-robust/fedavg-at-lam0", protocols=WIDER_RATES, score=last_validation),
    **{
        row.split("/")[1]: Plan(f"image-classification/{row}", settings, HELD_OUT, held_out_error)
        for row, settings in COMPRESSIONS.items()
    },
    **{
        name: Plan(
            f"image-classification/digits/{name}",
            grid(lr_multiplier=(1, 3, 10, 30)),
            HELD_OUT,
            held_out_error,
        )
        for name in ("layerscale", "attnscale", "featscale", "head-gain")
    },
    # the rate of the plain backbone, at which every row of the benchmark then trains; runs are dear from here on: one seed
    **{
        name: Plan(f"image-classification/{name}/deit", protocols=VIT_RATES, score=held_out_error, study="desk", seeds=(0,))
        for name in ("cifar10-depth24", "cifar10-depth12", "cifar10-mixed", "cifar10-compressed")
    },
    # networks designed without training, at the rate of one drawn at random
    "cifar10-as-vit": Plan(
        "image-classification/cifar10-as-vit/random-topology", protocols=VIT_RATES, score=held_out_error, study="desk", seeds=(0,)
    ),
    # the setting in which a dense network overfits, of those that cost about as much: without it there is nothing to judge
    "cifar10-robust-setting": Plan(
        "adversarial-robustness/cifar10/dense",
        protocols=(
            overfitting(0.125, 2000, 40),
            overfitting(0.125, 500, 120, 32),
            overfitting(0.1875, 500, 80, 32),
            overfitting(0.25, 500, 40, 32),
        ),
        score=robust_overfitting,
        study="desk",
        seeds=(0,),
    ),
    # the rate of every row of the desk study's federations
    **{
        f"{benchmark}-{name}": Plan(
            f"federated-learning/{benchmark}/{name}", protocols=WIDER_RATES[1:], score=last_validation, study="desk", seeds=(0,)
        )
        for benchmark in ("cifar10-domains", "cifar10-classes")
        for name in ("split-mix", "sheterofl", "heterofl", "fedavg-w0125", "fedavg-w05", "fedavg-w1")
    },
    # the weights of the terms that look at the encoder's features, at a quarter of the study's steps; DietNeRF asks for no depth
    "dietnerf": Plan(
        "novel-view-synthesis/lego-100/dietnerf-efficientnet-lite0",
        grid(consistency=(0.003, 0.01, 0.03, 0.1, 0.3)),
        ({"scene": {**FREE_VIEWS, "depth": "none"}, "stages": schedule(150, 250)},),
        held_out_views,
        "desk",
    ),
    "sinnerf": Plan(
        "novel-view-synthesis/lego-100/sinnerf-efficientnet-lite0",
        grid(vit=(3e-5, 1e-4, 3e-4, 3e-3, 3e-2)),
        ({"scene": FREE_VIEWS, "stages": schedule(75, 125), "teacher_steps": 400},),
        held_out_views,
        "desk",
    ),
}


def base(plan: Plan, protocol: Settings, root: Path, data: Path) -> list[Any]:
    """The row of a plan under a protocol, with every seed, in a folder of its own where what it needs is trained."""
    from atlas.settings import merge, validate_settings
    from atlas.study import Study

    row = next(run for run in Study.read(plan.study, ROOT).runs if run.cell.startswith(f"{plan.cell}/seed"))
    root.mkdir()
    (root / "data").symlink_to(data.resolve())
    changed = validate_settings(row.task_entry.protocol, merge(row.protocol, protocol), "trial", row.task)
    placed = [moved(row, root=root, seed=seed, protocol=changed) for seed in plan.seeds]
    for needed in zip(*map(all_needs, placed), strict=True):
        train(needed)
    return placed


def moved(run: Any, **changes: Any) -> Any:
    """A run and all that it needs, with the same changes."""
    return replace(run, **changes, needs={role: moved(needed, **changes) for role, needed in run.needs.items()})


def all_needs(run: Any) -> list[Any]:
    """What a run needs, in the order in which it is made."""
    found: dict[str, Any] = {}
    for needed in run.needs.values():
        found |= {each.cell: each for each in (*all_needs(needed), needed)}
    return list(found.values())


def train(runs: Sequence[Any]) -> None:
    """Train a run with each seed, at once where the row can be."""
    from atlas.harness.execute import train_run, train_stack

    if runs[0].stacked:
        for outcome in train_stack(runs).values():
            if isinstance(outcome, Exception):
                raise outcome
    else:
        for run in runs:
            train_run(run)


def trial(plan: Plan, settings: Settings, rows: Sequence[Any]) -> list[float]:
    """Train a row with other settings in a copy of its folder, and judge it with every seed."""
    from atlas.settings import merge, validate_settings

    entry = rows[0].method_entries[0]
    own = validate_settings(entry.settings, merge(rows[0].settings[entry.name], settings), "trial", entry.name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "trial"
        shutil.copytree(rows[0].root, root, symlinks=True)
        tried = [replace(moved(row, root=root), settings={**row.settings, entry.name: own}) for row in rows]
        train(tried)
        return [plan.score(run) for run in tried]


def kept(name: str, table: Path = TABLE) -> dict[str, list[float]]:
    """Scores of the trials of a plan that the table has, by what was tried."""
    rows = csv.DictReader(table.open()) if table.is_file() else []
    return {
        row["tried"]: [float(row[f"seed{seed}"]) for seed in SEEDS if row[f"seed{seed}"]] for row in rows if row["plan"] == name
    }


def trials(name: str, data: Path, again: bool = False) -> None:
    """Carry out what is left of a plan, or all of it again, and print one line per trial, best first."""
    plan = PLANS[name]
    settled = {} if again else {tried: scores for tried, scores in kept(name).items() if len(scores) == len(plan.seeds)}
    results = [(mean(scores), scores, json.loads(tried)) for tried, scores in settled.items()]
    with tempfile.TemporaryDirectory() as folder:
        for index, protocol in enumerate(plan.protocols):
            rows: list[Any] = []
            for settings in plan.settings:
                tried = {**settings, **protocol}
                if json.dumps(tried) in settled:
                    continue
                rows = rows or base(plan, protocol, Path(folder) / str(index), data)
                scores = trial(plan, settings, rows)
                results.append((mean(scores), scores, tried))
                print(f"{name}: {results[-1]}", flush=True)
                keep(name, results)
    print(f"{name}: {len(results)} trials of {len(plan.seeds)} seeds")


def keep(name: str, results: Iterable[tuple[float, list[float], Settings]], table: Path = TABLE) -> None:
    """Put the trials of a plan into the table, best first, in the place of those that it had."""
    results = sorted(results, key=lambda result: result[0])
    head = ["plan", "score", *(f"seed{seed}" for seed in SEEDS), "tried"]
    lines = list(csv.reader(table.open()))[1:] if table.is_file() else []
    columns = [[f"{score:.4f}" for score in scores] + [""] * (len(SEEDS) - len(scores)) for _, scores, _ in results]
    new = [[name, f"{result[0]:.4f}", *own, json.dumps(result[2])] for result, own in zip(results, columns, strict=True)]
    rows = sorted([*(line for line in lines if line[0] != name), *new], key=lambda line: list(PLANS).index(line[0]))
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def main() -> None:
    """Tune what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the acquired data")
    parser.add_argument("plans", nargs="*", metavar="NAME", help=f"what is tuned, everything by default: {', '.join(PLANS)}")
    parser.add_argument("--again", action="store_true", help="repeat the trials that the table has")
    options = parser.parse_args()
    if unknown := sorted({*options.plans} - {*PLANS}):
        parser.error(f"no plan {', '.join(unknown)}; there are {', '.join(PLANS)}")
    hold_kernels()
    for name in options.plans or PLANS:
        trials(name, options.data, options.again)


if __name__ == "__main__":
    main()
