"""Evaluation on the test split: the best and the last network under PGD, C&W∞ and AutoAttack; overfitting, gap, costs."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_text
from atlas.harness.seeds import derive_seed, generator, pick_device
from atlas.nn.attacks import PGD, attacking, margin_loss
from atlas.nn.counts import parameter_count
from atlas.nn.modes import mode_of
from atlas.nn.ranks import here
from atlas.nn.robustness import robust_report
from atlas.nn.sparse_costs import flops
from atlas.tasks.adversarial_robustness.data import RobustData
from atlas.tasks.adversarial_robustness.protocol import Protocol
from atlas.tasks.adversarial_robustness.training import BEST, LAYERS, MASKS, density, fresh_network, measure

if TYPE_CHECKING:
    from atlas.harness.run import Run

FEWEST_CLASSES = 4
"""AutoAttack's targeted attacks are undefined for fewer classes."""


def load_network(run: Run, data: RobustData, which: str, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the ``best`` or the ``final`` network of a run in evaluation mode, and its masks, of the weights' shapes."""
    model = fresh_network(run, data)
    model.load_state_dict(read_tensors(run.checkpoint / BEST if which == "best" else run.weights))
    path = run.checkpoint / MASKS
    masks = read_tensors(path) if path.is_file() else {}
    own = {name.removeprefix(f"{which}:"): mask.to(device) for name, mask in masks.items() if name.startswith(f"{which}:")}
    return model.to(device).eval(), own


def evaluate(run: Run) -> dict[str, float]:
    """Evaluate a trained row on the test split; also writes ``layers.csv`` beside the metrics."""
    protocol: Protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    data = RobustData(run, protocol, device)
    attack = PGD(protocol.attack.eps, protocol.attack.step, protocol.attack.steps, bn_mode="eval")
    values: dict[str, float] = {}
    tests = {}
    for which in ("best", "final"):
        model, masks = load_network(run, data, which, device)
        tests[which] = measure(model, data.batches("test", protocol.test_images), attack, _random(run, device, "test"))
        values |= {f"{name}_{which}": value for name, value in strong_accuracy(run, model, data, attack).items()}
    train = measure(model, data.batches("train"), attack, _random(run, device, "train"))
    values |= _report(run, tests, train["ra"])
    cost = flops(model, data.shape, masks)
    _write_layers(run, model, masks)
    summary = training_summary(run)
    missing = sum(int(mask.numel()) - int(mask.count_nonzero()) for mask in masks.values())
    return {
        **values,
        "density": density(masks),
        "parameters": parameter_count(model) - missing,
        "forward_flops": cost.sparse,
        **{name: summary[name] for name in ("train_flops", "train_flops_paper", "monitor_flops", "best_epoch", "stage_epochs")},
    }


def _random(run: Run, device: torch.device, split: str) -> torch.Generator:
    return generator(run.seed, "evaluation", split, device=device)


def _report(run: Run, tests: dict[str, dict[str, float]], train_ra: float) -> dict[str, float]:
    """The paper's measures; the validation curve of the training chooses the best epoch."""
    with run.history.open() as stream:
        val_ra = [float(row["val_ra"]) for row in csv.DictReader(stream)]
    best = int(training_summary(run)["best_epoch"]) - 1
    curves = {name: [math.nan] * len(val_ra) for name in ("ra", "sa")}
    for name, curve in curves.items():
        curve[best], curve[-1] = tests["best"][name], tests["final"][name]
    report = robust_report(val_ra, curves["ra"], curves["sa"], train_ra)
    return {
        "ra_final": tests["final"]["ra"],
        "ra_best": tests["best"]["ra"],
        "robust_overfitting": tests["best"]["ra"] - tests["final"]["ra"],
        "sa_final": tests["final"]["sa"],
        "sa_best": tests["best"]["sa"],
        "sa_difference": report.sa_difference,
        "train_ra_final": train_ra,
        "robust_gap": report.gap,
    }


def strong_accuracy(run: Run, model: nn.Module, data: RobustData, attack: PGD) -> dict[str, float]:
    """Return accuracy in [0, 1] on the first test images under PGD on the margin, and under every attack of the protocol.

    ``cw_ra`` is that under C&W∞; ``strong_ra`` counts images that neither it, nor PGD, nor AutoAttack (where the protocol has
    it) fools.
    """
    protocol: Protocol = run.protocol_model()
    settings = protocol.strong
    margin = PGD(attack.eps, attack.step, settings.margin_steps, loss=margin_loss, bn_mode="eval")
    random = _random(run, pick_device(run.resources.device), "strong")
    by_margin = withstood = count = 0
    ranks = here()
    with mode_of(model, "eval"):
        for index, (images, labels) in enumerate(data.batches("test", settings.images)):
            count += len(labels)
            if index % ranks.size != ranks.rank:  # another rank's; its random starts are drawn, for those that follow
                for _ in (attack, margin):
                    torch.rand(images.shape, generator=random, device=random.device, dtype=images.dtype)
                continue
            survives = [_right(model, each(model, images, labels, generator=random), labels) for each in (attack, margin)]
            left = survives[0] & survives[1]
            if settings.autoattack and bool(left.any()):
                left[left.clone()] = withstands_autoattack(run, model, images[left], labels[left], data.classes)
            by_margin += int(survives[1].sum())
            withstood += int(left.sum())
    by_margin, withstood = (int(sum_) for sum_ in ranks.total(torch.tensor([by_margin, withstood])))
    return {"cw_ra": by_margin / count, "strong_ra": withstood / count}


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(1) == labels


def withstands_autoattack(run: Run, model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Whether each image is classified rightly under the standard AutoAttack.

    Its targeted attacks aim at the nine likeliest wrong classes, or at all where there are fewer, and are left out where they are
    undefined. Parameters get no gradient.

    Parameters
    ----------
    images, labels : Tensor
        (n, channels, height, width) in [0, 1] and (n,), with n ≥ 1.
    """
    from pyautoattack import AutoAttack

    options: dict[str, Any] = {"version": "standard"}
    if classes < FEWEST_CLASSES:
        print(f"{run.cell}: AutoAttack's targeted attacks need {FEWEST_CLASSES} classes, not {classes}; left out")
        options = {"version": "custom", "attacks": ["apgd-ce", "square"]}
    with torch.random.fork_rng(), attacking(model):
        images, labels = images.clone(memory_format=torch.contiguous_format), labels.clone()
        seed = derive_seed(run.seed, "autoattack") % 2**31
        attack = AutoAttack(model, eps=run.protocol["attack"]["eps"], norm="Linf", seed=seed, device=images.device, **options)
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return _right(model, attacked, labels)


def _write_layers(run: Run, model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Leave ``layers.csv``: parameter, number of weights, share that exists, in the network's order."""
    rows = ["layer,weights,density"]
    for name, weight in model.named_parameters():
        if weight.ndim in (2, 4):
            share = int(masks[name].count_nonzero()) / weight.numel() if name in masks else 1.0
            rows.append(f"{name.removeprefix('network.').removesuffix('.weight')},{weight.numel()},{share:.6g}")
    write_text(run.results / LAYERS, "\n".join(rows) + "\n")
