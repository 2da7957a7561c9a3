"""The kernel of networks that change a layer's output in place: its gradients are those of the layer, not of what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from atlas.methods.as_vit import ntk_gram


class Changed(nn.Module):
    """A linear layer of tokens, one of images and one of their mean; ``change`` may alter each output in place."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.change = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3), change

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, tokens, 4) to (n, 3)."""
        tokens = self.change(self.norm(self.change(self.first(x.flatten(1, 2)))))
        return self.change(self.last(tokens.mean(1)))


def doubled(x: Tensor) -> Tensor:
    x *= 2
    return x


def first_channel_squashed(x: Tensor) -> Tensor:
    x[..., 0].tanh_()
    return x


def jacobian_gram(model: nn.Module, images: Tensor, params: str) -> Tensor:
    """Θ from one backward pass per image, (n, n)."""
    parameters = [p for name, p in model.named_parameters() if params == "all" or name.endswith("weight")]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(model(image[None]).sum(), parameters)]) for image in images]
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("params", ["weights", "all"])
@pytest.mark.parametrize(
    "change", [doubled, first_channel_squashed, nn.LeakyReLU(0.2, inplace=True), nn.ReLU(inplace=True), torch.sigmoid_]
)
def test_gram_of_layers_whose_output_is_changed_in_place(
    change: Callable[[Tensor], Tensor], params: Literal["weights", "all"]
) -> None:
    torch.manual_seed(0)
    model = Changed(change).double()
    images = torch.randn(4, 1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ntk_gram(model, images, params=params), jacobian_gram(model, images, params))


@pytest.mark.parametrize("params", ["weights", "all"])
def test_gram_of_convolutions_with_rectifiers_in_place(params: Literal["weights", "all"]) -> None:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    model = nn.Sequential(*layers).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ntk_gram(model, images, params=params), jacobian_gram(model, images, params))
