"""The training loop for several seeds of a row at once, where networks are so small that operations cost more than arithmetic.

Every run keeps what it has when it trains by itself: its data and their order, augmentation and mixing, its loss with the terms
of its ingredients, its schedule, its random numbers, its curves, and its state to go on from. What is joined is the pass through
the network (:mod:`atlas.nn.stacked`) and the optimiser's step. The numbers are those of single runs to rounding, and no more than
that: a batched product sums in another order. They do not depend on which other seeds are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import AtlasError
from atlas.harness.lockstep import Lockstep, Randomness
from atlas.nn.stacked import Stack, Unstackable
from atlas.tasks.image_classification.ingredients import Batch
from atlas.tasks.image_classification.training import Training

if TYPE_CHECKING:
    from atlas.harness.resume import TrainingLoop
    from atlas.harness.run import Run

CHECKED_IMAGES = 2
Outcome = dict[str, float] | Exception


def train_together(runs: Sequence[Run]) -> list[Outcome]:
    """Train several seeds of one row, each to the end, from wherever an earlier process stopped.

    Returns
    -------
    list
        For every run what :func:`.training.train` returns, or the error with which it failed; the others went on.

    Raises
    ------
    AtlasError
        The recipe's network cannot be stacked; says why.
    Interrupted
        A signal asked it to stop; the state of every run is saved.
    """
    randomness, benches = [], []
    for run in runs:
        own = Randomness(run)
        with own():
            benches.append(Training(run))
        randomness.append(own)
    try:
        return _train(benches, randomness)
    except Unstackable as error:
        raise AtlasError(f"{runs[0].cell} cannot be trained together with other seeds: {error}; set stack_seeds: false") from None


def _train(benches: list[Training], randomness: list[Randomness]) -> list[Outcome]:
    stack = Stack([bench.model for bench in benches])
    prepared = []
    for bench, own in zip(benches, randomness, strict=True):
        with own():
            prepared.append(bench.prepare())
    outcomes: dict[int, Outcome] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (bench, (_, _, loop)) in enumerate(zip(benches, prepared, strict=True)):
        groups.setdefault((loop.start, loop.total, bench.data.steps_per_epoch), []).append(index)
    for members in groups.values():
        chosen = stack.some(members)
        together = Together(
            chosen,
            [benches[index] for index in members],
            [prepared[index][0] for index in members],
            [prepared[index][2] for index in members],
            [randomness[index] for index in members],
        )
        outcomes.update(zip(members, together.fit(), strict=True))
    return [outcomes[index] for index in range(len(benches))]


class Together:
    """Recipes of one row while they train as one.

    Parameters
    ----------
    stack : Stack
        Their models, not joined yet.
    benches, optimizers, loops, randomness : list
        Of each run, restored to the same step.
    """

    def __init__(
        self,
        stack: Stack,
        benches: list[Training],
        optimizers: list[torch.optim.Optimizer],
        loops: list[TrainingLoop],
        randomness: list[Randomness],
    ) -> None:
        self.stack, self.benches, self.randomness = stack, benches, randomness
        self.lockstep = Lockstep(loops, randomness)
        first = benches[0]
        if first.ranks.size > 1 or first._scaled:
            raise Unstackable("several processes train it, or its loss is scaled for float16")
        if stack.draws and first.device.type not in ("cpu", "cuda"):
            raise Unstackable(f"stochastic depth on {first.device.type} draws from a generator that runs cannot take turns with")
        self.generators = [own.generator(first.device) for own in randomness] if stack.draws else []
        stack.join(self.generators)
        stack.check(torch.stack([bench.data.example(CHECKED_IMAGES) for bench in benches]))
        self.optimizer = stacked_optimizer(stack, optimizers)

    def fit(self) -> list[Outcome]:
        """Run the loops to their end, and finish each run by itself."""
        first = self.benches[0]
        steps = first.data.steps_per_epoch
        streams: list[Iterator[tuple[Tensor, Tensor]]] = []
        for step in self.lockstep:
            epoch, begin = divmod(step, steps)
            if step == self.lockstep.start or not begin:
                streams = [self._begin_epoch(bench, step, epoch, begin) for bench in self.benches]
                self.stack.watch()
            self.take_step(step, [next(stream) for stream in streams])
        self.stack.part()
        return [self._finish(index) for index in range(len(self.benches))]

    @staticmethod
    def _begin_epoch(bench: Training, step: int, epoch: int, begin: int) -> Iterator[tuple[Tensor, Tensor]]:
        bench.begin_epoch(step)
        return bench.data.train_batches(epoch, begin)

    def take_step(self, step: int, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Take one step of every run: ``batches`` holds images (batch, channels, height, width) and classes (batch,) of each."""
        first = self.benches[0]
        for bench, (images, _) in zip(self.benches, batches, strict=True):
            bench.begin_step(step, len(images))
        self.stack.joint.train()
        first.set_rate(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        terms: list[dict[str, Tensor]] = [{} for _ in self.benches]
        passes = [bench.passing().passes(Batch(*batch, batch[1])) for bench, batch in zip(self.benches, batches, strict=True)]
        for pieces in zip(*passes, strict=True):
            self._pass(pieces, terms)
        self._gather_gradients()
        if first.protocol.clip_norm is not None:
            clip_each(list(self.stack.weights.values()), first.protocol.clip_norm)
        self.optimizer.step()
        for index in self.lockstep.alive:
            bench = self.benches[index]
            bench.follow()
            try:
                bench.end_step(self.lockstep.loops[index], terms[index])
            except AtlasError as error:
                self.lockstep.fail(index, error)
        for own, generator in zip(self.randomness, self.generators, strict=bool(self.generators)):
            own.follow(generator)

    def _pass(self, pieces: Sequence[tuple[float, Batch]], terms: list[dict[str, Tensor]]) -> None:
        """Pass a piece of every run's batch forward, and their losses back."""
        mixed = [bench.mixed(piece) for bench, (_, piece) in zip(self.benches, pieces, strict=True)]
        with self.benches[0].autocast():
            logits = self.stack(torch.stack([piece.images for piece in mixed]))
        totals = []
        for index, own in enumerate(logits.unbind(0)):
            if index in self.lockstep.failed:
                continue
            share = pieces[index][0]
            try:
                total, parts = self.benches[index].loss(own, mixed[index])
            except AtlasError as error:
                self.lockstep.fail(index, error)
                continue
            totals.append(share * total)
            terms[index] = {name: terms[index].get(name, 0) + share * part.detach() for name, part in parts.items()}
        if totals:
            torch.stack(totals).sum().backward()

    def _gather_gradients(self) -> None:
        """Add to the joint gradients those of terms that read a model's weights themselves."""
        for index, model in enumerate(self.stack.models):
            for name, parameter in model.named_parameters():
                if parameter.grad is None:
                    continue
                whole = self.stack.weights[name]
                if whole.grad is None:
                    whole.grad = torch.zeros_like(whole)
                whole.grad[index] += parameter.grad
                parameter.grad = None

    def _finish(self, index: int) -> Outcome:
        if index in self.lockstep.failed:
            return self.lockstep.failed[index]
        with self.randomness[index]():
            try:
                return self.benches[index].finish()
            except AtlasError as error:
                return error


def stacked_optimizer(stack: Stack, optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Return one AdamW for the joint weights of a stack; the moments of single optimisers become views of its own.

    Raises
    ------
    Unstackable
        An ingredient brings another optimiser, or the runs group parameters differently.
    """
    if any(type(optimizer) is not torch.optim.AdamW for optimizer in optimizers):
        raise Unstackable(f"it is trained by {type(optimizers[0]).__name__}")
    groups = [_named_groups(model, optimizer) for model, optimizer in zip(stack.models, optimizers, strict=True)]
    if any(own != groups[0] for own in groups):
        raise Unstackable("the runs group their parameters differently")
    whole = torch.optim.AdamW(
        [{**options, "params": [stack.weights[name] for name in names]} for names, options in groups[0]], fused=True
    )
    named = [dict(model.named_parameters()) for model in stack.models]
    for names, _ in groups[0]:
        for name in names:
            states = [optimizer.state.get(own[name], {}) for optimizer, own in zip(optimizers, named, strict=True)]
            joint = _joint_state(stack.weights[name], [states[index] for index in stack.rows])
            whole.state[stack.weights[name]] = joint
            for index, (optimizer, own) in enumerate(zip(optimizers, named, strict=True)):
                optimizer.state[own[name]] = {key: value[index] if value.ndim else value for key, value in joint.items()}
    return whole


def _joint_state(whole: Tensor, states: Sequence[Any]) -> dict[str, Tensor]:
    """Step and moments of a joint parameter, from those that single ones have, if any."""
    step = torch.zeros((), dtype=torch.float32, device=whole.device)
    if states[0]:
        step += states[0]["step"].to(step)
    moments = {
        name: torch.stack([state[name] for state in states]) if states[0] else torch.zeros_like(whole)
        for name in ("exp_avg", "exp_avg_sq")
    }
    return {"step": step, **moments}


def _named_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[list[str], dict[str, Any]]]:
    """Names of the parameters of every group, and the group's own options."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = ("lr", "lr_scale", "weight_decay", "betas", "eps")
    return [
        ([names[id(parameter)] for parameter in group["params"]], {key: group[key] for key in kept if key in group})
        for group in optimizer.param_groups
    ]


def clip_each(weights: Sequence[Tensor], limit: float) -> None:
    """Scale the gradients of joint weights (M, …) so that no model's norm exceeds ``limit``, as for each by itself."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *(1,) * (gradient.ndim - 1)))
