"""Compressed models as one file: the same numbers after a round trip, and nothing that is code."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

import atlas
from atlas.methods.anti_oversmoothing import apply_attnscale
from atlas.methods.uvc import CompressionPlan, ViTShape, export, load_compressed, save_compressed

WITHOUT_ONNX = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
SMALL = {"num_classes": 3, "img_size": 32}


def dense() -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=3, num_heads=4)


def some_plan(model: torch.nn.Module) -> CompressionPlan:
    """A plan that drops a block, a head, dims and neurons."""
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    plan.keep[1] = False
    plan.dims[0, 0] = False
    plan.dims[2, :, 1:] = False
    plan.neurons[:, ::3] = False
    return plan


def test_a_model_of_timm_comes_back_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", **SMALL).eval()
    plan = some_plan(model)
    small = export(model, plan)
    save_compressed(tmp_path / "small.safetensors", small, plan)
    loaded = load_compressed(tmp_path / "small.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), small(images))
    assert not loaded.training
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


LEAN = """
import sys

sys.modules.update(dict.fromkeys({absent}))  # to import them fails, and to look for them finds nothing
import torch
from atlas.methods.uvc import load_compressed

small = load_compressed("small.safetensors")
print(*sorted({{type(block.attn).__name__ for block in small.blocks}}), tuple(small(torch.zeros(1, 3, 32, 32)).shape))
"""


def test_a_file_is_used_where_the_workflow_is_not_installed(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", **SMALL)
    plan = some_plan(model)
    save_compressed(tmp_path / "small.safetensors", export(model, plan), plan)
    absent = ("snakemake", "dvc", "submitit", "pandas", "sklearn", "scipy", "matplotlib", "rich", "jinja2")
    environment = {**os.environ, "PYTHONPATH": str(Path(atlas.__file__).parents[1])}
    command = [sys.executable, "-c", LEAN.format(absent=absent)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "Attention CompactAttention (1, 3)\n", done.stderr


def test_a_model_made_by_hand_needs_what_makes_it(tmp_path: Path) -> None:
    model = dense().eval()
    plan = some_plan(model)
    small = export(model, plan)
    save_compressed(tmp_path / "small.safetensors", small, plan)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_compressed(tmp_path / "small.safetensors", dense)(images), small(images))
    with pytest.raises(ValueError, match=r"does not name a model of timm: say what makes the dense one"):
        load_compressed(tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"the dense model, cut by the plan, has head\.weight \(5, 16\), and the compressed"):
        load_compressed(tmp_path / "small.safetensors", lambda: VisionTransformer(8, 4, 1, 5, embed_dim=16, depth=3, num_heads=4))


def test_options_that_do_not_make_the_model_are_told_when_it_is_saved(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", qkv_bias=False, **SMALL)
    plan = some_plan(model)
    with pytest.raises(ValueError, match=r"has blocks\.0\.attn\.qkv\.bias \(\d+,\), and the compressed model not"):
        save_compressed(tmp_path / "small.safetensors", export(model, plan), plan)
    save_compressed(tmp_path / "small.safetensors", export(model, plan), plan, qkv_bias=False)
    assert load_compressed(tmp_path / "small.safetensors").blocks[0].attn.qkv.bias is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by save_compressed"):
        load_compressed(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_compressed(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_compressed(tmp_path / "missing.safetensors")
    assert load_file(tmp_path / "other.safetensors")


@pytest.fixture
def loaded(tmp_path: Path) -> torch.nn.Module:
    """A ragged compressed model as it comes from its file."""
    torch.manual_seed(0)
    model = dense().eval()
    plan = some_plan(model)
    save_compressed(tmp_path / "small.safetensors", export(model, plan), plan)
    return load_compressed(tmp_path / "small.safetensors", dense)


@pytest.mark.slow
def test_a_loaded_model_is_exported_as_a_program_for_any_number_of_images(loaded: torch.nn.Module, tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("images", min=1)},)
    torch.export.save(torch.export.export(loaded, (torch.randn(2, 1, 8, 8),), dynamic_shapes=shapes), tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    for count in (1, 5):
        images = torch.randn(count, 1, 8, 8)
        torch.testing.assert_close(program(images), loaded(images))


@pytest.mark.slow
@pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"the extra onnx is not installed: no {', '.join(WITHOUT_ONNX)}")
@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_gives_the_same_numbers_in_onnx(loaded: torch.nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "small.onnx"
    shapes = ({0: torch.export.Dim("images", min=1)},)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(
        loaded, (torch.randn(2, 1, 8, 8),), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
    )
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        images = torch.randn(count, 1, 8, 8)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), loaded(images), rtol=1e-4, atol=1e-5)
    assert [found.name for found in tmp_path.glob("small.onnx*")] == ["small.onnx"]


@pytest.mark.parametrize("change", ["activation", "pooling"])
def test_a_model_that_its_name_does_not_make_is_not_saved_by_name(tmp_path: Path, change: str) -> None:
    torch.manual_seed(0)
    options = {"act_layer": "relu"} if change == "activation" else {}
    model = timm.create_model("deit_tiny_patch16_224", **SMALL, **options).eval()
    if change == "pooling":
        model.global_pool = "avg"
    plan, path = some_plan(model), tmp_path / "small.safetensors"
    small = export(model, plan)
    with pytest.raises(ValueError, match="computes something else with these weights: pass other options, or architecture=False"):
        save_compressed(path, small, plan)
    assert not path.exists()
    save_compressed(path, small, plan, architecture=False)
    images = torch.randn(2, 3, 32, 32)

    def make() -> torch.nn.Module:
        made = timm.create_model("deit_tiny_patch16_224", **SMALL, **options)
        made.global_pool = model.global_pool
        return made

    assert torch.equal(load_compressed(path, make)(images), small(images))
    if change == "activation":
        save_compressed(path, small, plan, **options)
        assert torch.equal(load_compressed(path)(images), small(images))


def test_a_model_with_attnscale_is_saved_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = apply_attnscale(timm.create_model("deit_tiny_patch16_224", **SMALL), init=0.5).eval()
    plan, path = some_plan(model), tmp_path / "small.safetensors"
    small = export(model, plan)
    with pytest.raises(ValueError, match="architecture=False"):
        save_compressed(path, small, plan)
    save_compressed(path, small, plan, architecture=False)
    loaded = load_compressed(path, lambda: apply_attnscale(timm.create_model("deit_tiny_patch16_224", **SMALL)))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), small(images))


def test_a_model_comes_back_in_its_own_type(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", **SMALL).bfloat16().eval()
    plan, path = some_plan(model), tmp_path / "small.safetensors"
    small = export(model, plan)
    save_compressed(path, small, plan)
    loaded = load_compressed(path)
    images = torch.randn(2, 3, 32, 32).bfloat16()
    assert torch.equal(loaded(images), small(images))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_tables_of_places_follow_the_weights_type(tmp_path: Path, kind: torch.dtype) -> None:
    """Rotary tables are in no file: a model of another type needs them in its own."""
    torch.manual_seed(0)
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=3, img_size=28).to(kind).eval()
    plan = CompressionPlan.identity(ViTShape.from_timm(model))
    plan.neurons[:, ::3] = False
    small, path = export(model, plan), tmp_path / "small.safetensors"
    save_compressed(path, small, plan)
    images = torch.randn(1, 3, 28, 28).to(kind)
    assert torch.equal(load_compressed(path)(images), small(images))


def test_a_loaded_model_outlives_its_file(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", **SMALL).eval()
    plan, path = some_plan(model), tmp_path / "small.safetensors"
    small = export(model, plan)
    save_compressed(path, small, plan)
    loaded = load_compressed(path)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert mapped == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), small(images))
