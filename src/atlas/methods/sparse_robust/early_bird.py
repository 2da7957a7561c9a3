"""Robust Bird: the mask of a sparse network settles early in cheap standard training.

H. You et al., *Drawing Early-Bird Tickets*, ICLR 2020, for the criterion; T. Chen et al. (this package's paper) for its use
before adversarial training.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atlas.methods.sparse_robust.masks import Masks, prunable
from atlas.methods.sparse_robust.scores import magnitude_ticket
from atlas.methods.sparse_robust.settings import EarlyBirdSettings
from atlas.methods.sparse_robust.static import OTHER_MODEL, not_stepped
from atlas.nn.bars import track
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_callable, require_kind, require_whole

DEFAULT = EarlyBirdSettings()
CHANNEL_THRESHOLD = 0.1
"""The authors' threshold for masks of channels."""


class EarlyBird:
    """Watches magnitude masks from epoch to epoch, and says when they have settled.

    Parameters
    ----------
    sparsity : float
        Share of the watched weights that a mask takes out, in [0, 1).
    threshold : float
        Largest distance between the newest mask and each older one in the queue: the share of entries that differ.
    queue : int
        Number of masks that are compared, at least 2.
    kind : {"unstructured", "channel"}
        Masks of single weights of convolutions (of linear layers, in a network without any), or of the scales of batch
        normalisations (for which the authors use the threshold 0.1).

    Attributes
    ----------
    distances : tuple of float
        Distances between the newest mask and the older ones, oldest first; empty until the queue is full.

    Raises
    ------
    ValueError
        A sparsity outside [0, 1), a threshold below 0, a queue below 2, or a kind that does not exist.
    """

    def __init__(
        self,
        sparsity: float,
        threshold: float = DEFAULT.threshold,
        queue: int = DEFAULT.queue,
        kind: Literal["unstructured", "channel"] = "unstructured",
    ) -> None:
        require_numbers(sparsity=sparsity, threshold=threshold)
        require_whole(queue=queue)
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), not {sparsity}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, not {threshold}")
        if queue < 2:
            raise ValueError(f"queue must hold at least 2 masks, not {queue}")
        if kind not in ("unstructured", "channel"):
            raise ValueError(f"kind must be unstructured or channel, not {kind!r}")
        self.sparsity, self.threshold, self.queue, self.kind = sparsity, threshold, queue, kind
        self.distances: tuple[float, ...] = ()
        self._masks: deque[Tensor] = deque(maxlen=queue)
        self._shapes: dict[str, tuple[int, ...]] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> bool:
        """Take the mask of the model as it is now; return whether the masks have settled.

        Raises
        ------
        ValueError
            The model has nothing of the watched kind, or other weights than those of the calls before.
        """
        require_kind(nn.Module, "an nn.Module", model=model)
        watched = self._watched(model)
        shapes = {name: tuple(weight.shape) for name, weight in watched.items()}
        if self._masks and shapes != self._shapes:
            raise ValueError("the masks so far are of a model with other weights: make an EarlyBird for each model")
        self._shapes = shapes
        magnitudes = torch.cat([weight.detach().abs().flatten() for weight in watched.values()])
        pruned = int(magnitudes.numel() * self.sparsity)
        self._masks.append(magnitudes > magnitudes.kthvalue(pruned + 1).values)
        newest = self._masks[-1]
        if len(self._masks) == self.queue:
            older = [mask.to(newest.device) for mask in list(self._masks)[:-1]]  # a restored state's may be on the CPU
            self.distances = tuple(float((newest != mask).count_nonzero()) / newest.numel() for mask in older)
        return self.emerged

    @property
    def emerged(self) -> bool:
        """Whether the queue is full and the newest mask is near all others in it."""
        return bool(self.distances) and max(self.distances) <= self.threshold

    def masks(self) -> Masks:
        """Return the newest mask by parameter name.

        Raises
        ------
        RuntimeError
            No mask has been taken yet.
        """
        if not self._masks:
            raise RuntimeError("there is no mask yet: call update(model) first")
        parts = self._masks[-1].split([torch.Size(shape).numel() for shape in self._shapes.values()])
        return {name: part.view(shape).clone() for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the last masks, their distances and their shapes, as a state to save."""
        return {"masks": list(self._masks), "distances": list(self.distances), "shapes": dict(self._shapes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the queue of masks and the distances of a state."""
        self._masks = deque(state["masks"], maxlen=self.queue)
        self.distances = tuple(state["distances"])
        self._shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}

    def _watched(self, model: nn.Module) -> dict[str, nn.Parameter]:
        if self.kind == "channel":
            scales = {name: module.weight for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
            watched = {f"{name}.weight": weight for name, weight in scales.items() if weight is not None}
        else:
            weights = dict(model.named_parameters())
            watched = {name: weight for name, weight in weights.items() if weight.ndim == 4}
            watched = watched or {name: weight for name, weight in weights.items() if weight.ndim == 2}
        if not watched:
            raise ValueError(f"the model has nothing for {self.kind} masks")
        return watched


def robust_bird(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    train_epoch: Callable[[nn.Module, torch.optim.Optimizer], object],
    sparsity: float,
    max_epochs: int,
    *,
    threshold: float = DEFAULT.threshold,
    queue: int = DEFAULT.queue,
    progress: bool | None = None,
) -> Masks:
    """Find Robust Bird's mask (stage 1), leaving the model trained up to there.

    Adversarial training then goes on from the model's present weights, under the mask (:class:`SparseTraining`), with a new
    optimiser and schedule. The mask is that of the global magnitude over convolutions and linear layers.

    Parameters
    ----------
    make_optimizer : callable
        ``make_optimizer(model)``.
    train_epoch : callable
        ``train_epoch(model, optimizer)`` trains one epoch, usually a standard one without attacks.
    sparsity : float
        1 − density, in [0, 1).
    max_epochs : int
        Prune then, with a warning, if the masks have not settled before.
    threshold, queue
        As in :class:`EarlyBird`.
    progress : bool, optional
        Whether to show a bar; by default where the standard error stream is a terminal.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        As :class:`EarlyBird`; ``max_epochs`` is below 1; or the optimiser that was made is another model's.
    """
    require_kind(nn.Module, "an nn.Module", model=model)
    require_callable("a function that makes an optimizer of a model", make_optimizer=make_optimizer)
    require_callable("a function of model and optimizer", train_epoch=train_epoch)
    require_whole(max_epochs=max_epochs)
    if max_epochs < 1:
        raise ValueError(f"max_epochs must be at least 1, not {max_epochs}")
    bird, optimizer = EarlyBird(sparsity, threshold, queue), make_optimizer(model)
    require_kind(torch.optim.Optimizer, "a torch.optim.Optimizer", **{"what make_optimizer returns": optimizer})
    names = prunable(model)
    if len(not_stepped(model, optimizer, names)) == len(names):
        raise ValueError(OTHER_MODEL)
    for _ in track(range(max_epochs), "settle masks", max_epochs, progress):
        train_epoch(model, optimizer)
        if bird.update(model):
            break
    else:
        warnings.warn(f"the masks had not settled after {max_epochs} epochs; pruning now", stacklevel=2)
    return magnitude_ticket(model, 1 - sparsity)
