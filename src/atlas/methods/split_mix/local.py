"""Local training on clients (Hong et al., ICLR 2022, Algorithms 1 and 3): networks step side by side, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from atlas.methods.split_mix.adversary import PGD
from atlas.methods.split_mix.norms import norm_mode, zero_samples
from atlas.methods.split_mix.settings import Execution, LocalSettings, LossName
from atlas.methods.split_mix.stacks import ParamStack, Runner, TensorDict
from atlas.methods.split_mix.trials import settled_execution
from atlas.nn.precision import forget_casts

DEFAULT = LocalSettings()


class Augmentation(Protocol):
    """Random changes of images, drawn per client and applied to all clients at once."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers for ``count`` images: (count, …)."""
        ...

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """(n, channels, height, width) in [0, 1] and their draws to images of the same shape and range."""
        ...


def as_images(x: Tensor) -> Tensor:
    """Turn bytes (n, …) into numbers in [0, 1]; floats stay as they are. Nothing is normalised by mean and deviation."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def batch_sizes(n: int, batch_size: int, drop_last: bool = False) -> tuple[int, ...]:
    """Sizes of the minibatches of ``n`` samples; a remainder of one sample has no batch statistics and is left out."""
    whole, rest = divmod(n, batch_size)
    return (batch_size,) * whole + ((rest,) if rest > 1 and not drop_last else ())


def check_samples(client: int, inputs: Tensor, labels: Tensor, first: Tensor) -> None:
    """Refuse samples that no client can have, or not beside those of another client.

    Parameters
    ----------
    client : int
        Whose they are: the message names it.
    first : Tensor
        Inputs of client 0, for their shape and type.

    Raises
    ------
    TypeError
        Inputs or labels are no tensors.
    ValueError
        There are none, or not as many of one as of the other; labels are no class indices (n,), inputs neither bytes nor floats,
        or unlike client 0's.
    """
    for name, value in (("inputs", inputs), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"client {client} has {name} of the type {type(value).__name__}: tensors are needed")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"client {client} has labels of {labels.dtype} and the shape {tuple(labels.shape)}; "
            "class indices are whole numbers of the shape (n,)"
        )
    count = inputs.shape[0] if inputs.dim() else 0
    if not len(labels) or count != len(labels):
        raise ValueError(f"client {client} has {count} inputs and {len(labels)} labels")
    if not inputs.numel():
        raise ValueError(f"client {client} has inputs without entries, of the shape {tuple(inputs.shape[1:])}")
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        raise ValueError(f"client {client} has inputs of {inputs.dtype}; bytes or floating-point numbers are needed")
    if inputs.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"client {client} has inputs of the shape {tuple(inputs.shape[1:])}, client 0 of {tuple(first.shape[1:])}: "
            "one network cannot take both"
        )
    if inputs.dtype != first.dtype:
        raise ValueError(f"client {client} has inputs of {inputs.dtype}, client 0 of {first.dtype}: all must be of one type")


def check_classes(labels: Sequence[Tensor], classes: int) -> None:
    """Refuse labels (n,) of clients for which a network of so many classes has no logit; waits for their device once.

    Raises
    ------
    ValueError
        One is outside 0 … ``classes`` − 1; names the client.
    """
    ends = torch.stack([torch.stack(own.long().aminmax()) for own in labels]).tolist()
    for client, (low, high) in enumerate(ends):
        if low < 0 or high >= classes:
            raise ValueError(f"client {client} has labels {low} … {high}; the network has the classes 0 … {classes - 1}")


def checked_sizes(client: int, n: int, batch_size: int, drop_last: bool) -> tuple[int, ...]:
    """:func:`batch_sizes` of a client that has at least one minibatch.

    Raises
    ------
    ValueError
        It has none; names the client.
    """
    sizes = batch_sizes(n, batch_size, drop_last)
    if not sizes:
        samples = "1 sample, which makes" if n == 1 else f"{n} samples, which make"
        why = f" of {batch_size} with drop_last" if drop_last else ": batch statistics need at least 2"
        raise ValueError(f"client {client} has {samples} no minibatch{why}")
    return sizes


@dataclass(frozen=True)
class ClientBatches:
    """Minibatches of K clients whose batches have the same sizes.

    Attributes
    ----------
    inputs, labels : sequence of Tensor
        Per client (n, …) and (n,); bytes become images in [0, 1].
    batch_size : int
        Samples of a minibatch.
    seeds : sequence of int
        Per client; order, augmentation and attacks follow from it, however clients are grouped.
    owners : sequence of int
        Which client's batches each network of a stack trains on; one network per client if empty.
    """

    inputs: Sequence[Tensor]
    labels: Sequence[Tensor]
    batch_size: int
    seeds: Sequence[int]
    owners: Sequence[int] = ()
    drop_last: bool = False
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        """Refuse clients that cannot be batched together."""
        if not len(self.inputs) == len(self.labels) == len(self.seeds) >= 1:
            given = f"{len(self.labels)} and {len(self.seeds)}"
            raise ValueError(f"{len(self.inputs)} clients' inputs need as many labels and seeds, not {given}")
        sizes = set()
        for client, (inputs, labels) in enumerate(zip(self.inputs, self.labels, strict=True)):
            check_samples(client, inputs, labels, self.inputs[0])
            sizes.add(checked_sizes(client, len(labels), self.batch_size, self.drop_last))
        if len(sizes) != 1:
            raise ValueError("clients of one group must have minibatches of the same sizes")

    def sizes(self, client: int) -> tuple[int, ...]:
        """Sizes of the minibatches of a client, in their order."""
        return batch_sizes(len(self.labels[client]), self.batch_size, self.drop_last)

    @property
    def networks(self) -> list[int]:
        """Index of the client on whose minibatches every network trains."""
        return list(self.owners) or list(range(len(self.labels)))

    def steps(self, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (K, b, …) images and (K, b) labels; every epoch has an order of its own."""
        images, labels = pad_sequence(list(self.inputs), True), pad_sequence(list(self.labels), True)
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        rows = torch.arange(len(self.labels), device=labels.device)[:, None]
        for _ in range(epochs):
            pairs = zip(self.labels, generators, strict=True)
            used = sum(self.sizes(0))
            order = torch.stack([torch.randperm(len(own), generator=random)[:used] for own, random in pairs]).to(labels.device)
            for columns in order.split(self.sizes(0), dim=1):
                yield self._changed(as_images(images[rows, columns]), generators), labels[rows, columns].long()

    def _changed(self, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        if self.augment is None:
            return x
        draws = torch.cat([self.augment.draw(x.shape[1], random) for random in generators]).to(x.device)
        return self.augment(x.flatten(0, 1), draws).reshape(x.shape)


class LocalOptions(LocalSettings):
    """How clients train in a round, and against which attack; see :func:`local_train`."""

    adversary: PGD | None = None


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the logits of classes that are absent from the minibatch set to 0, averaged over the batch.

    An absent class still adds exp(0) to the partition function, and gets no gradient.

    Parameters
    ----------
    logits, labels : Tensor
        (…, batch, classes) and (…, batch); leading dimensions are minibatches of their own.

    Returns
    -------
    Tensor
        Sum over minibatches of their means.
    """
    labels = labels.long()
    present = functional.one_hot(labels, logits.shape[-1]).amax(-2, keepdim=True)
    return cross_entropy(logits * present, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over minibatches of their mean cross-entropies: (…, batch, classes) and (…, batch) to a scalar."""
    total = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / labels.shape[-1]


LOSSES: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "masked_ce": masked_cross_entropy}


@dataclass(frozen=True)
class Pass:
    """One forward pass of a step: some networks of a stack, at some width.

    Attributes
    ----------
    view : callable
        From all stacked tensors to those that run, as views of them.
    networks : slice
        Which networks of the stack take part.
    """

    runner: Runner
    view: Callable[[Mapping[str, Tensor]], TensorDict] = dict
    networks: slice = field(default_factory=lambda: slice(None))


@torch.inference_mode(False)
@torch.enable_grad()
def train_passes(
    stack: ParamStack, passes: Sequence[Pass], data: ClientBatches, options: LocalOptions
) -> tuple[ParamStack, float]:
    """Train a stack: at each step the losses of all passes are added up, and one optimiser step follows.

    Gradients are taken whether or not the caller is under ``torch.no_grad`` or ``torch.inference_mode``.

    Returns
    -------
    stack : ParamStack
        The trained networks; the one given is left as it was.
    loss : float
        Mean loss over steps and networks.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in stack.tensors.items()}
    leaves = [tensors[name].requires_grad_() for name in stack.trainable]
    optimizer = torch.optim.SGD(
        leaves, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, foreach=len(leaves) > 1
    )
    noise = _Noise(data)
    owners = torch.as_tensor(data.networks, device=leaves[0].device)
    total, steps = torch.zeros((), device=leaves[0].device), 0
    for x, y in data.steps(options.epochs):
        optimizer.zero_grad(set_to_none=True)
        losses = [_loss(part, tensors, x, y, owners, options, noise) for part in passes]
        loss = torch.stack(losses).sum()
        loss.backward()
        optimizer.step()
        forget_casts()
        total, steps = total + loss.detach(), steps + 1
    trained = {name: tensor.detach() for name, tensor in tensors.items()}
    count = sum(part.runner.groups for part in passes)
    return stack.replaced(trained), float(total) / max(1, steps) / count


def _loss(part: Pass, tensors: TensorDict, x: Tensor, y: Tensor, owners: Tensor, options: LocalOptions, noise: _Noise) -> Tensor:
    """Sum of the losses of a pass's networks; each on its client's minibatch, clean and attacked as the options say."""
    runner, criterion, own = part.runner, _criterion(options), owners[part.networks]
    mine, labels = part.view(tensors), y[own]
    inputs = x[own[:: runner.groups // runner.inputs]]
    if options.adversary is None:
        runner.module.train()
        return criterion(runner(mine, inputs), labels)
    if runner.lams:
        return _conditional_loss(runner, mine, inputs, labels, part.networks, options, options.adversary, noise)
    parts = []
    if runner.dual or options.lam < 1:
        with norm_mode(runner.module, "clean", True):
            parts.append((1 - options.lam) * criterion(runner(mine, inputs), labels))
    if runner.dual or options.lam > 0:
        start = noise.start(inputs, part.networks, options.adversary)
        attacked = _attack(runner, mine, inputs, labels, options.adversary, start)
        with norm_mode(runner.module, "noise", True):
            parts.append(options.lam * criterion(runner(mine, attacked), labels))
    return torch.stack(parts).sum()


def _conditional_loss(
    runner: Runner,
    tensors: TensorDict,
    x: Tensor,
    y: Tensor,
    networks: slice,
    options: LocalOptions,
    adversary: PGD,
    noise: _Noise,
) -> Tensor:
    """The loss of once-for-all adversarial training (Wang et al., NeurIPS 2020, Sec. 3): λ is drawn for every sample.

    Of the samples, which come in random order, the first have λ = 0 and are not attacked; the others are, under their own λ.
    """
    batch = y.shape[1]
    zeros = zero_samples(batch, len(runner.lams))
    choices = noise.choices(batch - zeros, len(runner.lams), networks).to(y.device)
    choices = torch.cat((choices.new_zeros(len(choices), zeros), choices), 1)
    weight = torch.tensor(runner.lams, device=x.device, dtype=x.dtype)[choices]
    with runner.conditioned(choices, zeros, True):
        clean = _each_loss(runner(tensors, x), y, options)
    later, target, start = choices[:, zeros:], y[:, zeros:], noise.start(x[:, zeros:], networks, adversary)
    frozen = {name: tensor.detach() for name, tensor in tensors.items()}
    with runner.conditioned(later, 0, False):
        attacked = adversary(lambda inputs: runner(frozen, inputs).flatten(0, 1), x[:, zeros:], target.flatten(), delta0=start)
    with runner.conditioned(later, 0, True):
        robust = _each_loss(runner(tensors, attacked), target, options, y)
    return (((1 - weight) * clean).sum() + (weight[:, zeros:] * robust).sum()) / batch


def _each_loss(logits: Tensor, labels: Tensor, options: LocalOptions, batch: Tensor | None = None) -> Tensor:
    """Losses of samples, (networks, batch), of (networks, batch, classes); ``batch`` are all labels of the minibatch."""
    if options.loss == "masked_ce":
        present = functional.one_hot(labels if batch is None else batch, logits.shape[-1]).amax(-2, keepdim=True)
        logits = logits * present
    flat = functional.cross_entropy(logits.flatten(0, 1) / options.temperature, labels.flatten(), reduction="none")
    return options.temperature * flat.view_as(labels)


def _criterion(options: LocalOptions) -> Callable[[Tensor, Tensor], Tensor]:
    loss, temperature = LOSSES[options.loss], options.temperature
    return loss if temperature == 1 else (lambda logits, labels: loss(logits / temperature, labels) * temperature)


def _attack(runner: Runner, tensors: TensorDict, x: Tensor, y: Tensor, adversary: PGD, start: Tensor) -> Tensor:
    """Attack every network by itself: all of it in evaluation mode, its noise norms with running statistics."""
    frozen = {name: tensor.detach() for name, tensor in tensors.items()}
    with norm_mode(runner.module, "noise", False):
        return adversary(lambda inputs: runner(frozen, inputs).flatten(0, 1), x, y.flatten(), delta0=start)


class _Noise:
    """Random starts in [−1, 1] of the attacks: a stream per client, and a draw per network in the order of its networks."""

    def __init__(self, data: ClientBatches) -> None:
        self.owners = data.networks
        self.generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in data.seeds]

    def start(self, x: Tensor, networks: slice, adversary: PGD) -> Tensor:
        """Where an attack on the inputs (G, b, …) of the networks of a pass starts, as a change of them."""
        return self._draw(x, networks) * adversary.eps if adversary.random_start else torch.zeros_like(x)

    def _draw(self, x: Tensor, networks: slice) -> Tensor:
        shape, owners = x.shape[1:], self.owners[networks]
        draws = [torch.rand(shape, generator=self.generators[owner]) for owner in owners]
        return torch.stack(draws).to(x).mul_(2).sub_(1)

    def choices(self, samples: int, count: int, networks: slice) -> Tensor:
        """Draw which of the trade-offs but the first each sample has, (networks, samples): indices from 1 to ``count`` − 1."""
        generators = [self.generators[owner] for owner in self.owners[networks]]
        return torch.stack([torch.randint(1, count, (samples,), generator=random) for random in generators])


def _shared_inputs(owners: Sequence[int], known_roles: bool) -> int:
    """Number of different inputs if runs of equal length share one, else one per network."""
    clients = len(set(owners))
    if not known_roles or len(owners) % clients:
        return len(owners)
    each = len(owners) // clients
    even = all(len(set(owners[at : at + each])) == 1 for at in range(0, len(owners), each))
    return clients if even else len(owners)


def local_train(
    stack: ParamStack,
    data: ClientBatches,
    *,
    lr: float,
    epochs: int,
    momentum: float = DEFAULT.momentum,
    weight_decay: float = DEFAULT.weight_decay,
    loss: LossName = DEFAULT.loss,
    adversary: PGD | None = None,
    lam: float = DEFAULT.lam,
    temperature: float = DEFAULT.temperature,
    execution: Execution = "auto",
) -> ParamStack:
    """Train every network of a stack on its client's minibatches, each as if it were alone.

    Losses of networks add up and share no weight, so one step of all is a step of each. SGD starts afresh: momentum does
    not live longer than a call. Labels are looked at before the first step, for which the host waits for their device once.

    Parameters
    ----------
    stack : ParamStack
        G networks; left as it is.
    data : ClientBatches
        Minibatches of clients; ``data.owners`` says which client each network belongs to.
    loss : {"ce", "masked_ce"}
        Cross-entropy, or with the logits of classes absent from the minibatch set to 0.
    adversary : PGD, optional
        Train on (1 − λ)·clean + λ·attacked loss. With dual norms each kind of input has its own; with one norm a part of
        weight 0 is left out.
    lam : float
        λ in [0, 1].
    temperature : float
        τ of τ·CE(z/τ, y).
    execution : {"auto", "grouped", "vmap", "sequential"}
        How networks run; the numbers are the same up to rounding. ``auto`` tries one small batch first.

    Raises
    ------
    TypeError
        ``grouped`` is asked for, and the network has no grouped form or works across channels without weights.
    ValueError
        A network's client does not exist, a client has a label that is no class of the networks, adversarial training lacks
        running statistics, or an option is impossible.
    """
    options = LocalOptions.chosen(
        lr=lr,
        epochs=epochs,
        momentum=momentum,
        weight_decay=weight_decay,
        loss=loss,
        adversary=adversary,
        lam=lam,
        temperature=temperature,
    )
    execution = settled_execution(stack, as_images(data.inputs[data.networks[0]]), execution, adversary is None)
    runner = _stack_runner(stack, data, options, execution)
    check_classes(data.labels, _classes(stack, data, execution))
    return train_passes(stack, [Pass(runner)], data, options)[0]


def train_stack(stack: ParamStack, data: ClientBatches, options: LocalOptions, execution: Execution) -> tuple[ParamStack, float]:
    """:func:`local_train` with its options as an object, on labels that are known to be classes; also returns the mean loss."""
    return train_passes(stack, [Pass(_stack_runner(stack, data, options, execution))], data, options)


def _stack_runner(stack: ParamStack, data: ClientBatches, options: LocalOptions, execution: Execution) -> Runner:
    """What runs the networks of a stack on their clients' minibatches."""
    owners = data.networks
    if len(owners) != len(stack) or not set(owners) <= set(range(len(data.labels))):
        raise ValueError(f"{len(stack)} networks need {len(stack)} owners among {len(data.labels)} clients, not {owners}")
    if options.adversary is not None and len(stack.norm_names) and not any("running" in name for name in stack.norm_names):
        raise ValueError("attacks run the network in evaluation mode: adversarial training needs tracked or local statistics")
    shared = _shared_inputs(owners, bool(stack.roles)) if options.adversary is None else len(owners)
    return Runner(stack, len(stack), shared, execution)


@torch.no_grad()
def _classes(stack: ParamStack, data: ClientBatches, execution: Execution) -> int:
    """Number of classes of the networks, which the first tells of two images in evaluation mode: nothing is drawn or changed."""
    runner = Runner(stack, 1, 1, execution)
    first = {name: tensor[:1].detach() for name, tensor in stack.tensors.items()}
    with norm_mode(runner.module, "clean", False):
        return runner(first, as_images(data.inputs[data.networks[0]][:2])[None]).shape[-1]


def client_seed(seed: int, *path: int) -> int:
    """Return a 63-bit seed for one client in one round."""
    import numpy as np

    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))
