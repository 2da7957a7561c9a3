"""Posed views: a calibrated stereo pair, and the captures on which radiance fields are compared.

Captures keep the layout in which everyone has them: ``<scene>/transforms_<split>.json`` with images for Blender scenes,
``<scene>/poses_bounds.npy`` with ``images*/`` for LLFF, and MVSNet's ``Cameras``, ``Rectified`` and ``Depths`` for DTU.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas.datasets.acquisition import extract
from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source
from atlas.datasets.llff import POSES, read_llff
from atlas.datasets.transforms import read_transforms

STEREO = "stereo.safetensors"
# Calibration of the Middlebury 2014 pair "motorcycle" at the quarter size that scikit-image bundles, in pixels and metres.
MOTORCYCLE = {"focal": 994.978, "cx": 311.193, "cy": 254.877, "doffs": 31.086, "baseline": 0.193001}
LEGO_VIEWS = 100
DTU_SCANS = ("scan4",)


def _write_stereo(folder: Path, **arrays: Any) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / STEREO)


def prepare_motorcycle(downloads: Sequence[Path], folder: Path) -> None:
    """``left`` and ``right`` (500, 741, 3) uint8; ``disparity`` (500, 741) float32 of the left image, +inf where unknown."""
    import numpy as np
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    _write_stereo(folder, left=left[..., :3], right=right[..., :3], disparity=disparity.astype(np.float32))


def stand_in_motorcycle(folder: Path) -> None:
    """Random images and disparities of the pair's size."""
    import numpy as np

    random = np.random.default_rng(0)
    left, right = random.integers(0, 256, (2, 500, 741, 3), dtype=np.uint8)
    _write_stereo(folder, left=left, right=right, disparity=random.uniform(10, 60, (500, 741)).astype(np.float32))


def prepare_captures(downloads: Sequence[Path], folder: Path) -> None:
    """Every scene of an archive, Blender's or LLFF's, as ``<scene>/`` whatever folder it lies in."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(downloads[0], Path(unpacked))
        marks = ("transforms_train.json", POSES)
        scenes = sorted(path.parent for mark in marks for path in Path(unpacked).rglob(mark))
        if not scenes:
            raise DatasetError(f"{downloads[0].name} holds no scene: neither {marks[0]} nor {marks[1]}")
        for scene in scenes:
            shutil.move(scene, folder / scene.name)


def _pose_on_sphere(index: int, radius: float = 4.0311) -> list[list[float]]:
    """An OpenGL pose that looks at the origin with z up."""
    import numpy as np

    azimuth, elevation = 2.4 * index, 0.2 + 0.9 * (index % 10) / 10
    back = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, radius * back], axis=1)
    return pose.tolist()


def _stand_in_blender(folder: Path, splits: dict[str, int], size: int) -> None:
    from PIL import Image

    for split, count in splits.items():
        (folder / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            colour = (37 * index % 256, 91 * index % 256, 53 * index % 256, 255)
            Image.new("RGBA", (size, size), colour).save(folder / split / f"r_{index}.png")
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": _pose_on_sphere(index)})
        content = {"camera_angle_x": 0.6911112070083618, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))


def stand_in_lego(folder: Path) -> None:
    """Write pictures of one colour at poses on a sphere, for tests without the data."""
    _stand_in_blender(folder / "lego", {"train": LEGO_VIEWS}, 400)


def stand_in_synthetic(folder: Path) -> None:
    """Flat images at poses on a sphere, training and test split."""
    for scene in ("lego", "hotdog"):
        _stand_in_blender(folder / scene, {"train": LEGO_VIEWS, "test": 40}, 800)


def stand_in_llff(folder: Path, scenes: Sequence[str] = ("room", "fern")) -> None:
    """Write pictures of one colour at slightly shifted poses, for tests without the data."""
    import numpy as np
    from PIL import Image

    for scene in scenes:
        (folder / scene / "images").mkdir(parents=True)
        rows = []
        for index in range(10):
            Image.new("RGB", (1008, 756), (20 * index, 100, 200)).save(folder / scene / "images" / f"image{index:03d}.png")
            pose = np.concatenate([[[0, 1, 0], [-1, 0, 0], [0, 0, 1]], [[0.1 * (index % 4)], [0.1 * (index // 4)], [0]]], axis=1)
            rows.append(np.r_[np.concatenate([pose, [[756], [1008], [815]]], axis=1).ravel(), 4.0, 20.0])
        np.save(folder / scene / POSES, np.asarray(rows))


def stand_in_dtu(folder: Path) -> None:
    """Flat images, flat depths and parallel cameras in MVSNet's layout."""
    import numpy as np
    from PIL import Image

    (folder / "Cameras/train").mkdir(parents=True)
    sources = " ".join(f"{view} 100.0" for view in range(11) if view != 2)
    (folder / "Cameras/pair.txt").write_text(f"1\n2\n10 {sources}\n")
    for view in range(11):
        pose = np.eye(4)
        pose[0, 3] = 20.0 * (view - 2)
        rows = "\n".join(" ".join(map(str, row)) for row in pose)
        camera = f"extrinsic\n{rows}\n\nintrinsic\n361.5 0 82.9\n0 360.4 66.4\n0 0 1\n\n425.0 2.5\n"
        (folder / f"Cameras/train/{view:08d}_cam.txt").write_text(camera)
        for scan in DTU_SCANS:
            images, depths = folder / f"Rectified/{scan}_train", folder / f"Depths/{scan}_train"
            images.mkdir(parents=True, exist_ok=True)
            depths.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (640, 512), (20 * view, 90, 30)).save(images / f"rect_{view + 1:03d}_3_r5000.png")
            payload = np.full((128, 160), 600.0, dtype="<f4").tobytes()
            (depths / f"depth_map_{view:04d}.pfm").write_bytes(b"Pf\n160 128\n-1.0\n" + payload)


def _check(name: str, folder: Path, mark: str, where: str) -> None:
    marked = sorted(folder.glob(f"*/{mark}")) if folder.is_dir() else []
    if not marked:
        raise DatasetLayoutError(f"{name}: {folder} holds no <scene>/{mark}; {where}")


def check_synthetic(folder: Path) -> None:
    """``<scene>/transforms_{train,test}.json`` that can be read, and the pictures that they name; see :mod:`.transforms`."""
    where = "unpack nerf_synthetic.zip of the NeRF authors there, or link your copy"
    for path in sorted(folder.glob("*/transforms.json")):
        if not path.with_name("transforms_train.json").is_file():
            raise DatasetLayoutError(
                f"nerf-synthetic: {path} does not say which views are held out; divide its frames between transforms_train.json "
                "and transforms_test.json"
            )
    _check("nerf-synthetic", folder, "transforms_train.json", where)
    for path in sorted(folder.glob("*/transforms_train.json")):
        for split in ("train", "test"):
            content = path.with_name(f"transforms_{split}.json")
            if not content.is_file():
                raise DatasetLayoutError(f"nerf-synthetic: {content} does not exist; {where}")
            read_transforms(content)


def check_llff(folder: Path) -> None:
    """``<scene>/poses_bounds.npy`` that can be read, and its pictures under ``<scene>/images*/``; see :mod:`.llff`."""
    _check("llff", folder, POSES, "unpack nerf_llff_data.zip of the NeRF authors there, or link your copy")
    for path in sorted(folder.glob(f"*/{POSES}")):
        read_llff(path.parent)


def check_dtu(folder: Path) -> None:
    """MVSNet's ``Cameras/pair.txt``, ``Cameras/train``, ``Rectified/<scan>_train`` and ``Depths/<scan>_train``."""
    where = "unpack MVSNet's preprocessed DTU training data (dtu_training) there, or link your copy"
    for part in ("Cameras/pair.txt", "Cameras/train", "Rectified", "Depths"):
        if not (folder / part).exists():
            raise DatasetLayoutError(f"dtu: {folder / part} does not exist; {where}")
    if not any(folder.glob("Rectified/*_train/*.png")):
        raise DatasetLayoutError(f"dtu: {folder}/Rectified has no <scan>_train/*.png; {where}")


NERF = "B. Mildenhall et al., NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis, ECCV 2020"
DATASETS = [
    Dataset(
        name="motorcycle-stereo",
        title="Motorcycle: a calibrated stereo pair with measured disparity, bundled with scikit-image",
        kind="embedded",
        licence="not stated by its authors; redistributed by scikit-image",
        citation="D. Scharstein et al., High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, GCPR 2014",
        prepare=prepare_motorcycle,
        stand_in=stand_in_motorcycle,
        facts=MOTORCYCLE,
    ),
    Dataset(
        name="lego-400",
        title="NeRF-synthetic lego: 100 posed training views, box-filtered to 400 × 400; no test split, no depth",
        kind="download",
        licence="Creative Commons, by scene; see the authors' README",
        citation=NERF,
        prepare=prepare_captures,
        stand_in=stand_in_lego,
        sources=(
            Source(
                "",
                "nerf-synthetic-lego-400.tar.gz",
                "sha256:62f7b69447d3f9b83529cfe13a850051844a1236c3ef984b18afa5ecd79eb304",
            ),
        ),
    ),
    Dataset(
        name="nerf-example",
        title="NeRF's example data: lego (Blender) and fern (LLFF)",
        kind="download",
        licence="Creative Commons, by scene; see the authors' README",
        citation=NERF,
        prepare=prepare_captures,
        stand_in=stand_in_lego,
        sources=(
            Source(
                "http://cseweb.ucsd.edu/~viscomp/projects/LF/papers/ECCV20/nerf/nerf_example_data.zip",
                "nerf_example_data.zip",
            ),
        ),
    ),
    Dataset(
        name="nerf-synthetic",
        title="NeRF-synthetic: eight Blender scenes of 800 × 800, supplied by the user",
        kind="user-supplied",
        licence="Creative Commons, by scene; see the authors' README",
        citation=NERF,
        check=check_synthetic,
        stand_in=stand_in_synthetic,
    ),
    Dataset(
        name="llff",
        title="LLFF: eight forward-facing captures, supplied by the user",
        kind="user-supplied",
        licence="not stated by its authors",
        citation="B. Mildenhall et al., Local Light Field Fusion, SIGGRAPH 2019",
        check=check_llff,
        stand_in=stand_in_llff,
    ),
    Dataset(
        name="dtu",
        title="DTU in MVSNet's layout, supplied by the user",
        kind="user-supplied",
        licence="not stated by its authors",
        citation="R. Jensen et al., Large Scale Multi-view Stereopsis Evaluation, CVPR 2014",
        check=check_dtu,
        stand_in=stand_in_dtu,
    ),
]
