"""The protocol of learned optimization: what optimizers are trained on, and what they are judged on."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import model_validator

from atlas.l2o.settings import Tuning
from atlas.settings import Count, Natural, Positive, Settings

Part = Annotated[float, Gt(0), Lt(1)]
"""A share that is neither nothing nor all."""

FUNCTIONS = ("quadratic", "rosenbrock")


class Problem(Settings):
    """One optimizee.

    ``hidden`` belongs to ``mlp``; ``layers`` to ``convnet``: (channels, kernel), or the word pool; ``depth``, ``width`` and
    ``norm`` to ``resnet``, the small one of CIFAR; ``depth`` (50, 101 or 152) and ``width`` to ``bottleneck-resnet``, and
    ``width`` to ``mobilenet-v2``, both torchvision's with a stem for small images; ``patch_size``, ``width``, ``depth`` and
    ``heads`` to ``vit``; ``dimension`` to functions. ``data`` is the benchmark's own images, or ``mixture``: examples generated
    on the fly, so many that none repeats. Functions have no epochs: theirs are as many steps as ``steps_per_epoch`` says; for
    networks it cuts the epoch.
    """

    family: Literal["mlp", "convnet", "resnet", "bottleneck-resnet", "mobilenet-v2", "vit", "quadratic", "rosenbrock"] = "mlp"
    data: Literal["own", "mixture"] = "own"
    hidden: tuple[Natural, ...] = (20,)
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    layers: tuple[tuple[Natural, Natural] | Literal["pool"], ...] = ((16, 3), "pool", (32, 5), "pool")
    depth: Natural = 20
    width: Natural = 1
    norm: Literal["batch", "group"] = "batch"
    patch_size: Natural = 4
    heads: Natural = 3
    dimension: Natural = 10
    init: str = "default"
    batch_size: Natural = 128
    steps_per_epoch: Natural | None = None

    @property
    def is_function(self) -> bool:
        """Whether it is a test function rather than a network."""
        return self.family in FUNCTIONS


class Data(Settings):
    """How examples are divided.

    Of the training examples ``meta_fraction`` serve to train or tune optimizers, the others train what these are judged on; the
    division is the same for all seeds. With ``shared`` both use all, as Optimizer Amalgamation does. Each side holds
    ``validation_fraction`` of its examples out. The test split is the dataset's, or ``test_fraction`` of the judged side. Pixels
    are in [0, 1], less ``shift``; ``limit`` keeps that many training examples, of
    every class as many as its share.
    """

    meta_fraction: Part = 0.5
    shared: bool = False
    validation_fraction: Part = 0.2
    test_fraction: Part = 0.2
    shift: float = 0.0
    limit: Natural | None = None


PUBLISHED = {
    "home": Problem(family="convnet", init="glorot"),
    "wider": Problem(family="convnet", layers=((32, 3), "pool", (64, 5), "pool"), init="glorot"),
    "mlp": Problem(family="mlp", activation="sigmoid", init="glorot"),
}


class Protocol(Settings):
    """What every row of a table shares. Defaults are those of Optimizer Amalgamation (Huang et al., ICLR 2022).

    ``train`` is the meta-training problem. The first of ``problems`` is at home: the same architecture with other starts (and
    other examples). Each is run from ``inits`` starts for ``epochs`` epochs. ``warmup_steps`` of plain SGD come before every
    optimizer, learned or not, so that none has an advantage. ``epoch_steps`` cuts every epoch, for rehearsals.
    """

    train: Problem = Problem(family="convnet", init="glorot")
    problems: Annotated[dict[str, Problem], MinLen(3)] = PUBLISHED
    data: Data = Data()
    tuning: Tuning = Tuning()
    epochs: Natural = 25
    inits: Annotated[int, Ge(1), Le(100)] = 10
    warmup_steps: Count = 100
    warmup_lr: Positive = 0.05
    epoch_steps: Natural | None = None

    @model_validator(mode="after")
    def _networks(self) -> Protocol:
        if self.train.is_function or self.home.is_function:
            raise ValueError("the meta-training problem and the first of problems must be networks")
        if len(self.transfer) < 2:
            raise ValueError("problems must hold at least two networks after the first, to judge transfer on")
        return self

    @property
    def home(self) -> Problem:
        """The problem with the meta-training architecture."""
        return next(iter(self.problems.values()))

    @property
    def transfer(self) -> list[str]:
        """Names of the networks after the first."""
        return [name for name, problem in list(self.problems.items())[1:] if not problem.is_function]
