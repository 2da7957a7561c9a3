"""Registration of the task image-classification and of its plain baseline."""

from __future__ import annotations

from atlas.harness.registry import Amount, Amounts, Metric, Task, method, task
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.tasks.image_classification.protocol import CaitSettings, Protocol, SwinSettings, T2TSettings

NAME = "image-classification"

METRICS = (
    Metric("top1", "top-1", "higher", ".1%"),
    Metric("nll", "NLL", "lower", ".3f"),
    Metric("ece", "ECE", "lower", ".3f"),
    Metric("parameters", "parameters", "lower", ",.0f"),
    Metric("forward_flops", "FLOPs / image", "lower", ".3g"),
    Metric("train_flops", "training FLOPs", "lower", ".3g"),
    Metric("token_cosine_last", "patch similarity, last layer", "neither", ".3f", optional=True),  # where one patch is left
    Metric("hf_dc_ratio_last", "HF/DC ratio, last layer", "neither", ".3f"),
    Metric("attn_head_cosine", "attention similarity", "neither", ".3f", table=False, optional=True),  # of one head
    Metric("weight_cond_gap", "weight condition gap", "neither", ".2f", table=False),
    Metric("throughput_ratio", "images/s ÷ baseline's", "higher", ".2f", measured=True),
)


def training_amount(run: Run, epochs: int) -> Amount:
    """Training steps of some epochs, images in each, and images in a forward pass."""
    from atlas.datasets import get_dataset

    protocol = run.protocol_model()
    images = get_dataset(run.data).training_examples(protocol.data.test_fraction) if run.data else protocol.batch_size
    seen = (1 - protocol.data.validation_fraction) * images
    if protocol.data.train_size is not None and run.data:
        seen = protocol.data.train_size
    steps = epochs * max(1.0, seen // protocol.batch_size)
    return Amount(steps, protocol.batch_size, min(protocol.micro_batch or protocol.batch_size, protocol.batch_size))


def training_amounts(run: Run) -> Amounts:
    """Return the steps of the protocol's epochs, and the images in each."""
    return {TRAIN: training_amount(run, run.protocol_model().epochs)}


def stackable(run: Run) -> bool:
    """Whether seeds can be trained at once: small networks of timm in one precision, without dropout.

    The loss of float16 is scaled by each run's own factor, and dropout of a GPU draws in an order of its own.
    """
    protocol = run.protocol_model()
    return protocol.precision != "float16" and not protocol.backbone.drop_rate


def tested(run: Run) -> str:
    """How many images a run is tested on."""
    from atlas.datasets import get_dataset

    images = get_dataset(run.data).test_examples(run.protocol_model().data.test_fraction) if run.data else None
    return f"{images:,} test images" if images else ""


task(
    Task(
        name=NAME,
        title="Image classification with vision transformers",
        question="Which changes to a vision transformer, its loss or its training help at equal protocol, and what do they cost?",
        protocol=Protocol,
        metrics=METRICS,
        train="training:train",
        evaluate="evaluate:evaluate",
        baseline="deit",
        tested="entry:tested",
        recipes=True,
        ranks=True,
        together="stacking:train_together",
        stackable="entry:stackable",
        rehearsal={
            "batch_size": 2,
            "evaluation_batch_size": 2,
            "data": {"workers": 0, "validation_fraction": 0, "train_size": None},
        },
        amounts="entry:training_amounts",
        smallest={"epochs": 2, "warmup_epochs": 1, "batch_size": 640, "log_every": 1, "backbone": {"depth": 3}},
    )
)


method(
    "deit",
    task=NAME,
    title="DeiT",
    summary="The plain backbone under the task's protocol.",
    role="baseline",
    plugin="ingredients:Ingredient",
    stacks=True,
)

method(
    "cait",
    task=NAME,
    title="CaiT",
    summary="A backbone of talking heads, with class attention at the end; sizes are the protocol's.",
    role="baseline",
    plugin="backbones:Cait",
    settings=CaitSettings,
)
method(
    "swin",
    task=NAME,
    title="Swin",
    summary="A backbone of stages with attention in shifted windows; the first stage has the protocol's sizes.",
    role="baseline",
    plugin="backbones:Swin",
    settings=SwinSettings,
    smallest={"depths": (1, 1), "heads": (2, 2), "window": 2},
)
method(
    "t2t-vit",
    task=NAME,
    title="T2T-ViT",
    summary="A backbone of overlapping patches, cut three times and mixed on the way; sizes are the protocol's.",
    role="baseline",
    plugin="backbones:T2T",
    settings=T2TSettings,
    smallest={"strides": (1, 1, 2)},
)
