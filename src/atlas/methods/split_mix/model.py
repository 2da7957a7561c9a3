"""The customisable model: base networks of one width, mixed on demand into any multiple of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from atlas.methods.split_mix.adapting import ByWidth, check_factory
from atlas.methods.split_mix.export import Ensemble, Form, MergedForm, merge_bases
from atlas.methods.split_mix.networks import TOLERANCE, WidthFactory
from atlas.methods.split_mix.norms import NormSpec, dual_norms, set_robustness
from atlas.methods.split_mix.settings import FederatedSettings
from atlas.methods.split_mix.stacks import ParamStack, require_batch_statistics
from atlas.methods.split_mix.trials import check_merged
from atlas.methods.split_mix.widths import Role, Slicer, base_count, blank, checked_width, layer_roles, rescale_as_slice
from atlas.nn.examples import require_numbers

DEFAULT = FederatedSettings()


def _drawn(factory: WidthFactory, width: float, norm: NormSpec, seed: int) -> nn.Module:
    """A network from a seed, whether or not the factory draws from the generator that it is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory(width, norm=norm, generator=torch.Generator().manual_seed(seed))


def _seed_of(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class SplitMix(nn.Module):
    """M base networks of width r; a model of width R is the mean of the logits of ⌊R / r⌋ of them.

    Parameters
    ----------
    factory : WidthFactory
        Makes a network of any width.
    atom : float
        Width r of a base network.
    max_width : float
        Widest model that can be asked for: M = ⌊max_width / r⌋.
    norm : NormSpec
        Dual norms give the model a robustness knob.
    rescale_init : bool
        Start hidden layers at the scale of the full-width network (appendix of the paper).
    seed : int
        Of the initialisation.
    rescale_layer : bool
        Divide hidden layers by r before their norm, in training only. With the batch's statistics this is nothing but another
        eps; with running statistics it must be off, since training and testing would differ.
    example : Tensor, optional
        Inputs (n, …) as the networks take them, on which merged forms are tried. If left out, those that the factory was made
        with (:func:`.by_width`), or images of usual sizes.

    Raises
    ------
    ValueError
        The atom or the widest width is impossible, or ``rescale_layer`` meets running statistics.
    TypeError
        The factory returns networks of different shapes for one width, or cannot be told a width.

    Examples
    --------
    >>> model = SplitMix(MLP, atom=0.125)
    >>> small = model.customize(0.25)  # an ordinary module: 2 of 8 base networks
    >>> small(torch.rand(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        factory: WidthFactory,
        *,
        atom: float = DEFAULT.atom,
        max_width: float = 1.0,
        norm: NormSpec = NormSpec(),
        rescale_init: bool = DEFAULT.rescale_init,
        seed: int = 0,
        rescale_layer: bool = False,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_numbers(atom=atom, max_width=max_width)
        if not 0 < atom <= 1:
            raise ValueError(f"atom must be in (0, 1], not {atom}")
        if not atom - TOLERANCE <= max_width <= 1:
            raise ValueError(f"max_width must be in [{atom:g}, 1], not {max_width}")
        if rescale_layer:
            require_batch_statistics(norm)
        check_factory(factory)
        self.atom, self.max_width, self.norm, self.rescale_layer = float(atom), float(max_width), norm, rescale_layer
        self.n_base = base_count(max_width, atom)
        bases = [_drawn(factory, atom, norm, _seed_of(seed, index)) for index in range(self.n_base)]
        _check_alike(bases)
        wide = bases[0] if atom == 1 else blank(factory, 1.0, norm)
        # with one width alone nothing can be told; nothing is shared or merged then either
        self.roles: dict[str, Role] = {} if atom == 1 else layer_roles(bases[0], wide)
        if rescale_init and atom != 1:
            for base in bases:
                rescale_as_slice(base, wide)
        self.bases = nn.ModuleList(bases)
        self.example = factory.example if example is None and isinstance(factory, ByWidth) else example
        self._merge_faults: dict[MergedForm, str] = {}

    def stack(self) -> ParamStack:
        """Copies of all base networks as one stack."""
        return ParamStack.of(list(self.bases), self.roles, self.atom if self.rescale_layer else 1.0)

    @torch.no_grad()
    def load_stack(self, stack: ParamStack) -> SplitMix:
        """Take the weights of a stack over; returns the model."""
        for index, base in enumerate(self.bases):
            base.load_state_dict({name: tensor[index] for name, tensor in stack.tensors.items()})
        return self

    def base_logits(self, x: Tensor, bases: Sequence[int] | None = None) -> Tensor:
        """Logits of single base networks, all by default: (batch, …) to (n, batch, classes)."""
        chosen = range(self.n_base) if bases is None else bases
        return torch.stack([self.bases[index](x) for index in chosen])

    def forward(self, x: Tensor, *, width: float = 1.0, lam: float | None = None) -> Tensor:
        """Mean logits (batch, classes) of the first base networks of a width.

        ``lam`` in [0, 1] mixes dual norms, in evaluation; without it they are as they were last set (clean at first).

        Raises
        ------
        ValueError
            The width is above ``max_width``, or holds no base network.
        """
        chosen = list(self.bases[: checked_width(width, self.atom, self.max_width)])
        if lam is None:
            return self.base_logits(x, range(len(chosen))).mean(0)
        before = [(norm, norm.mode, norm.lam) for norm in dual_norms(self)]
        set_robustness(self, lam)
        try:
            return self.base_logits(x, range(len(chosen))).mean(0)
        finally:
            for norm, mode, old in before:
                norm.mode, norm.lam = mode, old

    def all_widths(self, x: Tensor) -> dict[float, Tensor]:
        """Mean logits (batch, classes) at every width, from one pass over the base networks."""
        sums = self.base_logits(x).cumsum(0)
        return {(index + 1) * self.atom: total / (index + 1) for index, total in enumerate(sums)}

    def customize(
        self, width: float, *, lam: float | None = None, order: Sequence[int] | None = None, form: Form = "auto"
    ) -> nn.Module:
        """Return a model to deploy: in evaluation mode, without gradients, sharing nothing with this one.

        Parameters
        ----------
        width : float
            In [atom, max_width]; rounded down to a multiple of the atom, with a warning.
        lam : float, optional
            Trade-off in [0, 1] of a model with dual norms; it can be changed later by ``set_robustness``.
        order : sequence of int, optional
            Base networks in the order in which they are taken, for example by falling validation accuracy.
        form : {"auto", "ensemble", "grouped", "dense"}
            Networks one after the other; one network with groups; one network with zeros between the groups, for runtimes that
            know no groups. ``auto`` is one with groups where that gives the mean logits, which one pass tells, else the ensemble.

        Raises
        ------
        ValueError
            Width, λ, order or form is impossible.
        RuntimeError
            ``lam`` is given for a model without dual norms.
        TypeError
            One network is asked for and there is none: a layer cannot be merged, an operation without weights works across
            channels, or there is no ``example`` to try it on.
        """
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, not {form!r}")
        count = checked_width(width, self.atom, self.max_width)
        sequence = list(range(self.n_base)) if order is None else list(order)
        if len(sequence) < count or len(set(sequence)) != len(sequence) or not set(sequence) <= set(range(self.n_base)):
            raise ValueError(f"order must name at least {count} different base networks of {self.n_base}, not {sequence}")
        chosen = [copy.deepcopy(self.bases[index]).eval() for index in sequence[:count]]
        made = chosen[0] if count == 1 else self._mixed(chosen, form)
        made.eval().requires_grad_(False)
        if lam is not None:
            set_robustness(made, lam)
        return made

    def _mixed(self, chosen: Sequence[nn.Module], form: Form) -> nn.Module:
        """Several networks as one module; what a form's trial found is kept for later calls."""
        merged: MergedForm = "dense" if form == "dense" else "grouped"
        if form != "ensemble" and merged not in self._merge_faults:
            self._merge_faults[merged] = ""
            try:
                example = None if self.example is None else self.example.to(next(chosen[0].parameters()).device)
                check_merged(chosen[0], self.roles, merged, example)
            except TypeError as error:
                self._merge_faults[merged] = str(error)
        fault = self._merge_faults.get(merged, "")
        if fault and form not in ("auto", "ensemble"):
            raise TypeError(fault)
        return Ensemble(chosen) if fault or form == "ensemble" else merge_bases(chosen, self.roles, merged)


def _check_alike(bases: Sequence[nn.Module]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in base.state_dict().items()} for base in bases]
    for shape in shapes:
        if shape != shapes[0]:
            name = next((name for name in shapes[0] if shape.get(name) != shapes[0][name]), "its list of tensors")
            raise TypeError(f"the factory returns networks of different shapes for one width: {name}")


class PrefixModel(nn.Module):
    """One full network whose prefixes are the narrower models: what (Slimmable) HeteroFL trains, and FedAvg with one width.

    Parameters
    ----------
    factory : WidthFactory
        Makes a network of any width.
    width : float
        Of the full network.
    norm : NormSpec
        Its normalisation.
    """

    def __init__(self, factory: WidthFactory, *, width: float = 1.0, norm: NormSpec = NormSpec(), seed: int = 0) -> None:
        super().__init__()
        self.factory, self.width, self.norm = check_factory(factory), float(width), norm
        self.net = _drawn(factory, width, norm, _seed_of(seed, 0))

    def slicer(self, narrow: float) -> Slicer:
        """Prefixes of this network; widths are relative to it."""
        full = self.net.state_dict()
        small = full if narrow == self.width else blank(self.factory, narrow, self.norm).state_dict()
        grows = {name: tuple(a != b for a, b in zip(full[name].shape, small[name].shape, strict=True)) for name in full}
        return Slicer({name: tuple(tensor.shape) for name, tensor in full.items()}, grows)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the full network on images (batch, …)."""
        return self.net(x)

    def customize(self, width: float, *, lam: float | None = None) -> nn.Module:
        """Return the prefix of a width as a module to deploy, in evaluation mode and without gradients."""
        require_numbers(width=width)
        if not 0 < width <= self.width + TOLERANCE:
            raise ValueError(f"width must be in (0, {self.width:g}], not {width}")
        made = blank(self.factory, width, self.norm)
        made.load_state_dict(self.slicer(width).prefix(self.net.state_dict(), width / self.width))
        made.to(next(self.net.parameters()).device).eval().requires_grad_(False)
        if lam is not None:
            set_robustness(made, lam)
        return made
