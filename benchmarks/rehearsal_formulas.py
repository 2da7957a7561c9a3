"""Every row of the paper study's rehearsal against a formula: operations by layer sizes and by the protocol, nothing else.

Theory: a matrix product of (m, k) with (k, n) takes 2·m·k·n operations, a convolution two for every weight at every place of its
output. A training step takes three such passes (one forward, one for the gradient of the inputs, one for that of the weights),
less what needs no gradient, such as the pixels. What a method adds is what its paper's algorithm computes. The formulas share no
code with the meter (:mod:`atlas.nn.counts`): they are sums over layer sizes.

    python -m benchmarks.rehearsal_formulas

compares ``results/paper/rehearsal.csv`` with them, writes ``results/paper/rehearsal-check.csv``, and fails where a row is off by
more than 2 % and no reason is known.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atlas.study import Run, Study

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/paper"
CLOSE = 0.02
OPERATIONS = 2  # of a multiply-accumulate
TRAINING = 3  # passes of a training step
IMAGENET = 1_281_167

# vision transformers


def transformer(backbone: Any, classes: int) -> dict[str, float]:
    """Multiply-accumulates of a plain vision transformer, per image, by part."""
    side, width, depth = backbone.img_size // backbone.patch_size, backbone.embed_dim, backbone.depth
    patches = side**2
    tokens = patches + 1
    return {
        "patches": patches * width * backbone.in_chans * backbone.patch_size**2,
        "linear": depth * tokens * (4 + 2 * backbone.mlp_ratio) * width**2,
        "product": depth * tokens**2 * width,  # queries with keys; attention with values takes as much
        "head": width * classes,
    }


def forward(parts: Mapping[str, float]) -> float:
    """A forward pass."""
    return parts["patches"] + parts["linear"] + 2 * parts["product"] + parts["head"]


def training(parts: Mapping[str, float]) -> float:
    """A training step; pixels need no gradient, and fused attention computes queries with keys once more going back."""
    return 2 * parts["patches"] + TRAINING * (parts["linear"] + parts["head"]) + 7 * parts["product"]


def image_steps(run: Run, epochs: float) -> float:
    """Training steps of some epochs of ImageNet; the last, incomplete batch of an epoch is left out."""
    protocol = run.protocol_model()
    kept = 1 - protocol.data.validation_fraction
    return epochs * (kept * IMAGENET // protocol.batch_size)


def images_trained(run: Run, epochs: float) -> float:
    """Images that go through the network in training."""
    return image_steps(run, epochs) * run.protocol_model().batch_size


PATCH_LOSS = {"diverse-vit", "diverse-mixing", "diverse-embedding"}
MAPS = {"diverse-vit", "diverse-attention"}


def diversity(parts: Mapping[str, float], backbone: Any, names: set[str]) -> float:
    """What Diverse-ViT's terms compute per image: the classifier on every patch, and the attention maps of one block."""
    patches = (backbone.img_size // backbone.patch_size) ** 2
    classified = TRAINING * patches * parts["head"] if names & PATCH_LOSS else 0
    return classified + (TRAINING * parts["product"] / backbone.depth if names & MAPS else 0)


def dense_vit(run: Run) -> float:
    """A vision transformer with whatever ingredients act while it trains."""
    protocol = run.protocol_model()
    parts = transformer(protocol.backbone, 1000)
    each = training(parts) + diversity(parts, protocol.backbone, set(run.recipe))
    return OPERATIONS * images_trained(run, protocol.epochs) * each


def whole_blocks(parts: Mapping[str, float], depth: int, budget: float) -> float:
    """Share of the operations that is left when as many whole blocks stay as the budget allows."""
    blocks, total = parts["linear"] + 2 * parts["product"], forward(parts)
    shares = [(total - blocks + blocks * count / depth) / total for count in range(1, depth + 1)]
    return max(share for share in shares if share <= budget)


def compressed(run: Run) -> float:
    """UVC and its baselines: epochs of the whole model, then epochs of what the budget leaves; the teacher runs along."""
    parts = transformer(run.protocol_model().backbone, 1000)
    settings = run.settings_model(run.recipe[-1])
    before, after = settings.stages
    kept = getattr(settings, "budget", 1.0)
    if run.recipe[-1] in ("skip-only", "blind-skip"):
        kept = whole_blocks(parts, run.protocol_model().backbone.depth, kept)
    teacher = forward(parts)
    whole = images_trained(run, before) * (training(parts) + teacher)
    small = images_trained(run, after) * (kept * training(parts) + teacher)
    return OPERATIONS * (whole + small)


# As-ViT's published networks

STAGE = tuple[int, int, int, int, int]  # kernel, windows per axis, expansion, depth, width
LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"
DESIGNS = {
    "as-vit-small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "as-vit-base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "as-vit-large": LARGE,
}


def hierarchical(design: str, stride: int, pixels: int = 224) -> float:
    """Multiply-accumulates of a training step of a published network, per image, at a stride of its stem."""
    *stages, (heads, width) = [list(map(int, part.split(","))) for part in design.split("|")]
    grid, total, before = pixels // stride, 0.0, 0
    for index, (kernel, splits, expansion, depth) in enumerate(stages):
        channels = min(1024, width * 2**index)
        own = heads // 2 ** (3 - index)
        inner = own * (channels // own)
        tokens = grid**2
        entry = kernel**2 * (before or 3) * channels * tokens
        total += (TRAINING if index else 2) * entry
        cut = next(size for size in range(min(splits, grid), 0, -1) if grid % size == 0)
        window = (grid // cut) ** 2
        linear = tokens * channels * (4 * inner + 2 * expansion * channels)
        product = tokens * window * inner
        total += depth * (TRAINING * linear + 7 * product)
        before, grid = channels, -(-grid // 2)
    return total + TRAINING * (before**2 + before * 1000)


def published_as_vit(run: Run) -> float:
    """A published network, at its finest tokenisation or, re-tokenised, at the three of the paper, one after the other."""
    design = DESIGNS[run.recipe[0]]
    phases = run.settings_model("retokenize").phases if "retokenize" in run.recipe else ((0.0, 4),)
    ends = [begin for begin, _ in phases[1:]] + [1.0]
    mean = sum((end - begin) * hierarchical(design, stride) for (begin, stride), end in zip(phases, ends, strict=True))
    return OPERATIONS * images_trained(run, run.protocol_model().epochs) * mean


# convolutional networks


def preact_resnet(classes: int, pixels: int, widths: list[int], stem: int, blocks: int) -> tuple[float, float]:
    """Multiply-accumulates of a pre-activation ResNet of 3 × 3 convolutions, and those of its first layer."""
    first = pixels**2 * 27 * stem
    total, before, side = first, stem, pixels
    for stage, width in enumerate(widths):
        for block in range(blocks):
            changes = before != width or (stage and not block)
            side = side // 2 if stage and not block else side
            total += side**2 * (9 * before * width + 9 * width**2 + (before * width if changes else 0))
            before = width
    return total + before * classes, first


def vgg(classes: int, pixels: int, scale: float) -> tuple[float, float]:
    """VGG-16 with one linear layer."""
    plan = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    total, before, side, first = 0.0, 3, pixels, 0.0
    for width in plan:
        after = round(width * scale)
        if not width:
            side //= 2
            continue
        total += side**2 * 9 * before * after
        first, before = first or total, after
    return total + before * classes, first


SHAPES = {"cifar10": (10, 32, 50_000, 10_000), "cifar100": (100, 32, 50_000, 10_000), "tiny-imagenet": (200, 64, 100_000, 10_000)}
"""Classes, pixels, training and test images."""


def convnet(run: Run) -> tuple[float, float]:
    """Multiply-accumulates of the row's network, and those of its first layer."""
    network = run.protocol_model().network
    classes, pixels, _, _ = SHAPES[run.data]
    scale = run.settings_model("small-dense").scale if run.recipe == ("small-dense",) else 1.0
    if network.name == "vgg16":
        return vgg(classes, pixels, scale)
    if network.name == "wide-resnet":
        return preact_resnet(classes, pixels, [round(10 * scale * base) for base in (16, 32, 64)], 16, 5)
    widths = [max(1, round(scale * width)) for width in (64, 128, 256, 512)]
    return preact_resnet(classes, pixels, widths, widths[0], 2)


def adversarial(run: Run) -> float:
    """K steps of the attack take two passes each and training three, whatever the mask: masked weights are computed as zeros.

    Each epoch attacks the validation images, and some epochs the test images. Robust Bird's first stage counts at its longest.
    """
    protocol = run.protocol_model()
    macs, first = convnet(run)
    _, _, available, tests = SHAPES[run.data]
    images = available - protocol.data.validation_size
    attacked = (2 * protocol.attack.train_steps + TRAINING) * macs - first
    watched = (2 * protocol.attack.monitor_steps + 2) * macs
    every = protocol.test_every
    looks = len({epoch for epoch in range(protocol.epochs) if (epoch + 1) % every == 0 or epoch + 1 == protocol.epochs})
    total = protocol.epochs * (images * attacked + protocol.data.validation_size * watched) + looks * tests * watched
    if run.recipe == ("robust-bird",):
        settings = run.settings_model("robust-bird")
        steps = {"standard": 0, "fast": 1, "pgd": protocol.attack.train_steps}[settings.stage]
        total += settings.max_epochs * images * ((2 * steps + TRAINING) * macs - first)
    return OPERATIONS * total


# gated recurrent units

SENSORS = {"uci-har": (561, 6), "opportunity": (242, 18), "extrasensory": (225, 51)}
"""Features, and outputs."""


def recurrent(run: Run) -> float:
    """Products of a gated recurrence at every step of every sequence; gates on the inputs ask for gradients there too."""
    protocol, method = run.protocol_model(), run.recipe[0]
    settings = run.settings_model(method)
    features, outputs = SENSORS[run.data]
    hidden, upper = protocol.hidden, protocol.layers - 1
    inputs = 3 * hidden * features
    state = 3 * hidden**2 * (1 + 2 * upper) + hidden * outputs
    selector = hidden * features
    plain, gated = 2 * inputs + TRAINING * state, TRAINING * (inputs + state)
    chosen = gated + TRAINING * selector
    pair = 2 * chosen
    each = {
        "vfds": chosen,
        "vfds-st": chosen,
        "vfds-arm": pair,
        "vfds-arm-unbiased": pair,
        # the policy's logits of the states after the step, and with the policy frozen those that pay the cost
        "vfds-arm-published": pair + 2 * selector + (2 * selector if getattr(settings, "cost_path", False) else 0),
        "static": gated,
        "attention": chosen,
    }.get(method, plain)
    models = len(getattr(settings, "lams", ())) or 1
    if method == "group-lasso":
        models = 1 + len(settings.penalties)
    return OPERATIONS * protocol.steps * protocol.batch_size * protocol.stream.steps * models * each


# federations

DIGITS5, CIFAR10 = 5 * 7438, 50_000
POST_PASSES = 20
"""Passes over a client's training images that measure batch statistics afterwards."""


def digit_cnn(width: float) -> tuple[float, float]:
    """Multiply-accumulates of the network for digits at a width, and those of its first layer."""
    one, two, three, four, five = (size * width for size in (64, 64, 128, 2048, 512))
    first = 28**2 * 25 * 3 * one
    convolutions = first + 14**2 * 25 * one * two + 7**2 * 25 * two * three
    return convolutions + 49 * three * four + four * five + five * 10, first


def slim_resnet(width: float) -> tuple[float, float]:
    """The same of PreAct-ResNet-18 for 32 × 32 pixels."""
    widths = [round(width * size) for size in (64, 128, 256, 512)]
    return preact_resnet(10, 32, widths, widths[0], 2)


WIDTHS = (0.125, 0.25, 0.5, 1.0)


def client_budgets(count: int) -> list[float]:
    """Clients by ascending budget, in four runs as equal as can be."""
    return [WIDTHS[4 * client // count] for client in range(count)]


def trained_widths(method: str, settings: Any, budget: float) -> list[float]:
    """Networks that a client trains on each of its images."""
    if method.startswith("split-mix"):
        return [settings.atom] * round(budget / settings.atom)
    if method == "heterofl":
        return [budget]
    if method == "sheterofl":
        return [width for width in WIDTHS if width <= budget]
    return [getattr(settings, "width", 1.0)]


def federated(run: Run) -> float:
    """Minibatches of all clients, and looks at the widest model; attacked images cost two passes for each step of the attack."""
    protocol, method = run.protocol_model(), run.recipe[0]
    settings, data = run.settings_model(method), run.protocol_model().data
    network = digit_cnn if protocol.network == "digit-cnn" else slim_resnet
    images = DIGITS5 * data.train_parts / 10 if run.data == "digits5" else CIFAR10
    held = data.validation_fraction * images
    steps = protocol.attack.train_steps if protocol.attack else 0
    weight = settings.lam if hasattr(settings, "lam") else 0.0

    def training_of(width: float) -> float:
        macs, first = network(width)
        clean, attacked = TRAINING * macs - first, (2 * steps + TRAINING) * macs - first
        return (clean if weight < 1 else 0) + (attacked if weight else 0)

    counts = client_budgets(data.clients)
    each = sum(training_of(width) for budget in counts for width in trained_widths(method, settings, budget)) / len(counts)
    share = (protocol.clients_per_round or data.clients) / data.clients
    widest = sum(network(width)[0] for width in trained_widths(method, settings, 1.0)[-8:])
    if method in ("sheterofl", "heterofl"):
        widest = network(1.0)[0]
    looks = math.ceil(protocol.rounds / protocol.validate_every)
    passes = 1 + (2 * steps + 1 if weight else 0)
    post = POST_PASSES * (images - held) if getattr(settings, "statistics", "") == "post" else 0
    return OPERATIONS * (
        protocol.rounds * protocol.epochs * share * (images - held) * each + looks * widest * (held * passes + post)
    )


# radiance fields

ENCODER = {"img_size": 224, "patch_size": 16, "in_chans": 3, "embed_dim": 384, "depth": 12, "mlp_ratio": 4}


def radiance_field() -> tuple[float, float]:
    """Multiply-accumulates of NeRF's network at one sample, and those of its first layer, which asks for no gradient."""
    entry, view, width = 3 * (2 * 10 + 1), 3 * (2 * 4 + 1), 256
    first = entry * width
    hidden = first + 6 * width**2 + (width + entry) * width
    return hidden + width + width**2 + (width + view) * width // 2 + 3 * width // 2, first


def rays(run: Run) -> tuple[float, float]:
    """Rays of all steps, and passes of the frozen encoder: one forward, and one back to the image, each as one pass."""
    protocol, method = run.protocol_model(), run.recipe[0]
    budget, patch = protocol.rays, math.prod(protocol.rays.patch)
    total = encoded = 0.0
    for index, stage in enumerate(protocol.stages):
        own = budget.reference + budget.reference_patch * patch
        if method in ("sinnerf", "sinnerf-geom"):
            own += budget.warped + patch
        total += stage.steps * own
        settings = run.settings_model(method)
        vit = getattr(settings, "vit", 0.0)
        if (vit[index] if isinstance(vit, tuple) else vit) > 0:
            encoded += stage.steps * (2 * 2 + 0.05)  # the patch at two levels; the reference's features, now and then
        if getattr(settings, "consistency", 0.0):
            looks = stage.steps / settings.consistency_every
            total += looks * patch
            encoded += looks * (2 * 2 + 1)  # the view at two levels, and the reference
    return total, encoded


def view_synthesis(run: Run) -> float:
    """Samples along all rays: a coarse level, and a fine one of both levels' samples."""
    protocol, method = run.protocol_model(), run.recipe[0]
    samples = 2 * protocol.sampler.coarse + protocol.sampler.fine
    macs, first = radiance_field()
    if method in ("all-views", "scene"):
        steps = protocol.teacher_steps if method == "scene" else sum(stage.steps for stage in protocol.stages)
        total, encoded = steps * (protocol.rays.reference + protocol.rays.warped), 0.0
    else:
        total, encoded = rays(run)
    encoder = forward(transformer(_Sizes(**ENCODER), 0))
    return OPERATIONS * (total * samples * (TRAINING * macs - first) + encoded * encoder)


class _Sizes:
    """Numbers by name."""

    def __init__(self, **values: float) -> None:
        vars(self).update(values)


# which formula belongs to which row

Formula = Callable[[Run], float]
ROWS: list[tuple[str, str, Formula]] = [
    ("image-classification/imagenet-compressed", "deit", dense_vit),
    ("image-classification/imagenet-compressed", "", compressed),
    ("image-classification/imagenet-as-vit/", "as-vit-small", published_as_vit),
    ("image-classification/imagenet-as-vit/", "as-vit-base", published_as_vit),
    ("image-classification/imagenet-as-vit/", "as-vit-large", published_as_vit),
    ("image-classification/imagenet", "", dense_vit),
    ("feature-acquisition/", "", recurrent),
    ("adversarial-robustness/", "", adversarial),
    ("federated-learning/", "", federated),
    ("novel-view-synthesis/", "", view_synthesis),
]
"""Beginning of a row's name, and its first method or any."""

SEARCHED = "the network is what a search finds, and its size with it"
TOPOLOGIES = {"as-vit-search", "as-vit-growth", "as-vit-seed", "random-topology", "random-search", "merge-product", "as-vit"}
TOPOLOGIES |= {"random-scaling", "max-width-scaling", "uniform-scaling", "swin-like", "as-vit-ranking"}
NOTHING = "nothing is trained"
UNTRAINED = {"compression-latency", "cost-table", "mixed-network", "encoder", "dibr"}
UNKNOWN_SIZE = "how many images there are is known once they are there"
PRELIMINARY = (
    "the stand-in has ten images where a batch has 128, and looks at validation images after every update: the meter is "
    "wrong, by up to a factor of ten on rows of at most half an hour"
)
EQUAL_BUDGETS = "the rehearsal gives its four clients four budgets, the study its fifty 13, 12, 13 and 12 times each"


def why_none(run: Run) -> str:
    """Why a row has no formula; empty if it has one."""
    method = run.recipe[0]
    if method in UNTRAINED or (run.data == "dtu" and method == "scene"):
        return NOTHING
    if method in TOPOLOGIES and run.task == "image-classification":
        return SEARCHED
    if run.task == "learned-optimization":
        return PRELIMINARY
    return UNKNOWN_SIZE if run.data == "domainnet" else ""


OFF = {
    "sheterofl": EQUAL_BUDGETS,
    "heterofl": EQUAL_BUDGETS,
    "robust-bird": "rehearsed when the first stage was left out; to be rehearsed anew",
    "dietnerf": "rehearsed when the unseen view and the encoder counted as rays of every step; to be rehearsed anew",
    "sinnerf": "rehearsed when the encoder counted as rays; to be rehearsed anew",
}
"""Methods whose rows may be off by more than 2 %, and why."""


def why_off(run: Run) -> str:
    """Why a row may be off by more than 2 %; empty if it may not."""
    return OFF.get(run.recipe[0], "")


class Check(NamedTuple):
    """A row's operations as metered and by the formula, and what there is to say."""

    row: str
    metered: float
    formula: float
    note: str

    @property
    def ratio(self) -> float:
        """Metered over formula."""
        return self.metered / self.formula

    @property
    def is_close(self) -> bool:
        """Whether both agree within 2 %, or there is a reason why not."""
        return bool(self.note) or abs(self.ratio - 1) <= CLOSE


def formula_of(run: Run) -> float:
    """Operations of a whole training by the row's formula; NaN if it has none."""
    if why_none(run):
        return math.nan
    name = run.cell
    return next(rule for start, method, rule in ROWS if name.startswith(start) and method in ("", run.recipe[0]))(run)


def checks(study: Study) -> list[Check]:
    """Every row of the study that has been rehearsed."""
    with (RESULTS / "rehearsal.csv").open() as file:
        metered = {row["run"]: float(row["flops"] or "nan") for row in csv.DictReader(file)}
    runs = {runs[0].cell.rpartition("/")[0]: runs[0] for runs in study.by_row.values()}
    found = []
    for name, value in metered.items():
        run = runs[name]
        one = Check(name, value, formula_of(run), why_none(run))
        found.append(one if one.is_close else one._replace(note=why_off(run)))
    return found


def table(found: list[Check]) -> str:
    """The comparison as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "metered", "formula", "ratio", "note"])
    for one in found:
        shown = ["" if math.isnan(value) else f"{value:.6g}" for value in (one.metered, one.formula)]
        writer.writerow([one.row, *shown, "" if math.isnan(one.ratio) else f"{one.ratio:.4f}", one.note])
    return stream.getvalue()


def main() -> int:
    """Write the table, print what is off, and return the exit status."""
    found = checks(Study.read("paper", ROOT))
    (RESULTS / "rehearsal-check.csv").write_text(table(found))
    off = [one for one in found if not one.is_close]
    held = [one for one in found if not math.isnan(one.formula)]
    for one in off:
        print(f"{one.row}: metered {one.metered:.4g}, formula {one.formula:.4g}, ratio {one.ratio:.4f}")
    farthest = max((abs(one.ratio - 1) for one in held if one.is_close and not one.note), default=math.nan)
    print(f"{len(held)} of {len(found)} rows have a formula; {len(off)} are off, the others by {farthest:.1%} at most")
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
