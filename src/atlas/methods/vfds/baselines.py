"""Baselines that choose features without a state, at the cost of VFDS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from atlas.errors import UserError
from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors
from atlas.harness.registry import Amounts
from atlas.harness.run import Run
from atlas.harness.seeds import derive_seed
from atlas.methods.vfds.fitting import rollout_loss
from atlas.methods.vfds.model import FixedMask, Random
from atlas.methods.vfds.plugin import SweepLearner
from atlas.methods.vfds.settings import AttentionSettings
from atlas.methods.vfds.sweep import Sweep
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.feature_acquisition.entry import training_amounts
from atlas.tasks.feature_acquisition.learner import Bench, Losses, Phase

MI_ROWS = 2000
"""Steps on which mutual information is estimated; the nearest-neighbour estimate costs n log n per feature."""
MI_LOOKED = 20 * MI_ROWS
"""Steps that are looked at for labelled ones before fewer than :data:`MI_ROWS` must do."""
MI_NEIGHBOURS = 3
"""Nearest neighbours from which the estimate is made."""
SHRINK = "shrink"
"""Loop in which the group lasso finds its mask."""


def lasso_amounts(run: Run) -> Amounts:
    """The task's loop, twice: under the penalties, all of which a rehearsal takes, and on what they leave."""
    amounts = training_amounts(run)
    return {**amounts, SHRINK: amounts[TRAIN]}


def target_fraction(run: Run) -> float:
    """Fraction of the features that VFDS acquires on validation data, in [0, 1]."""
    return float(training_summary(run.needed("target"))["validation_frac_steady"])


def target_count(run: Run, gates: int) -> int:
    """Number of gates at VFDS's fraction."""
    return min(gates, max(0, round(gates * target_fraction(run))))


def top(scores: Tensor, count: int) -> Tensor:
    """Mask (G,) of the ``count`` largest scores."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.topk(scores, count).indices] = True
    return mask


def largest(values: Tensor, groups: Tensor) -> Tensor:
    """Largest value of each gate's features: (D,), (D,) to (G,)."""
    member = groups == torch.arange(int(groups.max()) + 1)[:, None]
    return torch.where(member, values, -torch.inf).amax(1)


class Attention(SweepLearner):
    """Deterministic soft weights, trained without a cost; thresholded in use."""

    policy = "attention"

    def __init__(self, run: Run, settings: AttentionSettings) -> None:
        super().__init__(run, settings)
        self.model_options = {"attention_threshold": settings.threshold}


class RandomGates(SweepLearner):
    """Gates that open by chance, as often as VFDS's."""

    def __init__(self, run: Run, settings: Settings) -> None:
        super().__init__(run, settings)
        self.policy = Random(target_fraction(run))


class Masked(SweepLearner):
    """A fixed mask after the first step. Subclasses choose it in :meth:`choose`; until then the policy is to open all gates."""

    def choose(self, bench: Bench) -> Tensor:
        """Booleans (G,), true for gates that stay open: none at all."""
        return torch.zeros(len(bench.streams.layout.cost), dtype=torch.bool)

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Choose the mask, and train one model on the features that it leaves."""
        self.policy = FixedMask(self.choose(bench))
        yield from super().phases(bench)

    def restore(self, bench: Bench, state: Mapping[str, Tensor]) -> None:
        """Find the mask among the weights (models, …), and load all of them."""
        self.policy = FixedMask(state["mask"][0].bool())
        super().restore(bench, state)


class StaticTopK(Masked):
    """The gates with the largest static logits, as many as VFDS opens; a new GRU is trained on them."""

    def choose(self, bench: Bench) -> Tensor:
        """Booleans (G,): the largest logits of the static run at its headline."""
        needed = bench.run.needed("static")
        index = needed.build()[0].headline
        logits = read_tensors(needed.weights)["static_logits"][index]
        return top(logits, target_count(bench.run, len(logits)))


class MutualInformation(Masked):
    """The gates with most mutual information with the label, as many as VFDS opens."""

    def choose(self, bench: Bench) -> Tensor:
        """Booleans (G,): Kraskov-style estimate per feature (k = 3) on training steps; a group counts its best feature."""
        from sklearn.feature_selection import mutual_info_classif

        layout = bench.streams.layout
        if layout.several:
            raise UserError(f"{bench.run.cell}: mutual information needs one label per step, and this stream has several")
        values, labels = self.labelled_steps(bench)
        state = derive_seed(bench.run.seed, "mutual-information") % 2**32
        information = mutual_info_classif(values.numpy(), labels.numpy(), n_neighbors=MI_NEIGHBOURS, random_state=state)
        gates = largest(torch.from_numpy(information), layout.groups)
        return top(gates, target_count(bench.run, len(gates)))

    def labelled_steps(self, bench: Bench) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) of training steps with a label: :data:`MI_ROWS`, or fewer where labels are rare."""
        parts: list[tuple[Tensor, Tensor]] = []
        labelled = looked = 0
        while labelled < MI_ROWS and (looked < MI_LOOKED or labelled <= MI_NEIGHBOURS):
            x, y = bench.streams.batch(bench.protocol.batch_size, len(parts), "mutual-information")
            known = y >= 0
            parts.append((x[known].cpu(), y[known].cpu()))
            labelled, looked = labelled + int(known.sum()), looked + y.numel()
        values, labels = (torch.cat(column)[:MI_ROWS] for column in zip(*parts, strict=True))
        return values, labels


class GroupLasso(Masked):
    """Columns of the input weights that a proximal step leaves, cut to what VFDS acquires; a new GRU is trained on them.

    The penalty is swept; the one whose mask is nearest in size is kept, and of that the columns with the largest norms.
    """

    mask: Tensor | None = None

    def choose(self, bench: Bench) -> Tensor:
        """Booleans (G,): the mask that :meth:`phases` found by shrinking."""
        assert self.mask is not None
        return self.mask

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Shrink a model per penalty, then train one on what is left."""
        penalties = torch.tensor(self.settings.penalties, device=bench.device)[:, None, None]
        sweep, penalty = self.start(bench, len(penalties)), penalties * bench.protocol.learning_rate

        @torch.no_grad()
        def shrink(step: int) -> None:
            weight = cast(Tensor, sweep.weight_ih_l0)
            weight.mul_((1 - penalty / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=0))

        def loss(x: Tensor, y: Tensor, step: int) -> Losses:
            return Losses(*rollout_loss(sweep.template, sweep(x), y, lam=0.0, cost=sweep.template.groups.cost.to(x)))

        yield Phase(SHRINK, sweep, loss, after_step=shrink, keep_best=False)
        self.mask = self.remaining(bench, sweep)
        yield from super().phases(bench)

    def remaining(self, bench: Bench, sweep: Sweep) -> Tensor:
        """Booleans (G,) of the penalty whose mask is nearest in size to VFDS's; a gate's norm is that of its largest column."""
        layout = bench.streams.layout
        norms = cast(Tensor, sweep.weight_ih_l0).detach().cpu().norm(dim=1)  # (M, D)
        gates = torch.stack([largest(columns, layout.groups) for columns in norms])
        wanted = target_count(bench.run, len(layout.cost))
        sizes = (gates > 0).sum(1)
        best = gates[int((sizes - wanted).abs().argmin())]
        return top(best, wanted) & (best > 0)
