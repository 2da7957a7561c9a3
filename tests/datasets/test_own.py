"""Own images and own measurements in a study: found, checked when it is read, and trained on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.datasets import acquire
from atlas.datasets.base import all_datasets
from atlas.errors import UserError
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
    rows = [f"day{day},{'rest' if step < 15 else 'cook'},{step},{value}" for day in range(days) for step in range(30)]
    (root / "sensors.csv").write_text("\n".join(["day,activity,heat,noise", *rows]) + "\n")


def test_a_table_of_measurements_is_trained_on(root: Path) -> None:
    write_sensors(root)
    (root / "config" / "mine.yaml").write_text(STREAMS)
    (run,) = Study.read("mine", root).runs
    acquire(run.data, root=root / "data")
    train_run(run)
    assert 0 <= evaluate_run(run)["metrics"]["accuracy"] <= 1


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
