"""What a method of adversarial robustness builds: override what you need of :class:`Topology`, and leave the rest.

The training calls, in this order: ``network`` once; ``before`` once (phases ahead of adversarial training); ``stepper`` once;
then the stepper's ``step`` instead of the optimiser's and its ``end_epoch``; ``parts`` and ``end_epoch`` of the topology;
``finish`` at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from atlas.harness.plugin import Plugin
from atlas.tasks.adversarial_robustness.protocol import Network

if TYPE_CHECKING:
    from atlas.tasks.adversarial_robustness.training import Training


class Stepper(Protocol):
    """Takes the optimiser's steps and keeps weights that do not exist at zero."""

    masks: dict[str, Tensor]

    def step(self) -> Any:
        """Take a step; return what changed in the topology (its ``rate``, ``density``, ``pruned``, ``grown``…), or ``None``."""

    def end_epoch(self, *, train_ra: float, val_ra: float, val_loss: float) -> None:
        """Be told how the epoch went: robust accuracies in per cent, loss in nats."""

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""


class DenseStepper:
    """The optimiser alone: every weight exists."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.masks: dict[str, Tensor] = {}

    def step(self) -> None:
        """Take the optimiser's step; the topology never changes."""
        self.optimizer.step()

    def end_epoch(self, *, train_ra: float, val_ra: float, val_loss: float) -> None:
        """Do nothing: the dense network does not depend on how an epoch went."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes besides the optimiser's own state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state besides the optimiser's own."""


class Topology(Plugin):
    """Base of the plug-ins of adversarial robustness; by default the dense network of the protocol.

    Attributes
    ----------
    dense_gradients : bool
        Whether an update of the topology reads the gradients of weights that do not exist, which costs a dense backward pass.
    watches_validation : bool
        Whether it needs the attacked validation images after every epoch: then their cost is the method's own.
    milestones : tuple of int or None
        Epochs at which the learning rate decays, where they differ from the protocol's.
    """

    dense_gradients: bool = False
    watches_validation: bool = False
    milestones: tuple[int, ...] | None = None

    def network(self, settings: Network) -> Network:
        """Return the settings of the network to train."""
        return settings

    def before(self, training: Training) -> None:
        """Train or score ahead of adversarial training, in phases of their own (:meth:`Training.phase`)."""

    def stepper(self, training: Training, optimizer: torch.optim.Optimizer) -> Stepper:
        """Return what takes the optimiser's steps."""
        return DenseStepper(optimizer)

    def parts(self) -> Mapping[str, Any]:
        """State of its own that changes from step to step; see :func:`atlas.harness.resume.training`."""
        return {}

    def end_epoch(self, training: Training, epoch: int) -> None:
        """Act after an epoch, once it has been measured."""

    def finish(self, training: Training) -> None:
        """Change the network after its last epoch, before it is saved and measured."""


class SmallDense(Topology):
    """A dense network with every width scaled: the honest question of whether a smaller network does as well."""

    def network(self, settings: Network) -> Network:
        """Return the settings of the network with all its widths scaled."""
        return settings.model_copy(update={"scale": settings.scale * self.settings.scale})
