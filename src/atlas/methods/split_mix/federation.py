"""The federation: rounds of local training and aggregation, for Split-Mix and for the methods that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from atlas.methods.split_mix.adapting import by_width, takes_width
from atlas.methods.split_mix.clients import Batches, Client, Rules
from atlas.methods.split_mix.local import LocalOptions, as_images, batch_sizes, check_classes, check_samples, checked_sizes
from atlas.methods.split_mix.model import PrefixModel, SplitMix
from atlas.methods.split_mix.servers import PrefixServer, SplitMixServer
from atlas.methods.split_mix.widths import base_count
from atlas.nn.bars import Bar
from atlas.nn.kinds import require_sequence

DECAY = 0.1


@dataclass(frozen=True)
class FitResult:
    """What a federation ends with: the model (it has ``customize(width)``), and one row of numbers per round."""

    model: SplitMix | PrefixModel
    history: list[dict[str, float]]


@dataclass
class FedTrainer(Rules):
    """Federated training of one method over all its clients; the parameters are those of :class:`.clients.Rules`."""

    completed: int = field(default=0, init=False)
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    _pending: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what neither a federation nor its clients can be told."""
        super().__post_init__()
        self._options(self.lr)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what is missing: what a federation has when it has started."""
            if name in ("clients", "server", "weights"):
                raise AttributeError(f"the federation has no {name} yet: call start(clients) or fit(clients) first")
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _options(self, lr: float) -> LocalOptions:
        """What clients are told in a round."""
        return LocalOptions.chosen(**{**{name: getattr(self, name) for name in LocalOptions.model_fields}, "lr": lr})

    @torch.inference_mode(False)
    def start(self, clients: Sequence[Client]) -> FedTrainer:
        """Check the clients' data and initialise the global weights, or go on from a state that was loaded before.

        A federation that has been started already begins anew.

        Raises
        ------
        TypeError
            A client is no :class:`Client`; or the network can be made for no other width, see :func:`.adapting.by_width`.
        ValueError
            There are no clients, or fewer than take part in a round. Or, naming the client: it has no samples, too few for a
            minibatch, inputs that are not finite, outside the box of the attack or unlike those of other clients, labels that the
            network does not have, or a budget that holds no network. Or the network cannot train on such inputs.
        """
        require_sequence("a list of clients", clients=clients)
        met = list(clients)
        if not met:
            raise ValueError("a federation needs clients")
        if self.clients_per_round is not None and self.clients_per_round > len(met):
            raise ValueError(f"clients_per_round is {self.clients_per_round}, and the federation has {len(met)} clients")
        for index, client in enumerate(met):
            if not isinstance(client, Client):
                raise TypeError(f"client {index} is a {type(client).__name__}: Client(inputs, labels, budget) is needed")
            self._check(index, client, met[0])
        for name in ("clients", "weights", "server"):
            vars(self).pop(name, None)
        try:
            self._begin(met)
        except BaseException:
            vars(self).pop("server", None)  # it has not started
            raise
        return self

    def _begin(self, met: list[Client]) -> None:
        self.clients = [
            replace(client, inputs=client.inputs.detach().to(self.device), labels=client.labels.to(self.device).long())
            for client in met
        ]
        sizes = np.array([len(client.labels) for client in self.clients], dtype=np.float64)
        self.weights = sizes / sizes.sum()
        if not takes_width(self.factory):
            with torch.random.fork_rng(devices=[]):  # all weights are drawn anew
                self.factory = by_width(self.factory, as_images(self.clients[0].inputs[:2]))
        self.server = self._server()
        self.completed, self.history = 0, []
        check_classes([client.labels for client in self.clients], self._classes())
        if self._pending is not None:
            self._restore(self._pending)

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
        width = self.server.width if isinstance(self.server, PrefixServer) else self.atom
        inputs = self.clients[0].inputs
        count = min(min(batch_sizes(len(client.labels), self.batch_size, self.drop_last)) for client in self.clients)
        probe = as_images(inputs[: min(count, 2)])  # batch norm tells one from more
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits = self.factory(width, norm=self.norm).to(self.device).train()(probe)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            what = f"{count} input{'s' if count > 1 else ''} of the shape {tuple(inputs.shape[1:])} and {probe.dtype}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the network cannot train on minibatches of {what}: {reason}") from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(probe):
            output = f"the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the network returns {output} for {len(probe)} inputs, and not logits (batch, classes)")
        return logits.shape[1]

    def _server(self) -> SplitMixServer | PrefixServer:
        return SplitMixServer(self) if self.method == "split-mix" else PrefixServer(self)

    def learning_rate(self, index: int) -> float:
        """Learning rate of a round, from its index alone."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return 0.5 * self.lr * (1 + math.cos(math.pi * index / self.rounds))
        return self.lr * DECAY ** sum(index >= int(milestone) for milestone in self.schedule)

    def participants(self, index: int) -> list[int]:
        """Indices of the clients that take part in a round, ascending; drawn from the seed and the round alone."""
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
        options = self._options(lr)
        batches = Batches(self.clients, self.batch_size, self.drop_last, self.augment, self.seed, index)
        loss = self.server.round(self.participants(index), batches, options)
        self.completed += 1
        self.history.append({"round": index + 1, "loss": loss, "learning_rate": lr})
        return self.history[-1]

    def fit(
        self, clients: Sequence[Client], path: str | Path | None = None, save_every: int = 10, *, progress: bool | None = None
    ) -> FitResult:
        """Run all rounds that are left: of a federation that has been started, with the same clients, or else of a new one.

        Parameters
        ----------
        path : Path, optional
            Where to save the state every ``save_every`` rounds, for :meth:`resume`.
        progress : bool, optional
            Whether to draw a bar; by default on a terminal.

        Raises
        ------
        TypeError, ValueError
            As :meth:`start` does; or the federation has been started with other clients.
        """
        if hasattr(self, "server"):
            self._check_same(clients)
        else:
            self.start(clients)
        with Bar(self.method, self.rounds, progress, done=self.completed) as bar:
            while self.completed < self.rounds:
                bar.advance({"loss": self.round()["loss"]})
                if path is not None and (self.completed % save_every == 0 or self.completed == self.rounds):
                    self.save(path)
        return FitResult(cast("SplitMix | PrefixModel", self.model()), self.history)

    def _check_same(self, clients: Sequence[Client]) -> None:
        """Refuse to go on with other clients than those of the rounds before."""
        require_sequence("a list of clients", clients=clients)
        if len(clients) != len(self.clients):
            raise ValueError(
                f"the federation was started with {len(self.clients)} clients, not {len(clients)}: start(clients) begins anew"
            )
        for index, (known, given) in enumerate(zip(self.clients, clients, strict=True)):
            same = isinstance(given, Client) and known.budget == given.budget and known.inputs.shape == given.inputs.shape
            if not (same and _alike(known.inputs, given.inputs) and _alike(known.labels, given.labels)):
                raise ValueError(
                    f"client {index} is not the one that the federation was started with: start(clients) begins anew"
                )

    @torch.inference_mode(False)
    def model(self, client: int | None = None) -> nn.Module:
        """A copy of the model with the present global weights, or with one client's own norms."""
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
        own, saved = self.server.tensors(), state["tensors"]
        if wrong := sorted(own.keys() ^ saved.keys()):
            raise ValueError(f"the state is of another method, norm or network: {wrong[0]} is in one of them only")
        if wrong := [name for name in sorted(own) if own[name].shape != saved[name].shape]:
            shapes = f"{tuple(saved[wrong[0]].shape)} there, {tuple(own[wrong[0]].shape)} here"
            raise ValueError(f"the state is of other widths, clients or another network: {wrong[0]} is {shapes}")
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
        """Load a saved state; :meth:`fit` with the same clients then ends as if nothing had happened.

        Raises
        ------
        OSError
            There is no such file.
        ValueError
            It is damaged, or none of :meth:`save`.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is damaged, or no saved federation ({type(error).__name__})") from error
        if not isinstance(state, Mapping) or not {"completed", "history", "tensors", "scheduler"} <= state.keys():
            raise ValueError(f"{path} is no saved federation: resume what save(path) wrote")
        self.load_state_dict(dict(state))
        return self


def _alike(known: Tensor, given: Tensor) -> bool:
    return known.shape == given.shape and torch.equal(known, given.detach().to(known))
