"""The two measures of an untrained network, over several draws of its weights.

Each repeat has weights, a circle and a kernel of its own; circles and images stay the same for every candidate of a
search, so that candidates differ by what they are and by their weights only.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from atlas.methods.as_vit.geometry import Circle, great_circle, length_distortion, without_norm
from atlas.methods.as_vit.kernel import MIN_IMAGES, condition_number, default_feature, ntk_gram
from atlas.methods.as_vit.layout import SEARCH_WIDTH, SINGLE_BLOCKS, STRIDE, layout
from atlas.methods.as_vit.network import INIT_STD, build
from atlas.methods.as_vit.settings import Average, MeasureSettings
from atlas.methods.as_vit.topology import Topology, require_topology
from atlas.nn.examples import as_tensor, require_tensors
from atlas.nn.kinds import require_callable, require_kind, require_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULTS = MeasureSettings()


@dataclass(frozen=True)
class Measures:
    """What a candidate is judged by.

    Attributes
    ----------
    length : float
        Length distortion; larger is more complex, better.
    ntk : float
        Condition number of the kernel, ≥ 1 or ``inf``; smaller is more trainable, better.
    per_repeat : tuple of (float, float)
        (length, ntk) of each draw of the weights.
    """

    length: float
    ntk: float
    per_repeat: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class MeasureSpec:
    """How candidates are measured.

    Parameters
    ----------
    repeats, points : int
        Draws of the weights, and points of the circle.
    images : Tensor or array
        (n, channels, height, width), floating-point, n ≥ 2: the batch of the kernel, the same in all repeats. Must be given.
    redraw : {"all", "linear"}
        What a further repeat draws anew: everything, or, as the authors do, all but the stem's convolution.
    average : {"mean", "median"}
        How repeats are reduced; one outlier of the condition number dominates the authors' mean.
    circle_seed : int
        Seed of the circles, one per repeat.
    """

    repeats: int = DEFAULTS.repeats
    points: int = DEFAULTS.points
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    redraw: Literal["all", "linear"] = "all"
    average: Average = DEFAULTS.average
    circle_seed: int = 0
    scale: Literal["unit", "sqrt_dim"] = "unit"

    def __post_init__(self) -> None:
        require_whole(repeats=self.repeats, points=self.points, circle_seed=self.circle_seed)
        object.__setattr__(self, "images", as_tensor(self.images, "images"))
        require_tensors(images=self.images)
        if self.repeats < 1:
            raise ValueError(f"repeats {self.repeats} must be at least 1")
        if len(self.images) < MIN_IMAGES:
            raise ValueError(f"the kernel needs at least {MIN_IMAGES} images, not {len(self.images)}")
        if self.images.ndim != 4:
            raise ValueError(f"images must be (n, channels, height, width), not {tuple(self.images.shape)}")

    @cached_property
    def circles(self) -> list[Circle]:
        """One circle per repeat, of the images' shape, type and device."""
        generator = torch.Generator().manual_seed(self.circle_seed)
        shape, device = tuple(self.images.shape[1:]), self.images.device
        drawn = [
            great_circle(shape, self.points, generator=generator, scale=self.scale)  # type: ignore[arg-type]
            for _ in range(self.repeats)
        ]
        return [Circle(*(part.to(device, self.images.dtype) for part in (c.theta, c.x, c.dx))) for c in drawn]


def measure(make_model: Callable[[], nn.Module], spec: MeasureSpec, generator: torch.Generator) -> Measures:
    """Measure length distortion and kernel condition of a network at random weights.

    Parameters
    ----------
    make_model : callable
        Returns a freshly initialised network, drawing from PyTorch's global generator, which is seeded here and left as it
        was. Its features are ``model.features`` where that is a function, else its output.
    spec : MeasureSpec
        Repeats, circles and images.
    generator : torch.Generator
        Source of the seeds of the repeats.

    Raises
    ------
    TypeError
        An argument is of another type, a network in the place of what makes one above all; says what would be right.
    """
    require_callable("a function that makes a network", make_model=make_model)
    if isinstance(make_model, nn.Module):
        raise TypeError(f"make_model is a {type(make_model).__name__}; a function that makes it anew is needed")
    require_kind(MeasureSpec, "a MeasureSpec", spec=spec)
    require_kind(torch.Generator, "a torch.Generator", generator=generator)
    seeds = torch.randint(2**62, (spec.repeats,), generator=generator).tolist()
    per_repeat = []
    stem: dict[str, Tensor] = {}
    for seed, circle in zip(seeds, spec.circles, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_model()
        require_kind(nn.Module, "an nn.Module", **{"what make_model returns": model})
        if spec.redraw == "linear":
            stem = stem or _convolutions(model)
            model.load_state_dict(stem, strict=False)
        model = model.to(spec.images.device, spec.images.dtype).eval()
        gram = ntk_gram(model, spec.images)
        per_repeat.append((length_of(model, circle), condition_number(gram, computed_in=spec.images.dtype)))
    lengths, kernels = zip(*per_repeat, strict=True)
    reduce = statistics.median if spec.average == "median" else statistics.fmean
    return Measures(reduce(lengths), reduce(kernels), tuple(per_repeat))


def length_of(model: nn.Module, circle: Circle) -> float:
    """Return the length distortion of a network's features, its LayerNorms off: the sum over the points of a circle."""
    with without_norm(model):
        return length_distortion(default_feature(model), circle)


def _convolutions(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters of all convolutions."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        for key, value in module.named_parameters()
    }


@dataclass(frozen=True)
class Scorer:
    """Measures candidates of the hierarchical space, each from a seed of its own.

    The seed follows from ``seed`` and the candidate alone, so results depend neither on the order of evaluation nor on
    how many processes share it; a candidate that was measured before is not measured again. One that ``dataclasses.replace``
    makes has measured none yet.

    Parameters
    ----------
    spec : MeasureSpec
        How to measure.
    seed : int
        Seed of all weights.
    width : int
        Stem width where a candidate names none.
    options : mapping
        Further arguments of :func:`~atlas.methods.as_vit.network.build`; image size and channels follow from the images.
    """

    spec: MeasureSpec
    seed: int
    width: int = SEARCH_WIDTH
    options: Mapping[str, Any] = field(default_factory=dict)
    known: dict[str, Measures] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        require_kind(MeasureSpec, "a MeasureSpec", spec=self.spec)
        require_whole(seed=self.seed, width=self.width)

    def __call__(self, topology: Topology, depths: Sequence[int] = SINGLE_BLOCKS, width: int | None = None) -> Measures:
        """Measure one candidate, a topology at some depths and width; a known one is not measured again."""
        require_topology(topology)
        width = self.width if width is None else width
        name = topology.format(depths, width)
        if name not in self.known:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            channels, _, side = self.spec.images.shape[1:]
            shapes = {"img_size": side, "in_chans": channels, "depths": depths, "width": width, **self.options}
            self.known[name] = measure(lambda: build(topology, **shapes), self.spec, generator)
        return self.known[name]


def length_law(
    topology: Topology, *, width: int = SEARCH_WIDTH, img_size: int = 224, stride: int = STRIDE, in_chans: int = 3
) -> float:
    """Predict the speed of a fresh network's features along the unit circle in closed form.

    E g² = D₄ · Π_{i=1..3}(σ² K_{i+1}² D_i) / (3 r₄² N), with σ = 0.02: the stem and the merges alone, without the padding at
    borders, attention and FFN. So the length is const · K₂K₃K₄ · d², and says nothing about splits, expansions, heads
    or depth.

    Returns
    -------
    float
        √(E g²); a length distortion with ``reduction="mean"`` is close to it, the authors' sum close to n times it.
    """
    stages = layout(topology, width=width, img_size=img_size, stride=stride)
    gain = math.prod((INIT_STD * after.kernel) ** 2 * before.width for before, after in pairwise(stages))
    return math.sqrt(stages[-1].width * gain / (3 * stages[-1].tokens * in_chans * img_size**2))
