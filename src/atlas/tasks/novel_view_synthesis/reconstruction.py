"""What a method of this task is: something that learns a scene from its reference view, and renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas.harness.plugin import Plugin
from atlas.tasks.novel_view_synthesis.scene import Array, Scene

if TYPE_CHECKING:
    import torch


FLIGHT, FLIGHT_PAUSE = "flight.gif", 120
"""The film that a run leaves beside its metrics: its file, and the milliseconds that each frame is shown."""


class Rendering(NamedTuple):
    """A rendered view: ``rgb`` (height, width, 3); z-``depth``, not divided by it, and ``opacity`` (height, width)."""

    rgb: Array
    depth: Array
    opacity: Array


class Reconstruction(Plugin):
    """Base of the plug-ins of novel view synthesis: the hooks stand in the order in which the task calls them.

    A method overrides what it needs: :meth:`start` always, and :meth:`render`.
    """

    total: int = 0
    """Number of steps; set by :meth:`start`."""

    def start(self, scene: Scene, device: torch.device) -> None:
        """Get ready to learn ``scene``, or to render it if :meth:`load` follows."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """Everything that changes from step to step, for the resumable loop."""
        return {}

    def step(self, index: int) -> Mapping[str, Any]:
        """Do one step; returns scalars to log by name."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.Tensor]:
        """What rendering needs, for the run's weights: tensors of any shapes (…), by name."""
        raise NotImplementedError

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what :meth:`tensors` returned, tensors of any shapes (…)."""
        raise NotImplementedError

    def render(self, intrinsics: Array, pose: Array, height: int, width: int) -> Rendering:
        """Render a view, deterministically."""
        raise NotImplementedError

    def flight(self, frames: int) -> Sequence[Array]:
        """Pictures (height, width, 3) of a flight around the reference, from which a film is made; none by default."""
        return ()

    def facts(self) -> dict[str, float]:
        """Costs for the table: ``parameters``, and ``rays`` rendered while training."""
        return {"parameters": 0.0, "rays": 0.0}
