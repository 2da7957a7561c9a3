"""Batch normalisation as Split-Mix uses it: stateless or tracked, dual for clean and attacked inputs, or conditioned on λ.

Hong et al., ICLR 2022, Sec. 3.3 and appendix A.3; dual batch normalisation after Xie et al., CVPR 2020; conditioning after Wang
et al., *Once-for-All Adversarial Training*, NeurIPS 2020, Sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.examples import in_type_of, require_numbers
from atlas.nn.kinds import require_sequence
from atlas.nn.modes import mode_of

Kind = Literal["bn", "dual_bn", "film_bn"]
Statistics = Literal["batch", "tracked", "local"]
Mode = Literal["clean", "noise", "mix"]
KNOWN_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class NormSpec:
    """Which normalisation a network gets.

    Attributes
    ----------
    kind : {"bn", "dual_bn", "film_bn"}
        One batch norm, or one for clean and one for attacked inputs with everything else shared, or these two with a scale and a
        shift that depend on λ (:class:`ConditionalNorm`).
    stats : {"batch", "tracked", "local"}
        ``batch``: statistics of the present batch, in training and in testing, no buffers. ``tracked``: running statistics,
        averaged over clients like weights. ``local``: running statistics, which stay on the client with scale and shift.
    eps, momentum : float
        As in ``torch.nn.BatchNorm2d``.
    lams : tuple of float
        The trade-offs that a conditional norm can be set to, ascending; the first is 0.

    Raises
    ------
    TypeError
        ``eps`` or ``momentum`` is no number.
    ValueError
        There is no such kind or no such statistics, ``eps`` is negative or not finite, ``momentum`` is outside [0, 1], or a
        conditional norm cannot have these trade-offs.
    """

    kind: Kind = "bn"
    stats: Statistics = "batch"
    eps: float = 1e-5
    momentum: float = 0.1
    lams: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no norm can be."""
        for name, choices in (("kind", get_args(Kind)), ("stats", get_args(Statistics))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        require_numbers(eps=self.eps, momentum=self.momentum)
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and at least 0, not {self.eps}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], not {self.momentum}")
        ordered = len(self.lams) > 1 and self.lams[0] == 0 and self.lams[-1] <= 1 and sorted(set(self.lams)) == list(self.lams)
        if self.kind == "film_bn" and not ordered:
            raise ValueError(f"lams of conditional norms must ascend from 0 to at most 1, at least two of them, not {self.lams}")

    @property
    def tracked(self) -> bool:
        """Whether the layers hold running statistics."""
        return self.stats != "batch"

    def layer(self, channels: int) -> nn.Module:
        """Return a normalisation of ``channels`` channels, for (batch, channels) and (batch, channels, height, width)."""
        kinds: dict[str, Any] = {"bn": BatchNorm, "dual_bn": DualNorm, "film_bn": ConditionalNorm}
        made: nn.Module = kinds[self.kind](channels, self)
        return made


class BatchNorm(nn.Module):
    """Batch normalisation of (batch, channels, …), with running statistics or without.

    Has no count of batches, which would be neither a weight nor an average.

    Raises
    ------
    ValueError
        From ``forward``: a batch of one image has no batch statistics.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, channels: int, spec: NormSpec = NormSpec()) -> None:
        super().__init__()
        self.eps, self.momentum = spec.eps, spec.momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels) if spec.tracked else None)
        self.register_buffer("running_var", torch.ones(channels) if spec.tracked else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, …); with the batch's statistics in training, or where none are tracked."""
        flat = [None if buffer is None else buffer.flatten() for buffer in (self.running_mean, self.running_var)]
        return self.normalise(x, flat[0], flat[1], self.weight.flatten(), self.bias.flatten())

    def normalise(self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, …) with tensors (channels,); running ones are updated in place in training."""
        by_batch = self.training or mean is None
        if by_batch and x.shape[0] < 2:
            raise ValueError("batch statistics need at least 2 images, and this batch has 1: change the batch size")
        return functional.batch_norm(x, mean, var, weight, bias, by_batch, self.momentum, self.eps)

    def extra_repr(self) -> str:
        """Say how many channels, and which statistics."""
        return f"{self.weight.numel()}, stats={'batch' if self.running_mean is None else 'tracked'}"


class DualNorm(nn.Module):
    """Two batch norms, for clean and for attacked inputs, and any mixture of their outputs.

    Attributes
    ----------
    mode : {"clean", "noise", "mix"}
        Which one normalises. ``mix`` is (1 − λ)·clean + λ·noise with running statistics: in evaluation only.
    lam : float, optional
        λ in [0, 1] of ``mix``.
    """

    def __init__(self, channels: int, spec: NormSpec = NormSpec("dual_bn", "tracked")) -> None:
        super().__init__()
        self.clean = BatchNorm(channels, spec)
        self.noise = BatchNorm(channels, spec)
        self.mode: Mode = "clean"
        self.lam: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, …) as the mode says."""
        if self.mode == "clean":
            return self.clean(x)
        if self.mode == "noise":
            return self.noise(x)
        if self.mode != "mix":
            raise ValueError(f"mode must be clean, noise or mix, not {self.mode!r}")
        if self.lam is None:
            raise RuntimeError("mode mix needs a lam in [0, 1]: use set_robustness")
        if self.training:
            raise RuntimeError("mode mix is for evaluation: a training pass uses one of the two norms")
        return (1 - self.lam) * self.clean(x) + self.lam * self.noise(x)

    def acting(self) -> list[BatchNorm]:
        """List those of the two norms that a pass uses in the present mode; ``mix`` uses both, whatever λ is."""
        return {"clean": [self.clean], "noise": [self.noise]}.get(self.mode, [self.clean, self.noise])


CODE = 128
"""Entries of the code of a trade-off, the authors' default."""


@lru_cache(maxsize=8)
def codes(count: int, size: int = CODE) -> Tensor:
    """Codes of trade-offs, (count, size): rows of an orthogonal matrix that is drawn once and for all.

    Raises
    ------
    ValueError
        There are more trade-offs than entries.
    """
    if count > size:
        raise ValueError(f"{count} trade-offs have no codes of {size} entries that are orthogonal")
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    return torch.linalg.qr(drawn).Q[:count].float()


class ConditionalNorm(DualNorm):
    """Dual batch norm, and a scale and a shift of every channel that a small network makes of λ (FiLM).

    Where λ is 0 the clean norm acts, elsewhere the one for attacked inputs. The network has one hidden layer of twice the
    channels, leaky ReLUs, and reads the code of λ (:func:`codes`). It starts near a scale of 1, where the authors' starts near 0
    and a federation of few rounds hardly leaves it. Each sample of a batch can have a λ of its own: see
    :func:`conditioned`. Outside of such a block ``clean`` means λ = 0, ``noise`` the largest λ, and ``mix`` the ``lam`` that is
    set, which must be one of those that were trained.
    """

    def __init__(self, channels: int, spec: NormSpec) -> None:
        super().__init__(channels, spec)
        self.lams = spec.lams
        self.embed = nn.Linear(CODE, 2 * channels)
        self.scale = nn.Linear(2 * channels, channels)
        self.shift = nn.Linear(2 * channels, channels)
        self.choices: Tensor | None = None
        self.zeros = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, …), then scale and shift it by each sample's λ.

        Raises
        ------
        ValueError
            ``lam`` is none of the trade-offs that were trained.
        """
        choices, zeros = self._asked(len(x)) if self.choices is None else (self.choices, self.zeros)
        parts = [self.clean(x[:zeros])] if zeros else []
        parts += [self.noise(x[zeros:])] if zeros < len(x) else []
        normal = parts[0] if len(parts) == 1 else torch.cat(parts)
        code = codes(len(self.lams)).to(x)[choices].flatten(1)
        hidden = functional.leaky_relu(self.embed(code))
        scale, shift = functional.leaky_relu(1 + self.scale(hidden)), functional.leaky_relu(self.shift(hidden))
        axes = (...,) + (None,) * (x.ndim - 2)
        return normal * scale[axes] + shift[axes]

    def acting(self) -> list[BatchNorm]:
        """List the one norm that acts on the λ of the present mode."""
        return [self.clean if self._asked(1)[1] else self.noise]

    def _asked(self, count: int) -> tuple[Tensor, int]:
        """Indices (count, networks) of the one λ that the mode asks for, and how many samples have λ = 0."""
        if self.mode == "mix" and self.lam not in self.lams:
            raise ValueError(f"lam {self.lam} was not trained: choose from {', '.join(f'{lam:g}' for lam in self.lams)}")
        index = {"clean": 0, "noise": len(self.lams) - 1}.get(self.mode)
        index = self.lams.index(self.lam) if index is None else index  # type: ignore[arg-type]
        networks = self.embed.weight.shape[0] if self.embed.weight.ndim == 3 else 1
        return torch.full((count, networks), index), count if index == 0 else 0


@contextmanager
def conditioned(model: nn.Module, choices: Tensor, zeros: int, training: bool) -> Iterator[None]:
    """Within the block every sample has a λ of its own in all conditional norms of a model, which is in a training mode.

    Parameters
    ----------
    choices : Tensor
        (batch,), or (batch, networks) where networks run side by side: indices of trade-offs.
    zeros : int
        How many samples, the first of the batch, have λ = 0, in every network.
    """
    norms = [module for module in model.modules() if isinstance(module, ConditionalNorm)]
    for norm in norms:
        norm.choices, norm.zeros = choices, zeros
    try:
        with mode_of(model, "train" if training else "eval"):
            yield
    finally:
        for norm in norms:
            norm.choices, norm.zeros = None, 0


def zero_samples(batch: int, count: int) -> int:
    """How many samples of a batch have λ = 0, of ``count`` trade-offs: as many as of each other one, rounded up.

    Both norms need two samples; where a batch has too few for that, none has.
    """
    zeros = max(2, math.ceil(batch / count))
    return zeros if batch - zeros >= 2 else 0


def dual_norms(model: nn.Module) -> list[DualNorm]:
    """List every dual norm of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, DualNorm)]


def set_robustness(model: nn.Module, lam: float) -> int:
    """Set the trade-off of every dual norm: 0 for accuracy on clean inputs, 1 for robustness.

    Returns
    -------
    int
        Number of dual norms touched.

    Raises
    ------
    ValueError
        ``lam`` is outside [0, 1].
    RuntimeError
        The model has no dual norm, or is in training mode.
    """
    if not isinstance(lam, bool):
        require_numbers(lam=lam)
    if isinstance(lam, bool) or not 0 <= lam <= 1:
        raise ValueError(f"lam must be a number in [0, 1], not {lam}")
    norms = dual_norms(model)
    if not norms:
        raise RuntimeError("the model has no dual norm: it was not trained for a robustness knob")
    if model.training:
        raise RuntimeError("the model is in training mode: call eval() before set_robustness")
    for norm in norms:
        norm.mode, norm.lam = "mix", float(lam)
    return len(norms)


def set_norm_mode(model: nn.Module, mode: Literal["clean", "noise"]) -> int:
    """Let one of the two norms of every dual norm act; returns how many there are (0 for ordinary networks).

    Raises
    ------
    ValueError
        There is no such mode.
    """
    if mode not in ("clean", "noise"):
        raise ValueError(f"mode must be clean or noise, not {mode!r}; set_robustness mixes the two")
    norms = dual_norms(model)
    for norm in norms:
        norm.mode = mode
    return len(norms)


@contextmanager
def norm_mode(model: nn.Module, mode: Literal["clean", "noise"], training: bool) -> Iterator[None]:
    """Within the block the model is in a dual-norm mode and a training mode; afterwards every module has its own again."""
    before = [(norm, norm.mode) for norm in dual_norms(model)]
    set_norm_mode(model, mode)
    try:
        with mode_of(model, "train" if training else "eval"):
            yield
    finally:
        for norm, old in before:
            norm.mode = old


@torch.no_grad()
def post_statistics(model: nn.Module, batches: Iterable[Tensor], passes: int = 20) -> nn.Module:
    """Give norms without buffers the statistics of data (batch, …) at hand (``post`` of the appendix's ablation), in place.

    Means and unbiased variances of all batches of all passes are averaged with equal weights. Of dual norms those that act in
    their present mode get them, both of them in ``mix``; the other one stays as it is. If a pass fails, the model is as before.

    Parameters
    ----------
    model : nn.Module
        Its :class:`BatchNorm` layers get running statistics; it is returned in evaluation mode.
    batches : iterable of Tensor or array
        Inputs, for example a client's training images; iterated ``passes`` times. Of a loader's pairs the inputs are taken.

    Raises
    ------
    ValueError
        There are no batches or no passes, or a batch has one image.
    """
    require_sequence("an iterable of batches", batches=batches)
    given = (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)
    held = [in_type_of(model, batch, "a batch") for batch in given]
    if not held or passes < 1:
        raise ValueError(f"statistics need batches and passes, not {len(held)} and {passes}")
    duals = dual_norms(model)
    idle = {id(norm) for dual in duals for norm in (dual.clean, dual.noise) if norm not in dual.acting()}
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and id(module) not in idle]
    before = [(norm, norm.momentum, norm.running_mean, norm.running_var) for norm in norms]
    try:
        with mode_of(model, "train"):
            for dual in duals:
                dual.training = False  # only then can it mix; its norms take the statistics of the batch all the same
            _gather_statistics(model, norms, held * passes)
    except BaseException:
        for norm, _, mean, var in before:
            norm.running_mean, norm.running_var = mean, var
        raise
    finally:
        for norm, momentum, _, _ in before:
            norm.momentum = momentum
    return model.eval()


def _gather_statistics(model: nn.Module, norms: list[BatchNorm], batches: list[Tensor]) -> None:
    """Give norms new statistics, the means over batches (batch, …) of what reaches them."""
    for norm in norms:
        norm.running_mean = torch.zeros_like(norm.weight)
        norm.running_var = torch.ones_like(norm.weight)
    for count, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (count + 1)
        model(batch)
