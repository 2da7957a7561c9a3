"""Progressive re-tokenisation: train on few coarse tokens first, on finer ones later (Sec. 3.4).

Only stride and dilation of the stem change between phases; every weight, the optimiser's state and the schedule go on.
A dilated kernel covers the coarser token: at kernel 4, strides 16, 8, 4 have dilations 5, 2, 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas.methods.as_vit.layout import count
from atlas.methods.as_vit.network import HierarchicalViT, dilation_for
from atlas.methods.as_vit.settings import RetokenizeSettings, require_order
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_kind, require_sequence, require_whole

OFFICIAL_PHASES = RetokenizeSettings().phases


class ProgressiveTokenizer:
    """Sets a network's tokenisation by the progress of its training.

    Parameters
    ----------
    model : HierarchicalViT
        The network; its ``design.stride`` must be the last phase's.
    phases : sequence of (float, int)
        (progress at which the phase begins, stride of the stem in pixels). The default is the published schedule: of 300 epochs,
        80 at stride 16 and 52 at stride 8.

    Raises
    ------
    TypeError
        The model is none of these, phases are no pairs, or a stride is no whole number.
    ValueError
        Phases do not begin at 0 or do not increase below 1, a stride does not divide the image or is no multiple of the
        finest, the last is not the network's own, or the stem's kernel is smaller than it.
    """

    def __init__(self, model: HierarchicalViT, phases: Sequence[tuple[float, int]] = OFFICIAL_PHASES) -> None:
        require_kind(HierarchicalViT, "a HierarchicalViT, as build makes it,", model=model)
        require_sequence("a sequence of pairs (progress, stride)", phases=phases)
        for index, phase in enumerate(phases):
            require_sequence("a pair (progress, stride)", **{f"phases[{index}]": phase})
            if len(phase) != 2:
                raise ValueError(f"phases[{index}] must be a pair (progress, stride), not {phase}")
            require_whole(stride=phase[1])
        self.model = model
        self.phases = [(float(begin), int(stride)) for begin, stride in phases]
        self._check()

    def _check(self) -> None:
        require_order(self.phases)
        design, strides = self.model.design, [stride for _, stride in self.phases]
        for stride in strides:
            if stride < 1 or design.img_size % stride:
                raise ValueError(f"stride {stride} does not divide the image's {design.img_size} pixels")
            if stride % design.stride:
                raise ValueError(f"stride {stride} is not a multiple of the network's own, {design.stride}")
        if strides[-1] != design.stride:
            raise ValueError(f"the last phase has stride {strides[-1]}; the network was built for {design.stride}")
        if design.topology.kernels[0] < strides[-1]:
            raise ValueError(f"the stem's kernel {design.topology.kernels[0]} is smaller than the finest stride {strides[-1]}")

    def stride(self, progress: float) -> int:
        """Return the stride at a progress in [0, 1].

        Raises
        ------
        TypeError
            The progress is no number.
        ValueError
            The progress is outside [0, 1].
        """
        require_numbers(progress=progress)
        if not 0 <= progress <= 1:
            raise ValueError(f"progress {progress} is not in [0, 1]")
        return next(stride for begin, stride in reversed(self.phases) if progress >= begin)

    def step(self, progress: float) -> bool:
        """Set the tokenisation of a progress in [0, 1]; return whether it changed. Errors as :meth:`stride`."""
        stride = self.stride(progress)
        if stride == self.model.stride:
            return False
        self.model.tokenize(stride, self.dilation(stride))
        return True

    def dilation(self, stride: int) -> int:
        """Return the stem's dilation at a stride; the finest tokenisation has none."""
        return 1 if stride == self.model.design.stride else dilation_for(self.model.design.topology.kernels[0], stride)

    def macs(self, progress: float) -> int:
        """Multiply-accumulates of one image at a progress in [0, 1]. Errors as :meth:`stride`."""
        design, stride = self.model.design, self.stride(progress)
        coarse = stride != design.stride
        return count(design.topology, **design.options(stride=stride, ceil=coarse or design.ceil)).macs

    def average_macs(self) -> float:
        """Multiply-accumulates of one image, averaged over the whole training."""
        ends = [begin for begin, _ in self.phases[1:]] + [1.0]
        return sum((end - begin) * self.macs(begin) for (begin, _), end in zip(self.phases, ends, strict=True))
