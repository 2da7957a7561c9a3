"""What a compressed model keeps: blocks, dims of values inside heads, and neurons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.errors import PlanError


@dataclass(eq=False)
class CompressionPlan:
    """A frozen architecture, as masks over the dense one.

    Attributes
    ----------
    keep : Tensor
        (L,) bool: blocks that stay.
    dims : Tensor
        (L, H, d) bool: dims of values that stay; a head without any is removed with its queries and keys.
    neurons : Tensor
        (L, M) bool: hidden neurons that stay.
    """

    keep: Tensor
    dims: Tensor
    neurons: Tensor

    @classmethod
    def identity(cls, shape: ViTShape) -> CompressionPlan:
        """Return the plan that keeps every block, dim and neuron that a model has."""
        return cls(torch.ones(shape.depth, dtype=torch.bool), shape.dims_exist(), shape.neurons_exist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompressionPlan):
            return NotImplemented
        pairs = zip(self._masks(), other._masks(), strict=True)
        return all(mine.shape == theirs.shape and bool((mine == theirs).all()) for mine, theirs in pairs)

    def _masks(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keep.cpu(), self.dims.cpu(), self.neurons.cpu()

    @property
    def heads(self) -> Tensor:
        """Heads of which at least one dim stays, (L, H) bool."""
        return self.dims.any(-1)

    def copy(self) -> CompressionPlan:
        """Return a copy whose masks can change without changing these."""
        return CompressionPlan(self.keep.clone(), self.dims.clone(), self.neurons.clone())

    def macs(self, shape: ViTShape) -> int:
        """Multiply-accumulates per image of the exported model, without padding; exact."""
        heads = self.heads.sum(-1).tolist()
        dims, neurons = self.dims.sum((1, 2)).tolist(), self.neurons.sum(-1).tolist()
        total = shape.embed_macs
        for layer, width in enumerate(shape.per_block("head_dim")):
            if self.keep[layer]:
                total += heads[layer] * width * shape.head_macs
                total += dims[layer] * shape.dim_macs + neurons[layer] * shape.neuron_macs
        return int(total)

    def r_phys(self, shape: ViTShape) -> float:
        """Multiply-accumulates left, relative to the dense model."""
        return self.macs(shape) / shape.full_macs

    def r_paper(self, shape: ViTShape) -> float:
        """The same by the authors' formula, which never credits the removed rows of the value projection."""
        per_dim = shape.tokens * shape.embed_dim
        heads = self.heads.sum(-1).tolist()
        dims, neurons = self.dims.sum((1, 2)).tolist(), self.neurons.sum(-1).tolist()
        total = shape.embed_macs
        for layer, width in enumerate(shape.per_block("head_dim")):
            if self.keep[layer]:
                total += heads[layer] * width * (3 * per_dim + shape.tokens**2)
                total += dims[layer] * (per_dim + shape.tokens**2) + neurons[layer] * shape.neuron_macs
        return total / shape.full_macs

    def validate(self, shape: ViTShape) -> None:
        """Check that the plan fits a model.

        Raises
        ------
        PlanError
            Its shapes are not the model's, it keeps units that do not exist, no block, or a block without heads or neurons.
        """
        heads, dims, neurons = shape.widest
        wanted = {"keep": (shape.depth,), "dims": (shape.depth, heads, dims), "neurons": (shape.depth, neurons)}
        for name, size in wanted.items():
            mask: Tensor = getattr(self, name)
            if tuple(mask.shape) != size or mask.dtype != torch.bool:
                raise PlanError(f"{name} must be a bool tensor of {size}, not {mask.dtype} of {tuple(mask.shape)}")
        if bool((self.dims.cpu() & ~shape.dims_exist()).any()) or bool((self.neurons.cpu() & ~shape.neurons_exist()).any()):
            raise PlanError("the plan keeps dims or neurons that the model does not have")
        if not bool(self.keep.any()):
            raise PlanError("the plan keeps no block: at least one must stay")
        for name, kept in (("heads", self.heads.any(-1)), ("neurons", self.neurons.any(-1))):
            empty = (self.keep & ~kept).nonzero().flatten().tolist()
            if empty:
                raise PlanError(f"block {empty[0]} is kept with no {name}: keep at least one, or drop the block")

    def to_json(self) -> str:
        """The plan as JSON text: sizes, and the indices of what is kept."""
        content = {
            "heads": self.dims.shape[1],
            "head_dim": self.dims.shape[2],
            "mlp_dim": self.neurons.shape[1],
            "keep": [int(kept) for kept in self.keep],
            "dims": [[head.nonzero().flatten().tolist() for head in layer] for layer in self.dims],
            "neurons": [layer.nonzero().flatten().tolist() for layer in self.neurons],
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> CompressionPlan:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        PlanError
            The text is not a plan.
        """
        try:
            content = json.loads(text)
            keep = torch.tensor(content["keep"], dtype=torch.bool)
            dims = torch.zeros(len(keep), content["heads"], content["head_dim"], dtype=torch.bool)
            neurons = torch.zeros(len(keep), content["mlp_dim"], dtype=torch.bool)
            for layer, (kept, heads) in enumerate(zip(content["neurons"], content["dims"], strict=True)):
                neurons[layer, _indices(kept)] = True
                for head, kept_dims in zip(dims[layer], heads, strict=True):
                    head[_indices(kept_dims)] = True
            if len(content["dims"]) != len(keep):
                raise ValueError(f"{len(keep)} blocks, and dims of {len(content['dims'])}")
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise PlanError(f"not a compression plan: {error}") from None
        return cls(keep, dims, neurons)


def _indices(places: Sequence[int]) -> list[int]:
    """Places of what is kept, from 0."""
    if any(place < 0 for place in places):
        raise ValueError(f"places count from 0, and one is {min(places)}")
    return list(places)
