"""The task's own parts: data that can be gone on with anywhere, schedule, metrics, and folders of images."""

from __future__ import annotations

import math
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_STD

from atlas.errors import AtlasError, UserError
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.nn.counts import parameter_count
from atlas.settings import merge
from atlas.tasks import image_classification
from atlas.tasks.image_classification.data import load_data
from atlas.tasks.image_classification.evaluate import expected_calibration_error, throughput_ratio
from atlas.tasks.image_classification.folders import FolderImages
from atlas.tasks.image_classification.ingredients import Batch, Ingredient, Ingredients
from atlas.tasks.image_classification.models import build_backbone, build_model, parameter_groups
from atlas.tasks.image_classification.training import Training

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def run(workspace: Path) -> Run:
    found = Study.read("demo", ROOT).find("image-classification/digits/deit/seed10")
    return replace(found, root=workspace)


def with_protocol(run: Run, **changes: object) -> Run:
    return replace(run, protocol=merge(run.protocol, changes))


def data(run: Run):  # type: ignore[no-untyped-def]
    return load_data(run, run.protocol_model(), CPU)


def test_splits_of_digits(run: Run) -> None:
    found = data(run)
    assert (found.size("train"), found.size("test"), found.size("validation")) == (1258, 539, 0)
    carved = data(with_protocol(run, data={"validation_fraction": 0.2}))
    assert carved.size("test") == 539
    assert carved.size("train") + carved.size("validation") == 1258
    assert torch.equal(carved.splits["test"][0], found.splits["test"][0])
    pixels = torch.cat([images for images, _ in found.train_batches(0)])
    assert abs(float(pixels.mean())) < 0.02
    assert float(pixels.std()) == pytest.approx(1, abs=0.02)


def test_seeds_share_a_test_split_or_draw_their_own(run: Run) -> None:
    def tested(split: str, seed: int) -> torch.Tensor:
        found = data(replace(with_protocol(run, data={"test_split": split}), seed=seed))
        images, labels = found.splits["test"]
        assert torch.bincount(labels).tolist() == torch.bincount(data(run).splits["test"][1]).tolist()  # as many of every class
        assert not set(map(bytes, images.flatten(1).numpy())) & set(map(bytes, found.splits["train"][0].flatten(1).numpy()))
        return images

    assert torch.equal(tested("shared", 1), tested("shared", 2))
    assert not torch.equal(tested("per-seed", 1), tested("per-seed", 2))
    assert torch.equal(tested("per-seed", 1), tested("per-seed", 1))


def test_a_part_of_the_training_images_is_stratified_and_no_new_setting_where_there_is_none(run: Run) -> None:
    few = with_protocol(run, data={"validation_fraction": 0.1, "train_size": 300})
    found, whole = data(few), data(with_protocol(run, data={"validation_fraction": 0.1}))
    assert found.size("train") == 300
    shares = whole.splits["train"][1].bincount() * 300 / whole.size("train")
    assert (found.splits["train"][1].bincount() - shares).abs().max() <= 1
    assert torch.equal(found.splits["validation"][0], whole.splits["validation"][0])
    assert "train_size" not in run.protocol["data"]  # an older run's fingerprint stays
    with pytest.raises(UserError, match=r"data.train_size 5000 exceeds the \d+ images that are not held out"):
        data(with_protocol(run, data={"train_size": 5000}))


@pytest.mark.parametrize("augment", [{}, {"crop_padding": 1, "flip": True}, {"random_erasing": 1.0}])
def test_an_epoch_can_be_gone_on_with_anywhere(run: Run, augment: dict[str, object]) -> None:
    found = data(with_protocol(run, data=augment))
    whole = list(found.train_batches(3))
    assert len(whole) == found.steps_per_epoch
    for expected, again in zip(whole[7:], found.train_batches(3, first=7), strict=True):
        assert torch.equal(expected[0], again[0])
        assert torch.equal(expected[1], again[1])
    other = next(found.train_batches(4))
    assert not torch.equal(other[0], whole[0][0])


def test_images_may_be_enlarged(run: Run) -> None:
    large = {"data": {"upsample": 4}, "backbone": {"img_size": 32, "patch_size": 8}}
    small, found = data(run), data(with_protocol(run, **large))
    pixels = torch.cat([images for images, _ in found.train_batches(0)])
    assert pixels.shape[1:] == (1, 32, 32)
    assert abs(float(pixels.mean())) < 0.02
    assert float(pixels.std()) == pytest.approx(1, abs=0.02)
    raw = torch.nn.functional.interpolate(small.splits["test"][0][:3].float() / 16, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(found.example(3), (raw - found.mean) / found.std)
    with pytest.raises(UserError, match=r"digits has images of \(1, 16, 16\)"):
        data(with_protocol(run, data={"upsample": 2}))


def test_images_can_be_chosen_without_augmentation(run: Run, folders: Run) -> None:
    plain = data(run)
    images, labels = data(with_protocol(run, data={"crop_padding": 1})).chosen("train", [5, 2])
    assert torch.equal(images, plain.normalised(plain.splits["train"][0][[5, 2]]))
    assert torch.equal(labels, plain.splits["train"][1][[5, 2]])
    images, labels = data(folders).chosen("train", [7, 0])
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [1, 0]


def test_an_ingredient_may_bring_its_own_backbone(run: Run) -> None:
    class Bringer(Ingredient):
        def backbone(self, run: Run, classes: int) -> torch.nn.Module:
            return torch.nn.Linear(2, classes)

    assert isinstance(build_model(run, Ingredients([Ingredient(run, None), Bringer(run, None)]), 3), torch.nn.Linear)
    assert len(build_model(run, Ingredients([Ingredient(run, None)]), 3).blocks) == 12


def test_data_that_does_not_fit_the_protocol(run: Run) -> None:
    with pytest.raises(UserError, match=r"digits has images of \(1, 8, 8\), the protocol's backbone takes \(3, 8, 8\)"):
        data(with_protocol(run, backbone={"in_chans": 3}))
    with pytest.raises(UserError, match="batch_size 5000 exceeds the 1258 training images"):
        data(with_protocol(run, batch_size=5000))


def test_learning_rate_warms_up_and_falls_to_its_floor(run: Run) -> None:
    changes = {"epochs": 10, "warmup_epochs": 2, "learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_learning_rate": 0.0}
    training = Training(with_protocol(run, **changes))
    per_epoch, rates = training.data.steps_per_epoch, [training.learning_rate(step) for step in range(training.total_steps)]
    assert rates[: 2 * per_epoch] == sorted(rates[: 2 * per_epoch])
    assert max(rates) == rates[2 * per_epoch] == 1.0
    assert rates[2 * per_epoch :] == sorted(rates[2 * per_epoch :], reverse=True)
    halfway = 2 * per_epoch + 4 * per_epoch
    assert rates[halfway] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_rows_of_a_seed_share_their_initial_weights(run: Run) -> None:
    backbone = run.protocol_model().backbone
    first, again, other = (build_backbone(backbone, 10, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


def test_parameter_groups_follow_timm(run: Run) -> None:
    model = build_backbone(run.protocol_model().backbone, 10, 0)
    groups = parameter_groups(model, 1.0, 0.1, lambda name: 10.0 if name == "head.bias" else 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_kind = {(group["weight_decay"], group["lr"]): {names[id(p)] for p in group["params"]} for group in groups}
    assert {"pos_embed", "cls_token", "norm.weight"} <= by_kind[0.0, 1.0]
    assert by_kind[0.0, 10.0] == {"head.bias"}
    assert "blocks.0.attn.qkv.weight" in by_kind[0.1, 1.0]
    assert sum(map(len, by_kind.values())) == len(names)


def test_calibration_error_by_hand() -> None:
    # confidences 0.8 (right), 0.8 (wrong), 0.6 (right): bins of 0.2 hold {0.8, 0.8} and {0.6}
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    found = expected_calibration_error(probabilities.log(), torch.tensor([0, 1, 0]), bins=4)
    assert found == pytest.approx((2 / 3) * abs(0.8 - 0.5) + (1 / 3) * abs(0.6 - 1.0), abs=1e-6)
    assert expected_calibration_error(torch.tensor([[100.0, 0.0]]), torch.tensor([0])) == pytest.approx(0)


def test_throughput_of_a_model_beside_itself_is_about_one() -> None:
    layer = torch.nn.Linear(400, 400)
    assert throughput_ratio(layer, layer, torch.randn(64, 400)) == pytest.approx(1, abs=0.5)


def test_mixup_of_the_protocol_follows_from_seed_and_step(run: Run) -> None:
    training = Training(with_protocol(run, mixup=0.8, cutmix=1.0))
    images, labels = next(training.data.train_batches(0))
    first = training.mixed(Batch(images, labels, labels))
    again = training.mixed(Batch(images, labels, labels))
    assert torch.equal(first.images, again.images)
    assert first.target.shape == (64, 10)
    training.step = 1
    assert not torch.equal(training.mixed(Batch(images, labels, labels)).images, first.images)
    assert math.isfinite(float(training.base_loss(torch.zeros(64, 10), first)))


@pytest.mark.parametrize("micro_batch", [24, 64])
def test_a_batch_in_pieces_takes_the_same_step(run: Run, micro_batch: int) -> None:
    def stepped(size: int | None) -> dict[str, torch.Tensor]:
        training = Training(with_protocol(run, micro_batch=size, batch_size=64))
        optimizer = torch.optim.SGD(training.groups, lr=0.1)
        images, labels = next(training.data.train_batches(0))
        terms = training.take_step(optimizer, torch.amp.GradScaler("cpu", enabled=False), Batch(images, labels, labels))
        return {**training.model.state_dict(), **terms}

    whole, pieces = stepped(None), stepped(micro_batch)
    for name, value in whole.items():
        assert torch.allclose(pieces[name], value, atol=1e-6), name


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(run: Run) -> None:
    training = Training(with_protocol(run, learning_rate=1e30, warmup_epochs=0, epochs=1, log_every=1, backbone={"depth": 1}))
    with pytest.raises(AtlasError, match=r"deit/seed10: the loss is not finite at step \d+: loss (nan|inf)"):
        training.fit()


def test_weight_average_is_kept_where_the_protocol_asks(run: Run) -> None:
    short = {"epochs": 2, "warmup_epochs": 1, "batch_size": 600, "backbone": {"depth": 1}}
    training = Training(with_protocol(run, ema_decay=0.5, evaluate_ema=True, **short))
    training.fit()
    training.keep()
    from atlas.harness.files import read_tensors

    kept = read_tensors(run.weights)["head.weight"]
    assert torch.equal(kept, training._ema.module.head.weight)
    assert not torch.equal(kept, training.model.head.weight)


@pytest.fixture
def folders(run: Run) -> Run:
    """A tiny dataset in ImageNet's layout."""
    random = np.random.default_rng(0)
    root = run.root / "elsewhere"
    for split, count in (("train", 6), ("val", 3)):
        for name in ("n01", "n02"):
            folder = root / "data" / "imagenet" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG")
    backbone = {"img_size": 32, "patch_size": 8, "in_chans": 3}
    recipe = {"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25, "flip": True, "repeats": 3}
    return with_protocol(replace(run, data="imagenet", root=root), backbone=backbone, data=recipe, batch_size=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_folders_can_be_gone_on_with_anywhere_whoever_loads_them(folders: Run, workers: int) -> None:
    found = data(with_protocol(folders, data={"workers": workers}))
    assert isinstance(found, FolderImages)
    assert found.classes == 2
    assert found.steps_per_epoch == 3
    whole = list(found.train_batches(1))
    reference = list(data(folders).train_batches(1))
    assert [images.shape for images, _ in whole] == [(4, 3, 32, 32)] * 3
    for (images, labels), (expected, wanted) in zip(whole, reference, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, wanted)
    again = next(found.train_batches(1, first=2))
    assert torch.equal(again[0], whole[2][0])
    assert sum(len(labels) for _, labels in found.batches("test")) == 6
    assert found.example(2).shape == (2, 3, 32, 32)


def test_a_tar_gives_the_batches_of_the_folders(folders: Run) -> None:
    other = folders.root / "packed" / "data" / "imagenet"
    other.mkdir(parents=True)
    for split in ("train", "val"):
        with tarfile.open(other / f"{split}.tar", "w") as tar:
            tar.add(folders.data_folder / split, arcname=".")
    one, two = (
        data(with_protocol(replace(folders, root=root), data={"workers": 1})) for root in (folders.root, other.parents[1])
    )
    before = torch.get_rng_state()
    for epoch in range(2):
        for batch, twin in zip(one.train_batches(epoch), two.train_batches(epoch), strict=True):
            assert all(map(torch.equal, batch, twin))
    assert torch.equal(torch.get_rng_state(), before), "loading leaves the generator of stochastic depth alone"
    assert all(all(map(torch.equal, *pair)) for pair in zip(one.batches("test"), two.batches("test"), strict=True))


def test_resampling_by_torch_differs_by_one_of_255_at_most(folders: Run) -> None:
    """With the crops, the augmentations and the order of Pillow's pipeline."""
    quiet = {"rand_augment": "", "random_erasing": 0.0}  # RandAugment and colour jitter may turn a step into several
    one, two = (with_protocol(folders, data={**quiet, "resampling": name}) for name in (None, "torch"))
    std = min(IMAGENET_DEFAULT_STD)
    found = [list(data(run).batches("test")) for run in (one, two)]
    for (images, labels), (others, same) in zip(*found, strict=True):
        assert torch.equal(labels, same)
        steps = (images - others).abs() * 255 * std
        assert float(steps.max()) < 1.01
        assert float((steps > 0.5).double().mean()) < 0.02
    for (images, labels), (others, same) in zip(*(data(run).train_batches(1) for run in (one, two)), strict=True):
        assert torch.equal(labels, same)
        assert float((images - others).abs().mean()) < 0.02  # another crop would be far off
    full = data(with_protocol(folders, data={"resampling": "torch"}))
    assert [images.shape for images, _ in full.train_batches(0)] == [(4, 3, 32, 32)] * 3


def test_opencv_is_asked_for_in_one_line_before_training(folders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "atlas.tasks.image_classification.opencv", raising=False)
    monkeypatch.delattr(image_classification, "opencv", raising=False)
    with pytest.raises(UserError, match="resampling: opencv needs OpenCV: pip install opencv-python-headless"):
        data(with_protocol(folders, data={"resampling": "opencv"}))


def test_opencv_loads_the_pictures_that_torch_resizes_whoever_loads_them(folders: Run) -> None:
    """Without augmentation to the last bit; and batches do not depend on where one begins, or on who loads them."""
    pytest.importorskip("cv2")
    quiet = {"rand_augment": "rand-n0"}
    one, two = (data(with_protocol(folders, data={**quiet, "resampling": name})) for name in ("torch", "opencv"))
    batches = [[*found.train_batches(1), *found.batches("test")] for found in (one, two)]
    assert all(all(map(torch.equal, *pair)) for pair in zip(*batches, strict=True))
    full = [data(with_protocol(folders, data={"resampling": "opencv", "workers": workers})) for workers in (0, 1)]
    whole, again = (list(found.train_batches(1)) for found in full)
    assert all(all(map(torch.equal, *pair)) for pair in zip(whole, again, strict=True))
    assert torch.equal(next(full[0].train_batches(1, first=2))[0], whole[2][0])


def test_normalisation_in_place_is_that_of_torchvision() -> None:
    from timm.data import create_transform

    from atlas.tasks.image_classification.resampling import Normalize

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8))
    *_, to_tensor, normalize = create_transform(32, is_training=False).transforms
    assert torch.equal(Normalize(normalize)(image), normalize(to_tensor(image))), "to the last bit"


PUBLISHED = {"deit": 22_050_664, "attnscale": 22_050_664 + 72, "featscale": 22_050_664 + 9_216}


@pytest.mark.parametrize(("tier", "classes"), [("desk", 10), ("lab", 10), ("paper", 1000)])
def test_every_recipe_of_the_larger_studies_builds_at_full_size(tier: str, classes: int) -> None:
    seen = set()
    for run in Study.read(tier, ROOT).matching("image-classification"):
        backbone = run.protocol_model().backbone
        key = (run.recipe, backbone.depth, str(run.settings))
        if run.method_entries[0].train or run.method_entries[0].evaluate or key in seen:
            continue  # these rows bring networks of their own
        seen.add(key)
        model = build_model(run, Ingredients(run.build()), classes)
        if hasattr(model, "blocks"):
            assert len(model.blocks) == backbone.depth
        if (run.dataset, run.method) in {("imagenet", name) for name in PUBLISHED}:
            assert parameter_count(model) == PUBLISHED[run.method]
    assert len(seen) >= 10
