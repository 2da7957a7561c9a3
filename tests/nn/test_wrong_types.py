"""Wrong types wherever the library takes models, tensors or numbers: one line that says what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.refusals import Refusals, check_refusal
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from atlas.methods import anti_oversmoothing, diverse_vit, uvc, vfds

IMAGES, LABELS = torch.rand(4, 1, 8, 8), torch.arange(4)
STREAMS, ACTIVITIES = torch.rand(4, 5, 3), torch.zeros(4, 5, dtype=torch.int64)


def vit() -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=4, embed_dim=16, depth=2, num_heads=2)


def gru() -> vfds.SelectiveGRU:
    return vfds.SelectiveGRU(n_features=3, hidden=4, n_outputs=2)


def compress(data: Any, budget: Any = 0.5, model: Any = None) -> object:
    return uvc.compress(model or vit(), budget, data, epochs=(1, 1), batch_size=4, progress=False)


def mixed(images: Any, labels: Any) -> object:
    return diverse_vit.PatchMixup(num_classes=4, patch_size=4, generator=torch.Generator().manual_seed(0))(images, labels)


def watched(images: Any) -> object:
    with diverse_vit.DiversityTrainer(vit(), diverse_vit.DiversityConfig.preset("none")) as trainer:
        return trainer(images)


def fit(data: Any = (STREAMS, ACTIVITIES), **options: Any) -> object:
    return vfds.fit(gru(), data, **{"lam": 0.1, "steps": 1, "seed": 0, "progress": False, **options})


def observed(values: Any) -> torch.Tensor:
    policy = gru().stream()
    policy.request()
    return policy.observe(values)


DOUBLE, FLOATS = IMAGES.double().numpy(), torch.zeros(1, 2, 4, 8)
WRONG: Refusals = {
    "uvc, model": (lambda: compress((IMAGES, LABELS), model="deit"), "str is not a timm VisionTransformer"),
    "uvc, doubles": (
        lambda: compress((DOUBLE, LABELS)),
        "float64, and the model's weights are torch.float32: bring",
    ),
    "uvc, bytes": (lambda: compress(((IMAGES * 255).byte(), LABELS)), "to torch.float32, divided by 255"),
    "uvc, three axes": (lambda: compress((IMAGES[:, 0], LABELS)), r"must be \(batch, channels, height, width\), not \(4, 8, 8\)"),
    "uvc, lists": (lambda: compress(([1.0, 2.0], [0, 1])), "train_loader's inputs"),
    "uvc, float labels": (lambda: compress((IMAGES, LABELS.float())), r"class numbers \(4,\), or floating-point shares \(4, 4\)"),
    "uvc, whole shares": (lambda: compress((IMAGES, torch.eye(4).long())), "or floating-point shares"),
    "uvc, labels beyond": (lambda: compress((IMAGES, LABELS + 2)), "labels must be from 0 to 3, not from 2 to 5"),
    "uvc, few labels": (lambda: compress((IMAGES, LABELS[:2])), "train_loader has 4 inputs and 2 labels"),
    "uvc, none": (lambda: compress((IMAGES[:0], LABELS[:0])), "train_loader holds no examples"),
    "uvc, budget": (lambda: compress((IMAGES, LABELS), "0.5"), "budget must be a number, not '0.5'"),
    "uvc, plan": (lambda: uvc.save_compressed("no.safetensors", vit(), None), "plan is a NoneType; a CompressionPlan is needed"),
    "uvc, saved": (lambda: uvc.save_compressed("no.safetensors", "m", None), "model is a str; what compress or export"),
    "attnscale, model": (lambda: anti_oversmoothing.apply_attnscale("deit"), "str has no blocks"),
    "attnscale, start": (lambda: anti_oversmoothing.apply_attnscale(vit(), init="0"), "init must be a number, not '0'"),
    "attnscale, arrays": (
        lambda: anti_oversmoothing.attnscale_sdpa(*[FLOATS.numpy()] * 3, torch.zeros(2)),
        "q is a ndarray; a tensor is needed",
    ),
    "attnscale, list": (lambda: anti_oversmoothing.attnscale_sdpa(*[FLOATS] * 3, [0.0, 0.0]), "omega is a list; a tensor"),
    "attnscale, whole": (
        lambda: anti_oversmoothing.attnscale_output(*[FLOATS.long()] * 3),
        "attended is torch.int64; a floating",
    ),
    "diagnose, text": (lambda: anti_oversmoothing.diagnose(vit(), "a.png"), "images is a str; a tensor or a NumPy array"),
    "diagnose, bytes": (lambda: anti_oversmoothing.diagnose(vit(), (IMAGES * 255).byte()), "bring images to torch.float32, div"),
    "diverse, settings": (lambda: diverse_vit.DiversityTrainer(vit(), "paper"), r"config is a str; DiversityConfig\(…\)"),
    "diverse, images": (lambda: watched((IMAGES * 255).byte()), "images is torch.uint8"),
    "diverse, term": (lambda: diverse_vit.emb_cosine(np.zeros((2, 3, 4))), "h is a ndarray; a tensor is needed"),
    "diverse, term of whole": (lambda: diverse_vit.emb_cosine(torch.zeros(2, 3, 4).long()), "h is torch.int64; a floating"),
    "mixing, bytes": (lambda: mixed((IMAGES * 255).byte(), LABELS), "images must be floating-point"),
    "mixing, three axes": (lambda: mixed(IMAGES[:, 0], LABELS), "images must be floating-point"),
    "mixing, labels": (lambda: mixed(IMAGES, LABELS.float()), r"labels must be whole numbers \(4,\), not torch.float32"),
    "mixing, shares": (lambda: mixed(IMAGES, torch.eye(4).long()), r"labels must be whole numbers \(4,\)"),
    "vfds, text": (lambda: fit("a.csv"), "the dataset is a str; give a pair"),
    "vfds, price": (lambda: fit(lam="a"), "λ"),
    "vfds, steps": (lambda: fit(steps="5"), "steps must be a number, not '5'"),
    "vfds, seed": (lambda: fit(seed=None), "seed must be a number, not None"),
    "vfds, doubles": (lambda: gru()(STREAMS.double()), "x is torch.float64, and the model's weights are torch.float32"),
    "vfds, nothing": (lambda: gru()(None), "x is a NoneType; a tensor or a NumPy array is needed"),
    "vfds, reading": (lambda: observed("1, 2, 3"), "values is a str; a tensor or a NumPy array is needed"),
    "vfds, another net": (lambda: vfds.replace_rnn(nn.LSTM(3, 4), 2), "LSTM is no nn.GRU"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_one_line_that_says_what_would_be_right(name: str) -> None:
    check_refusal(*WRONG[name])


def test_arrays_are_taken_where_tensors_are() -> None:
    images, (mix, target) = IMAGES.numpy(), mixed(IMAGES.numpy(), LABELS.numpy())
    expected, _ = mixed(IMAGES, LABELS)
    assert torch.equal(mix, expected)
    assert torch.equal(target.y1, LABELS)
    model = vit()
    one, other = (anti_oversmoothing.diagnose(model, data, metrics=["hf_dc_ratio"]) for data in (images, IMAGES))
    assert one.equals(other)
    net = gru()
    assert torch.equal(net(STREAMS.numpy(), gates="threshold").logits, net(STREAMS, gates="threshold").logits)
    values = np.array([[0.1, 0.2, 0.3]], dtype=np.float32)
    torch.manual_seed(0)
    seen = observed(values)
    torch.manual_seed(0)
    assert torch.equal(seen, observed(torch.from_numpy(values)))
