"""What can be chosen in SinNeRF: weights and schedule of the terms, rays of a step, sampling along them, and the encoder.

Defaults are the paper's and, for what the paper leaves open, the released configuration's; where they are neither, their class
says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

from annotated_types import Ge, Lt
from pydantic import FiniteFloat, model_validator

from atlas.settings import Count, DataclassSettings, Fraction, Natural, NonNegative, Positive, Settings

if TYPE_CHECKING:
    from torch import Tensor

Coefficient = Annotated[FiniteFloat, Ge(0)]
Weight = Coefficient | tuple[Coefficient, ...]
"""Of a term: one number, or one for each stage of the schedule."""
W = TypeVar("W")
OPAQUE = 1e10
"""Length of the last interval that makes any density at a ray's end opaque."""


def _weight(default: float) -> Any:
    """The default of a weight, whatever the type of the weights is."""
    return default


class TermWeights(DataclassSettings, Generic[W]):
    """Weights of the terms; the defaults are the first stage of the released configuration without its semantic term.

    Attributes
    ----------
    rgb : float
        Colours of reference rays and of the reference patch.
    depth : float
        Depths of the same, and of rays of the pool of warped views.
    side : float
        Depths of the unseen patch, where the reference warps to; the released code writes it λ_p·λ_d.
    smooth : float
        Edge-aware smoothness of the depth of both patches.
    vit : float
        Distance of the frozen encoder's features.
    adv : float
        Adversarial term of the patch discriminator.
    rgb_warp : float
        Colours of warped rays, which the official code prepares and never uses.
    cycle : float
        Depth of the unseen patch, warped back, must not stand in front of the reference's surfaces.
    consistency : float
        DietNeRF's 1 − cos of the encoder's features of a whole, coarse unseen view.
    ray_termination : float
        DS-NeRF's own depth loss: the cross-entropy of the weights with a normal around the depth.

    Raises
    ------
    TypeError
        A name is no weight's.
    ValueError
        A weight is negative or not finite.
    """

    rgb: W = _weight(1.0)
    depth: W = _weight(8.0)
    side: W = _weight(8.0)
    smooth: W = _weight(0.0)
    vit: W = _weight(0.0)
    adv: W = _weight(0.0)
    rgb_warp: W = _weight(0.0)
    cycle: W = _weight(0.0)
    consistency: W = _weight(0.0)
    ray_termination: W = _weight(0.0)


class LossWeights(TermWeights[Coefficient]):
    """Weights of the terms in one stage, a number each; :class:`TermWeights` explains them.

    A frozen dataclass: ``LossWeights(1, 8)`` gives the first two, and ``dataclasses.replace(weights, adv=0.1)`` changes one.

    Raises
    ------
    TypeError
        A name is no weight's.
    ValueError
        A weight is negative or not finite.
    """

    @property
    def need_unseen_patch(self) -> bool:
        """Whether a term looks at a patch of an unseen pose."""
        return any((self.side, self.smooth, self.vit, self.adv, self.cycle))

    @property
    def need_encoder(self) -> bool:
        """Whether a term needs the frozen encoder."""
        return bool(self.vit or self.consistency)

    @property
    def need_depth(self) -> bool:
        """Whether a term needs the reference's depth."""
        return any((self.depth, self.side, self.rgb_warp, self.cycle, self.ray_termination))


class Stage(NamedTuple):
    """A part of the training: number of steps, stride of the patches in pixels, learning rate, weights."""

    steps: int
    stride: int
    lr: float
    weights: LossWeights


class Budget(Settings):
    """Rays of a step, and where unseen views are taken from; the defaults are the paper's for Blender scenes, but for
    ``foreground``, which is 0.9 there.

    Attributes
    ----------
    reference_rays, warped_rays : int
        Random rays of the reference, and of the pool of warped views.
    patch : int or (int, int), optional
        Rows and columns of the patches; by default the largest square that fits, 64 at most.
    reference_patch : bool
        Whether a patch of the reference is rendered, too.
    pool : int
        Number of warped views, drawn once.
    unseen : {"fresh", "pool"}
        Poses of unseen patches: drawn at every step, or those of the pool.
    foreground : float
        Share of the reference rays that is drawn from pixels which are not white.
    """

    reference_rays: Natural = 4096
    warped_rays: Count = 4096
    patch: Natural | tuple[Natural, Natural] | None = None
    reference_patch: bool = True
    pool: Count = 125
    unseen: Literal["fresh", "pool"] = "fresh"
    foreground: Fraction = 0.0

    def patch_size(self, height: int, width: int, stride: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image.

        Raises
        ------
        ValueError
            The patch is larger than the image at this stride.
        """
        if self.patch is None:
            fits = (min(height, width) - 1) // stride + 1
            size = (min(64, fits),) * 2
            if fits < 2:
                raise ValueError(
                    f"even a patch of 2 × 2 pixels at stride {stride} is larger than the image of {height} × {width}"
                )
        else:
            size = (self.patch, self.patch) if isinstance(self.patch, int) else self.patch
            if (size[0] - 1) * stride + 1 > height or (size[1] - 1) * stride + 1 > width:
                raise ValueError(
                    f"a patch of {size[0]} × {size[1]} pixels at stride {stride} is larger than the image of {height} × {width}"
                )
        return size


class Shape(Settings):
    """Variants of the terms.

    Attributes
    ----------
    beta : float
        Where smooth-L1 turns from square to linear, in scene units; 1 officially.
    patch_depth : {"known", "whole"}
        Depth of the reference patch: smooth-L1 over its pixels of known depth, officially on DTU, whose measured depth has holes;
        or the mean square over the whole patch, with 0 where there is no depth, officially on Blender's and LLFF's scenes, whose
        depth is rendered. Random rays are always compared by smooth-L1 where the depth is known.
    empty, empty_by : float, {"opacity", "depth"}
        Weight and form, beside the depth term, of emptiness where a white scene's reference has no depth: the mean opacity of all
        its rays; or the smooth-L1 distance of the depth to 0 on its patch alone, officially with weight 2 on Blender's scenes.
    smooth_order, smooth_inverse : int, bool
        Order of the differences; whether they are of the inverse depth.
    depth_std : float
        Width of DS-NeRF's kernel, in scene units.
    """

    beta: Positive = 1.0
    patch_depth: Literal["known", "whole"] = "known"
    empty: NonNegative = 0.1
    empty_by: Literal["opacity", "depth"] = "opacity"
    smooth_order: Literal[1, 2] = 1
    smooth_inverse: bool = True
    depth_std: Positive = 0.1


class Options(Settings):
    """How the field is trained, beyond stages and weights.

    Attributes
    ----------
    budget : Budget
        Rays of a step.
    shape : Shape
        Variants of the terms.
    decay : {"halve", "exponential", "constant"}
        The learning rate: halved at a quarter and at half of each stage; or falling to a tenth over the whole training.
    restart : bool
        Whether a stage begins with a fresh optimiser and discriminator, as the official two stages do.
    refresh : float
        Probability per step that the reference's features are taken from another patch.
    consistency_every : int
        Steps between those that use DietNeRF's term.
    discriminator : {"patch", "narrow", "whole"}
        A map of logits, the same with a quarter of the channels, or one logit for a 64 × 64 patch.
    discriminator_lr : float
        Learning rate of the discriminator over the field's.
    augment : str
        Policy of the discriminator's augmentation, for real and rendered patches alike.
    """

    budget: Budget = Budget()
    shape: Shape = Shape()
    decay: Literal["halve", "exponential", "constant"] = "halve"
    restart: bool = True
    refresh: Fraction = 0.05
    consistency_every: Natural = 10
    discriminator: Literal["patch", "narrow", "whole"] = "patch"
    discriminator_lr: Positive = 0.2
    augment: str = "color,cutout"


class Sampler(Settings):
    """How rays are sampled and closed; the defaults are the paper setting, but for the last interval.

    Attributes
    ----------
    coarse, fine : int
        Stratified samples; samples drawn from the coarse weights (0: one level only).
    spacing : {"linear", "disparity"}
        Where the stratified samples stand.
    last : {"interval", "opaque"}
        Length of the last interval: the mean interval of the ray, for scenes with an empty background, or 1e10, for scenes
        that close. A ray that misses the bounds has no interval, and sees the background whatever closes the others.
    background : float, optional
        Colour behind the scene; ``None`` is black.
    noise_std : float, optional
        Noise on densities while training, and never while a view is rendered. Networks whose densities may be negative are often
        born without any positive one, where nothing but noise lets them learn. By default the paper's 1 for
        :class:`.fields.NeRFNetwork`, and 0 for other fields.
    """

    coarse: Natural = 64
    fine: Count = 64
    spacing: Literal["linear", "disparity"] = "linear"
    last: Literal["interval", "opaque"] = "interval"
    background: float | None = None
    noise_std: NonNegative | None = None

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if self.fine and self.coarse < 3:
            raise ValueError(f"fine samples are drawn between at least 3 coarse ones, not {self.coarse}")
        return self

    def last_delta(self, near: Tensor, far: Tensor, samples: int) -> Tensor:
        """Lengths (n) of the last interval, in parameters of rays with bounds ``near`` and ``far`` (n); 0 if these are equal."""
        length = far - near
        return (length > 0).to(length) * OPAQUE if self.last == "opaque" else length / samples


class Distillation(Settings):
    """Self-distillation without labels, with the settings of DINO at toy scale.

    Attributes
    ----------
    batch : int
        Images per step, each in two global crops and one local crop that lie near each other.
    prototypes : int
        Outputs of the heads, over which teacher and student are compared.
    ema, centring : float
        Momentum of the teacher and of the centre.
    teacher_temperature, student_temperature : float
        Temperatures of the two softmaxes.
    learning_rate : float
        Of AdamW.
    """

    batch: Natural = 16
    prototypes: Natural = 128
    ema: Annotated[float, Ge(0), Lt(1)] = 0.99
    centring: Annotated[float, Ge(0), Lt(1)] = 0.9
    teacher_temperature: Positive = 0.05
    student_temperature: Positive = 0.1
    learning_rate: Positive = 1e-3


class SinNeRFSettings(TermWeights[Weight]):
    """Terms of a row; a weight is one number, or one for each stage. ``consistency_every`` is the one of :class:`Options`."""

    consistency_every: Natural = Options().consistency_every


class EncoderSettings(Settings):
    """The frozen encoder: DINO's ViT-S/16 through timm, a substitute, or a descriptor without weights.

    Substitutes are an EfficientNet-Lite0 trained with ImageNet's labels, and a small ViT that is distilled on the spot, in
    ``steps`` steps. ``pretrained`` false leaves weights random that would be read, for rehearsals.
    """

    kind: Literal["dino", "efficientnet_lite0", "tiny_dino", "descriptor"] = "dino"
    pretrained: bool = True
    steps: Natural = 800
