"""Own images and own measurements in a study: found, checked when it is read, and trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.datasets import DatasetError, acquire, read_manifest, stale_data
from atlas.datasets.base import all_datasets
from atlas.errors import UserError
from atlas.harness.agenda import agenda
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.study import Study, declare_own

STUDY = """
seeds: [0]
image-classification:
  datasets:
    photos:
      data: {{folder: pictures{more}}}
      protocol:
        backbone: {{patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2, drop_path_rate: 0}}
        epochs: 1
        warmup_epochs: 0
        batch_size: 4
        mixup: 0
        cutmix: 0
      methods: {{deit: {{}}}}
"""
STREAMS = """
seeds: [0]
feature-acquisition:
  datasets:
    kitchen:
      data: {csv: sensors.csv, label: activity, recording: day}
      protocol: {stream: {steps: 10, long_steps: 10}, hidden: 4, steps: 3, batch_size: 2, keep_best_every: 0}
      methods: {vanilla: {}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("photos", "kitchen"):
        all_datasets().pop(name, None)


def write_pictures(root: Path, *parts: str, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    random = np.random.default_rng(0)
    for part in parts:
        for label in ("cat", "dog"):
            folder = root / "pictures" / part / label
            folder.mkdir(parents=True)
            for index in range(6):
                shape = size[::-1] if mode == "L" else (*size[::-1], 3)
                Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / f"{index}.png")


def study(root: Path, more: str = "") -> Study:
    (root / "config" / "mine.yaml").write_text(STUDY.format(more=more))
    return Study.read("mine", root)


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_a_folder_of_images_is_trained_on(root: Path, parts: tuple[str, ...]) -> None:
    write_pictures(root, *parts)
    (run,) = study(root).runs
    assert run.protocol["backbone"]["img_size"] == 8
    assert run.protocol["backbone"]["in_chans"] == 1
    assert all_datasets()["photos"].facts["classes"] == 2
    acquire(run.data, root=root / "data")
    train_run(run)
    assert 0 <= evaluate_run(run)["metrics"]["top1"] <= 1


def test_sizes_are_brought_together(root: Path) -> None:
    write_pictures(root, "", size=(20, 12), mode="RGB")
    with pytest.raises(UserError, match=r"mine.yaml: .*photos\.data\.folder: .*0\.png has 20 × 12 pixels: .* size: 12"):
        study(root)
    (run,) = study(root, ", size: 8").runs
    assert run.protocol["backbone"]["in_chans"] == 3
    acquire(run.data, root=root / "data")
    assert all_datasets()["photos"].facts["shape"] == (3, 8, 8)


def test_another_process_finds_what_a_study_names(root: Path) -> None:
    write_pictures(root, "")
    study(root)
    del all_datasets()["photos"]
    declare_own("photos", root)
    assert acquire("photos", root=root / "data").count == 1
    declare_own("nothing", root)
    assert "nothing" not in all_datasets()
    shutil.rmtree(root / "pictures")
    with pytest.raises(UserError, match=r"^config/mine\.yaml: image-classification\.datasets\.photos\.data"):
        declare_own("photos", root)


def swap_the_classes(root: Path) -> None:
    pictures = root / "pictures"
    for old, new in (("cat", "aside"), ("dog", "cat"), ("aside", "dog")):
        (pictures / old).rename(pictures / new)


def repaint(root: Path) -> None:
    """Another picture of the same name, size and time of modification."""
    path = root / "pictures" / "cat" / "0.png"
    before, other = path.stat(), root / "pictures" / "dog" / "0.png"
    path.write_bytes(other.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [swap_the_classes, repaint])
def test_pictures_that_changed_are_copied_again_and_trained_on(root: Path, change: Callable[[Path], None]) -> None:
    write_pictures(root, "")
    (run,) = study(root).runs
    first = acquire("photos", root=root / "data")
    train_run(run)
    evaluate_run(run)
    assert stale_data("photos", root / "data") is None
    assert agenda(study(root)).runs == {}
    change(root)
    assert stale_data("photos", root / "data") == "pictures holds other files than were copied"
    planned = agenda(study(root))
    assert (set(planned.datasets), set(planned.training)) == ({"photos"}, {run.cell})
    assert acquire("photos", root=root / "data").sha256 != first.sha256
    assert agenda(study(root)).training == {run.cell: "the dataset photos changed"}
    assert train_run(run)


def test_another_declaration_is_copied_again(root: Path) -> None:
    write_pictures(root, "")
    study(root)
    first = acquire("photos", root=root / "data")
    (run,) = study(root, ", size: 4").runs
    assert stale_data("photos", root / "data") == "the study declares it otherwise than when it was copied"
    with pytest.raises(UserError, match="photos must be looked at again .*otherwise.*; run: atlas acquire photos"):
        train_run(run)
    assert acquire("photos", root=root / "data").sha256 != first.sha256
    assert train_run(run)
    shutil.copytree(root / "pictures", root / "others")
    (root / "others" / "dog" / "5.png").unlink()
    (root / "config" / "mine.yaml").write_text(STUDY.format(more="").replace("pictures", "others"))
    Study.read("mine", root)
    assert "otherwise" in str(stale_data("photos", root / "data"))


def test_pictures_that_only_moved_in_time_are_those_that_were_copied(root: Path) -> None:
    write_pictures(root, "")
    study(root)
    first = acquire("photos", root=root / "data")
    shutil.copytree(root / "pictures", root / "copied", copy_function=shutil.copyfile)
    shutil.rmtree(root / "pictures")
    (root / "copied").rename(root / "pictures")
    study(root)
    assert stale_data("photos", root / "data") is None
    shutil.rmtree(root / ".atlas")
    assert stale_data("photos", root / "data") is None
    assert acquire("photos", root=root / "data") == first


def test_own_data_that_were_copied_before_this_was_noted_count(root: Path) -> None:
    write_pictures(root, "")
    (run,) = study(root).runs
    manifest = replace(acquire("photos", root=root / "data"), sources=[])
    (root / "data" / "photos" / "manifest.json").write_text(manifest.text)
    swap_the_classes(root)
    assert stale_data("photos", root / "data") is None
    assert train_run(run)
    assert acquire("photos", root=root / "data").sha256 != manifest.sha256  # who asks for a copy gets one


def test_a_source_that_cannot_be_read_leaves_the_copy_be(root: Path) -> None:
    write_pictures(root, "")
    study(root)
    first = acquire("photos", root=root / "data")
    (root / "pictures" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"0\.png cannot be read as an image"):
        acquire("photos", root=root / "data")
    assert read_manifest(root / "data", "photos") == first


def test_studies_that_mean_different_data_by_a_name_are_told_apart(root: Path) -> None:
    write_pictures(root, "")
    study(root)
    all_datasets().pop("photos")
    (root / "config" / "other.yaml").write_text(STUDY.format(more=", size: 4"))
    with pytest.raises(
        UserError, match=r"photos is declared in config/mine\.yaml: .* otherwise in config/other\.yaml: .* --tier"
    ):
        declare_own("photos", root)
    declare_own("photos", root, "other")
    assert all_datasets()["photos"].facts["shape"] == (1, 4, 4)


def test_a_study_means_one_thing_by_a_name(root: Path) -> None:
    write_pictures(root, "")
    text = STUDY.format(more="")
    again = text.partition("image-classification:")[2].replace("{folder: pictures}", "{folder: pictures, size: 4}")
    (root / "config" / "mine.yaml").write_text(f"{text}adversarial-robustness:{again}")
    with pytest.raises(UserError, match=r"adversarial-robustness\.datasets\.photos\.data .*other data than another benchmark"):
        Study.read("mine", root)


def rename_a_class(root: Path) -> None:
    write_pictures(root, "train", "test")
    (root / "pictures/test/cat").rename(root / "pictures/test/bird")


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (lambda root: None, "", "pictures is not a folder"),
        (
            lambda root: (root / "pictures/cat").mkdir(parents=True),
            "",
            r"pictures has 1 folders: images go into one folder per class",
        ),
        (lambda root: [(root / "pictures" / one).mkdir(parents=True) for one in "ab"], "", r"pictures/a holds no images"),
        (rename_a_class, "", "the class bird is in only one of train/ and test/"),
        (lambda root: write_pictures(root, ""), ", sice: 8", r"\.sice is not a setting of own data; did you mean size\?"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_when_the_study_is_read(root: Path, change: object, more: str, said: str) -> None:
    change(root)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"^config/mine.yaml: image-classification.datasets.photos.data.*{said}"):
        study(root, more)


def test_the_name_of_a_data_set_of_atlas_is_refused(root: Path) -> None:
    (root / "config" / "mine.yaml").write_text(STUDY.format(more="").replace("photos:", "cifar10:"))
    with pytest.raises(UserError, match="cifar10 is a data set of Atlas: give the benchmark on your own data another name"):
        Study.read("mine", root)
    (root / "config" / "mine.yaml").write_text(STUDY.format(more="").replace("{folder: pictures}", "{foler: pictures}"))
    with pytest.raises(UserError, match=r"name a data set, or own data as \{folder: …\} or \{csv: …\}; did you mean folder\?"):
        Study.read("mine", root)


def write_sensors(root: Path, days: int = 5, value: str = "0.5") -> None:
    rows = [f"{day},{'rest' if step < 15 else 'cook'},{step},{value}" for day in range(days) for step in range(30)]
    (root / "sensors.csv").write_text("\n".join(["day,activity,heat,noise", *rows]) + "\n")


def test_a_table_of_measurements_is_trained_on(root: Path) -> None:
    write_sensors(root)
    (root / "config" / "mine.yaml").write_text(STREAMS)
    (run,) = Study.read("mine", root).runs
    acquire(run.data, root=root / "data")
    train_run(run)
    assert 0 <= evaluate_run(run)["metrics"]["accuracy"] <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_sensors(root, value="0.7"),
        lambda root: (root / "config/mine.yaml").write_text(STREAMS.replace("recording: day", "recording: heat")),
    ],
)
def test_measurements_that_changed_are_copied_again(root: Path, change: Callable[[Path], object]) -> None:
    write_sensors(root)
    (root / "config" / "mine.yaml").write_text(STREAMS)
    Study.read("mine", root)
    first = acquire("kitchen", root=root / "data")
    assert stale_data("kitchen", root / "data") is None
    change(root)
    assert (root / "sensors.csv").read_text().startswith("day,")
    Study.read("mine", root)
    assert stale_data("kitchen", root / "data")
    assert acquire("kitchen", root=root / "data").sha256 != first.sha256
    assert stale_data("kitchen", root / "data") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: None, "there is no file .*sensors.csv"),
        (lambda root: write_sensors(root, 2), "has 2 classes in 2 recordings; at least 2 and 3 are needed"),
        (lambda root: write_sensors(root, value="loud"), r"line 2: noise = 'loud' is not a number \(leave it empty if missing\)"),
        (lambda root: (root / "sensors.csv").write_text("dy,activity,heat\n"), r"has no column day; did you mean dy\?"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_when_the_study_is_read(root: Path, change: object, said: str) -> None:
    change(root)  # type: ignore[operator]
    (root / "config" / "mine.yaml").write_text(STREAMS)
    with pytest.raises(UserError, match=said):
        Study.read("mine", root)
