"""Classical test functions as optimizees: quadratics, Rosenbrock, Rastrigin. No data; every instance has a function of its own.

The functions of an optimizee are drawn once from its ``seed``, so that a trajectory stays on one function; instance i has
function i (of ``functions``, then again from the first). The split ``val`` is the same function: there is nothing to
generalise to.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atlas.l2o.optimizees import Batch, Optimizee


class FunctionOptimizee(Optimizee):
    """A function of one vector ``x``, with constants that differ between instances; starts and constants are on ``device``."""

    def __init__(self, name: str, n: int, start: float, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        self.name, self.n, self.start, self.dtype, self.device = name, n, start, dtype, device
        self.shapes = (("x", torch.Size([n])),)
        self.constants: tuple[Tensor, ...] = ()

    def init(self, n: int, gen: torch.Generator) -> Tensor:
        """Starts (n, P) from N(0, start²): drawn on the CPU, and moved to the device."""
        return (self.start * torch.randn(n, self.n, generator=gen, dtype=self.dtype)).to(self.device)

    def sample(self, n: int, gen: torch.Generator, split: str = "train") -> Batch:
        """The functions' constants: always the same, leaves (n, …)."""
        if not self.constants:
            return (torch.zeros(n, 1, dtype=self.dtype, device=self.device),)
        index = torch.arange(n, device=self.device) % len(self.constants[0])
        return tuple(constant[index] for constant in self.constants)

    @torch.no_grad()
    def evaluate(self, theta: Tensor, split: str = "val") -> dict[str, Tensor]:
        """The value of every instance's function, (n,); there are no splits."""
        return {"loss": self.losses(theta, self.sample(len(theta), torch.Generator())).double()}


class Quadratic(FunctionOptimizee):
    """‖W x − y‖², without a half. Entries of W and y are uniform on (0, 1), or standard normal."""

    def __init__(
        self,
        n: int = 10,
        *,
        entries: Literal["uniform", "normal"] = "uniform",
        start: float = 0.01,
        functions: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(f"quadratic{n}", n, start, dtype, device)
        if entries not in ("uniform", "normal"):
            raise ValueError(f"there are no entries {entries}; choose from uniform, normal")
        draw = torch.rand if entries == "uniform" else torch.randn
        gen = torch.Generator().manual_seed(seed)
        self.constants = (
            draw(functions, n, n, generator=gen, dtype=dtype).to(device),
            draw(functions, n, generator=gen, dtype=dtype).to(device),
        )

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss ‖W x − y‖² of one instance, ``theta`` being x, (P,)."""
        matrix, target = batch
        return (matrix @ theta - target).square().sum()


class Rosenbrock(FunctionOptimizee):
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)²; its minimum, 0, is at (1, …, 1)."""

    def __init__(
        self, n: int = 2, *, start: float = 1.0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        if n < 2:
            raise ValueError(f"n must be at least 2, not {n}")
        super().__init__(f"rosenbrock{n}", n, start, dtype, device)

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The function's value at ``theta`` (P,), a scalar; there are no constants in ``batch``."""
        first, second = theta[:-1], theta[1:]
        return (100 * (second - first.square()).square() + (1 - first).square()).sum()


class Rastrigin(FunctionOptimizee):
    """‖A x − b‖² − α Σ c_i cos 2πx_i + α n, entries of A, b, c standard normal."""

    def __init__(
        self,
        n: int = 10,
        alpha: float = 10.0,
        *,
        start: float = 1.0,
        functions: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(f"rastrigin{n}", n, start, dtype, device)
        self.alpha = alpha
        gen = torch.Generator().manual_seed(seed)
        self.constants = (
            torch.randn(functions, n, n, generator=gen, dtype=dtype).to(device),
            torch.randn(functions, n, generator=gen, dtype=dtype).to(device),
            torch.randn(functions, n, generator=gen, dtype=dtype).to(device),
        )

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The function's value at ``theta`` (P,), a scalar, with A (P, P), b (P,) and c (P,) from ``batch``."""
        matrix, target, weights = batch
        waves = (weights * torch.cos(2 * torch.pi * theta)).sum()
        return (matrix @ theta - target).square().sum() - self.alpha * waves + self.alpha * self.n


quadratic, rosenbrock, rastrigin = Quadratic, Rosenbrock, Rastrigin
