"""Baselines that choose features without a state, at the cost of VFDS, and the exact filter of the synthetic stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from atlas.errors import UserError
from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors
from atlas.harness.seeds import derive_seed
from atlas.methods.vfds.entry import SHRINK
from atlas.methods.vfds.ingredient import SweepLearner
from atlas.methods.vfds.losses import selection_loss
from atlas.methods.vfds.model import FixedMask, Random
from atlas.methods.vfds.sweep import Sweep
from atlas.tasks.feature_acquisition.evaluate import selection_metrics, write_profile, write_session
from atlas.tasks.feature_acquisition.learner import Bench, Losses, Phase, Prediction
from atlas.tasks.feature_acquisition.scores import score
from atlas.tasks.feature_acquisition.streams import BEACON_NOISE, Sequences, beacon_code
from atlas.tasks.feature_acquisition.training import make_bench

if TYPE_CHECKING:
    from atlas.harness.run import Run

MI_ROWS = 2000
"""Steps on which mutual information is estimated; the nearest-neighbour estimate costs n log n per feature."""
MI_LOOKED = 20 * MI_ROWS
"""Steps that are looked at for labelled ones before fewer than :data:`MI_ROWS` must do."""
MI_NEIGHBOURS = 3


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


class Ungated(SweepLearner):
    """All features at every step."""

    def __init__(self) -> None:
        super().__init__("none")


class Attention(SweepLearner):
    """Deterministic soft weights, trained without a cost; thresholded in use."""

    def __init__(self, threshold: float) -> None:
        super().__init__("attention", attention_threshold=threshold)


class RandomGates(SweepLearner):
    """Gates that open by chance, as often as VFDS's."""

    def __init__(self, run: Run) -> None:
        super().__init__(Random(target_fraction(run)))


class Masked(SweepLearner):
    """A fixed mask after the first step. Subclasses choose it in :meth:`choose`."""

    def __init__(self) -> None:
        super().__init__("none")  # until the mask is known

    def choose(self, bench: Bench) -> Tensor:
        """The mask (G,): no gate at all."""
        return torch.zeros(len(bench.streams.layout.cost), dtype=torch.bool)

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Train on the mask."""
        self.policy = FixedMask(self.choose(bench))
        yield from super().phases(bench)

    def restore(self, bench: Bench, state: Mapping[str, Tensor]) -> None:
        """The mask is among the weights."""
        self.policy = FixedMask(state["mask"][0].bool())
        super().restore(bench, state)


class StaticTopK(Masked):
    """The gates with the largest static logits, as many as VFDS opens; a new GRU is trained on them."""

    def choose(self, bench: Bench) -> Tensor:
        """Rank by the static run's logits at its headline."""
        needed = bench.run.needed("static")
        index = needed.build()[0].headline
        logits = read_tensors(needed.weights)["static_logits"][index]
        return top(logits, target_count(bench.run, len(logits)))


class MutualInformation(Masked):
    """The gates with most mutual information with the label, as many as VFDS opens."""

    def choose(self, bench: Bench) -> Tensor:
        """Kraskov-style estimate per feature (k = 3) on training steps; a group counts its best feature."""
        from sklearn.feature_selection import mutual_info_classif

        layout = bench.streams.layout
        if layout.several:
            raise UserError(f"{bench.run.cell}: mutual information needs one label per step, and this stream has several")
        values, labels = self.labelled_steps(bench)
        state = derive_seed(bench.run.seed, "mutual-information") % 2**32
        each = torch.from_numpy(
            mutual_info_classif(values.numpy(), labels.numpy(), n_neighbors=MI_NEIGHBOURS, random_state=state)
        )
        gates = largest(each, layout.groups)
        return top(gates, target_count(bench.run, len(gates)))

    def labelled_steps(self, bench: Bench) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) of training steps with a label: :data:`MI_ROWS`, or fewer where labels are rare."""
        parts: list[tuple[Tensor, Tensor]] = []
        found = looked = 0
        while found < MI_ROWS and (looked < MI_LOOKED or found <= MI_NEIGHBOURS):
            x, y = bench.streams.batch(bench.protocol.batch_size, len(parts), "mutual-information")
            known = y >= 0
            parts.append((x[known].cpu(), y[known].cpu()))
            found, looked = found + int(known.sum()), looked + y.numel()
        values, labels = (torch.cat(one)[:MI_ROWS] for one in zip(*parts, strict=True))
        return values, labels


class GroupLasso(Masked):
    """Columns of the input weights that a proximal step leaves, cut to what VFDS acquires; a new GRU is trained on them.

    The penalty is swept; the one whose mask is nearest in size is kept, and of that the columns with the largest norms.
    """

    def __init__(self, penalties: tuple[float, ...]) -> None:
        super().__init__()
        self.penalties = penalties
        self.mask: Tensor | None = None

    def choose(self, bench: Bench) -> Tensor:
        """The mask that :meth:`phases` found."""
        assert self.mask is not None
        return self.mask

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Shrink, then train on what is left."""
        shrunk = SweepLearner("none", [0.0] * len(self.penalties))
        sweep = shrunk.start(bench)
        penalty = torch.tensor(self.penalties, device=bench.device)[:, None, None] * bench.protocol.learning_rate

        @torch.no_grad()
        def shrink(step: int) -> None:
            weight = cast(Tensor, sweep.weight_ih_l0)
            weight.mul_((1 - penalty / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(min=0))

        def loss(x: Tensor, y: Tensor, step: int) -> Losses:
            return Losses(*selection_loss(sweep(x), y, cost=sweep.template.groups.cost.to(x), lam=0.0))

        yield Phase(SHRINK, sweep, loss, after_step=shrink, keep_best=False)
        self.mask = self.remaining(bench, sweep)
        yield from super().phases(bench)

    def remaining(self, bench: Bench, sweep: Sweep) -> Tensor:
        """Mask of gates: norm of a gate is that of its largest column."""
        layout = bench.streams.layout
        norms = cast(Tensor, sweep.weight_ih_l0).detach().cpu().norm(dim=1)  # (M, D)
        gates = torch.stack([largest(one, layout.groups) for one in norms])
        wanted = target_count(bench.run, len(layout.cost))
        sizes = (gates > 0).sum(1)
        best = gates[int((sizes - wanted).abs().argmin())]
        return top(best, wanted) & (best > 0)


# --- the exact filter ---------------------------------------------------------------------------------------------------


def train_oracle(run: Run) -> dict[str, Any]:
    """Nothing to learn: the filter knows how the synthetic stream is made."""
    if run.protocol_model().stream.kind != "synthetic":
        raise UserError(f"{run.cell}: the oracle knows the synthetic stream only")
    return {}


def evaluate_oracle(run: Run) -> dict[str, float]:
    """Score the filter that sees the beacons and the block of the context that it expects."""
    bench = make_bench(run)
    layout, switch = bench.streams.layout, bench.protocol.stream.switch
    found = {}
    for name in ("test", "long"):
        split = bench.streams.splits[name]
        logits, gates = bayes_filter(split, bench.protocol.stream.contexts, switch)
        found[name] = (Prediction(logits[None], gates[None]), split)
    made, split = found["test"]
    write_profile(run.results, made.gates[0], split, layout)
    write_session(run.results, made.logits[0], made.gates[0], split, layout)
    scores = score(made, 0, split, layout)
    return {
        **scores,
        "long_accuracy": score(*_first(found["long"]), layout)["accuracy"],
        **selection_metrics(made.gates[0], made.gates[0], split, layout),
        "parameters": 0,
        "step_flops": 0,
    }


def _first(found: tuple[Prediction, Sequences]) -> tuple[Prediction, int, Sequences]:
    return found[0], 0, found[1]


def bayes_filter(split: Sequences, contexts: int, switch: float, blocks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact posterior of context and bit from the beacons of all steps and the blocks that are seen.

    Decoys are independent of everything, so blocks say nothing about the context, and the present one's alone tells the bit.

    Parameters
    ----------
    blocks : Tensor, optional
        (contexts,) booleans of blocks that are seen after the first step, which shows all; by default the block of the context
        that the past makes most likely.

    Returns
    -------
    logits, gates : Tensor
        (N, T, 2 · contexts) log-probabilities of label 2c + a, and (N, T, D) of what was seen.
    """
    x = split.x.cpu().double()
    count, steps, features = x.shape
    code = torch.from_numpy(beacon_code(contexts))
    bits = code.shape[1]
    stay = torch.full((contexts, contexts), switch / (contexts - 1), dtype=torch.double)
    stay.fill_diagonal_(1 - switch)
    belief = torch.full((count, contexts), 1 / contexts, dtype=torch.double)
    logits = torch.empty(count, steps, 2 * contexts, dtype=torch.double)
    gates = torch.zeros(count, steps, features)
    for step in range(steps):
        if step:
            belief = belief @ stay
        if step == 0:
            seen = torch.ones(count, contexts, dtype=torch.bool)
        elif blocks is not None:
            seen = blocks.expand(count, contexts)
        else:
            seen = torch.nn.functional.one_hot(belief.argmax(1), contexts).bool()
        gates[:, step, :bits] = 1
        gates[:, step, bits : bits + 2 * contexts] = seen.repeat_interleave(2, 1).float()
        likelihood = (-((x[:, step, None, :bits] - code) ** 2) / (2 * BEACON_NOISE**2)).sum(-1)
        belief = (belief.log() + likelihood).softmax(1)
        level = x[:, step, bits : bits + 2 * contexts].view(count, contexts, 2).sum(-1) * 2 / BEACON_NOISE**2
        of_one = torch.where(seen, level, 0)  # log-odds of the bit, if this is the context
        both = torch.stack([torch.nn.functional.logsigmoid(-of_one), torch.nn.functional.logsigmoid(of_one)], -1)
        logits[:, step] = (belief.clamp(min=1e-300).log()[..., None] + both).flatten(1)
    gates[:, 0] = 1
    return logits.float(), gates
