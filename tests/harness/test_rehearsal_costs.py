"""What rehearsals say that whole trainings compute, against sums over layer shapes and schedules that were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from atlas.harness.registry import Amount
from atlas.harness.rehearsal import Rehearsal, _rehearsed
from atlas.harness.study import Study
from atlas.nn.work import ONCE, TRAIN, VALIDATION

DIGITS = 1258  # that are not for the test
CLOSE = 0.02


def rehearsed(folder: Path, text: str, row: str) -> Rehearsal:
    (folder / "config").mkdir()
    (folder / "config/mine.yaml").write_text(f"seeds: [0]\nresources: {{threads: 1}}\n{text}")
    (folder / "stage").mkdir()
    return _rehearsed(Study.read("mine", folder).find(f"{row}/seed0"), 1, folder / "stage", 1)


# vision transformers

WIDTH, HIDDEN, DEPTH, TOKENS, PATCHES, CLASSES = 16, 64, 2, 17, 16, 10
VIT = f"""
image-classification:
  protocol:
    backbone: {{img_size: 8, patch_size: 2, in_chans: 1, embed_dim: {WIDTH}, depth: {DEPTH}, num_heads: 2, drop_path_rate: 0}}
    epochs: 20
    batch_size: 64
  datasets:
    digits:
      methods:
        deit: {{}}
        taylor: {{method: structured, criterion: taylor, batches: 10, budget: 0.5, epochs: 6, warmup_epochs: 0}}
        gradual: {{method: structured, criterion: gradual, budget: 0.5, epochs: 10, warmup_epochs: 0}}
        uvc: {{budget: 0.5, epochs: 6, search_epochs: 4, search_warmup_epochs: 1, warmup_epochs: 0}}
"""
PER_EPOCH = DIGITS // 64 * 64
LINEAR = DEPTH * TOKENS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
PRODUCTS = DEPTH * TOKENS**2 * WIDTH  # queries with keys; as much again for attention with values
PATCH_MACS, HEAD = PATCHES * 4 * WIDTH, WIDTH * CLASSES
FORWARD = LINEAR + 2 * PRODUCTS + PATCH_MACS + HEAD
# images need no gradient; of attention, the fused kernel computes queries with keys once more
TRAINING = 3 * (LINEAR + HEAD) + (2 + 5) * PRODUCTS + 2 * PATCH_MACS


def test_a_vision_transformer_costs_its_steps_and_counting_it_costs_once(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, VIT, "image-classification/digits/deit")
    assert found.flops == pytest.approx(2 * TRAINING * 20 * PER_EPOCH, rel=CLOSE)
    assert found.step_flops == pytest.approx(2 * TRAINING * 64, rel=CLOSE)
    assert found.cost is not None
    assert found.cost.spent[ONCE].flops == pytest.approx(2 * FORWARD, rel=CLOSE)
    assert found.metrics["forward_flops"] == 2 * FORWARD


def test_scores_on_some_batches_are_no_part_of_each_step(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, VIT, "image-classification/digits/taylor")
    # half of the blocks' products are left, and the teacher runs once
    assert found.whole[TRAIN].steps == 6 * (DIGITS // 64)
    assert found.step_flops == pytest.approx(2 * 64 * (0.5 * TRAINING + FORWARD), rel=0.1)
    kept = found.metrics["forward_flops"] / (2 * FORWARD)  # type: ignore[operator]
    assert found.step_flops == pytest.approx(2 * 64 * (kept * TRAINING + FORWARD), rel=CLOSE)
    assert found.flops == pytest.approx(6 * (DIGITS // 64) * found.step_flops, rel=CLOSE)


@pytest.mark.parametrize(("row", "search", "after"), [("gradual", 4, 6), ("uvc", 4, 6)])
def test_the_epochs_before_and_after_an_export_count_for_themselves(tmp_path: Path, row: str, search: int, after: int) -> None:
    found = rehearsed(tmp_path, VIT, f"image-classification/digits/{row}")
    kept = found.metrics["forward_flops"] / (2 * FORWARD)  # type: ignore[operator]
    assert {kind: amount.steps for kind, amount in found.whole.items()} == {
        "search": search * (DIGITS // 64),
        "train": after * (DIGITS // 64),
    }
    wanted = 2 * PER_EPOCH * (search * (TRAINING + FORWARD) + after * (kept * TRAINING + FORWARD))
    assert found.flops == pytest.approx(wanted, rel=CLOSE)


def test_timing_costs_all_its_rounds(tmp_path: Path) -> None:
    text = f"""
image-classification:
  datasets:
    plans:
      data: null
      methods:
        deit: false
        compression-latency:
          img_size: 8
          patch_size: 2
          embed_dim: {WIDTH}
          depth: {DEPTH}
          num_heads: 2
          blocks: 1
          batch: 5
          rounds: 20
          warmup: 4
"""
    found = rehearsed(tmp_path, text, "image-classification/plans/compression-latency")
    patches, head = PATCHES * 12 * WIDTH, WIDTH * 1000
    dense = LINEAR + 2 * PRODUCTS + patches + head
    one_block = dense - (LINEAR + 2 * PRODUCTS) / 2
    # two plans keep about half of the operations: how near they come depends on units, of which so small a model has few
    assert found.whole["timing"].batch == 24 * 5
    assert 2 * 24 * 5 * (dense + one_block) < found.flops < 2 * 24 * 5 * (dense + one_block + 2 * dense)


# adversarial training


def test_attacks_in_training_and_on_validation_images_count_for_themselves(tmp_path: Path) -> None:
    text = """
adversarial-robustness:
  protocol:
    network: {name: convnet, widths: [8, 12], mean: [], std: []}
    data: {train_size: 600, validation_size: 300, crop_padding: 0, flip: false}
    attack: {train_steps: 5, monitor_steps: 8}
    epochs: 30
    milestones: [20]
    batch_size: 60
  datasets:
    digits:
      methods:
        dense: {}
        robust-bird: {max_epochs: 20, stage_milestones: [10]}
"""
    found = rehearsed(tmp_path, text, "adversarial-robustness/digits/robust-bird")
    first, second, head = 64 * 8 * 9, 64 * 12 * 8 * 9, 12 * 10
    forward = first + second + head
    # five steps and the training step, which needs no gradient of the images
    training = (2 * 5 + 3) * forward - first
    attacked = (2 * 8 + 2) * forward
    stage = 20 * 600 * (3 * forward - first)  # clean images, for as long as the first stage may take
    assert found.flops == pytest.approx(2 * (30 * (600 * training + 300 * attacked) + stage), rel=CLOSE)
    assert found.whole[VALIDATION] == Amount(30, 300 * 18, 500)
    assert found.step_flops == pytest.approx(2 * 60 * training, rel=CLOSE)


# recurrent networks

SYNTHETIC = (20, 8, 20)  # features, outputs and gates


@pytest.mark.parametrize("row", ["vanilla", "vfds", "group-lasso"])
def test_a_gated_recurrence_costs_its_products(tmp_path: Path, row: str) -> None:
    text = """
feature-acquisition:
  protocol: {hidden: 24, optimizer: adam, batch_size: 16, steps: 50, stream: {kind: synthetic, steps: 12}}
  datasets:
    synth:
      data: null
      methods:
        vanilla: {}
        vfds: {lams: [0.3, 1], lam: 1}
        static: {lams: [0.3, 1], lam: 1}
        group-lasso: {penalties: [0.3, 1, 3]}
"""
    found = rehearsed(tmp_path, text, f"feature-acquisition/synth/{row}")
    hidden = 24
    features, outputs, gates = SYNTHETIC
    inputs, state, head, selector = 3 * hidden * features, 3 * hidden**2, hidden * outputs, hidden * gates
    plain = 2 * inputs + 3 * (state + head)  # data need no gradient
    macs = {"vanilla": plain, "vfds": 2 * 3 * (inputs + state + head + selector), "group-lasso": (3 + 1) * plain}[row]
    assert found.flops == pytest.approx(2 * 50 * 16 * 12 * macs, rel=CLOSE)


# federations

FEDERATION = """
federated-learning:
  protocol:
    network: mlp
    epochs: 2
    batch_size: 16
    rounds: 12
    validate_every: 4
    data: {partition: iid, clients: 100, validation_fraction: 0.2}
  datasets:
    cifar10:
      methods:
        split-mix: {}
        heterofl: {}
        sheterofl: {}
        fedavg-w05: {method: fedavg, width: 0.5}
    digits5:
      protocol: {network: digit-cnn, data: {partition: feature, clients: 50, train_parts: 3}}
      methods:
        split-mix: {}
        fedavg-w05: {method: fedavg, width: 0.5}
"""
BUDGETS = (0.125, 0.25, 0.5, 1.0)


def dense_macs(width: float) -> tuple[float, float]:
    """Multiply-accumulates of the fully connected network of a width, and those of its first layer."""
    products = [before * after for before, after in pairwise([3072, 256 * width, 128 * width, 10])]
    return sum(products), products[0]


def digit_macs(width: float) -> tuple[float, float]:
    """Multiply-accumulates of the digits network of a width, and those of its first layer."""
    one, two, three, four, five = (size * width for size in (64, 64, 128, 2048, 512))
    first = 28**2 * 25 * 3 * one
    convolutions = first + 14**2 * 25 * one * two + 7**2 * 25 * two * three
    return convolutions + 49 * three * four + four * five + five * 10, first


@pytest.mark.parametrize(
    ("row", "macs"),
    [
        ("cifar10/split-mix", dense_macs),
        ("cifar10/heterofl", dense_macs),
        ("cifar10/sheterofl", dense_macs),
        ("cifar10/fedavg-w05", dense_macs),
        ("digits5/split-mix", digit_macs),
        ("digits5/fedavg-w05", digit_macs),
    ],
)
def test_a_federation_costs_what_clients_train_and_validate(
    tmp_path: Path, row: str, macs: Callable[[float], tuple[float, float]]
) -> None:
    found = rehearsed(tmp_path, FEDERATION, f"federated-learning/{row}")
    data, method = row.split("/")
    trained = {
        "split-mix": [[0.125] * round(8 * budget) for budget in BUDGETS],
        "heterofl": [[budget] for budget in BUDGETS],
        "sheterofl": [[width for width in BUDGETS if width <= budget] for budget in BUDGETS],
        "fedavg-w05": [[0.5] for _ in BUDGETS],
    }[method]
    # images need no gradient
    per_image = sum(3 * macs(width)[0] - macs(width)[1] for widths in trained for width in widths) / len(BUDGETS)
    widest = {"split-mix": 8 * macs(0.125)[0], "fedavg-w05": macs(0.5)[0]}.get(method, macs(1)[0])
    images = {"cifar10": 50_000, "digits5": 0.3 * 5 * 7438}[data]
    assert found.flops == pytest.approx(2 * images * (12 * 2 * 0.8 * per_image + 3 * 0.2 * widest), rel=CLOSE)


# learned optimization

OPTIMIZERS = """
learned-optimization:
  protocol:
    data: {shared: true}
    train: {family: mlp, hidden: [8]}
    problems: {home: {hidden: [8]}, one: {hidden: [4]}, two: {hidden: [4]}}
    tuning: {grid: [0.01, 0.1], seeds: 3, epochs: 4}
    epochs: 2
  datasets:
    mnist:
      methods:
        adam: {}
        oracle: {}
        l2o-dm: {hidden: [4], meta: {windows: 50, unroll: 20}}
        choice-policy: {hidden: [4]}
        amalgamated-choice: {hidden: [4], replicates: 2}
"""
SCALARS = 784 * 8 + 8 + 8 * 10 + 10
LOSS = 128 * (784 * 8 + 8 * 10)  # of a mini-batch
GRADIENT = 3 * LOSS - 128 * 784 * 8  # pixels need none
EPOCH = 48_000 // 128


def cells(inputs: int, outputs: int) -> tuple[int, int]:
    """Multiply-accumulates at a coordinate: of an LSTM cell of four with its bias and a layer after it, and of the cell alone."""
    cell = 4 * 4 * (inputs + 4 + 1)
    return cell + 4 * outputs, cell


def test_a_tuned_optimizer_costs_its_grid_and_looks_at_validation_images_after_each_epoch(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, OPTIMIZERS, "learned-optimization/mnist/adam")
    looks = 12_000 * LOSS / 128
    assert found.flops == pytest.approx(2 * 2 * 3 * 4 * (EPOCH * GRADIENT + looks), rel=0.001)
    assert found.step_flops == pytest.approx(2 * 2 * 3 * GRADIENT, rel=0.001)


def test_a_learned_optimizer_costs_its_windows_on_full_mini_batches(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, OPTIMIZERS, "learned-optimization/mnist/l2o-dm")
    layers, first = cells(1, 1)
    # the loss of the last parameters counts too; the memory at the window's start asks for no gradient
    window = 21 * GRADIENT + SCALARS * (20 * 3 * layers - first)
    assert found.flops == pytest.approx(2 * 50 * window, rel=0.001)


@pytest.mark.parametrize("row", ["choice-policy", "amalgamated-choice"])
def test_a_curriculum_costs_its_windows_its_warm_up_and_its_validations(tmp_path: Path, row: str) -> None:
    found = rehearsed(tmp_path, OPTIMIZERS, f"learned-optimization/mnist/{row}")
    chooser = cells(2 + 1 + 3, 2)  # of two teachers' steps, the time, and one of three kinds of coordinate
    own, first = chooser if row == "choice-policy" else cells(2, 1)
    # by the published schedules: depth 1, 2, 5, 5, 5 with 10 draws, once; or 1, 2, 5, 10, six times
    windows, draws, looks, validated, replicates = {
        "choice-policy": (180, 40, 4 * 10, 5 * 10 * 10, 1),  # its first period starts cold
        "amalgamated-choice": (1080, 240, 24 * 10, 6 * 10 * 37, 2),
    }[row]
    taught = 0 if row == "choice-policy" else GRADIENT + SCALARS * chooser[0]
    window = 100 * (GRADIENT + LOSS + taught) + SCALARS * (100 * 3 * own - first)
    warmed = 100 * (draws * (1 + bool(taught)) + looks) * GRADIENT
    looked = 100 * validated * (GRADIENT + LOSS + SCALARS * own)
    weighed = 0 if taught else 2 * EPOCH * (GRADIENT + 2 * SCALARS * own)
    assert found.flops == pytest.approx(2 * (replicates * (windows * window + warmed + looked) + weighed), rel=0.01)
