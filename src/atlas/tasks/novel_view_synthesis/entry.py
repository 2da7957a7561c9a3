"""Registration of the task novel-view-synthesis; its rows and baselines come with SinNeRF, whose renderer they share."""

from __future__ import annotations

from atlas.harness.registry import Amount, Amounts, Metric, Task, task
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.tasks.novel_view_synthesis.protocol import Protocol

NAME = "novel-view-synthesis"

METRICS = (
    Metric("psnr", "PSNR / dB", "higher", ".2f"),
    Metric("ssim", "SSIM", "higher", ".3f"),
    Metric("psnr_covisible", "PSNR, seen by the reference", "higher", ".2f"),
    Metric("psnr_hole", "PSNR, unseen", "higher", ".2f", optional=True),
    Metric("lpips", "LPIPS", "lower", ".3f", optional=True),
    Metric("depth_mae", "depth error", "lower", ".3f", optional=True),
    Metric("depth_source", "depth source (0 none, 1 measured, 2 exact, 3 other views)", "neither", ".0f"),
    Metric("parameters", "parameters", "lower", ",.0f"),
    Metric("rays", "training rays", "lower", ",.0f", cost=True),
    Metric("train_cpu_seconds", "training / CPU s", "lower", ".1f", measured=True),
    Metric("render_cpu_seconds", "rendering a view / CPU s", "lower", ".2f", measured=True),
)


def ray_amount(run: Run, steps: int, rays: float) -> Amount:
    """Steps, and samples along all rays of each, the coarse ones twice if there are fine ones; all are in memory at once."""
    sampler = run.protocol_model().sampler
    batch = rays * (2 * sampler.coarse + sampler.fine if sampler.fine else sampler.coarse)
    return Amount(steps, batch, batch)


def training_amounts(run: Run) -> Amounts:
    """Steps of the schedule, and the rays of a row that has all terms; methods that take fewer say so themselves."""
    protocol = run.protocol_model()
    rays = protocol.rays.reference + protocol.rays.warped + 2 * protocol.rays.patch[0] * protocol.rays.patch[1]
    return {TRAIN: ray_amount(run, sum(stage.steps for stage in protocol.stages), rays)}


def tested(run: Run) -> str:
    """How many views of how many scenes a seed is tested on, where the kind of scene fixes it."""
    kinds = {"analytic": "6 test views of one scene per seed", "stereo": "1 test view of one scene"}
    return kinds.get(run.protocol_model().scene.kind, "")


task(
    Task(
        name=NAME,
        title="Novel views from a single image",
        question="One posed image with depth is known of a scene: whose renderings of unseen poses are nearest to the truth?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="training:evaluate",
        baseline="dsnerf",
        tested="entry:tested",
        smallest={
            "stages": [{"steps": 2, "stride": 1, "lr": 0.02}, {"steps": 2, "stride": 1, "lr": 0.02}],
            "rays": {"reference": 16, "warped": 16, "pool": 2, "patch": [16, 16]},
            "sampler": {"coarse": 8, "test_coarse": 8},
            "teacher_steps": 2,
            "log_every": 1,
        },
        rehearsal={
            # no discriminator takes smaller patches than 64 × 64
            "rays": {"reference": 16, "warped": 16, "pool": 2, "patch": [64, 64]},
            "sampler": {"coarse": 4, "fine": 2},
            "scene": {"test_stride": 24, "test_limit": 1},
            "teacher_stride": 24,
            "log_every": 1,
        },
        amounts="entry:training_amounts",
    )
)
