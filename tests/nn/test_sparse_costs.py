"""Costs of networks whose layers see examples anywhere but in axis 0, against matrix products counted by PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atlas.methods.sparse_robust import flops, random_masks


class Folded(nn.Module):
    """A linear layer that sees all tokens of all examples as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class TimeFirst(Folded):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def multiply_accumulates(model: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    kinds = {"mm", "addmm", "convolution", "bmm", "baddbmm"}
    seen = {str(name).split(".")[1]: number for name, number in counter.get_flop_counts()["Global"].items()}
    assert set(seen) <= kinds
    return sum(number for name, number in seen.items() if name in {"mm", "addmm", "convolution"}) // 2


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Folded(), (10, 6)),
        (TimeFirst(), (10, 6)),
        (nn.Sequential(nn.Conv1d(3, 8, 3, groups=1), nn.Flatten(), nn.Linear(64, 5)), (3, 10)),
        (nn.Sequential(nn.Conv3d(2, 4, 3, stride=2), nn.Flatten()), (2, 7, 7, 7)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.Conv2d(6, 4, 1, groups=2)), (4, 5, 5)),
    ],
)
def test_places_are_counted_wherever_the_examples_lie(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert flops(model.eval(), shape).macs == multiply_accumulates(model, shape)


def test_windows_of_attention_count_all_their_tokens() -> None:
    sizes: Any = {"img_size": 56, "embed_dim": 12, "num_heads": (1, 2, 4, 8), "num_classes": 3}
    model = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
    assert flops(model, (3, 56, 56)).macs == multiply_accumulates(model.eval(), (3, 56, 56))


def test_projections_of_attention_count_and_may_be_masked() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    report = flops(model, (10, 16))
    assert report.per_layer == {
        "self_attn.in_proj_weight": 3 * 16 * 16 * 10,
        "self_attn.out_proj.weight": 16 * 16 * 10,
        "linear1.weight": 16 * 32 * 10,
        "linear2.weight": 16 * 32 * 10,
    }
    masks = random_masks(model, 0.25, generator=torch.Generator().manual_seed(0))
    masked = flops(model, (10, 16), masks)
    assert masked.ratio == pytest.approx(0.25, abs=0.01)


def test_attention_of_keys_and_values_of_other_widths() -> None:
    class Cross(nn.Module):
        def __init__(self, **sizes: int) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, x: Tensor) -> Tensor:
            other = x.new_zeros(1, 5, 6 if self.attention.in_proj_weight is None else 8)
            return self.attention(x, key=other, value=other, need_weights=False)[0]

    own = flops(Cross(kdim=6, vdim=6), (3, 8))
    assert own.macs == 8 * 8 * 3 + 2 * 8 * 6 * 5 + 8 * 8 * 3
    assert flops(Cross(), (3, 8)).macs == 8 * 8 * (3 + 5 + 5) + 8 * 8 * 3
