"""The federation: rounds of local training and aggregation, for Split-Mix and for the methods that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from atlas.methods.split_mix.adversary import PGD
from atlas.methods.split_mix.local import (
    Augmentation,
    ClientBatches,
    LocalOptions,
    LossName,
    as_images,
    batch_sizes,
    check_samples,
    checked_sizes,
    seeded,
)
from atlas.methods.split_mix.model import PrefixModel, SplitMix
from atlas.methods.split_mix.networks import WidthFactory
from atlas.methods.split_mix.norms import NormSpec
from atlas.methods.split_mix.widths import Execution, base_count

Method = Literal["split-mix", "fedavg", "heterofl", "sheterofl"]
METHODS = ("split-mix", "fedavg", "heterofl", "sheterofl")
DECAY = 0.1
BATCH_NORM = NormSpec()


@dataclass(frozen=True)
class Client:
    """One client's training data and the widest network that it can train.

    Attributes
    ----------
    inputs, labels : Tensor
        (n, …) in [0, 1], or bytes, of one shape and type in a whole federation; and (n,) class indices of any whole type.
    budget : float
        Width R in (0, 1].
    """

    inputs: Tensor
    labels: Tensor
    budget: float = 1.0


@dataclass(frozen=True)
class FitResult:
    """What a federation ends with: the model (it has ``customize(width)``), and one row of numbers per round."""

    model: SplitMix | PrefixModel
    history: list[dict[str, float]]


class Server(Protocol):
    """What holds the global weights and knows how a round of its method goes."""

    def round(self, participants: Sequence[int], batches: Batches, options: LocalOptions) -> float:
        """Train one round; returns the mean loss."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Global weights, and what stays on clients."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take weights over."""
        ...

    def model(self, client: int | None = None) -> SplitMix | PrefixModel:
        """A model with the present weights; of one client where norms are local."""
        ...


@dataclass(frozen=True)
class Batches:
    """Groups clients whose minibatches have the same sizes, and seeds their order."""

    clients: Sequence[Client]
    batch_size: int
    drop_last: bool
    augment: Augmentation | None
    seed: int
    round: int

    def groups(self, participants: Sequence[int], networks: Mapping[int, int], limit: int | None) -> Iterator[list[int]]:
        """Yield lists of clients to train at once: alike in their minibatches, at most ``limit`` networks together."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for client in participants:
            sizes = batch_sizes(len(self.clients[client].labels), self.batch_size, self.drop_last)
            alike.setdefault(sizes, []).append(client)
        for members in alike.values():
            group: list[int] = []
            for client in members:
                if group and limit is not None and sum(networks[one] for one in (*group, client)) > limit:
                    yield group
                    group = []
                group.append(client)
            yield group

    def of(self, group: Sequence[int], owners: Sequence[int]) -> ClientBatches:
        """Minibatches of a group."""
        members = [self.clients[client] for client in group]
        return ClientBatches(
            [client.inputs for client in members],
            [client.labels for client in members],
            self.batch_size,
            [seeded(self.seed, self.round, client) for client in group],
            owners,
            self.drop_last,
            self.augment,
        )


@dataclass
class FedTrainer:
    """Federated training of one method over all its clients.

    Parameters
    ----------
    method : {"split-mix", "fedavg", "heterofl", "sheterofl"}
        ``fedavg`` trains one network of ``width`` on all clients, whatever their budgets.
    factory : WidthFactory
        Makes a network of any width.
    rounds, epochs, batch_size : int
        Rounds T, and epochs E and minibatch b of a client's round.
    lr, schedule : float, str or tuple
        Learning rate of the first round; constant, half a cosine over the rounds, or × 0.1 at given rounds.
    norm : NormSpec
        Normalisation; its statistics also say what is aggregated.
    adversary, lam : PGD, float
        Adversarial training with this weight of the attacked loss.
    atom : float
        Width of Split-Mix's base networks.
    widths : tuple of float
        Widths that Slimmable HeteroFL's clients train, up to their budgets; duplicates count once.
    rescale_init, rescale_layer : bool
        See :class:`SplitMix`. The former is of Split-Mix alone; the latter also divides the hidden layers of prefixes, and of
        FedAvg's network, by their width in training, and leaves classifiers alone.
    clients_per_round : int, optional
        Sampled uniformly without replacement, at most as many as there are; all of them if left out.
    weigh_by_widths : bool
        The authors' code uploads a Slimmable client once per width that it trained; this does so too, to compare with it.
    execution, stack_limit
        How networks of a round run, and how many at once (memory); the numbers are the same up to rounding.
    seed : int
        Of initialisation, sampling and data order.
    """

    method: Method
    factory: WidthFactory
    rounds: int = 300
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.1
    schedule: str | Sequence[int] = "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    loss: LossName = "ce"
    temperature: float = 1.0
    norm: NormSpec = BATCH_NORM
    adversary: PGD | None = None
    lam: float = 0.5
    atom: float = 0.125
    width: float = 1.0
    widths: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    rescale_init: bool = True
    rescale_layer: bool = False
    clients_per_round: int | None = None
    weigh_by_widths: bool = False
    drop_last: bool = False
    augment: Augmentation | None = None
    execution: Execution = "auto"
    stack_limit: int | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    completed: int = field(default=0, init=False)
    history: list[dict[str, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        for name in ("rounds", "epochs", "batch_size", "clients_per_round", "stack_limit"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, not {value}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if isinstance(self.schedule, str) and self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant, cosine or a list of rounds, not {self.schedule!r}")
        self._pending: dict[str, Any] | None = None

    @torch.inference_mode(False)
    def start(self, clients: Sequence[Client]) -> FedTrainer:
        """Meet the clients and initialise the global weights, or go on from a state that was loaded before.

        Raises
        ------
        TypeError
            A client is no :class:`Client`, or its inputs or labels are no tensors.
        ValueError
            There are no clients, or fewer than take part in a round. Or, naming the client: it has no samples, too few for a
            minibatch, inputs that are not finite, outside the box of the attack or unlike those of other clients, labels that the
            network does not have, or a budget that holds no network. Or the network cannot train on such inputs.
        """
        met = list(clients)
        if not met:
            raise ValueError("a federation needs clients")
        if self.clients_per_round is not None and self.clients_per_round > len(met):
            raise ValueError(f"clients_per_round is {self.clients_per_round}, and the federation has {len(met)} clients")
        for index, client in enumerate(met):
            if not isinstance(client, Client):
                raise TypeError(f"client {index} is a {type(client).__name__}: Client(inputs, labels, budget) is needed")
            self._check(index, client, met[0])
        self.clients = [
            replace(one, inputs=one.inputs.detach().to(self.device), labels=one.labels.to(self.device).long()) for one in met
        ]
        sizes = np.array([len(client.labels) for client in self.clients], dtype=np.float64)
        self.weights = sizes / sizes.sum()
        self.server = self._server()
        self._check_labels(self._classes())
        if self._pending is not None:
            self._restore(self._pending)
        return self

    def _check(self, index: int, client: Client, first: Client) -> None:
        check_samples(index, client.inputs, client.labels, first.inputs)
        checked_sizes(index, len(client.labels), self.batch_size, self.drop_last)
        low, high = (float(as_images(value)) for value in client.inputs.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"client {index} has inputs that are not finite numbers")
        attack = self.adversary
        if attack is not None and not attack.lo <= low <= high <= attack.hi:
            box = f"[{attack.lo:g}, {attack.hi:g}]"
            raise ValueError(f"client {index} has inputs in [{low:g}, {high:g}], outside the box {box} of the attack")
        if not 0 < client.budget <= 1:
            raise ValueError(f"client {index} has the budget {client.budget}, outside (0, 1]")
        if self.method == "split-mix" and base_count(client.budget, self.atom) < 1:
            raise ValueError(f"client {index} cannot host one base: its budget is {client.budget:g}, a base has {self.atom:g}")
        if self.method in ("heterofl", "sheterofl") and client.budget < min(self.widths):
            raise ValueError(f"client {index} cannot host the width {min(self.widths):g}: its budget is {client.budget:g}")

    def _classes(self) -> int:
        """Number of classes of the network, which a pass over the smallest minibatch of all clients tells."""
        width = self.atom if self.method == "split-mix" else self.server.model().width
        inputs = self.clients[0].inputs
        count = min(min(batch_sizes(len(one.labels), self.batch_size, self.drop_last)) for one in self.clients)
        probe = as_images(inputs[: min(count, 2)])  # batch norm tells one from more
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits = self.factory(width, norm=self.norm).to(self.device).train()(probe)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            what = f"{count} input{'s' if count > 1 else ''} of the shape {tuple(inputs.shape[1:])} and {probe.dtype}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the network cannot train on minibatches of {what}: {reason}") from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(probe):
            found = f"the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the network returns {found} for {len(probe)} inputs, and not logits (batch, classes)")
        return logits.shape[1]

    def _check_labels(self, classes: int) -> None:
        for index, client in enumerate(self.clients):
            low, high = int(client.labels.min()), int(client.labels.max())
            if low < 0 or high >= classes:
                raise ValueError(f"client {index} has labels {low} … {high}; the network has the classes 0 … {classes - 1}")

    def _server(self) -> Any:
        from atlas.methods.split_mix.servers import PrefixServer, SplitMixServer

        return SplitMixServer(self) if self.method == "split-mix" else PrefixServer(self)

    def learning_rate(self, index: int) -> float:
        """Learning rate of a round, from its index alone."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return 0.5 * self.lr * (1 + math.cos(math.pi * index / self.rounds))
        return self.lr * DECAY ** sum(index >= int(milestone) for milestone in self.schedule)

    def participants(self, index: int) -> list[int]:
        """Clients of a round, ascending."""
        count = len(self.clients)
        if self.clients_per_round is None or self.clients_per_round == count:
            return list(range(count))
        rng = np.random.default_rng([self.seed, 1, index])
        return sorted(int(client) for client in rng.choice(count, self.clients_per_round, replace=False))

    @torch.inference_mode(False)
    def round(self) -> dict[str, float]:
        """Run the next round; returns its loss and learning rate."""
        index = self.completed
        lr = self.learning_rate(index)
        options = LocalOptions(
            lr, self.epochs, self.momentum, self.weight_decay, self.loss, self.adversary, self.lam, self.temperature
        )
        batches = Batches(self.clients, self.batch_size, self.drop_last, self.augment, self.seed, index)
        loss = self.server.round(self.participants(index), batches, options)
        self.completed += 1
        self.history.append({"round": index + 1, "loss": loss, "learning_rate": lr})
        return self.history[-1]

    def fit(self, clients: Sequence[Client], path: str | Path | None = None, save_every: int = 10) -> FitResult:
        """Run all rounds that are left.

        Parameters
        ----------
        path : Path, optional
            Where to save the state every ``save_every`` rounds, for :meth:`resume`.
        """
        self.start(clients)
        while self.completed < self.rounds:
            self.round()
            if path is not None and (self.completed % save_every == 0 or self.completed == self.rounds):
                self.save(path)
        return FitResult(self.server.model(), self.history)

    def model(self, client: int | None = None) -> nn.Module:
        """The model with the present global weights, or with one client's own norms."""
        return self.server.model(client)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rounds depend on, as tensors and plain values."""
        return {
            "completed": self.completed,
            "history": [dict(row) for row in self.history],
            "tensors": {name: tensor.detach().clone() for name, tensor in self.server.tensors().items()},
            "scheduler": self.server.scheduler_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; before :meth:`start` the state waits until the clients are there."""
        if hasattr(self, "server"):
            self._restore(state)
        else:
            self._pending = state

    @torch.inference_mode(False)
    def _restore(self, state: dict[str, Any]) -> None:
        self.completed = int(state["completed"])
        self.history = [dict(row) for row in state["history"]]
        self.server.load_tensors({name: tensor.to(self.device) for name, tensor in state["tensors"].items()})
        self.server.load_scheduler_state(state["scheduler"])
        self._pending = None

    def save(self, path: str | Path) -> None:
        """Save the state, whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        torch.save(self.state_dict(), partial)
        partial.replace(path)

    def resume(self, path: str | Path) -> FedTrainer:
        """Load a saved state; :meth:`fit` with the same clients then ends as if nothing had happened."""
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return self
