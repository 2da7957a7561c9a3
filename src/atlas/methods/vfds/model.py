"""The classifier that decides, from its state after step t − 1, what to acquire at step t."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atlas.methods.vfds.estimators import check_noise, check_temperature, logistic_noise, uniform_noise
from atlas.methods.vfds.groups import FeatureGroups
from atlas.methods.vfds.recurrence import gated_rollout, ungated_rollout
from atlas.methods.vfds.rollout import Gating, Layer, admit, gate, plain_rollout, project, spread
from atlas.methods.vfds.settings import PAIRED, AttentionSettings, Relaxation, SelectionSettings
from atlas.methods.vfds.streaming import StreamingPolicy
from atlas.nn.examples import as_tensor, in_type_of
from atlas.nn.sequences import check_complete, check_lengths, first_place, valid_steps

Mode = Literal["relaxed", "sample", "threshold"]
RELAXATIONS, MODES = get_args(Relaxation), get_args(Mode)
POLICIES = ("dynamic", "static", "attention", "none")
FILL = ": fill gaps with the mean, which is 0 in standardised data"
"""What to do about missing values that are read."""
DEFAULT = SelectionSettings()
STATIC_STD = 0.1
"""Standard deviation of the initial logits of the static policy (official code: variance 0.1² of a normal)."""


@dataclass(frozen=True)
class FixedMask:
    """A policy that opens the same gates at every step; ``mask``: (G,) booleans."""

    mask: Tensor


@dataclass(frozen=True)
class Random:
    """A policy that opens every gate with probability ``probability``, independently."""

    probability: float


Policy = Literal["dynamic", "static", "attention", "none"] | FixedMask | Random


@dataclass(frozen=True)
class Rollout:
    """What a sequence model did with a batch.

    Attributes
    ----------
    logits : Tensor
        (B, T, C).
    gates : Tensor
        (B, T, G): gates as used, soft in training of the concrete relaxation, else 0 or 1; 0 at padded steps.
    gate_logits : Tensor
        (B, T, G): logits α; 0 where no policy decides (a given first step, fixed and random gates).
    hidden : Tensor
        (B, T, H): top layer's states.
    lengths : LongTensor, optional
        (B,) valid steps of padded sequences.
    """

    logits: Tensor
    gates: Tensor
    gate_logits: Tensor
    hidden: Tensor
    lengths: Tensor | None = None

    @property
    def valid(self) -> Tensor | None:
        """Booleans (B, T), true at steps that are not padding; ``None`` if all are valid."""
        return valid_steps(self.lengths, self.gates.shape[1])


def as_mask(name: str, mask: Tensor, count: int) -> Tensor:
    """Booleans (G,) of a mask of booleans or zeros and ones.

    Raises
    ------
    ValueError
        It has another shape, or holds something else.
    """
    if mask.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), not {tuple(mask.shape)}")
    wrong = (mask != 0) & (mask != 1)
    if bool(wrong.any()):
        index = first_place(wrong)
        raise ValueError(f"{name} must hold booleans, or 0 and 1, not {mask[index].item()} at {list(index)}")
    return mask.bool()


class SelectiveGRU(nn.Module):
    """A GRU classifier with a gate before every feature, or group of features.

    The parameters of the recurrence are named as in :class:`torch.nn.GRU` (``weight_ih_l0`` …), and initialised as there.

    Parameters
    ----------
    n_features, hidden, n_outputs : int
        D, H and C.
    n_layers : int
        Stacked GRU layers; outputs and selector read the top one.
    groups : FeatureGroups, optional
        Features that are acquired together; by default every feature has a gate of its own at cost 1.
    policy : "dynamic", "static", "attention", "none", FixedMask or Random
        Who decides: the state, a free logit per gate, a deterministic soft weight, nobody (all features), a mask, or chance.
    relaxation : {"concrete", "st", "st-concrete", "arm", "arm-unbiased"}
        How gradients reach the policy; see :mod:`.estimators` and :func:`.losses.arm_loss`.
    temperature : float
        τ of the relaxations. The paper's code keeps 0.05.
    logit_scale : float
        s. The paper's code: 1, and 5 for ARM on UCI HAR and ExtraSensory.
    first_step : "all", "none", "policy" or BoolTensor (G,)
        Gates of step 0, when the state knows nothing yet; ``"policy"`` lets the policy decide there too.
    append_mask : bool
        Feed the gates of the features to the GRU beside the values, so that absent and average differ.
    attention_threshold : float
        Weight above which attention keeps a feature in evaluation; inputs are multiplied by 1 / (1 − threshold).
    fused : bool
        Use the fused pass; ``False`` is the plain rollout under autograd.

    Raises
    ------
    ValueError
        A number is out of its range, a name is unknown, or shapes do not fit.
    """

    policy: Policy
    first: Tensor | None
    feature_index: Tensor | None
    mask: Tensor
    static_logits: Tensor
    selector: nn.Linear

    def __init__(
        self,
        n_features: int,
        hidden: int,
        n_outputs: int,
        *,
        n_layers: int = 1,
        groups: FeatureGroups | None = None,
        policy: Policy = "dynamic",
        relaxation: Relaxation = DEFAULT.relaxation,
        temperature: float = DEFAULT.temperature,
        logit_scale: float = DEFAULT.logit_scale,
        first_step: Literal["all", "none", "policy"] | Tensor = "all",
        append_mask: bool = False,
        attention_threshold: float = AttentionSettings().threshold,
        fused: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("n_features", n_features), ("hidden", hidden), ("n_outputs", n_outputs), ("n_layers", n_layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        check_temperature(temperature)
        self.groups = FeatureGroups.per_feature(n_features) if groups is None else groups
        if self.groups.n_features != n_features:
            raise ValueError(f"the groups are of {self.groups.n_features} features, the model of {n_features}")
        if relaxation not in RELAXATIONS:
            raise ValueError(f"there is no relaxation {relaxation}; choose from {', '.join(RELAXATIONS)}")
        if not 0 < attention_threshold < 1:
            raise ValueError(f"attention_threshold must lie between 0 and 1, not {attention_threshold}")
        if not math.isfinite(logit_scale):
            raise ValueError(f"logit_scale must be finite, not {logit_scale}")
        self.n_features, self.hidden, self.n_outputs, self.n_layers = n_features, hidden, n_outputs, n_layers
        self.relaxation, self.temperature, self.logit_scale = relaxation, temperature, logit_scale
        self.append_mask, self.attention_threshold, self.fused = append_mask, attention_threshold, fused
        # the recurrence first, so that models of one seed start from the same one whatever their policy
        self._parameters_of_recurrence(2 * n_features if append_mask else n_features)
        self.output = nn.Linear(hidden, n_outputs)
        self._policy(policy)
        self._first_step(first_step)

    def _policy(self, policy: Policy) -> None:
        count = self.groups.n_groups
        self.policy = policy
        if isinstance(policy, FixedMask):
            self.register_buffer("mask", as_mask("the mask of a fixed policy", torch.as_tensor(policy.mask), count))
        elif isinstance(policy, Random):
            if not 0 <= policy.probability <= 1:
                raise ValueError(f"a probability must lie in [0, 1], not {policy.probability}")
        elif policy not in POLICIES:
            raise ValueError(f"there is no policy {policy}; choose from {', '.join(POLICIES)}, FixedMask, Random")
        elif policy == "static":
            self.static_logits = nn.Parameter(STATIC_STD * torch.randn(count))
        elif policy != "none":
            self.selector = nn.Linear(self.hidden, count)

    def _first_step(self, first_step: Literal["all", "none", "policy"] | Tensor) -> None:
        count = self.groups.n_groups
        first: Tensor | None
        if isinstance(first_step, Tensor):
            first = as_mask("first_step", first_step, count)
        elif first_step in ("all", "none"):
            first = torch.full((count,), first_step == "all")
        elif first_step == "policy":
            first = None
        else:
            raise ValueError(f"there is no first_step {first_step}; choose from all, none, policy, or give a mask")
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("feature_index", None if self.groups.trivial else self.groups.groups, persistent=False)

    def _parameters_of_recurrence(self, width: int) -> None:
        bound = 1 / math.sqrt(self.hidden)
        for index in range(self.n_layers):
            columns = width if index == 0 else self.hidden
            for name, shape in (
                ("weight_ih", (3 * self.hidden, columns)),
                ("weight_hh", (3 * self.hidden, self.hidden)),
                ("bias_ih", (3 * self.hidden,)),
                ("bias_hh", (3 * self.hidden,)),
            ):
                self.register_parameter(f"{name}_l{index}", nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    @property
    def layers(self) -> list[Layer]:
        """The recurrence's weights, layer by layer."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [Layer(*(getattr(self, f"{name}_l{index}") for name in names)) for index in range(self.n_layers)]

    @property
    def adaptive(self) -> bool:
        """Whether gates depend on the state."""
        return self.policy in ("dynamic", "attention")

    @property
    def arm(self) -> bool:
        """Whether the policy learns from pairs of hard trajectories, by :func:`.losses.arm_loss`."""
        return self.relaxation in PAIRED and self.policy in ("dynamic", "static")

    @property
    def stacked(self) -> bool:
        """Whether the parameters are those of several models, with a leading dimension; see :class:`.sweep.Sweep`."""
        return self.output.weight.ndim == 3

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Tensor | None = None,
        noise: Tensor | None = None,
        gates: Mode = "relaxed",
        generator: torch.Generator | None = None,
        offset: Tensor | None = None,
        learning: int | None = None,
    ) -> Rollout:
        """Run over whole sequences.

        Parameters
        ----------
        x : Tensor
            (B, T, D), standardised so that 0 is the mean; or (M, B, T, D), sequences of their own for each of M stacked models,
            of full length and with noise (T, M, B, G). Padding may hold anything. What is not acquired may be NaN or infinite
            where gates are hard and do not learn (samples, thresholds, fixed and random gates); gates that learn by their own
            slope, which are all relaxed ones but ARM's, read every value, since its gradient is theirs.
        lengths : LongTensor, optional
            (B,) valid steps of padded sequences, from 1 to T.
        noise : Tensor, optional
            (T, B, G) uniform noise in [0, 1]; drawn from ``generator`` if left out. A given first step leaves its noise unused.
        gates : {"relaxed", "sample", "threshold"}
            Training gates of the relaxation; Bernoulli samples; or 1[α > 0].
        offset : Tensor, optional
            Noise in logit space, added to α, in place of ``noise``: (T, k · B, G) for k trajectories of each of the sequences,
            one after another, which make the rollout's batch.
        learning : int, optional
            Number of the rollout's sequences, from the first, whose gradients are asked for; by default all. Gradients of the
            others are undefined: detach what comes of them.

        Raises
        ------
        ValueError
            Shapes do not fit; lengths are not from 1 to T; noise leaves [0, 1]; a value that is read is NaN or infinite; the mode
            is unknown; or ARM is asked for relaxed gates, which it does not have.
        """
        x = as_tensor(x, "x")
        self.check_input(x, gates, lengths)
        if offset is None:
            offset = self.offset(self._noise(noise, x, gates, generator), x)
        copies = self._copies(offset, x)
        lengths = None if lengths is None else lengths.to(x.device).repeat(copies)
        values = (x if copies == 1 else x.repeat(copies, 1, 1)).movedim(-2, 0)
        valid = valid_steps(lengths, x.shape[1])
        if valid is not None:
            valid = valid[..., None]
            values = torch.where(valid.transpose(0, 1), values, 0)
        if self.stacked and x.ndim == 3:
            values, offset = values.unsqueeze(1), offset.unsqueeze(1)
        run = self._adaptive if self.adaptive else self._blind
        gating = replace(self.gating(gates), learning=learning)
        states, *decided = run(values, offset, gating)
        self._refuse_gaps(x, valid, decided[0], gating)
        outputs = project(states, self.output.weight, self.output.bias)
        hidden, scores, opened, logits = (part.movedim(0, -2) for part in (states, outputs, *decided))
        if valid is not None:
            opened = torch.where(valid, opened, 0)
        return Rollout(scores, opened, logits, hidden, lengths)

    def check_input(self, x: Tensor, gates: str, lengths: Tensor | None) -> None:
        """Refuse sequences (batch, steps, features) that :meth:`forward` cannot run on.

        Gaps are no reason, as they may lie where nothing is read.

        Raises
        ------
        TypeError, ValueError
            As there.
        """
        in_type_of(self, x, "x")
        if self.stacked and x.ndim == 4 and len(x) == len(self.output.weight) and lengths is None:
            for own in x:
                self.check_input(own, gates, None)
            return
        if x.ndim != 3 or x.shape[-1] != self.n_features:
            raise ValueError(f"x must have shape (batch, steps, {self.n_features}), not {tuple(x.shape)}")
        if x.shape[1] < 1:
            raise ValueError("x has no step")
        if gates not in MODES:
            raise ValueError(f"there are no {gates} gates; choose from {', '.join(MODES)}")
        if gates == "relaxed" and self.arm:
            raise ValueError(f"{self.relaxation} has no relaxed gates: train it with arm_loss, run it with sample or threshold")
        check_lengths(lengths, *x.shape[:2])

    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape (T, [M,] B, G) of the noise that x of the shape ([M,] B, T, D) needs."""
        return (x.shape[-2], *x.shape[:-2], self.groups.n_groups)

    def _copies(self, offset: Tensor, x: Tensor) -> int:
        """How many trajectories of every sequence an offset asks for."""
        if x.ndim == 4:
            return 1
        steps, batch, gates = self.noise_shape(x)
        copies = max(1, offset.shape[1] // batch) if batch and offset.ndim == 3 else 1
        if offset.shape != (steps, copies * batch, gates):
            raise ValueError(f"offset must have shape {(steps, batch, gates)} (steps, batch, gates), not {tuple(offset.shape)}")
        return copies

    def _refuse_gaps(self, x: Tensor, valid: Tensor | None, opened: Tensor, gating: Gating) -> None:
        """Refuse NaN and infinity in x (B, T, D) at valid steps (k · B, T, 1) where gates (T, [M,] k · B, G) read it."""
        if bool(x.isfinite().all()):
            return
        if x.ndim == 4:
            for own, gates in zip(x, opened.unbind(1), strict=True):
                self._refuse_gaps(own, valid, gates, gating)
            return
        read = x.new_ones(opened.shape[-2], x.shape[1], 1, dtype=torch.bool) if valid is None else valid
        if gating.opaque:
            seen = spread(opened, gating) > 0
            read = read & (seen.any(1) if seen.ndim > 3 else seen).transpose(0, 1)
        check_complete("x", x, read.unflatten(0, (-1, len(x))).any(0), remedy=FILL)

    def readable(self, steps: int) -> Tensor:
        """What training may ever read: (T, D) booleans; all, but for what a given first step or a fixed mask never opens."""
        gating = self.gating("sample" if self.arm else "relaxed")
        opened = torch.ones(steps, self.groups.n_groups, dtype=torch.bool, device=self.output.weight.device)
        if isinstance(self.policy, FixedMask):
            opened &= self.mask
        if gating.opaque and gating.first is not None:
            opened[0] = gating.first > 0
        return spread(opened, gating)

    def _noise(self, noise: Tensor | None, x: Tensor, gates: str, generator: torch.Generator | None) -> Tensor | None:
        if noise is not None:
            check_noise(noise, self.noise_shape(x))
        if not isinstance(self.policy, Random) and (gates == "threshold" or self.policy not in ("dynamic", "static")):
            return None  # nothing is left to chance
        if noise is not None:
            return noise.to(x)
        return uniform_noise(*self.noise_shape(x), generator=generator, like=x)

    def gating(self, gates: Mode) -> Gating:
        """How gates follow from logits in a mode."""
        shared: dict[str, Any] = {
            "scale": self.logit_scale,
            "index": self.feature_index,
            "first": None if self.first is None else self.first.to(self.output.weight.dtype),
            "append": self.append_mask,
        }
        if self.policy == "attention":
            threshold = self.attention_threshold
            shared |= {"gain": 1 / (1 - threshold)}
            if gates == "relaxed":
                return Gating(hard=False, slope="relaxed", **shared)
            return Gating(hard=True, slope="none", level=-math.log(threshold / (1 - threshold)), **shared)
        if gates != "relaxed" or self.policy not in ("dynamic", "static"):
            return Gating(hard=True, slope="none", **shared)
        if self.relaxation == "st":
            return Gating(hard=True, slope="sigmoid", **shared)
        return Gating(hard=self.relaxation == "st-concrete", slope="relaxed", temperature=self.temperature, **shared)

    def offset(self, noise: Tensor | None, x: Tensor) -> Tensor:
        """Uniform noise as ν in logit space, in the relaxation's direction of comparison: (T, B, G); zeros without noise."""
        if noise is None:
            return x.new_zeros(()).expand(self.noise_shape(x))
        reverse = self.relaxation in ("st", *PAIRED)  # these open a gate where u < σ(α)
        return logistic_noise(1 - noise) if reverse else logistic_noise(noise)

    def _adaptive(self, x: Tensor, offset: Tensor, gating: Gating) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, gates and logits of a policy that reads the state; time first."""
        run = gated_rollout if self.fused and not self.append_mask else plain_rollout
        return run(x, offset, (self.selector.weight, self.selector.bias), self.layers, gating)

    def _blind(self, x: Tensor, offset: Tensor, gating: Gating) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_adaptive`, for policies that do not read the state: all gates at once, then one recurrence."""
        opened, logits = self._blind_gates(offset, gating)
        features = opened if self.feature_index is None else opened[..., self.feature_index]
        inputs = admit(x, features, gating.opaque)
        if self.append_mask:
            inputs = torch.cat([inputs, features], -1)
        return ungated_rollout(inputs, self.layers), opened, logits

    def _blind_gates(self, offset: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
        shape = (*offset.shape[:1], *self.output.weight.shape[:-2], *offset.shape[-2:])
        logits = torch.zeros(shape, dtype=offset.dtype, device=offset.device)
        if self.policy == "static":
            logits = (self.logit_scale * self.static_logits).unsqueeze(-2).expand(shape)
            opened = gate(logits, offset, gating)
        elif isinstance(self.policy, FixedMask):
            opened = self.mask.to(offset).unsqueeze(-2).expand(shape)
        elif isinstance(self.policy, Random):
            chance = torch.logit(torch.tensor(self.policy.probability, dtype=offset.dtype, device=offset.device))
            opened = (chance + offset > 0).to(offset).expand(shape)
        else:
            opened = torch.ones_like(logits)
        if gating.first is None:
            return opened, logits
        first = gating.first.expand(1, *shape[1:])
        return torch.cat([first, opened[1:]]), torch.cat([torch.zeros_like(first), logits[1:]])

    def stream(
        self, batch: int = 1, gates: Literal["sample", "threshold"] = "threshold", generator: torch.Generator | None = None
    ) -> StreamingPolicy:
        """Return the deployment loop: ask what to acquire, acquire it, hand it in; see :class:`.streaming.StreamingPolicy`."""
        return StreamingPolicy(self, batch, gates, generator)
