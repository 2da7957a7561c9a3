"""Object detection: protocol, metrics, and the task's own rows."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import Amount, Amounts, Metric, Task, method, task
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.tasks.object_detection.protocol import Protocol
from atlas.tasks.object_detection.settings import PlainSettings

NAME = "object-detection"

METRICS = (
    Metric("box_ap", "box AP", "higher", ".1%"),
    Metric("box_ap50", "box AP50", "higher", ".1%"),
    Metric("box_ap75", "box AP75", "higher", ".1%"),
    Metric("mask_ap", "mask AP", "higher", ".1%", optional=True),
    Metric("mask_ap50", "mask AP50", "higher", ".1%", optional=True, table=False),
    Metric("parameters", "parameters", "lower", ",.0f"),
    Metric("pyramid_parameters", "of these backbone and pyramid", "lower", ",.0f", table=False),
    Metric("pyramid_flops", "FLOPs / picture, backbone and pyramid", "lower", ".3g"),
)


def training_amounts(run: Run) -> Amounts:
    """Steps of a training, pictures in each, and how many go through the model at a time."""
    from atlas.datasets import get_dataset

    protocol: Protocol = run.protocol_model()
    pictures = get_dataset(run.data).training_examples(0.0) if run.data else protocol.batch_size
    pictures = min(pictures, protocol.data.train_limit or pictures)
    steps = protocol.epochs * max(1.0, pictures // protocol.batch_size)
    return {TRAIN: Amount(steps, protocol.batch_size, min(protocol.micro_batch or protocol.batch_size, protocol.batch_size))}


def tested(run: Run) -> str:
    """On how many pictures a run is tested."""
    from atlas.datasets import get_dataset

    pictures = get_dataset(run.data).test_examples(0.0) if run.data else None
    limit = run.protocol_model().data.test_limit
    return f"{min(pictures, limit or pictures):,} test pictures" if pictures else ""


task(
    Task(
        name=NAME,
        title="Object detection",
        question="How good are the maps of a vision transformer for finding objects, with one detector on top of each?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="evaluate:evaluate",
        baseline="plain-transformer",
        ranks=True,
        tested="entry:tested",
        amounts="entry:training_amounts",
        smallest={
            "image_size": 64,
            "pyramid_channels": 8,
            "representation": 16,
            "proposals": 20,
            "data": {"train_limit": 8, "test_limit": 4, "jitter": None, "workers": 0},
            "epochs": 2,
            "batch_size": 4,
            "log_every": 1,
        },
        rehearsal={"batch_size": 1, "micro_batch": 1, "data": {"workers": 0}},
    )
)

row = partial(method, task=NAME, role="baseline")
row(
    "plain-transformer",
    title="plain transformer",
    summary="A DeiT with patches of 16 pixels, under the simple pyramid of ViTDet.",
    settings=PlainSettings,
    plugin="backbones:PlainTransformer",
    smallest={"embed_dim": 16, "depth": 2, "num_heads": 2},
)
row(
    "resnet50",
    title="ResNet-50",
    summary="torchvision's ResNet-50 with a feature pyramid, as in its published Mask R-CNN.",
    plugin="backbones:ResNet50",
)
