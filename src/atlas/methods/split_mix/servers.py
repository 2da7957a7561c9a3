"""How a round goes: base networks on sampled clients (Split-Mix), or prefixes of one network (HeteroFL, slimmable or not)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from atlas.methods.split_mix.average import PrefixSum, average_stack
from atlas.methods.split_mix.clients import Batches, Rules
from atlas.methods.split_mix.local import LocalOptions, Pass, as_images, train_passes, train_stack
from atlas.methods.split_mix.model import PrefixModel, SplitMix
from atlas.methods.split_mix.scheduler import BaseScheduler
from atlas.methods.split_mix.settings import Execution
from atlas.methods.split_mix.stacks import ParamStack, Runner, TensorDict, require_batch_statistics
from atlas.methods.split_mix.trials import settled_execution
from atlas.methods.split_mix.widths import Role, base_count, blank, layer_roles
from atlas.nn.work import AVERAGING, work

M = TypeVar("M", bound=torch.nn.Module)
LOCAL = "local."
"""Prefix of the names of tensors that stay on clients."""


def _example(trainer: Rules) -> Tensor:
    """Inputs (2, …), or one, as the networks of a federation take them."""
    return as_images(trainer.clients[0].inputs[:2])


class SplitMixServer:
    """M base networks; every participant trains as many as its budget holds."""

    def __init__(self, trainer: Rules) -> None:
        self.trainer = trainer
        counts = [base_count(client.budget, trainer.atom) for client in trainer.clients]
        self.skeleton = SplitMix(
            trainer.factory,
            atom=trainer.atom,
            max_width=max(client.budget for client in trainer.clients),
            norm=trainer.norm,
            rescale_init=trainer.rescale_init,
            rescale_layer=trainer.rescale_layer,
            seed=trainer.seed,
            example=_example(trainer),
        ).to(trainer.device)
        self.stack = self.skeleton.stack()
        self.execution = settled_execution(self.stack, _example(trainer), trainer.execution, trainer.adversary is None)
        self.counts = counts
        self.scheduler = BaseScheduler(self.skeleton.n_base, np.random.default_rng([trainer.seed, 2]))
        self.local: TensorDict = {}
        if trainer.norm.stats == "local":
            names = self.stack.norm_names
            self.local = {
                name: self.stack.tensors[name].expand(len(counts), *self.stack.tensors[name].shape).clone() for name in names
            }

    def round(self, participants: Sequence[int], batches: Batches, options: LocalOptions) -> float:
        """Draw bases for all participants, train all pairs, and average each base over the clients that trained it."""
        drawn = {client: self.scheduler.draw(self.counts[client]) for client in participants}
        sent: list[tuple[list[int], list[float], TensorDict]] = []
        losses = []
        for group in self._groups(participants, batches):
            owners = [index for index, client in enumerate(group) for _ in drawn[client]]
            bases = [base for client in group for base in drawn[client]]
            start = self._download([group[owner] for owner in owners], bases)
            trained, loss = train_stack(start, batches.of(group, owners), options, self.execution)
            kept = self._keep_local([group[owner] for owner in owners], bases, trained.tensors)
            sent.append((bases, [float(self.trainer.weights[group[owner]]) for owner in owners], kept))
            losses.append((loss, len(bases)))
        tensors = {name: torch.cat([part[name] for _, _, part in sent]) for name in sent[0][2]}
        bases, weights = [b for part in sent for b in part[0]], [w for part in sent for w in part[1]]
        with work(AVERAGING):
            self.stack = average_stack(self.stack, bases, weights, tensors)
        return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)

    def _groups(self, participants: Sequence[int], batches: Batches) -> list[list[int]]:
        limit = 1 if self.trainer.execution == "sequential" else self.trainer.stack_limit
        return list(batches.groups(participants, dict(enumerate(self.counts)), limit))

    def _download(self, clients: Sequence[int], bases: Sequence[int]) -> ParamStack:
        stack = self.stack.gather(bases)
        own = {name: tensor[list(clients), list(bases)] for name, tensor in self.local.items()}
        return stack.replaced({**stack.tensors, **own})

    def _keep_local(self, clients: Sequence[int], bases: Sequence[int], tensors: TensorDict) -> TensorDict:
        """Leave local norms with their clients; returns what is uploaded."""
        for name, tensor in self.local.items():
            tensor[list(clients), list(bases)] = tensors[name]
        return {name: tensor for name, tensor in tensors.items() if name not in self.local}

    def tensors(self) -> TensorDict:
        """Base networks by name, (M, …), and local norms (clients, M, …)."""
        return {**self.stack.tensors, **{LOCAL + name: tensor for name, tensor in self.local.items()}}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned: global weights (G, …) and the norms that stay on clients."""
        self.stack = self.stack.replaced({name: tensors[name].clone() for name in self.stack.tensors})
        self.local = {name: tensors[LOCAL + name].clone() for name in self.local}

    def scheduler_state(self) -> dict[str, Any]:
        """State of the scheduler that draws base networks."""
        return self.scheduler.state_dict()

    def load_scheduler_state(self, state: dict[str, Any]) -> None:
        """Go on with the draws where that state was taken."""
        self.scheduler.load_state_dict(state)

    def model(self, client: int | None = None) -> SplitMix:
        """A copy of the customisable model; with a client's own norms where they are local."""
        own = {name: tensor[client] for name, tensor in self.local.items()} if client is not None else {}
        return _copied(self.skeleton.load_stack(self.stack.replaced({**self.stack.tensors, **own})), self.trainer)


def _copied(model: M, trainer: Rules) -> M:
    """A copy of a model whose factory stays the caller's own: it may hold what is large, or what cannot be copied."""
    return copy.deepcopy(model, {id(trainer.factory): trainer.factory})


class PrefixServer:
    """One network; every participant trains its prefix of the width that its budget holds, or several of them."""

    def __init__(self, trainer: Rules) -> None:
        self.trainer = trainer
        single = trainer.method == "fedavg"
        self.options = (trainer.width,) if single else tuple(sorted(set(trainer.widths)))
        self.budgets = [max(width for width in self.options if single or width <= client.budget) for client in trainer.clients]
        self.width = max(self.budgets)
        if trainer.norm.tracked and not single:
            raise ValueError(f"prefixes of several widths share norms: their statistics must be batch, not {trainer.norm.stats}")
        self.roles = self._roles() if trainer.rescale_layer else {}
        self.skeleton = PrefixModel(trainer.factory, width=self.width, norm=trainer.norm, seed=trainer.seed).to(trainer.device)
        self.slicer = self.skeleton.slicer(min(self.options))
        self.execution = self._execution()
        self.state = {name: tensor.clone() for name, tensor in self.skeleton.net.state_dict().items()}
        self.local: TensorDict = {}
        if trainer.norm.stats == "local":
            names = ParamStack.of([self.skeleton.net]).norm_names
            self.local = {name: self.state[name].expand(len(self.budgets), *self.state[name].shape).clone() for name in names}

    def _execution(self) -> Execution:
        """How prefixes run, tried with the narrowest; nothing is tried where never two run side by side."""
        trainer = self.trainer
        if trainer.stack_limit == 1 or len(trainer.clients) == 1:
            return trainer.execution
        stack = ParamStack.of([self._net(min(self.options))])
        return settled_execution(stack, _example(trainer), trainer.execution, False)

    def _roles(self) -> dict[str, Role]:
        """Which layers ``rescale_layer`` leaves alone; told beside the network of width 1, whatever widths are trained."""
        require_batch_statistics(self.trainer.norm)
        narrow = min(self.options)
        return layer_roles(self._net(narrow), self._net(1.0)) if narrow < 1 else {}

    def trained_widths(self, client: int) -> list[float]:
        """Widths that a client trains at every step, ascending."""
        budget = self.budgets[client]
        return [width for width in self.options if width <= budget] if self.trainer.method == "sheterofl" else [budget]

    def round(self, participants: Sequence[int], batches: Batches, options: LocalOptions) -> float:
        """Train the prefixes of all participants, and average every entry over the clients that cover it."""
        kept = {name: tensor for name, tensor in self.state.items() if name not in self.local}
        average = PrefixSum(kept, self.slicer)
        losses = [self._train(group, batches, options, average) for group in self._groups(participants, batches)]
        with work(AVERAGING):
            self.state = {**self.state, **average.mean()}
        return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)

    def _train(self, group: list[int], batches: Batches, options: LocalOptions, average: PrefixSum) -> tuple[float, int]:
        """Train a group side by side and add its prefixes to the average; return its mean loss, and over how many networks."""
        stack, passes = self._stack(group)
        trained, loss = train_passes(stack, passes, batches.of(group, ()), options)
        for name, tensor in self.local.items():
            tensor[group] = trained.tensors[name]
        with work(AVERAGING):
            for upload in self._uploads(group, trained.tensors):
                average.add(*upload)
        return loss, sum(step.runner.groups for step in passes)

    def _groups(self, participants: Sequence[int], batches: Batches) -> list[list[int]]:
        """Clients that train side by side, by ascending budget; of one budget where each trains one width only."""
        ordered = sorted(participants, key=lambda client: self.budgets[client])
        limit = 1 if self.trainer.execution == "sequential" else self.trainer.stack_limit
        parts = [ordered]
        if self.trainer.method == "heterofl":
            parts = [list(part) for _, part in groupby(ordered, key=lambda client: self.budgets[client])]
        return [group for part in parts for group in batches.groups(part, dict.fromkeys(part, 1), limit)]

    def _stack(self, group: Sequence[int]) -> tuple[ParamStack, list[Pass]]:
        """Copies of the widest prefix of a group, and the passes of a step: one per width, over the clients that train it."""
        widest = max(self.budgets[client] for client in group)
        prefix = self.slicer.prefix(self.state, widest / self.width)
        tensors = {name: tensor.expand(len(group), *tensor.shape).clone() for name, tensor in prefix.items()}
        tensors.update({name: tensor[list(group)].clone() for name, tensor in self.local.items()})
        passes = []
        for width in sorted({width for client in group for width in self.trained_widths(client)}):
            members = [index for index, client in enumerate(group) if width in self.trained_widths(client)]
            networks = slice(members[0], members[-1] + 1)
            scale = width if self.trainer.rescale_layer else 1.0
            shape = ParamStack(self._net(width), tensors, self.roles, scale)
            runner = Runner(shape, len(members), len(members), self.execution)
            passes.append(Pass(runner, partial(self._view, width=width, networks=networks), networks))
        return ParamStack(self._net(widest), tensors), passes

    def _net(self, width: float) -> torch.nn.Module:
        return blank(self.trainer.factory, width, self.trainer.norm).to(self.trainer.device)

    def _view(self, tensors: Mapping[str, Tensor], width: float, networks: slice) -> TensorDict:
        relative = width / self.width
        return {name: tensor[(networks, *self.slicer.slices(name, relative))] for name, tensor in tensors.items()}

    def _uploads(self, group: Sequence[int], tensors: Mapping[str, Tensor]) -> list[tuple[float, float, TensorDict]]:
        """Prefixes of a group, clients of one budget combined into their weighted mean first."""
        uploads = []
        for budget in sorted({self.budgets[client] for client in group}):
            members = [index for index, client in enumerate(group) if self.budgets[client] == budget]
            counts = [len(self.trained_widths(group[index])) if self.trainer.weigh_by_widths else 1 for index in members]
            weights = [count * self.trainer.weights[group[index]] for count, index in zip(counts, members, strict=True)]
            total = float(sum(weights))
            mean = {}
            view = self._view(tensors, budget, slice(members[0], members[-1] + 1))
            for name, tensor in view.items():
                if name not in self.local:
                    share = torch.as_tensor([weight / total for weight in weights], dtype=tensor.dtype, device=tensor.device)
                    mean[name] = torch.tensordot(share, tensor, 1)
            uploads.append((budget / self.width, total, mean))
        return uploads

    def tensors(self) -> TensorDict:
        """The network by name, and local norms (clients, …)."""
        return {**self.state, **{LOCAL + name: tensor for name, tensor in self.local.items()}}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned: global weights of any shapes (…) and the norms that stay on clients."""
        self.state = {name: tensors[name].clone() for name in self.state}
        self.local = {name: tensors[LOCAL + name].clone() for name in self.local}

    def scheduler_state(self) -> dict[str, Any]:
        """Return an empty state: prefixes follow from budgets, without a draw."""
        return {}

    def load_scheduler_state(self, state: dict[str, Any]) -> None:
        """Take over the empty state of :meth:`scheduler_state`."""

    def model(self, client: int | None = None) -> PrefixModel:
        """A copy of the network, customisable to its prefixes; with a client's own norms where they are local."""
        own = {name: tensor[client] for name, tensor in self.local.items()} if client is not None else {}
        self.skeleton.net.load_state_dict({**self.state, **own})
        return _copied(self.skeleton, self.trainer)
