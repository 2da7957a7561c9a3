"""The exported model: ordinary, smaller by exactly what the formula says, and the same function as the masked one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from atlas.methods.anti_oversmoothing import apply_attnscale, apply_featscale, apply_head_gain, scale_parameters
from atlas.methods.uvc import (
    CompactAttention,
    CompressionPlan,
    PlanError,
    UnsupportedArchitectureError,
    UVCController,
    ViTShape,
    apply_gates,
    export,
    fit_to_budget,
    masked,
    uniform_widths,
    unit_scores,
)
from atlas.nn.counts import forward_flops
from atlas.nn.diagnostics import diagnose

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "query-key norm": {"qk_norm": True},
    "LayerScale, drop path": {"init_values": 0.3, "drop_path_rate": 0.2},
    "registers": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "checkpointed": {},
}


def vit(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    settings = {"embed_dim": 16, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "weight_init": "jax"}
    model = VisionTransformer(**{"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 5, **settings, **options})
    nn.init.normal_(model.head.weight)
    for parameter in model.parameters():  # biases and norms that are not at their neutral start
        nn.init.normal_(parameter, std=0.3) if parameter.ndim == 1 else None
    return model.eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def ragged(model: Any) -> CompressionPlan:
    """A block out, a head out, and different numbers of dims in every head."""
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    plan.keep[2] = False
    plan.dims[0, 1] = False
    plan.dims[0, :, 3] = plan.dims[0, 0, :2] = False
    plan.dims[1, 3, 1:] = False
    plan.neurons[0, ::3] = False
    plan.neurons[3, 5:] = False
    return plan


def heads_only(model: Any) -> CompressionPlan:
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    plan.dims[0, 1] = plan.dims[1, 2] = plan.dims[1, 0] = False
    plan.neurons[1, :9] = False
    return plan


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["padded", "uniform"])
def test_exported_is_the_masked_model(variant: str, layout: Any) -> None:
    model = vit(**VARIANTS[variant])
    if variant == "checkpointed":
        model.set_grad_checkpointing()
    before = copy.deepcopy(model.state_dict())
    plan = ragged(model)
    if layout == "uniform":
        plan = uniform_widths(plan, ViTShape.from_timm(model), unit_scores(model))
    small = export(model, plan, layout)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    wanted = masked(model, plan)(images())
    assert torch.allclose(small(images()), wanted, atol=1e-5)
    assert not torch.allclose(model(images()), wanted, atol=1e-2)
    small.train()(images()).sum().backward()
    again = export(model, plan, layout)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in small.state_dict().items())


def test_what_removed_units_hold_does_not_matter() -> None:
    model, plan = vit(), ragged(vit())
    reference, small = masked(model, plan)(images()), export(model, plan)
    for layer, block in enumerate(model.blocks):
        dims, neurons = ~plan.dims[layer].reshape(-1), ~plan.neurons[layer]
        with torch.no_grad():
            block.attn.qkv.weight[32:][dims] = 77.0
            block.attn.qkv.bias[32:][dims] = -55.0
            block.mlp.fc1.weight[neurons] = 33.0
            block.mlp.fc1.bias[neurons] = -22.0
    assert torch.allclose(masked(model, plan)(images()), reference, atol=1e-5)
    other = export(model, plan)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in small.state_dict().items())


def test_identity_plan_is_the_dense_model() -> None:
    model = vit()
    small = export(model, CompressionPlan.identity(ViTShape.from_timm(model)))
    assert torch.equal(small(images()), model(images()))
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("layout", ["padded", "uniform"])
def test_counted_operations_are_those_of_the_exported_layers(layout: Any) -> None:
    model = vit()
    shape, plan = ViTShape.from_timm(model), ragged(model)
    small: Any = export(model, plan, layout)
    tokens, dim, classes = 5, 16, 5
    macs = shape.embed_macs + dim * classes
    for block in small.blocks:
        heads, width = block.attn.num_heads, 4
        value = block.attn.proj.in_features // heads  # narrower than queries and keys in two of three blocks
        macs += tokens * dim * heads * (2 * width + 2 * value) + tokens**2 * heads * (width + value)
        macs += 2 * tokens * dim * block.mlp.fc1.out_features
    assert small.blocks[0].attn.value_dim < 4
    assert forward_flops(small, images(1)) == 2 * macs
    if layout == "uniform":  # else heads are padded to the widest of their block, which the plan's own count leaves out
        kept = uniform_widths(plan, shape, unit_scores(model))
        assert macs == kept.macs(shape) + dim * classes


def test_without_narrow_values_it_is_timms_own_attention() -> None:
    model = vit()
    plan = heads_only(model)
    small: Any = export(model, plan)
    assert all(type(block.attn) is type(model.blocks[0].attn) for block in small.blocks)
    assert [block.attn.num_heads for block in small.blocks] == [3, 2, 4, 4]
    assert small.blocks[0].attn.scale == model.blocks[0].attn.scale
    shape = ViTShape.from_timm(small)
    assert shape.heads == (3, 2, 4, 4)
    assert shape.full_macs == plan.macs(ViTShape.from_timm(model))
    once_more = export(small, CompressionPlan.identity(shape))
    assert torch.equal(once_more(images()), small(images()))
    smaller = fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(small), 0.5)
    export(small, smaller)  # blocks of unequal shape can be compressed in turn
    controller = UVCController(small, 0.6, anneal_steps=5)
    for _ in range(20):
        controller.step(1e-2)
    controller.plan().validate(shape)


def test_permuting_heads_and_neurons_permutes_the_plan() -> None:
    model = vit()
    heads, neurons = torch.tensor([2, 0, 3, 1]), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    columns = (heads[:, None] * 4 + torch.arange(4)).reshape(-1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for block in other.blocks:
            rows = torch.cat([columns + 16 * part for part in range(3)])
            block.attn.qkv.weight.copy_(block.attn.qkv.weight[rows])
            block.attn.qkv.bias.copy_(block.attn.qkv.bias[rows])
            block.attn.proj.weight.copy_(block.attn.proj.weight[:, columns])
            block.mlp.fc1.weight.copy_(block.mlp.fc1.weight[neurons])
            block.mlp.fc1.bias.copy_(block.mlp.fc1.bias[neurons])
            block.mlp.fc2.weight.copy_(block.mlp.fc2.weight[:, neurons])
    shape = ViTShape.from_timm(model)
    plan = fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(model), 0.5)
    permuted = fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(other), 0.5)
    assert torch.equal(permuted.dims, plan.dims[:, heads])
    assert torch.equal(permuted.neurons, plan.neurons[:, neurons])
    assert torch.allclose(export(model, plan)(images()), export(other, permuted)(images()), atol=1e-5)


def counted_macs(model: Any, batch: Tensor) -> int:
    """Multiply-accumulates from the shapes of what actually runs, without the classifier."""
    total, handles = [0], []

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        size = module.weight.numel()
        places = output.shape[-2] if isinstance(module, nn.Linear) else output.shape[-1] * output.shape[-2]
        total[0] += size * places

    def attend(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens = inputs[0].shape[-2]
        queries = module.qkv.out_features - module.proj.in_features
        total[0] += tokens**2 * (queries // 2 + module.proj.in_features)

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and path != "head":
            handles.append(module.register_forward_hook(count))
        if path.endswith(".attn"):
            handles.append(module.register_forward_hook(attend))
    model(batch)
    for handle in handles:
        handle.remove()
    return total[0]


@pytest.mark.parametrize("make", [heads_only, ragged])
def test_cost_of_the_exported_model_is_the_formulas(make: Any) -> None:
    model = vit()
    shape = ViTShape.from_timm(model)
    assert counted_macs(model, images(1)) == shape.full_macs
    plan = make(model)
    assert counted_macs(export(model, plan), images(1)) >= plan.macs(shape)
    even = uniform_widths(plan, shape, unit_scores(model))
    small = export(model, even, "uniform")
    assert counted_macs(small, images(1)) == even.macs(shape)
    assert even.r_phys(shape) * shape.full_macs == pytest.approx(even.macs(shape), rel=1e-12)


def test_cost_of_deit_tiny() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    shape = ViTShape.from_timm(model)
    plan = uniform_widths(
        fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(model), 0.5), shape, unit_scores(model)
    )
    small = export(model, plan, "uniform", check=False)
    assert counted_macs(small, torch.randn(1, 3, 224, 224)) == plan.macs(shape)
    assert 0 <= 0.5 - plan.r_phys(shape) < 0.01


@pytest.mark.parametrize("rewrite", [apply_attnscale, apply_head_gain, apply_featscale])
def test_other_ingredients_survive(rewrite: Any) -> None:
    model = rewrite(vit())
    for scale in scale_parameters(model).values():
        nn.init.normal_(scale, std=0.5)
    for layout in ("padded", "uniform"):
        small = export(model, ragged(model), layout)  # type: ignore[arg-type]
        assert len(scale_parameters(small)) == len(scale_parameters(model)) * 3 // 4
    assert torch.allclose(export(model, ragged(model))(images()), masked(model, ragged(model))(images()), atol=1e-5)


def test_distillation_token_and_other_image_sizes() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=24, depth=2, num_heads=3, img_size=32).eval()
    shape = ViTShape.from_timm(model)
    plan = fit_to_budget(CompressionPlan.identity(shape), shape, unit_scores(model), 0.6)
    assert torch.allclose(export(model, plan)(torch.ones(1, 3, 32, 32)), masked(model, plan)(torch.ones(1, 3, 32, 32)), atol=1e-4)


def test_masks_and_unfused_attention_are_as_before() -> None:
    model = vit()
    small: Any = export(model, ragged(model))
    tokens = torch.randn(2, 5, 16)
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    attention, reference = small.blocks[0].attn, masked(model, ragged(model)).get_submodule("blocks.0.attn")
    assert isinstance(attention, CompactAttention)
    assert torch.allclose(attention(tokens, attn_mask=mask), reference(tokens, attn_mask=mask), atol=1e-5)
    assert torch.allclose(attention(tokens, is_causal=True), reference(tokens, attn_mask=mask), atol=1e-5)


def test_diagnostics_read_a_compact_model() -> None:
    model = vit()
    table = diagnose(export(model, ragged(model)), images())
    assert table["layer"].max() == 3
    assert table["value"].notna().all()
    dense = diagnose(masked(model, heads_only(model)), images(), weights=False)
    small = diagnose(export(model, heads_only(model)), images(), weights=False)
    for metric in ("token_cosine", "hf_dc_ratio"):
        first, second = (frame[frame["metric"].eq(metric)]["value"].to_numpy() for frame in (dense, small))
        assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.slow
def test_runs_through_torch_export() -> None:
    small = export(vit(), ragged(vit()))
    program = torch.export.export(small, (images(2),))
    assert torch.allclose(program.module()(images(2)), small(images(2)), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [lambda model: torch.jit.trace(model, images(2)), torch.fx.symbolic_trace, copy.deepcopy])
def test_traces_and_copies(trace: Any) -> None:
    small = export(apply_attnscale(vit(), init=0.3), ragged(vit()))
    assert torch.allclose(trace(small)(images(2)), small(images(2)), atol=1e-5)


def test_device_dtype_and_trainability_stay() -> None:
    model = vit().bfloat16()
    model.blocks[0].mlp.fc1.weight.requires_grad_(False)
    small: Any = export(model, ragged(model))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert not small.blocks[0].mlp.fc1.weight.requires_grad
    assert small.blocks[0].attn.qkv.weight.requires_grad


def test_refusals() -> None:
    model = vit()
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    with pytest.raises(PlanError, match="v_layout must be"):
        export(model, plan, "tight")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="keep must be"):
        export(vit(depth=3), plan)
    apply_gates(model, UVCController(model, 0.5))
    with pytest.raises(RuntimeError, match="still has gates"):
        export(model, plan)


def gated() -> Any:
    model = vit()
    model.blocks[0].attn.gate = nn.Linear(16, 16)
    return model


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: nn.Linear(2, 2), "Linear is not a timm VisionTransformer"),
        (lambda: timm.create_model("resnet18"), "not a timm VisionTransformer"),
        (lambda: vit(block_fn=ParallelThingsBlock), "blocks.0: ParallelThingsBlock"),
        (lambda: vit(block_fn=ResPostBlock), "blocks.0: ResPostBlock"),
        (lambda: vit(mlp_layer=timm.layers.GatedMlp), "blocks.0.mlp: GatedMlp"),
        (lambda: vit(scale_mlp_norm=True), r"blocks.0.mlp.norm"),
        (lambda: vit(scale_attn_norm=True), r"blocks.0.attn.norm"),
        (gated, r"blocks.0.attn.gate"),
        (lambda: export(vit(), ragged(vit())), "blocks.0.attn: CompactAttention"),
    ],
)
def test_architectures_that_are_not_supported(make: Any, path: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=path):
        UVCController(make(), 0.5)


@pytest.mark.parametrize("part", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_weights_that_are_computed_for_every_pass_are_refused(part: str) -> None:
    """Shrinking them would be undone by the next pass, and cutting them would lose what computes them."""
    refusals = {
        "computed anew": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
        "ParametrizedLinear": parametrizations.weight_norm,
    }
    for why, change in refusals.items():
        model = vit()
        change(model.blocks[1].get_submodule(part))
        with pytest.raises(UnsupportedArchitectureError, match=rf"blocks\.1\.{part}: .*{why}"):
            UVCController(model, 0.5)
    prune.remove(prune.l1_unstructured(vit().blocks[1].get_submodule(part), "weight", amount=0.3), "weight")


def test_a_pruned_model_is_compressed_once_its_masks_are_permanent() -> None:
    model = vit()
    for block in model.blocks:
        prune.l1_unstructured(block.mlp.fc2, "weight", amount=0.5)
        prune.remove(block.mlp.fc2, "weight")
    UVCController(model, 0.5)
    plan = ragged(model)
    assert torch.allclose(export(model, plan)(images()), masked(model, plan)(images()), atol=1e-5)


@pytest.mark.parametrize("part", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_other_kinds_of_linear_layers_and_shared_ones_are_refused(part: str) -> None:
    class LowRank(nn.Linear):
        """A linear layer that adds something of its own."""

    model = vit()
    model.blocks[2].get_submodule(part).__class__ = LowRank
    with pytest.raises(UnsupportedArchitectureError, match=rf"blocks\.2\.{part}: LowRank"):
        UVCController(model, 0.5)
    model = vit()
    parent, _, name = part.rpartition(".")
    setattr(model.blocks[2].get_submodule(parent), name, model.blocks[0].get_submodule(part))
    with pytest.raises(UnsupportedArchitectureError, match=rf"blocks\.2\.{part} is the same module as blocks\.0\.{part}"):
        UVCController(model, 0.5)


def test_hooks_on_what_becomes_smaller_stay_in_force() -> None:
    model = apply_attnscale(vit(), blocks=[0, 1])
    seen: list[str] = []
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        for layer in (0, 3):
            path = f"blocks.{layer}.{part}"
            model.get_submodule(path).register_forward_hook(lambda m, inputs, output, path=path: seen.append(path))
    small: Any = export(model, ragged(model))
    seen.clear()
    small(images())
    assert len(seen) == len(set(seen)) == 8
    assert all(small.get_submodule(path.replace("blocks.3", "blocks.2")).weight.numel() for path in seen)
    fc1 = small.blocks[0].mlp.fc1
    assert (fc1.out_features, fc1.in_features) == tuple(fc1.weight.shape)
