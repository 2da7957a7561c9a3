"""The rounds of a run: training, validation, and the choice of the round that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from atlas.harness.files import write_tensors
from atlas.harness.resume import training
from atlas.harness.seeds import generator, pick_device
from atlas.nn.attacks import PGD
from atlas.nn.work import VALIDATION, work
from atlas.tasks.federated_learning.data import FederatedData, LabelledImages, load_data
from atlas.tasks.federated_learning.federation import Federation
from atlas.tasks.federated_learning.protocol import Attack, Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run

PIXEL = 1 / 255
NEARLY = 0.95
"""Convergence is counted in rounds until this share of the final validation accuracy."""


def pgd(attack: Attack, steps: int) -> PGD:
    """The protocol's attack with a number of steps."""
    step = min(1.25 * attack.eps, attack.eps + 4 * PIXEL) / steps
    return PGD(attack.eps, step or 1.0, steps)


@torch.no_grad()
def correct(model: nn.Module, examples: LabelledImages, size: int, attack: PGD | None = None, seed: int = 0) -> int:
    """Number of examples that a model gets right, attacked first where there is an attack.

    The attack sees the very model that is tested; its random starts follow from ``seed`` and the place of the batch.
    """
    right = 0
    for index, (images, labels) in enumerate(examples.batches(size)):
        if attack is not None:
            images = attack(model, images, labels, generator=generator(seed, "test attack", index))
        right += int((model(images).argmax(1) == labels).sum())
    return right


class Best:
    """The kept model: of the round with the best validation score, or of the last one. A part of the resume state."""

    def __init__(self, select: bool) -> None:
        self.select = select
        self.score, self.round = -1.0, 0
        self.tensors: dict[str, Tensor] = {}

    def offer(self, score: float, index: int, tensors: dict[str, Tensor]) -> None:
        """Keep these weights (…) if they are better, or if the last round is to be kept."""
        if score > self.score or not self.select:
            self.score, self.round = score, index
            self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the score, round and weights of the kept model, as a state to save."""
        return {"score": self.score, "round": self.round, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the kept model from what :meth:`state_dict` returned."""
        self.score, self.round, self.tensors = state["score"], state["round"], state["tensors"]


def validation(method: Federation, data: FederatedData, protocol: Protocol, seed: int) -> dict[str, float]:
    """Mean over clients of the widest model's accuracy on their validation parts; under attack too for robust methods."""

    def mean(kind: Literal["clean", "noise"], attack: PGD | None) -> float:
        total = 0.0
        shared = None if method.personal else method.deploy_for(kind)
        for index, member in enumerate(data.members):
            model = method.deploy_for(kind, index) if shared is None else shared
            part = member.validation
            total += correct(model, part, protocol.test_batch_size, attack, seed) / len(part)
        return total / len(data.members)

    scores = {"validation_accuracy": mean("clean", None)}
    if method.robust_weight and protocol.attack is not None:
        scores["validation_robust"] = mean("noise", pgd(protocol.attack, protocol.attack.train_steps))
    return scores


def train(run: Run) -> dict[str, float]:
    """Run all rounds of a run, and write the kept model and the curves.

    Returns
    -------
    dict
        The validation score of the kept round, that round, the convergence of the validation curve, how many clients there are,
        and how many images all of them train on and hold out.
    """
    protocol: Protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    data = load_data(run, protocol, device)
    (method,) = run.build()
    method.start(data, protocol, device, run.seed)
    best = Best(protocol.select_best)
    loop = training(run, protocol.rounds, {"federation": method, "best": best})
    for index in loop:
        values = method.round()
        last = index + 1 == loop.total
        if last or (index + 1) % protocol.validate_every == 0:
            with work(VALIDATION):
                scores = validation(method, data, protocol, run.seed)
            values |= scores
            weight = method.robust_weight
            score = (1 - weight) * scores["validation_accuracy"] + weight * scores.get("validation_robust", 0.0)
            if last or protocol.select_best:
                best.offer(score, index + 1, method.tensors())
        loop.log(**values)
    write_tensors(run.weights, best.tensors)
    curve = [(row["step"], row["validation_accuracy"]) for row in loop.history.rows if "validation_accuracy" in row]
    counted = {
        "clients": len(data.members),
        "images": sum(protocol.trained(len(member.train)) for member in data.members),
        "validation_images": sum(len(member.validation) for member in data.members),
    }
    return {"validation_score": best.score, "kept_round": best.round, **counted, **convergence(curve)}


def convergence(curve: list[tuple[float, float]]) -> dict[str, float]:
    """Rounds until the curve first has 95 % of its last value, and its mean height (the area under it, per round)."""
    final = curve[-1][1]
    area = before = 0.0
    for step, value in curve:
        area += (step - before) * value
        before = step
    return {
        "rounds_to_95": next(step for step, value in curve if value >= NEARLY * final),
        "curve_area": area / before,
    }
