"""From a run's dataset and protocol to optimizees: the meta-training problem, and those that are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas.datasets import get_dataset
from atlas.datasets.images import IMAGES
from atlas.datasets.splits import balanced_order, stratified_split
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import pick_device
from atlas.l2o import (
    Examples,
    Optimizee,
    bottleneck_resnet,
    convnet,
    mlp,
    mobilenet_v2,
    quadratic,
    resnet,
    rosenbrock,
    vision_transformer,
)
from atlas.tasks.learned_optimization.protocol import Problem, Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run

Split = tuple[Tensor, Tensor]
HALVES_SEED = 10
"""Of the division between the two sides, as in *Symbolic Learning to Optimize*."""
MIXTURE = {"train": 16384, "val": 1024, "test": 1024}
MIXTURE_CLASSES, MIXTURE_DIMENSION, MIXTURE_PARTS, MIXTURE_SPREAD = 10, 16, 3, 0.9


@dataclass(frozen=True)
class Arena:
    """The optimizees of a run, on its device.

    Attributes
    ----------
    meta : dict
        Examples of the meta-training side: ``train``, ``val``.
    judged : dict
        Examples of the other side: ``train``, ``val``, ``test``.
    """

    protocol: Protocol
    meta: dict[str, Split]
    judged: dict[str, Split]
    device: torch.device

    @cached_property
    def train(self) -> Optimizee:
        """The meta-training problem, on the examples of its side."""
        return self._make("train", self.protocol.train, self.meta)

    @cached_property
    def problems(self) -> dict[str, Optimizee]:
        """The problems that optimizers are judged on, by name, in the protocol's order."""
        return {name: self._make(name, problem, self.judged) for name, problem in self.protocol.problems.items()}

    def steps_per_epoch(self, name: str | None = None) -> int:
        """Updates per epoch of a judged problem, or of the meta-training problem."""
        problem = self.protocol.train if name is None else self.protocol.problems[name]
        optimizee = self.train if name is None else self.problems[name]
        data = getattr(optimizee, "data", None)
        limits = [data.steps_per_epoch if data else None, problem.steps_per_epoch, self.protocol.epoch_steps]
        return min(limit for limit in limits if limit is not None)

    def _make(self, name: str, problem: Problem, splits: dict[str, Split]) -> Optimizee:
        if problem.family == "quadratic":
            return quadratic(problem.dimension, start=1.0, device=self.device)
        if problem.family == "rosenbrock":
            return rosenbrock(problem.dimension, device=self.device)
        if problem.data == "mixture":
            splits = mixture(self.device)
        classes = int(max(int(labels.max()) for _, labels in splits.values())) + 1
        examples = Examples(splits, min(problem.batch_size, len(splits["train"][0])))
        if problem.family == "mlp":
            sizes = (examples["train"][0][0].numel(), *problem.hidden, classes)
            return mlp(sizes, problem.activation, data=examples, init=problem.init, name=name)
        if problem.family == "convnet":
            layers = problem.layers
            return convnet(layers, data=examples, classes=classes, act=problem.activation, init=problem.init, name=name)
        if problem.family == "resnet":
            return resnet(problem.depth, problem.width, data=examples, classes=classes, norm=problem.norm, name=name)
        if problem.family == "bottleneck-resnet":
            return bottleneck_resnet(problem.depth, problem.width, data=examples, classes=classes, init=problem.init, name=name)
        if problem.family == "mobilenet-v2":
            return mobilenet_v2(problem.width, data=examples, classes=classes, init=problem.init, name=name)
        size = {"embed_dim": problem.width, "depth": problem.depth, "num_heads": problem.heads}
        return vision_transformer(data=examples, patch_size=problem.patch_size, classes=classes, name=name, **size)


def load_arena(run: Run) -> Arena:
    """Read a run's dataset and divide it.

    Raises
    ------
    UserError
        The dataset is not one of small images.
    """
    protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    path = run.data_folder / IMAGES
    if not path.is_file():
        raise UserError(f"{run.cell}: {run.data} is not a dataset of small images")
    arrays = read_tensors(path)
    top = float(get_dataset(run.data).facts["top"])  # type: ignore[arg-type]

    def ready(images: Tensor, labels: Tensor) -> Split:
        return (images.float() / top - protocol.data.shift).to(device), labels.to(device)

    sides = divide(protocol, arrays)
    meta, judged = ({name: ready(*split) for name, split in side.items()} for side in sides)
    if run.limit is not None:
        meta = {name: _repeated(split, protocol.train.batch_size) for name, split in meta.items()}
    return Arena(protocol, meta, judged, device)


def divide(protocol: Protocol, arrays: dict[str, Tensor]) -> tuple[dict[str, Split], dict[str, Split]]:
    """Divide images (n, …) and labels (n,) into the splits of the meta-training side and of the judged side.

    The division is stratified, and the same for all seeds.
    """
    settings = protocol.data
    whole = (arrays["train_images"], arrays["train_labels"])
    if settings.limit:
        first = torch.from_numpy(balanced_order(whole[1].numpy())[: settings.limit])
        whole = whole[0][first], whole[1][first]
    judged, meta = (whole, whole) if settings.shared else _split(whole, settings.meta_fraction, HALVES_SEED)
    if "test_images" in arrays:
        test = (arrays["test_images"], arrays["test_labels"])
    else:
        judged, test = _split(judged, settings.test_fraction, HALVES_SEED + 1)
        meta = judged if settings.shared else meta
    sides = []
    for side in (meta, judged):
        train, val = _split(side, settings.validation_fraction, HALVES_SEED + 2)
        sides.append({"train": train, "val": val})
    sides[1]["test"] = test
    return sides[0], sides[1]


def _repeated(split: Split, count: int) -> Split:
    """So many examples, over and over the same: a rehearsal's few are less than the mini-batch that it is to make a step on."""
    index = torch.arange(count, device=split[1].device) % len(split[1])
    return split[0][index], split[1][index]


def _split(whole: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    kept, held = stratified_split(whole[1].numpy(), fraction, seed)
    return (whole[0][kept], whole[1][kept]), (whole[0][held], whole[1][held])


def mixture(device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Split]:
    """A classification problem without end: every class is a mixture of Gaussians around centres drawn once."""
    gen = torch.Generator().manual_seed(seed)
    centres = torch.randn(MIXTURE_CLASSES, MIXTURE_PARTS, MIXTURE_DIMENSION, generator=gen)
    splits = {}
    for name, count in MIXTURE.items():
        labels = torch.randint(MIXTURE_CLASSES, (count,), generator=gen)
        parts = torch.randint(MIXTURE_PARTS, (count,), generator=gen)
        noise = MIXTURE_SPREAD * torch.randn(count, MIXTURE_DIMENSION, generator=gen)
        splits[name] = ((centres[labels, parts] + noise).to(device), labels.to(device))
    return splits
