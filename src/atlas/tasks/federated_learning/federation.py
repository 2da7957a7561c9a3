"""What a method is to the task: something that runs rounds, and deploys models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atlas.harness.plugin import Plugin
from atlas.tasks.federated_learning.data import FederatedData
from atlas.tasks.federated_learning.protocol import Protocol


@dataclass(frozen=True)
class ClientCosts:
    """What a round costs one client.

    Attributes
    ----------
    upload_parameters : int
        Numbers that it sends; it receives as many.
    image_macs : float
        Multiply–accumulates per training image: all networks that it trains, forward, backward and attacks.
    within_budget : bool
        Whether nothing that it trains is wider than its budget.
    """

    upload_parameters: int
    image_macs: float
    within_budget: bool


class Federation(Plugin, ABC):
    """Base of the plug-ins of federated learning.

    A round must follow from the state (:meth:`state_dict`), the protocol and the seed alone.
    """

    @property
    @abstractmethod
    def widths(self) -> tuple[float, ...]:
        """Widths of the models that it serves, ascending; the last one is its headline."""

    @property
    def lams(self) -> tuple[float, ...]:
        """Trade-offs of clean and robust accuracy that it serves; empty for a method without such a knob."""
        return ()

    @property
    def trains_with_attacks(self) -> bool:
        """Whether training attacks; then accuracy under attack is among its metrics."""
        return False

    @property
    def robust_weight(self) -> float:
        """Weight of accuracy under attack in the validation score: 0 for methods that train without attacks."""
        return 0.0

    @property
    def personal(self) -> bool:
        """Whether clients keep parts of the model to themselves, so that each has a model of its own."""
        return False

    @abstractmethod
    def start(self, data: FederatedData, protocol: Protocol, device: torch.device, seed: int) -> None:
        """Take over the clients' data and the protocol, and make the initial model."""

    @abstractmethod
    def round(self) -> dict[str, float]:
        """Run the next round; returns what its curves show, the loss first."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from round to round."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the model at the end: tensors of any shapes (…), by name."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the trained model again from what :meth:`tensors` returned, tensors of any shapes (…)."""

    @abstractmethod
    def deploy(self, width: float, lam: float | None = None, client: int | None = None) -> nn.Module:
        """Return a model in evaluation mode; ``client`` names whose it is, where they differ."""

    def deploy_for(self, kind: Literal["clean", "noise"], client: int | None = None) -> nn.Module:
        """Return the widest model as validation uses it on clean (``clean``) or attacked (``noise``) inputs."""
        return self.deploy(self.widths[-1], client=client)

    @abstractmethod
    def costs(self, client: int) -> ClientCosts:
        """Return what one round of training costs a client in work and traffic."""
