"""Object detection: data as torchvision and pycocotools take them, pyramids of the right strides, a detector that trains."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.datasets import DatasetLayoutError, acquire, get_dataset, stand_in
from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.as_vit import Topology
from atlas.methods.as_vit.detection import detector_splits, four_stages
from atlas.methods.as_vit.network import published
from atlas.methods.as_vit.stages import fitted
from atlas.nn.pyramids import SimplePyramid, StagePyramid
from atlas.settings import merge, validate_settings
from atlas.tasks.object_detection.coco import AP, AP50, average_precision, index, pycocotools, read
from atlas.tasks.object_detection.data import CocoPictures, Scenes, batches, load_pictures
from atlas.tasks.object_detection.training import build_detector

GROWN = ("as-vit-grown-detector", "random-grown-detector")
STUDY = """
description: Detectors of seconds.
seeds: [0]
resources: {threads: 1, memory_mb: 4000, minutes: 5}
object-detection:
  datasets:
    digit-scenes:
      protocol: {image_size: 64, mean: [0.25], std: [0.25], anchors: [12, 16, 20, 24, 32]}
      methods:
        plain-transformer: {}
        resnet50: {}
        as-vit-detector: {}
        random-topology-detector: {}
        as-vit-detector-design: {}
        as-vit-grown-detector: {}
        random-grown-detector: {}
    coco:
      methods:
        as-vit-detector: {}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the study, the embedded scenes, and a stand-in of COCO."""
    place = tmp_path_factory.mktemp("detection")
    (place / "config").mkdir()
    (place / "config" / "demo.yaml").write_text(STUDY)
    acquire("digit-scenes", root=place / "data")
    stand_in("coco", place / "data")
    return place


def shortest(root: Path, cell: str, **protocol: object) -> Run:
    """A run of the study, as short as its entries say."""
    run = Study.read("demo", root).find(f"object-detection/{cell}/seed0")
    task = run.task_entry
    changed = merge(merge(run.protocol, task.smallest), protocol)
    settings = {
        entry.name: validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest), "smallest", entry.name)
        for entry in run.method_entries
    }
    return replace(run, protocol=validate_settings(task.protocol, changed, "smallest", task.name), settings=settings)


def test_scenes_are_true_to_their_boxes_and_masks(root: Path) -> None:
    scenes = Scenes(root / "data/digit-scenes", "test")
    assert len(scenes) == 300
    for place in range(20):
        image, target = scenes[place]
        assert image.shape == (1, 64, 64)
        assert 1 <= len(target["labels"]) <= 4
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            edges = (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1])
            assert all(edge.any() for edge in edges)
        assert (target["masks"].sum(0) <= 1).all(), "no two digits share a pixel"


def test_no_handwriting_is_in_training_and_test(root: Path) -> None:
    digits = {split: Scenes(root / "data/digit-scenes", split) for split in ("train", "test")}
    assert not (digits["train"].images[:, None] == digits["test"].images[None, :50]).flatten(2).all(-1).any()


def test_a_perfect_detector_has_precision_one_and_a_shifted_one_less(root: Path) -> None:
    pytest.importorskip("pycocotools")
    scenes = Scenes(root / "data/digit-scenes", "test", limit=20)

    def found(shift: float) -> list[dict[str, object]]:
        told = []
        for one in scenes.truth.dataset["annotations"]:
            left, *rest = one["bbox"]
            told.append(
                {"image_id": one["image_id"], "category_id": one["category_id"], "score": 0.9, "bbox": [left + shift, *rest]}
            )
        return told

    assert average_precision(scenes.truth, found(0), "bbox", scenes.numbers)[AP] == pytest.approx(1)
    moved = average_precision(scenes.truth, found(4), "bbox", scenes.numbers)
    assert moved[AP] < 0.7 < moved[AP50]
    assert average_precision(scenes.truth, [], "bbox", scenes.numbers)[AP50] == 0


def test_an_object_that_is_numbered_zero_is_found_too(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    box = {"image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20]}
    content = {
        "images": [{"id": 0, "height": 64, "width": 64}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [{"id": 0, **box, "area": 400, "iscrowd": 0}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    for truth in (index(content), read(str(path))):
        assert average_precision(truth, [{**box, "score": 0.9}], "bbox", [0])[AP] == pytest.approx(1)
    assert content["annotations"][0]["id"] == 0


def test_what_is_missing_without_pycocotools_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"object detection needs pycocotools; install it with: pip install 'atlas\[detection\]'"):
        pycocotools("coco")


def test_coco_is_read_as_its_files_say(root: Path) -> None:
    pytest.importorskip("pycocotools")
    pictures = CocoPictures(root / "data/coco", "train")
    image, target = pictures[0]
    assert image.shape == (3, 480, 640)
    assert target["boxes"].tolist() == [[100, 80, 300, 240]]
    assert target["masks"].sum() == pytest.approx(200 * 160, rel=0.01)
    with pytest.raises(DatasetLayoutError, match="no file annotations/instances_train2017.json"):
        get_dataset("coco").check(root)  # type: ignore[misc]


def test_batches_after_an_interruption_are_those_that_would_have_come(root: Path) -> None:
    run = shortest(root, "digit-scenes/plain-transformer", data={"flip": True, "jitter": [0.5, 1.5]})
    pictures = load_pictures(run, "train")
    whole = list(batches(run, pictures, 0))
    assert len(whole) == 4
    late = list(batches(run, pictures, 3))
    assert len(late) == 1
    assert all(torch.equal(one, other) for one, other in zip(whole[3][0], late[0][0], strict=True))
    assert all(torch.equal(one["boxes"], other["boxes"]) for one, other in zip(whole[3][1], late[0][1], strict=True))
    assert all(image.shape[-2:] == (64, 64) for image in whole[0][0])


def test_pyramids_have_strides_four_to_sixty_four() -> None:
    from timm.models.vision_transformer import VisionTransformer

    body = four_stages(published("as-vit-small", img_size=128, width=32))
    plain = VisionTransformer(img_size=128, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=0, global_pool="")
    with torch.no_grad():
        for pyramid in (StagePyramid(body, body.widths, 8), SimplePyramid(plain, 8)):
            levels = pyramid(torch.zeros(1, 3, 128, 128))
            assert {name: tuple(level.shape) for name, level in levels.items()} == {
                name: (1, 8, side, side) for name, side in {"0": 32, "1": 16, "2": 8, "3": 4, "pool": 2}.items()
            }


def test_the_body_computes_what_the_classifier_does() -> None:
    from atlas.methods.as_vit import build

    design = published("as-vit-small", img_size=64, width=32, num_classes=1)
    body = four_stages(design, reference=64)
    classifier = build(design.topology, **design.options())
    body.load_state_dict(classifier.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(body(images)[-1].flatten(2).mean(2), classifier.features(images), atol=1e-6)


def test_windows_keep_their_side_at_more_pixels() -> None:
    topology = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]
    assert detector_splits(topology, 224, 4) == topology.splits
    assert detector_splits(topology, 448, 4) == (4, 2, 2, 2)


@pytest.mark.parametrize("row", ["plain-transformer", "as-vit-detector", "random-topology-detector"])
def test_a_detector_trains_and_is_measured(root: Path, row: str) -> None:
    pytest.importorskip("pycocotools")
    run = shortest(root, f"digit-scenes/{row}")
    train_run(run)
    metrics = evaluate_run(run)["metrics"]
    assert 0 <= metrics["box_ap"] <= metrics["box_ap50"] <= 1
    assert metrics["mask_ap"] is not None
    assert 0 < metrics["pyramid_parameters"] < metrics["parameters"]


@pytest.mark.parametrize(("row", "published", "heads"), [("resnet50", 44_401_393, 1), ("as-vit-detector", 139e6, 3)])
def test_detectors_have_their_published_sizes(row: str, published: float, heads: int) -> None:
    """Torchvision's Mask R-CNN; and As-ViT's, counted with three heads for boxes and for masks, which its authors cascade."""
    run = Study.read("paper", Path(__file__).parents[2]).find(f"object-detection/coco/{row}/seed0")
    settings = {name: {**own, "weights": ""} if "weights" in own else own for name, own in run.settings.items()}
    with torch.device("meta"):  # shapes and no arithmetic
        model = build_detector(replace(run, settings=settings))
    whole, head = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.roi_heads))
    assert whole + (heads - 1) * head == pytest.approx(published, rel=0.01)


def test_a_classifiers_weights_are_taken_over_or_refused(root: Path) -> None:
    run = shortest(root, "digit-scenes/as-vit-detector")
    settings = run.settings_model("as-vit-detector").model_copy(update={"weights": "nothing.safetensors"})
    row = replace(run, settings={"as-vit-detector": settings.model_dump()}).build()[0]
    with pytest.raises(UserError, match=r"there are no weights .*nothing.safetensors; train that classifier first"):
        row.pyramid(run)


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (30, 90)])
def test_pictures_are_measured_as_the_detector_sees_them(size: tuple[int, int]) -> None:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    seen = GeneralizedRCNNTransform(64, 64, [0.25], [0.25], size_divisible=64)([image])[0].tensors[0]
    own = fitted(image, 64, [0.25], [0.25])
    assert own.shape == seen.shape
    assert (own - seen).abs().mean() < (0.01 if size == (64, 64) else 0.5)
    assert ((own == 0) == (seen == 0)).float().mean() > 0.95, "the same part is padding"


def test_a_grown_detector_is_what_search_and_growth_left(root: Path) -> None:
    design = shortest(root, "digit-scenes/as-vit-detector-design")
    metrics = train_run(design)
    family = json.loads((design.checkpoint / "family.json").read_text())
    found = json.loads((design.checkpoint / "search.json").read_text())["topology"]
    architecture = family["rank"][-1]["architecture"]
    assert str(Topology.parse(architecture)[0]) == found
    rows = [replace(shortest(root, f"digit-scenes/{row}"), needs={"design": design}) for row in GROWN]
    grown, drawn = (run.build()[0].design(run) for run in rows)
    assert grown.topology.format(grown.depths, grown.width) == architecture
    sizes = [sum(part.numel() for part in four_stages(one, 64).parameters()) for one in (grown, drawn)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert drawn.depths == grown.depths
    assert drawn.topology != grown.topology
    assert metrics is not None


@pytest.mark.slow
def test_the_labs_detector_finds_digits(root: Path) -> None:
    pytest.importorskip("pycocotools")
    study = Study.read("lab", Path(__file__).parents[2])
    run = replace(study.find("object-detection/digit-scenes/as-vit-detector/seed0"), root=root)
    run = replace(run, needs={role: replace(needed, root=root) for role, needed in run.needs.items()})
    for each in (*run.needs.values(), run):
        train_run(each)
    assert evaluate_run(run)["metrics"]["box_ap50"] >= 0.8
