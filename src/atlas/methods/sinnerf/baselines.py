"""Depth-image-based rendering as a reconstruction: nothing is learned, so every learned method must beat it to claim anything."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from atlas.methods.sinnerf.cameras import Array, Camera, RGBDView
from atlas.methods.sinnerf.plugin import view_of
from atlas.methods.sinnerf.warping import dibr
from atlas.tasks.novel_view_synthesis.reconstruction import Reconstruction, Rendering
from atlas.tasks.novel_view_synthesis.scene import Scene


class DepthImageRendering(Reconstruction):
    """The reference, warped to the test pose, with its holes filled."""

    def start(self, scene: Scene, device: torch.device) -> None:
        """Keep the reference view, which is all that this renders from."""
        self.background = scene.far if scene.white_background else None
        self.view = view_of(scene.reference, 0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The reference's colours (height, width, 3) and depth (height, width): all that it renders from.

        Raises
        ------
        ValueError
            The scene has no depth.
        """
        if self.view.depth is None:
            raise ValueError("depth-image-based rendering needs a depth map")
        return {"rgb": torch.from_numpy(self.view.rgb), "depth": torch.from_numpy(self.view.depth)}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up the colours (height, width, 3) and depth (height, width) of a reference."""
        self.view = RGBDView(tensors["rgb"].numpy(), tensors["depth"].numpy(), self.view.camera)

    def render(self, intrinsics: Array, pose: Array, height: int, width: int) -> Rendering:
        """Warp the reference to a pose (4, 4), and fill every hole with the nearest pixel."""
        seen = dibr(self.view, Camera(intrinsics, pose, height, width), background_depth=self.background)
        return Rendering(seen.rgb, seen.depth, (seen.depth > 0).astype(float))
