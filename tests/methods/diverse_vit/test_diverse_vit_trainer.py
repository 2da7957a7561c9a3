"""The trainer: its loss by definition, on many backbones; it leaves the model alone and refuses misuse."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from atlas.errors import UserError
from atlas.methods.diverse_vit import (
    DiversityConfig,
    DiversityTrainer,
    MixTarget,
    PatchMixup,
    attn_cosine,
    cond_orth,
    emb_contrast,
    emb_cosine,
)
from atlas.methods.diverse_vit.settings import DiverseSettings
from atlas.methods.uvc import UVCController
from atlas.methods.uvc.gates import apply_gates, remove_gates
from atlas.nn.anatomy import attention_sites
from atlas.settings import validate_settings

NONE = DiversityConfig.preset("none")


def vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 4}
    model = VisionTransformer(**{**sizes, **options}).double()
    nn.init.normal_(model.head.weight, std=0.1)
    return model


IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3])


def test_without_coefficients_it_is_plain_cross_entropy() -> None:
    model = vit()
    with DiversityTrainer(model, NONE) as trainer:
        total, terms = trainer.loss(trainer(IMAGES), LABELS)
        gradient = torch.autograd.grad(total, model.parameters())
    expected = functional.cross_entropy(model(IMAGES), LABELS)
    assert list(terms) == ["base"]
    assert total.item() == expected.item()
    for found, wanted in zip(gradient, torch.autograd.grad(expected, model.parameters()), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"reg_tokens": 2}, {"global_pool": "avg", "class_token": False, "fc_norm": True}]
)
def test_total_is_the_sum_of_its_terms_by_definition(options: dict[str, Any]) -> None:
    model = vit(**options)
    _, target = PatchMixup(5, 2, generator=torch.Generator().manual_seed(0), switch_prob=1.0)(IMAGES, LABELS)
    config = DiversityConfig(mix_weight=0.7, attn_cos=0.3, orth_exact=True)
    with DiversityTrainer(model, config) as trainer:
        total, terms = trainer.loss(trainer(IMAGES), target)
        prefix = trainer.prefix
    first = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(IMAGES))))
    last = first
    for block in model.blocks:
        last = block(last)
    tokens = model.head(model.head_drop(model.fc_norm(model.norm(last))))[:, prefix:]
    whole, patches = target.dense()
    own = functional.cross_entropy(model(IMAGES), whole.double())
    each = sum(functional.cross_entropy(tokens[:, p], patches[:, p].double()) for p in range(16))
    attention = model.blocks[0].attn
    qkv = attention.qkv(model.blocks[0].norm1(first)).reshape(4, -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    maps = (query @ key.transpose(-2, -1) * attention.scale).softmax(-1)
    gaps = sum(cond_orth(part, exact=True) for block in model.blocks for part in block.attn.qkv.weight.chunk(3))
    expected = (own + 0.7 * each) / (1 + 0.7 * 16)
    expected = expected + 0.5 * emb_cosine(last, prefix) + 0.5 * emb_contrast(first, last, prefix)
    expected = expected + 0.3 * attn_cosine(maps) + 5e-4 * gaps
    assert float(total) == pytest.approx(float(expected), rel=1e-12)
    assert set(terms) == {"base", "emb_cos", "emb_contrast", "attn_cos", "weight_orth"}


def test_patches_that_agree_with_the_class_token_change_nothing() -> None:
    target = MixTarget(LABELS, LABELS, 1.0, torch.ones(6), 0.1, 5)
    logits = torch.randn(4, 5)
    own = target.image_loss(logits)
    together = (own + 2.0 * target.patch_loss(logits[:, None].expand(4, 6, 5))) / (1 + 2.0 * 6)
    assert float(together) == pytest.approx(float(own))


def test_model_is_left_alone() -> None:
    model = vit().eval()
    before, keys = model(IMAGES), list(model.state_dict())
    trainer = DiversityTrainer(model, DiversityConfig())
    assert torch.equal(model(IMAGES), before)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert list(model.state_dict()) == keys
    trainer.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_misuse_is_refused() -> None:
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="emb_cos"):
            DiversityConfig(emb_cos=wrong)
    with pytest.raises(ValueError, match="emb_cos = -1: input should be greater than or equal to 0"):
        DiversityConfig.preset("none", emb_cos=-1)
    with pytest.raises(TypeError, match="did you mean emb_cos"):
        DiversityConfig.preset("none", emb_cosine=1)
    with pytest.raises(ValueError, match="attn_block must be one of 0 … 2, not 3"):
        DiversityTrainer(vit(), DiversityConfig(attn_block=3))
    trainer = DiversityTrainer(vit(), DiversityConfig())
    with pytest.raises(RuntimeError, match="hooks on the blocks saw nothing"):
        trainer.outputs(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="mix_weight needs the patch labels"):
        trainer.loss(trainer(IMAGES), LABELS)
    with pytest.raises(TypeError, match="expected a timm VisionTransformer"):
        DiversityTrainer(nn.Linear(2, 2), DiversityConfig())


def test_a_target_of_other_classes_than_the_models_is_refused() -> None:
    images, target = PatchMixup(6, 2, generator=torch.Generator().manual_seed(0))(IMAGES, LABELS)
    for config in (NONE, DiversityConfig()):
        with DiversityTrainer(vit(), config) as trainer:
            for criterion in (None, lambda logits, dense: logits.sum()):
                with pytest.raises(ValueError, match="5 classes, the target 6"):
                    trainer.loss(trainer(images), target, criterion)


def test_a_configuration_is_a_frozen_dataclass() -> None:
    released = DiversityConfig()
    assert dataclasses.is_dataclass(DiversityConfig)
    names = ["mix_weight", "emb_cos", "emb_contrast", "attn_cos", "weight_orth"]
    names += ["emb_cos_abs", "detach_first", "attn_block", "orth_steps", "orth_exact"]
    assert [field.name for field in dataclasses.fields(released)] == names
    assert dataclasses.astuple(released) == (1.0, 0.5, 0.5, 1e-4, 5e-4, False, False, 0, 1, False)
    assert DiversityConfig(1.0, 0.25) == DiversityConfig(emb_cos=0.25) == dataclasses.replace(released, emb_cos=0.25) != released
    assert len({DiversityConfig(), released, DiversityConfig(1.0, 0.25)}) == 2
    assert dataclasses.asdict(released) == released.model_dump()
    assert pickle.loads(pickle.dumps(DiversityConfig(0.5))) == copy.deepcopy(DiversityConfig(0.5)) == DiversityConfig(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        released.emb_cos = 0.0  # type: ignore[misc]
    for make in (lambda: DiversityConfig(1.0, -1), lambda: dataclasses.replace(released, emb_cos=-1)):
        with pytest.raises(ValueError, match=r"^emb_cos = -1: input should be greater than or equal to 0$"):
            make()
    with pytest.raises(TypeError, match="emb_cosine is not a setting of DiversityConfig; did you mean emb_cos"):
        DiversityConfig(emb_cosine=1)  # type: ignore[call-arg]


def test_a_rows_settings_configure_the_trainer_and_are_replaced_alike() -> None:
    row = DiverseSettings(mix_weight=0, mix=False)
    assert validate_settings(DiverseSettings, {"mix_weight": 0, "mix": False}, "test", "diverse-vit") == row.model_dump()
    assert dataclasses.replace(row, emb_cos=0.0) == DiverseSettings(mix_weight=0, mix=False, emb_cos=0.0)
    with pytest.raises(ValueError, match="^mix_weight needs the patch labels of mixed batches: set it to 0, or mix to true$"):
        dataclasses.replace(row, mix_weight=1.0)
    with pytest.raises(UserError, match="^test.emb_cos = -1: input should be greater than or equal to 0$"):
        validate_settings(DiverseSettings, {"emb_cos": -1}, "test", "diverse-vit")
    with DiversityTrainer(vit(), row) as trainer:
        assert trainer.config is row


def test_probes_follow_from_the_generator() -> None:
    def weight_term(seed: int) -> float:
        with DiversityTrainer(vit(), DiversityConfig(), generator=torch.Generator().manual_seed(seed)) as trainer:
            return float(trainer.weight_term())

    assert weight_term(1) == weight_term(1) != weight_term(2)


def mixed() -> tuple[torch.Tensor, MixTarget]:
    return PatchMixup(5, 2, generator=torch.Generator().manual_seed(0), switch_prob=1.0)(IMAGES, LABELS)


def test_weight_of_the_patches_is_a_weight() -> None:
    images, target = mixed()
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        with DiversityTrainer(vit(), DiversityConfig.preset("none", mix_weight=weight)) as trainer:
            losses[weight] = float(trainer.loss(trainer(images), target)[0])
    patches = 17 * losses[1.0] - losses[0.0]
    assert losses[2.0] == pytest.approx((losses[0.0] + 2 * patches) / 33)


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_other_backbones_train(name: str) -> None:
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4}
    model = create_model(name, **sizes)
    images, target = mixed()
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        out = trainer(images.float())
        total, terms = trainer.loss(out, target)
        total.backward()
    assert out.token_logits is not None
    assert out.token_logits.shape == (4, model.num_prefix_tokens + 16, 5)
    assert out.attn is not None
    assert torch.allclose(out.attn.sum(-1), torch.ones(4, 4, out.attn.shape[-1]))
    assert all(torch.isfinite(value) for value in terms.values())
    assert any(parameter.grad is not None for parameter in model.blocks[0].parameters())


def test_a_rewritten_backbone_trains_too() -> None:
    from atlas.methods.anti_oversmoothing import apply_attnscale

    model = apply_attnscale(vit(), init=0.3)
    images, target = mixed()
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        trainer.loss(trainer(images), target)[0].backward()
    assert all(block.attn.qkv.omega.grad is not None for block in model.blocks)


def test_a_compressed_backbone_trains_too() -> None:
    from atlas.methods.uvc import CompressionPlan, ViTShape, export

    plan = CompressionPlan.identity(ViTShape.from_timm(vit()))
    plan.dims[:, :, 1:] = False
    images, target = mixed()
    with DiversityTrainer(export(vit(), plan), DiversityConfig(orth_exact=True)) as trainer:
        assert [tuple(weight.shape) for weight in trainer.weights[:3]] == [(16, 16), (16, 16), (4, 16)]
        trainer.loss(trainer(images), target)[0].backward()


@pytest.mark.parametrize("name", ["mixing", "embedding", "attention", "weight", "deit-s-12"])
def test_presets_have_the_terms_of_their_level(name: str) -> None:
    expected = {
        "mixing": set(),
        "embedding": {"emb_cos", "emb_contrast"},
        "attention": {"attn_cos"},
        "weight": {"weight_orth"},
        "deit-s-12": {"emb_cos", "emb_contrast", "attn_cos", "weight_orth"},
    }
    config = DiversityConfig.preset(name)
    images, target = mixed()
    with DiversityTrainer(vit(), config) as trainer:
        out = trainer(images)
        assert set(trainer.loss(out, target)[1]) == {"base"} | expected[name]
    assert (out.attn is None) == (config.attn_cos == 0)
    assert (out.token_logits is not None) == (name in ("mixing", "embedding", "deit-s-12"))


def test_presets_by_name() -> None:
    assert DiversityConfig.preset("deit-s-24") == DiversityConfig()
    assert DiversityConfig.preset("diverse-patch", emb_cos=0.1) == DiversityConfig.preset(
        "embedding", emb_cos=0.1, detach_first=True
    )
    with pytest.raises(ValueError, match="there is no preset swin; choose from deit-s-12"):
        DiversityConfig.preset("swin")


def test_own_criterion_sees_the_image_target() -> None:
    images, target = mixed()
    with DiversityTrainer(vit(), NONE) as trainer:
        out = trainer(images)
        own = trainer.loss(out, target, lambda logits, wanted: (logits.softmax(1) - wanted).abs().sum())[0]
    assert float(own) == pytest.approx(float((out.logits.softmax(1) - target.dense()[0]).abs().sum()))


def test_half_precision_of_the_model_stays_out_of_the_loss() -> None:
    model = vit().float()
    images, target = mixed()
    with DiversityTrainer(model, DiversityConfig(), generator=torch.Generator().manual_seed(0)) as trainer:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = trainer(images.float())
            inside = trainer.loss(out, target)[0]
        trainer.generator = torch.Generator().manual_seed(0)
        outside = trainer.loss(out, target)[0]
    assert out.token_logits is not None
    assert out.logits.dtype == out.token_logits.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert float(inside) == float(outside)


def test_evaluation_between_steps_leaves_nothing_behind() -> None:
    model = vit()
    trainer = DiversityTrainer(model, DiversityConfig())
    with torch.no_grad():
        model(IMAGES)
    with pytest.raises(RuntimeError, match="saw nothing to differentiate"):
        trainer.outputs(torch.zeros(4, 5))
    with torch.no_grad():
        assert torch.equal(trainer(IMAGES).logits, model(IMAGES))


def test_reentrant_checkpointing_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    model = vit()
    trainer = DiversityTrainer(model, DiversityConfig())
    blocks = model.blocks.forward
    model.blocks.forward = lambda x: checkpoint(blocks, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="without gradient checkpointing"):
        trainer(IMAGES)


def test_distilled_training_is_refused_and_distilled_models_train() -> None:
    """Two heads want two targets, and this paper has no teacher for the second."""
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4}
    model: Any = create_model("deit_tiny_distilled_patch16_224", **sizes).train()
    images, target = mixed()
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        model.set_distilled_training(True)
        with pytest.raises(TypeError, match=r"distilled training: .* set_distilled_training\(False\)"):
            trainer(images.float())
        with pytest.raises(TypeError, match="distilled training"):
            trainer.outputs(model(images.float()))
        model.set_distilled_training(False)
        trainer.loss(trainer(images.float()), target)[0].backward()
    assert model.head_dist.weight.grad is not None


@pytest.mark.parametrize("call", [{"is_causal": True}, {"attn_mask": torch.ones(17, 17, dtype=torch.bool).tril()}])
def test_terms_over_masked_tokens_are_refused(call: dict[str, Any]) -> None:
    model = vit()
    with DiversityTrainer(model, DiversityConfig()), pytest.raises(NotImplementedError, match="mask .*padding or future"):
        model(IMAGES, **call)
    model(IMAGES, **call)


@pytest.mark.parametrize("kind", ["bias", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_regularised_map_has_the_bias_of_its_own_pass(kind: str, shared: bool) -> None:
    """In training too, where the network behind a bias drops out some of its neurons."""
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4}
    model: Any = create_model("vit_relpos_small_patch16_224", **sizes, rel_pos_type=kind, shared_rel_pos=shared).train()
    attention = model.blocks[0].attn
    attention.fused_attn = False
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, std=2.0)
    used: list[torch.Tensor] = []
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: used.append(inputs[0]))
    torch.manual_seed(1)
    plain = model(IMAGES.float())
    torch.manual_seed(1)
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        out = trainer(IMAGES.float())
    assert torch.allclose(out.logits, plain)
    assert out.attn is not None
    assert torch.allclose(out.attn, used[1], atol=1e-6)
    found = torch.autograd.grad(
        out.attn.square().sum(), [p for name, p in model.named_parameters() if "rel_pos" in name], allow_unused=True
    )
    assert any(gradient is not None and bool(gradient.any()) for gradient in found)


def test_a_model_that_cannot_be_watched_is_left_without_hooks() -> None:
    model = vit()
    del model.norm
    with pytest.raises(TypeError, match="has no norm"):
        DiversityTrainer(model, DiversityConfig())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_patch_dropout_and_bad_pixels_are_refused() -> None:
    images, target = mixed()
    with (
        DiversityTrainer(vit(patch_drop_rate=0.5), DiversityConfig()) as trainer,
        pytest.raises(ValueError, match="8 patch tokens, the target 16 patches"),
    ):
        trainer.loss(trainer(images), target)
    images[0, 0, 0, 0] = float("nan")
    with DiversityTrainer(vit(), DiversityConfig()) as trainer, pytest.raises(ValueError, match="base loss is not finite"):
        trainer.loss(trainer(images), target)


@pytest.mark.parametrize(("field", "value"), [("attn_block", -1), ("orth_steps", 0), ("mix_weight", float("nan"))])
def test_configurations_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        DiversityConfig(**{field: value})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7}),
        ("vit_small_patch16_dinov3", {"img_size": 32, "patch_size": 8}),
        ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8}),
        ("cait_xxs24_224", {"img_size": 32, "patch_size": 8}),
        ("vit_dwee_patch16_reg1_gap_256", {"img_size": 32, "patch_size": 8}),
        ("vit_base_patch16_xp_224", {"img_size": 32, "patch_size": 8}),
    ],
)
def test_maps_of_every_kind_are_those_of_the_pass_and_have_gradients(name: str, sizes: dict[str, int]) -> None:
    """Rotations, biases of relative positions, mixed heads, and both softmax maps of differential attention are in it."""
    model: Any = create_model(name, **sizes, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    site = attention_sites(model)[0]
    with torch.no_grad():
        for parameter in site.module.parameters():
            if parameter.ndim > 1:
                parameter.normal_()
    images = torch.randn(4, 3, sizes["img_size"], sizes["img_size"])
    used: list[torch.Tensor] = []
    with DiversityTrainer(model, DiversityConfig()) as trainer:
        out = trainer(images)
        assert out.attn is not None
        assert out.token_logits is not None
        out.attn.square().sum().backward(retain_graph=True)
        assert site.values.weight.grad is not None
        patches = out.token_logits.shape[1] - trainer.prefix
        target = MixTarget(LABELS, LABELS.flip(0), 0.5, torch.full((patches,), 0.5), 0.1, 5)
        trainer.loss(out, target)[0].backward()
    site.module.fused_attn = False
    site.module.attn_drop.register_forward_hook(lambda module, inputs, output: used.append(inputs[0]))
    with torch.no_grad():
        model(images)
    maps = used[0]
    if site.anatomy.softmaxes == 2:
        first, second = maps.unflatten(1, (-1, 2)).unbind(2)
        maps = first - site.module._compute_lambda() * second
    assert torch.allclose(out.attn, maps, atol=1e-5)
    assert patches == 16


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (2, 2)}, "stand in stages"),
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1)}, "merge tokens"),
        ("twins_svt_small", {"embed_dims": (16, 16, 16, 16), "depths": (1, 1, 1, 1)}, "merge tokens"),
        ("xcit_nano_12_p16_224", {"depth": 2, "num_heads": 2}, r"blocks\.0\.attn \(XCA\)"),
        ("samvit_base_patch16", {"depth": 2, "num_heads": 2}, "has no norm"),
        ("tnt_s_patch16_224", {"depth": 2}, r"blocks\.0 \(Block\) passes on several sequences"),
    ],
)
def test_what_cannot_be_read_is_refused_and_left_without_hooks(name: str, sizes: dict[str, Any], message: str) -> None:
    model = create_model(name, **({} if "twins" in name else {"embed_dim": 32}), **sizes)
    without_maps = [] if "xcit" in name else [DiversityConfig(attn_cos=0)]  # XCiT has none of tokens; nothing else is amiss
    for config in (DiversityConfig(), *without_maps):
        with pytest.raises(TypeError, match=message):
            DiversityTrainer(model, config)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_padding_does_not_count() -> None:
    """The terms of a padded batch are the means of those of its images alone."""
    model: Any = create_model("naflexvit_base_patch16_gap", embed_dim=16, depth=2, num_heads=2, num_classes=5).double()
    patches = torch.randn(2, 6, 16 * 16 * 3, dtype=torch.float64)
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    places = torch.tensor([[[y, x] for y in range(3) for x in range(2)]]).expand(2, -1, -1) * valid[..., None]
    config = DiversityConfig(mix_weight=0, weight_orth=0)

    def terms(rows: slice, count: int) -> dict[str, torch.Tensor]:
        batch = {"patches": patches[rows, :count], "patch_coord": places[rows, :count], "patch_valid": valid[rows, :count]}
        with DiversityTrainer(model, config) as trainer:
            return trainer.terms(trainer(batch))  # type: ignore[arg-type]

    both, first, second = terms(slice(0, 2), 6), terms(slice(0, 1), 6), terms(slice(1, 2), 4)
    for name, value in both.items():
        assert torch.allclose(value, (first[name] + second[name]) / 2, atol=1e-10), name


def test_a_compiled_model_is_seen_at_every_step() -> None:
    torch.compiler.reset()
    model = vit()
    plain = copy.deepcopy(model)
    config = DiversityConfig(orth_exact=True)
    trainer, reference = DiversityTrainer(model, config), DiversityTrainer(plain, config)
    compiled = torch.compile(model, backend="eager")
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (model, plain)]
    mixed, target = PatchMixup(5, 2, generator=torch.Generator().manual_seed(0))(IMAGES, LABELS)
    for _ in range(3):
        losses = [trainer.loss(trainer.outputs(compiled(mixed)), target)[0], reference.loss(reference(mixed), target)[0]]
        torch.testing.assert_close(losses[0], losses[1])
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_blocks_that_were_wrapped_since_are_not_looked_at_from_within() -> None:
    model = vit().float()
    trainer = DiversityTrainer(model, NONE)
    apply_gates(model, UVCController(model, 0.6))
    with pytest.raises(RuntimeError, match="wrapped"):
        trainer(IMAGES.float())
    with pytest.raises(TypeError, match="remove_gates"):
        DiversityTrainer(model, NONE)
    remove_gates(model)
    trainer(IMAGES.float())


def test_a_prefix_is_not_negative() -> None:
    with pytest.raises(ValueError, match="prefix must be at least 0"):
        emb_cosine(torch.randn(2, 5, 3), prefix=-2)
