"""Options and numbers that no method has: one clear error, before anything is computed with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale, param_groups
from atlas.methods.as_vit import Topology, build, kendall_tau
from atlas.methods.as_vit.ranking import bootstrap_taus
from atlas.methods.sinnerf.cameras import Camera, all_rays
from atlas.methods.sinnerf.fields import positional_encoding
from atlas.methods.sinnerf.rendering import sample_pdf, sample_stratified
from atlas.methods.sparse_robust import layer_densities
from atlas.methods.split_mix import FedTrainer
from atlas.methods.split_mix.norms import DualNorm, set_norm_mode, set_robustness
from atlas.methods.uvc import CompressionPlan, UVCController, compress, kd_loss
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.costs import resource, resource_grad
from atlas.methods.uvc.errors import PlanError
from atlas.methods.uvc.gates import sample_gates
from atlas.methods.uvc.repair import fit_to_budget


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


@pytest.mark.parametrize("rewrite", [apply_attnscale, apply_featscale])
@pytest.mark.parametrize(
    ("blocks", "kind", "message"),
    [
        ([0.5], TypeError, r"blocks\[0\] must be a whole number, not 0.5"),
        ([0, True], TypeError, r"blocks\[1\] must be a whole number, not True"),
        (0, TypeError, "a list of block numbers is needed"),
        ("x", TypeError, "a list of block numbers is needed"),
        ([2], ValueError, "blocks must name some of 0 … 1"),
    ],
)
def test_blocks_are_whole_numbers(rewrite: Any, blocks: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rewrite(vit(), blocks=blocks)


@pytest.mark.parametrize("options", [(-1, 0.05), (0.1, math.inf), (0.1, 0.05, math.nan)])
def test_rates_are_finite_and_not_negative(options: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        param_groups(vit(), *options)


def test_a_power_that_is_no_number_is_refused() -> None:
    shapes = {"a": (30, 20), "b": (10, 30)}
    for power in (math.nan, math.inf):
        with pytest.raises(ValueError, match="power must be a finite number"):
            layer_densities(shapes, 0.5, "erk", power=power)
    with pytest.raises(ValueError, match="b has no weights"):
        layer_densities({**shapes, "b": (0, 3)}, 0.5, "erk")


def test_a_controller_knows_its_gates() -> None:
    for options in ({"gate": "x"}, {"anneal_steps": -3}):
        with pytest.raises(ValueError, match=next(iter(options))):
            UVCController(vit(), 0.6, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gate must be one of gumbel_soft, gumbel_hard, softl0, not 'x'"):
        sample_gates(torch.zeros(2, 2), "x")  # type: ignore[arg-type]


def test_a_search_that_overflows_says_so() -> None:
    model = vit()
    controller = UVCController(model, 0.6)
    with torch.no_grad():
        controller.s.fill_(math.nan)
        controller.r.fill_(math.nan)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="step 1: scores or gate gradients hold NaN or infinity"):
            controller.step(1e-3)
    images, labels = 1e4 * torch.randn(4, 3, 8, 8).half(), torch.tensor([0, 1, 2, 0])
    with pytest.raises(FloatingPointError):
        compress(vit().half(), 0.5, (images, labels), epochs=(2, 0))


def test_scores_that_are_unknown_choose_nothing() -> None:
    shape = ViTShape.from_timm(vit())
    plan = CompressionPlan.identity(shape)
    dims, neurons = torch.rand(2, 2, 4), torch.rand(2, 32)
    neurons[1, 3] = math.nan
    with pytest.raises(ValueError, match="scores of neurons hold NaN"):
        fit_to_budget(plan, shape, (dims, neurons), 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": -1},
        {"keep": [1]},
        {"keep": [1, 1, 1]},
        {"neurons": [[-1], [0]]},
        {"dims": [[[0]], [[0]]]},
        {"dims": [[[0], [-2]]] * 2},
    ],
)
def test_plans_that_do_not_fit_together_are_none(change: dict[str, Any]) -> None:
    text = CompressionPlan.identity(ViTShape.from_timm(vit())).to_json()
    assert torch.equal(CompressionPlan.from_json(text).keep, torch.tensor([True, True]))
    with pytest.raises(PlanError, match="not a compression plan"):
        CompressionPlan.from_json(json.dumps({**json.loads(text), **change}))


def test_networks_have_channels() -> None:
    topology = Topology((3, 2, 2, 2), (1, 1, 1, 1), (2, 2, 2, 2), 16)
    for options in ({"in_chans": 0}, {"num_classes": -1}):
        with pytest.raises(ValueError, match="channels and .* classes: at least 1 and 0 are needed"):
            build(topology, width=8, img_size=64, **options)


def test_distillation_takes_classes_of_any_whole_type() -> None:
    logits, teacher, classes = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = kd_loss(logits, teacher, classes, 0.5, 2)
    assert torch.equal(kd_loss(logits, teacher, classes.int(), 0.5, 2), expected)


def test_a_norm_has_three_modes() -> None:
    network = nn.Sequential(DualNorm(3)).eval()
    with pytest.raises(ValueError, match="mode must be clean or noise, not 'zzz'"):
        set_norm_mode(network, "zzz")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lam"):
        set_robustness(network, "x")  # type: ignore[arg-type]
    norm: Any = network[0]
    norm.mode, norm.lam = "zzz", 0.5
    with pytest.raises(ValueError, match="mode must be clean, noise or mix, not 'zzz'"):
        norm(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    "wrong", [{"lr": -1}, {"lr": math.nan}, {"loss": "x"}, {"temperature": 0}, {"momentum": -2}, {"execution": "serial"}]
)
def test_a_federation_knows_its_options_before_it_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedTrainer("fedavg", nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), **wrong)


def test_a_federation_that_has_not_started_or_is_damaged_says_so(tmp_path: Path) -> None:
    trainer = FedTrainer("fedavg", nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    for ask in (trainer.round, trainer.model, trainer.state_dict):
        with pytest.raises(AttributeError, match=r"has no \w+ yet: call start\(clients\) or fit\(clients\) first"):
            ask()
    with pytest.raises(AttributeError, match="FedTrainer has no attribute 'nothing'"):
        _ = trainer.nothing  # type: ignore[attr-defined]
    for name, content in (("cut", b"PK\x03\x04"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged, or no saved federation"):
            trainer.resume(tmp_path / name)
    torch.save({"completed": 3}, tmp_path / "other")
    with pytest.raises(ValueError, match="other is no saved federation"):
        trainer.resume(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        trainer.resume(tmp_path / "nothing")


def test_a_rank_correlation_with_what_is_unknown_is_unknown() -> None:
    assert math.isnan(kendall_tau([1, math.nan, 2], [1, 2, 3]))
    assert kendall_tau([1, math.inf, 2], [1, 3, 2]) == pytest.approx(1)
    taus = bootstrap_taus({"measure": [1, math.nan, 2]}, [1, 2, 3], seed=0, draws=50)["measure"]
    assert any(map(math.isnan, taus))


@pytest.mark.parametrize(("near", "far"), [(6.0, 2.0), (2.0, 2.0), (-1.0, 2.0), (math.nan, 2.0), (1.0, math.inf)])
def test_rays_begin_before_they_end(near: float, far: float) -> None:
    camera = Camera(np.diag([4.0, 4.0, 1.0]), np.eye(4), 4, 4)
    with pytest.raises(ValueError, match=rf"near {near} and end at far {far}: near must be 0 or more, and below far"):
        all_rays(camera, near, far)


def test_samples_of_rays_fit_each_other() -> None:
    ends = torch.ones(3), torch.full((3,), 2.0)
    assert sample_stratified(*ends, 1, jitter=False).tolist() == [[1.0]] * 3
    with pytest.raises(ValueError, match="at least one sample, not 0"):
        sample_stratified(*ends, 0)
    with pytest.raises(ValueError, match=r"must be \(n\) both, not \(3,\) and \(2,\)"):
        sample_stratified(ends[0], ends[1][:2], 4)
    with pytest.raises(ValueError, match="no spacing log"):
        sample_stratified(*ends, 4, spacing="log")  # type: ignore[arg-type]
    edges, masses = torch.linspace(0, 1, 5).expand(3, 5), torch.ones(3, 4)
    assert sample_pdf(edges, masses, 2, deterministic=True)[0].tolist() == [0, 1]
    for wrong in (masses[:, :3], torch.ones(3, 5), masses[:2]):
        with pytest.raises(ValueError, match=r"bins must be \(n, b \+ 1\) and weights \(n, b\)"):
            sample_pdf(edges, wrong, 2)
    with pytest.raises(ValueError, match="at least one sample, not -1"):
        sample_pdf(edges, masses, -1)
    with pytest.raises(ValueError, match="-1 frequencies"):
        positional_encoding(ends[0], -1)


@pytest.mark.parametrize("function", [resource, resource_grad])
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("s", (0, 0), 2.5, r"s\[0, 0\] is 2.5: it must be from 0 to 2"),
        ("s", (1, 1), 33, r"s\[1, 1\] is 33: it must be from 0 to 32"),
        ("r", (1, 0), -1, r"r\[1, 0\] is -1: it must be from 0 to 4"),
        ("r", (0, 1), math.nan, r"r\[0, 1\] is nan: it must be from 0 to 4"),
        ("keep", (1,), 1.5, r"keep\[1\] is 1.5: it must be from 0 to 1"),
    ],
)
def test_no_more_is_removed_than_there_is(function: Any, name: str, place: Any, value: float, message: str) -> None:
    shape = ViTShape.from_timm(vit())
    parts = {"s": torch.zeros(2, 2), "r": torch.zeros(2, 2), "keep": torch.ones(2)}
    function(shape, **parts)
    parts[name][place] = value
    with pytest.raises(ValueError, match=message):
        function(shape, **parts)
