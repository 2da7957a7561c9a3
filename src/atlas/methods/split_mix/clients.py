"""Who takes part in a federation, with which data, and by which rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch

from atlas.methods.split_mix.adapting import CONTRACT
from atlas.methods.split_mix.adversary import PGD
from atlas.methods.split_mix.local import Augmentation, ClientBatches, batch_sizes, client_seed
from atlas.methods.split_mix.norms import NormSpec
from atlas.methods.split_mix.settings import Execution, FederatedSettings, LocalSettings, LossName, Method
from atlas.methods.split_mix.stacks import check_execution
from atlas.nn.examples import as_tensor, gathered, require_numbers
from atlas.nn.kinds import require_kind, require_sequence

METHODS = get_args(Method)
BATCH_NORM = NormSpec()
FEDERATED, LOCAL = FederatedSettings(), LocalSettings()


@dataclass(frozen=True)
class Client:
    """One client's training data and the widest network that it can train.

    Attributes
    ----------
    inputs, labels : Tensor
        (n, …) in [0, 1], or bytes, of one shape and type in a whole federation; and (n,) class indices of any whole type. NumPy
        arrays become tensors. A dataset of pairs, or a loader, in the place of ``inputs`` brings its own labels:
        ``Client(dataset, budget=0.5)``.
    budget : float
        Width R in (0, 1].

    Raises
    ------
    TypeError
        Inputs or labels are none of these, or the budget is no number.
    """

    inputs: Any
    labels: Any = None
    budget: float = 1.0

    def __post_init__(self) -> None:
        """Make tensors of what is given."""
        require_numbers(**{"a client's budget": self.budget})
        if np.ndim(self.budget):
            raise TypeError(f"a client's budget must be a number, not {np.shape(self.budget)} of them")
        if self.labels is None:
            inputs, labels = gathered(self.inputs, "a client's data")
        else:
            inputs, labels = as_tensor(self.inputs, "a client's inputs"), as_tensor(self.labels, "a client's labels")
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "labels", labels)


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
                if group and limit is not None and sum(networks[member] for member in (*group, client)) > limit:
                    yield group
                    group = []
                group.append(client)
            yield group

    def of(self, group: Sequence[int], owners: Sequence[int]) -> ClientBatches:
        """Minibatches of a group of clients; ``owners`` says on whose of them each network of a stack trains."""
        members = [self.clients[client] for client in group]
        return ClientBatches(
            [client.inputs for client in members],
            [client.labels for client in members],
            self.batch_size,
            [client_seed(self.seed, self.round, client) for client in group],
            owners,
            self.drop_last,
            self.augment,
        )


@dataclass
class Rules:
    """What a federation is told, before and when its clients are there; see :class:`.federation.FedTrainer`.

    Parameters
    ----------
    method : {"split-mix", "fedavg", "heterofl", "sheterofl"}
        ``fedavg`` trains one network of ``width`` on all clients, whatever their budgets.
    factory : WidthFactory, nn.Module or callable
        Makes a network of any width. An ordinary network, or what makes one without arguments, becomes so by
        :func:`.adapting.by_width`, with the first client's inputs as the example.
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
    factory: Any
    rounds: int = 300
    epochs: int = LOCAL.epochs
    batch_size: int = 32
    lr: float = LOCAL.lr
    schedule: str | Sequence[int] = "constant"
    momentum: float = LOCAL.momentum
    weight_decay: float = LOCAL.weight_decay
    loss: LossName = LOCAL.loss
    temperature: float = LOCAL.temperature
    norm: NormSpec = BATCH_NORM
    adversary: PGD | None = None
    lam: float = LOCAL.lam
    atom: float = FEDERATED.atom
    width: float = FEDERATED.width
    widths: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    rescale_init: bool = FEDERATED.rescale_init
    rescale_layer: bool = False
    clients_per_round: int | None = None
    weigh_by_widths: bool = False
    drop_last: bool = False
    augment: Augmentation | None = None
    execution: Execution = "auto"
    stack_limit: int | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    clients: list[Client] = field(default_factory=list, init=False, repr=False, compare=False)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no federation can be told; what clients are told is checked by :class:`.local.LocalOptions`."""
        if not callable(self.factory):  # a module is
            raise TypeError(f"the network is a {type(self.factory).__name__}: {CONTRACT}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        check_execution(self.execution)
        require_numbers(lr=self.lr, atom=self.atom, width=self.width, seed=self.seed)
        require_sequence("a sequence of widths", widths=self.widths)
        require_numbers(**{f"widths[{index}]": width for index, width in enumerate(self.widths)})
        require_kind(NormSpec, "a NormSpec", norm=self.norm)
        if self.adversary is not None:
            require_kind(PGD, "a PGD", adversary=self.adversary)
        for name in ("rounds", "epochs", "batch_size", "clients_per_round", "stack_limit"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, not {value}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        named = isinstance(self.schedule, str) and self.schedule in ("constant", "cosine")
        listed = isinstance(self.schedule, Sequence) and all(isinstance(milestone, Integral) for milestone in self.schedule)
        if not (named or listed):
            raise ValueError(f"schedule must be constant, cosine or a list of rounds, not {self.schedule!r}")
