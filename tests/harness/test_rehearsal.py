"""The rehearsal: full-size runs cut to one step, counted, and scaled to what they will cost."""

from __future__ import annotations

import math
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from atlas.cli.rehearse import rehearse_study
from atlas.datasets import DatasetError, get_dataset, read_manifest, stand_in
from atlas.errors import AtlasError, UserError
from atlas.harness.registry import Amount
from atlas.harness.rehearsal import GPUS, LAUNCH_SECONDS, LINK, Count, Rehearsal, RehearsedCost, _ended, _Group, cut, rehearse
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.nn.work import Spent

STUDY = """
seeds: [0, 1]
image-classification:
  protocol:
    backbone: {img_size: 8, patch_size: 2, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2}
    epochs: 20
    batch_size: 64
  datasets:
    digits:
      methods:
        deit: {}
        broken: {method: deit, protocol: {backbone: {in_chans: 3}}}
        attnscale: {}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/mine.yaml").write_text(STUDY)
    return Study.read("mine", tmp_path)


def test_every_row_steps_once_and_a_failure_does_not_stop_the_rest(study: Study, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    results = list(rehearse(study, list(study.by_row.values()), tmp_path / "stage"))
    assert [result.run.method for result in results] == ["deit", "broken", "attnscale"]
    deit, broken, attnscale = results
    assert broken.error
    assert not deit.error
    assert not attnscale.error
    assert attnscale.metrics["parameters"] == deit.metrics["parameters"] + 2 * 2  # type: ignore[operator]
    assert deit.seeds == 2
    assert deit.cost is not None
    # three passes of two images in a step; and once the pass of one image by which training counts its own operations
    assert deit.cost.spent["train"].flops == pytest.approx(3 * 2 * deit.metrics["forward_flops"], rel=0.05)  # type: ignore[operator]
    assert deit.cost.spent["once"].flops == pytest.approx(deit.metrics["forward_flops"], rel=0.05)
    # 1,258 images that are not for the test, in batches of 64, over 20 epochs
    assert deit.whole == {"train": Amount(20 * (1258 // 64), 64, 64)}
    assert deit.rehearsed == {"train": Amount(1, 2, 2)}
    assert list((tmp_path / "stage").iterdir()) == []
    assert not (study.root / "checkpoints").exists()
    assert not (study.root / "data").exists()


def test_a_row_that_the_system_kills_is_a_failure_and_the_rest_goes_on(study: Study, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=signal.raise_signal, args=(signal.SIGKILL,))
    process.start()
    rows = list(study.by_row.values())
    waiting: list[list[list[Run]]] = []
    (tmp_path / "stage").mkdir()
    [died] = _ended(_Group(list(rows), tmp_path / "stage", process), waiting)
    assert died.run is rows[0][0]
    assert died.error == "its process ended by signal 9; is there enough memory? try --jobs 1"
    assert waiting == [rows[1:]]
    assert not (tmp_path / "stage").exists()


def test_a_run_is_cut_without_changing_its_model(study: Study, tmp_path: Path) -> None:
    run = study.find("image-classification/digits/deit/seed1")
    small = cut(run, tmp_path)
    assert small.limit == 1
    assert small.protocol["backbone"] == run.protocol["backbone"]
    assert small.protocol["epochs"] == run.protocol["epochs"]
    assert small.protocol["batch_size"] == 2


def test_hours_and_memory_scale_with_steps_and_batch(study: Study) -> None:
    gpu, two = GPUS["A100-80GB"], {"train": Amount(1, 2, 2)}
    cost = RehearsedCost({"train": Spent(flops=6e12, launches=100)}, memory_bytes=17 * 2**30)
    result = Rehearsal(study.runs[0], 1, 0.0, cost=cost, whole={"train": Amount(1000, 64, 64)}, rehearsed=two)
    assert result.hours(gpu) == pytest.approx(1000 * 6e12 * 32 / (0.3 * 312e12) / 3600)
    assert result.memory_gibibytes == pytest.approx(1 + 16)
    # fewer images at once: the same arithmetic
    split = replace(result, whole={"train": Amount(1000, 64, 16)})
    assert split.hours(gpu) == result.hours(gpu)
    # small steps cost their launches
    few = RehearsedCost({"train": Spent(1.0, 100)}, 0)
    small = Rehearsal(study.runs[0], 1, 0.0, cost=few, whole={"train": Amount(3600, 2, 2)}, rehearsed=two)
    assert small.hours(gpu) == pytest.approx(100 * 10e-6)
    assert math.isnan(Rehearsal(study.runs[0], 1, 0.0).hours(gpu))


def test_every_kind_of_work_is_scaled_by_itself(study: Study) -> None:
    gpu = GPUS["A100-80GB"]
    rehearsed = {"train": Amount(1, 2, 2), "validation": Amount(1, 3, 1)}
    spent = {"once": Spent(7e9, 10), "train": Spent(2e9, 1), "validation": Spent(3e9, 30)}
    whole = {"train": Amount(100, 64, 32), "validation": Amount(5, 30, 15)}
    result = Rehearsal(study.runs[0], 1, 0.0, cost=RehearsedCost(spent, 0), whole=whole, rehearsed=rehearsed)
    once, train, validation = 7e9, 2e9 * 100 * 32, 3e9 * 5 * 10
    assert result.flops == once + train + validation
    assert result.step_flops == train / 100
    # a validation of three passes launches 30 kernels, and 5 whole ones have two passes each; the other work is arithmetic
    launches = 30 / 3 * 2 * 5 * LAUNCH_SECONDS
    arithmetic = [max(flops / (0.3 * 312e12), least) for flops, least in ((once, 1e-4), (train, 0), (validation, launches))]
    assert result.hours(gpu) == pytest.approx(sum(arithmetic) / 3600)


def test_several_gpus_share_arithmetic_and_launches_and_exchange_gradients(study: Study) -> None:
    gpu = GPUS["A100-80GB"]
    rehearsed = {"train": Amount(1, 2, 2), "validation": Amount(1, 3, 3)}
    spent = {"once": Spent(7e9, 10), "train": Spent(2e9, 1), "validation": Spent(3e9, 1)}
    whole = {"train": Amount(100, 64, 16), "validation": Amount(5, 32, 32)}
    cost = RehearsedCost(spent, 0, gradient_bytes=10**9)
    result = Rehearsal(study.runs[0], 1, 0.0, cost=cost, whole=whole, rehearsed=rehearsed)
    train = 2e9 * 100 * 32 / 4 / (0.3 * 312e12)
    validation = max(3e9 * 5 * 32 / 3 / 4 / (0.3 * 312e12), 5 * LAUNCH_SECONDS)
    exchange = 100 * 2 * 3 / 4 * 1e9 / LINK
    assert result.exchange_seconds(4) == pytest.approx(2 * 3 / 4 * 1e9 / LINK)
    assert result.hours(gpu, 4) == pytest.approx((1e-4 + train + validation + exchange) / 3600)
    # of launches, one of four cards saves three of the four passes of a batch
    spent["train"] = Spent(1.0, 1000)
    assert result.hours(gpu, 4) == pytest.approx((1e-4 + validation + exchange + 100 * 1000 * LAUNCH_SECONDS) / 3600)
    assert result.hours(gpu) == pytest.approx((1e-4 + validation * 4 + 100 * 4000 * LAUNCH_SECONDS) / 3600)


@pytest.mark.parametrize(
    ("published", "ours", "note", "verdict"),
    [(100, 100.9, "", "matches"), (100, 102, "rounded", "explained"), (100, 98, "", "differs")],
)
def test_published_counts_match_within_one_per_cent_or_are_explained(
    published: float, ours: float, note: str, verdict: str
) -> None:
    assert Count("parameters", published, ours, "Table 1", note).verdict == verdict


def test_the_command_names_what_failed_and_what_does_not_exist(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AtlasError, match="1 of 3 rows failed, 0 published counts are missed: image-classification/digits/broken"):
        rehearse_study(study, [], "A100-80GB")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/3] ✓ image-classification/digits/deit:")
    assert lines[1].startswith("[2/3] ✗ image-classification/digits/broken:")
    table = (study.results / "rehearsal.csv").read_text().splitlines()
    assert len(table) == 4
    assert ",failed," in table[2]
    assert "stepped" in (study.results / "rehearsal.md").read_text()
    with pytest.raises(UserError, match="did you mean A100-80GB"):
        rehearse_study(study, [], "A100-80G")
    # again: what went through is known, and only what failed is tried once more
    with pytest.raises(AtlasError, match="1 of 3 rows failed"):
        rehearse_study(study, [], "A100-80GB")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 rows are known from an earlier rehearsal; --fresh repeats them"
    assert lines[1].startswith("[3/3] ✗ image-classification/digits/broken:")
    assert [line.rpartition(",")[0] for line in (study.results / "rehearsal.csv").read_text().splitlines()[::3]] == [
        line.rpartition(",")[0] for line in table[::3]
    ]


def test_stand_ins_say_that_they_are(tmp_path: Path) -> None:
    stand_in("cifar10", tmp_path)
    manifest = read_manifest(tmp_path, "cifar10")
    assert manifest is not None
    assert manifest.sha256 == "stand-in"
    assert manifest.sources == []


def test_every_dataset_of_the_paper_study_has_a_stand_in(checkout: Path) -> None:
    missing = [name for name in Study.read("paper", checkout).datasets if get_dataset(name).stand_in is None]
    assert not missing


def test_a_dataset_without_stand_in_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas.datasets import acquisition

    bare = replace(get_dataset("cifar10"), stand_in=None)
    monkeypatch.setattr(acquisition, "get_dataset", lambda name: bare)
    with pytest.raises(DatasetError, match="cifar10 has no stand-in"):
        stand_in("cifar10", tmp_path)
