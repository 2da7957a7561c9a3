"""Radiance fields: the paper's network, smaller ones, and the voxel fields that make a demo possible on a CPU.

Each is an ordinary module behind one protocol: points (…, 3) and un-normalised directions (…, 3) to colours (…, 3) and
densities (…). Voxel fields live in [−1, 1]³; :class:`~atlas.methods.sinnerf.bounds.Bounded` puts them into the world.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

SIGMOID_MARGIN = 1e-3
DENSITY_NOISE = 1.0
"""Standard deviation of the noise on densities in the paper's training."""


class RadianceField(Protocol):
    """What SinNeRF trains: any module with this call."""

    def __call__(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Points (…, 3) and directions (…, 3) to colours (…, 3) and densities (…)."""
        ...


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """[x, sin 2⁰x, cos 2⁰x, …, sin 2^{L−1}x, cos 2^{L−1}x]: (…, d) to (…, d·(2L + 1)). There is no factor π.

    Raises
    ------
    ValueError
        The number L of ``frequencies`` is negative.
    """
    if frequencies < 0:
        raise ValueError(f"there are {frequencies} frequencies to encode with: 0 leaves the points as they are")
    parts = [x]
    for power in range(frequencies):
        parts += [torch.sin(2.0**power * x), torch.cos(2.0**power * x)]
    return torch.cat(parts, dim=-1)


def widened_sigmoid(x: Tensor) -> Tensor:
    """A sigmoid that reaches a little beyond 0 and 1, so that both can be reached (Barron et al., ICCV 2021)."""
    return (1 + 2 * SIGMOID_MARGIN) * torch.sigmoid(x) - SIGMOID_MARGIN


class NeRFNetwork(nn.Module):
    """The multi-layer perceptron of NeRF, with the activations of SinNeRF's training; 595,844 parameters by default.

    Parameters
    ----------
    depth, width : int
        Hidden layers; the encoding enters again in the middle (layer 5 of 8).
    frequencies, view_frequencies : int
        Octaves of the encoding of points and of directions; ``None`` leaves directions out, and the colour is read from the last
        hidden layer.
    direction : {"unit", "raw"}
        Encode d/‖d‖, or d as it is, as the official code does.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 256,
        frequencies: int = 10,
        view_frequencies: int | None = 4,
        direction: Literal["unit", "raw"] = "unit",
    ) -> None:
        super().__init__()
        self.frequencies, self.view_frequencies, self.direction = frequencies, view_frequencies, direction
        self.again = depth // 2 if depth > 4 else None
        entry = 3 * (2 * frequencies + 1)
        self.hidden = nn.ModuleList(
            nn.Linear(entry if layer == 0 else width + (entry if layer == self.again else 0), width) for layer in range(depth)
        )
        self.sigma = nn.Linear(width, 1)
        if view_frequencies is None:
            self.rgb = nn.Linear(width, 3)
        else:
            self.feature = nn.Linear(width, width)
            self.view = nn.Linear(width + 3 * (2 * view_frequencies + 1), width // 2)
            self.rgb = nn.Linear(width // 2, 3)

    def trunk(self, x: Tensor) -> Tensor:
        """The last hidden layer, (…, width)."""
        encoded = positional_encoding(x, self.frequencies)
        h = encoded
        for layer, linear in enumerate(self.hidden):
            h = torch.relu(linear(torch.cat([encoded, h], dim=-1) if layer == self.again else h))
        return h

    def density(self, x: Tensor) -> Tensor:
        """Densities alone, before the ReLU of the renderer, (…)."""
        return self.sigma(self.trunk(x)).squeeze(-1)

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3), and densities (…) before the ReLU of the renderer, at points and in directions (…, 3)."""
        h = self.trunk(x)
        sigma = self.sigma(h).squeeze(-1)
        if self.view_frequencies is None:
            return torch.sigmoid(self.rgb(h)), sigma
        d = functional.normalize(d, dim=-1) if self.direction == "unit" else d
        view = torch.cat([self.feature(h), positional_encoding(d, self.view_frequencies)], dim=-1)
        return widened_sigmoid(self.rgb(functional.softplus(self.view(view) - 1))), sigma


def default_noise(field: object) -> float:
    """Noise on densities that a field is trained with by default: the paper's, if the renderer's ReLU may leave it no density."""
    modules = field.modules() if isinstance(field, nn.Module) else ()
    return DENSITY_NOISE if any(isinstance(module, NeRFNetwork) for module in modules) else 0.0


class VectorMatrixField(nn.Module):
    """Planes times lines (TensoRF-VM, Chen et al., ECCV 2022): σ = softplus(g·Σ P·L + b), colour by a small head.

    Parameters
    ----------
    resolution : int
        Nodes per axis.
    density_components, colour_components : int
        Per pair of a plane and a line.
    gain, bias : float
        g and b.
    """

    def __init__(
        self,
        resolution: int = 48,
        density_components: int = 4,
        colour_components: int = 8,
        hidden: int = 32,
        gain: float = 20.0,
        bias: float = -1.0,
    ) -> None:
        super().__init__()
        self.split, self.gain, self.bias = density_components, gain, bias
        components = density_components + colour_components
        self.planes = nn.Parameter(0.2 * torch.randn(3, components, resolution, resolution))
        self.lines = nn.Parameter(0.5 + 0.2 * torch.randn(3, components, resolution, 1))
        self.head = nn.Sequential(nn.Linear(3 * colour_components, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def components(self, x: Tensor) -> Tensor:
        """Products of planes and lines at points (n, 3): (3, components, n)."""
        across = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]]).unsqueeze(2)
        along = torch.stack([x[:, 2], x[:, 1], x[:, 0]])
        along = torch.stack([torch.zeros_like(along), along], dim=-1).unsqueeze(2)
        planes = functional.grid_sample(self.planes, across, align_corners=True, padding_mode="border")
        lines = functional.grid_sample(self.lines, along, align_corners=True, padding_mode="border")
        return (planes * lines).squeeze(-1)

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3) and densities (…) at points (…, 3); colours do not depend on the direction."""
        shape = x.shape[:-1]
        parts = self.components(x.reshape(-1, 3))
        sigma = functional.softplus(self.gain * parts[:, : self.split].sum((0, 1)) + self.bias)
        rgb = torch.sigmoid(self.head(parts[:, self.split :].flatten(0, 1).T))
        return rgb.reshape(*shape, 3), sigma.reshape(shape)


class GridField(nn.Module):
    """A dense grid of colour and density, trilinear: the most local of all, so unseen space stays as it was initialised."""

    def __init__(self, resolution: int = 48, gain: float = 60.0, bias: float = 1.0, colour_gain: float = 10.0) -> None:
        super().__init__()
        self.gain, self.bias, self.colour_gain = gain, bias, colour_gain
        self.grid = nn.Parameter(0.01 * torch.randn(1, 4, resolution, resolution, resolution))

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3) and densities (…) at points (…, 3); colours do not depend on the direction."""
        shape = x.shape[:-1]
        where = x.reshape(1, -1, 1, 1, 3)
        values = functional.grid_sample(self.grid, where, align_corners=True, padding_mode="border").reshape(4, -1)
        rgb, sigma = torch.sigmoid(self.colour_gain * values[:3].T), functional.softplus(self.gain * values[3] + self.bias)
        return rgb.reshape(*shape, 3), sigma.reshape(shape)


class HashField(nn.Module):
    """Hashed grids of several resolutions and a small network (Müller et al., SIGGRAPH 2022), in plain PyTorch."""

    primes: Tensor
    corners: Tensor

    def __init__(
        self, levels: int = 6, features: int = 2, log2_size: int = 13, coarsest: int = 8, growth: float = 1.6, hidden: int = 32
    ) -> None:
        super().__init__()
        self.size = 2**log2_size
        self.resolutions = [int(coarsest * growth**level) for level in range(levels)]
        self.table = nn.Parameter(1e-1 * torch.randn(levels, self.size, features))
        self.network = nn.Sequential(nn.Linear(levels * features, hidden), nn.ReLU(), nn.Linear(hidden, 4))
        self.register_buffer("primes", torch.tensor([1, 2654435761, 805459861]), persistent=False)
        corners = torch.stack(torch.meshgrid(*[torch.arange(2)] * 3, indexing="ij"), dim=-1).reshape(8, 3)
        self.register_buffer("corners", corners, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Features at points (n, 3): (n, levels·features)."""
        features = []
        for table, resolution in zip(self.table, self.resolutions, strict=True):
            node = (x.clamp(-1, 1) + 1) * (0.5 * (resolution - 1))
            base = node.floor().clamp(max=resolution - 2)
            offset = (node - base).unsqueeze(1)
            nodes = base.long().unsqueeze(1) + self.corners
            hashed = nodes * self.primes
            index = (hashed[..., 0] ^ hashed[..., 1] ^ hashed[..., 2]) % self.size
            weight = torch.where(self.corners.bool(), offset, 1 - offset).prod(-1, keepdim=True)
            features.append((functional.embedding(index, table) * weight).sum(1))
        return torch.cat(features, dim=-1)

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (…, 3) and densities (…) at points (…, 3); colours do not depend on the direction."""
        shape = x.shape[:-1]
        values = self.network(self.encode(x.reshape(-1, 3)))
        rgb, sigma = torch.sigmoid(values[:, :3]), functional.softplus(10 * values[:, 3] - 1)
        return rgb.reshape(*shape, 3), sigma.reshape(shape)


def _small(**options: int) -> NeRFNetwork:
    """A network of 3 layers of 64, whose colours do not depend on the direction."""
    return NeRFNetwork(**{"depth": 3, "width": 64, "frequencies": 6, "view_frequencies": None, **options})  # type: ignore[arg-type]


FIELDS: dict[str, Callable[..., nn.Module]] = {
    "mlp8x256": NeRFNetwork,
    "mlp3x64": _small,
    "vm": VectorMatrixField,
    "grid": GridField,
    "hash": HashField,
}


def make_field(name: str, **options: float) -> nn.Module:
    """Return a field by name, with some of its options.

    Raises
    ------
    ValueError
        There is no such field; the known ones are named.
    """
    if name not in FIELDS:
        raise ValueError(f"there is no field {name}; choose from {', '.join(FIELDS)}")
    return FIELDS[name](**options)
