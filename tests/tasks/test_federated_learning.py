"""The task's own parts: who gets which data, budgets, augmentation, validation and the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atlas.datasets import stand_in
from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import merge, validate_settings
from atlas.tasks.federated_learning.augment import Augmentation
from atlas.tasks.federated_learning.data import FederatedData, LabelledImages, load_data, member_budgets
from atlas.tasks.federated_learning.domains import CHANGES
from atlas.tasks.federated_learning.evaluate import robust_metrics, width_metrics
from atlas.tasks.federated_learning.protocol import Protocol
from atlas.tasks.federated_learning.training import Best, convergence, correct

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TASK = "federated-learning"


@pytest.fixture
def run(workspace: Path) -> Run:
    return replace(Study.read("demo", ROOT).find(f"{TASK}/digits-domains/split-mix/seed10"), root=workspace)


def changed(run: Run, **protocol: object) -> Run:
    values = merge(run.protocol, protocol)
    return replace(run, protocol=validate_settings(run.task_entry.protocol, values, "test", TASK))


def data(run: Run) -> FederatedData:
    return load_data(run, run.protocol_model(), CPU)


def test_domains_of_digits(run: Run) -> None:
    found = data(run)
    assert len(found.members) == 20
    assert [member.domain for member in found.members[::5]] == ["identity", "inverted", "blended", "noisy-transpose"]
    assert [member.budget for member in found.members[::5]] == [0.125, 0.25, 0.5, 1.0]
    assert {(len(member.train), len(member.validation)) for member in found.members} == {(50, 12)}
    assert [test.members for test in found.tests] == [tuple(range(first, first + 5)) for first in (0, 5, 10, 15)]
    assert {len(test.examples) for test in found.tests} == {539}
    assert found.shape == (1, 8, 8)
    for member in found.members:
        assert float(member.train.images.min()) >= 0
        assert float(member.train.images.max()) <= 1
    plain, inverted = found.tests[0].examples, found.tests[1].examples
    assert torch.equal(inverted.images, 1 - plain.images)


def test_a_part_of_the_images_is_stratified_and_the_same_for_all_seeds(run: Run) -> None:
    part = changed(run, data={"train_fraction": 0.5, "test_split": "shared"})
    seen = []
    for seed in (10, 99):
        members = data(replace(changed(part, data={"domains": ["identity"], "clients": 5}), seed=seed)).members
        images = [image for member in members for image in (*member.train.images, *member.validation.images)]
        labels = torch.cat([torch.cat([member.train.labels, member.validation.labels]) for member in members])
        seen.append({tuple(image.flatten().tolist()) for image in images})
        assert len(labels) == 630  # half of every class of 1,258 images, shared out over five clients
        assert int(labels.bincount().max() - labels.bincount().min()) <= 9  # the classes of digits differ by as much
    assert len(seen[0] & seen[1]) >= 620  # but for the few that no client gets


def test_the_seed_moves_clients_and_not_a_shared_test(run: Run) -> None:
    shared = changed(run, data={"test_split": "shared"})
    first, again, other = data(shared), data(shared), data(replace(shared, seed=11))
    assert torch.equal(first.members[7].train.images, again.members[7].train.images)
    assert not torch.equal(first.members[7].train.images, other.members[7].train.images)
    for mine, theirs in zip(first.tests, other.tests, strict=True):
        assert torch.equal(mine.examples.images, theirs.examples.images)


def test_a_test_split_of_every_seed_s_own(run: Run) -> None:
    own = changed(run, data={"test_split": "per-seed"})
    first, again, other = (data(replace(own, seed=seed)).tests[0].examples for seed in (10, 10, 11))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(first.labels.bincount(), other.labels.bincount())


def test_clients_share_no_training_image(run: Run) -> None:
    found = data(changed(run, data={"domains": [], "partition": "iid"}))
    pixels = torch.cat([torch.cat([m.train.images, m.validation.images]) for m in found.members]).flatten(1)
    test = found.tests[0].examples.images.flatten(1)
    assert len(pixels) == 1258  # every training image once
    assert len(torch.cat([pixels, test]).unique(dim=0)) == 1797


def test_classes_of_a_client_are_those_it_is_tested_on(run: Run) -> None:
    found = data(changed(run, data={"domains": [], "partition": "class", "min_per_share": 2}))
    for index, test in enumerate(found.tests):
        member = found.members[index]
        mine = set(torch.cat([member.train.labels, member.validation.labels]).tolist())
        assert test.members == (index,)
        assert len(mine) == 3
        assert set(test.examples.labels.tolist()) == mine


def test_spread_budgets_give_every_domain_all_of_them(run: Run) -> None:
    names = ["a"] * 4 + ["b"] * 4
    protocol = Protocol(budget_order="spread")
    spread = member_budgets(protocol, 8, names)
    assert sorted(spread[:4]) == sorted(spread[4:]) == [0.125, 0.25, 0.5, 1.0]
    assert sorted(spread) == sorted(member_budgets(Protocol(), 8, names))
    assert {member.budget for member in data(changed(run, budget_order="spread")).members[:5]} == {0.125, 0.25, 0.5, 1.0}


@pytest.mark.parametrize(("name", "domains", "fewest"), [("digits5", 5, 20), ("domainnet", 6, 12)])
def test_datasets_of_several_domains(name: str, domains: int, fewest: int, run: Run, tmp_path: Path) -> None:
    stand_in(name, tmp_path / "data")
    other = replace(run, data=name, root=tmp_path)
    found = data(changed(other, data={"domains": [], "fewest": True, "validation_fraction": 0.5}))
    assert len(found.members) == len(found.tests) == fewest
    # each of the four budgets as often, as among many clients
    assert set(Counter(member.budget for member in found.members).values()) == {fewest // 4}
    assert len({member.domain for member in found.members}) == domains
    assert found.members[0].train.images.dtype == torch.uint8
    with pytest.raises(UserError, match=f"{name} has domains of its own"):
        data(other)
    with pytest.raises(UserError, match="too few for|too few to hold out"):
        data(changed(other, data={"domains": [], "clients": 30 * domains}))
    with pytest.raises(UserError, match=f"31 clients cannot share the {domains} domains"):
        data(changed(other, data={"domains": [], "clients": 31}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"clients": 18}}, "18 clients cannot share 4 domains evenly"),
        ({"schedule": "milestones"}, "schedule milestones needs milestones"),
        ({"clients_per_round": 21}, "clients_per_round 21 exceeds the 20 clients"),
        ({"attack": {"lams": [0, 1]}}, "must hold 0, 0.5 and 1"),
    ],
)
def test_impossible_protocols(change: dict[str, object], message: str, run: Run) -> None:
    with pytest.raises(UserError, match=message):
        changed(run, **change)


def test_too_few_samples(run: Run) -> None:
    with pytest.raises(UserError, match="digits: client 0 has 3 samples, too few to hold out 0.2"):
        data(changed(run, data={"clients": 400}))
    with pytest.raises(UserError, match="protocol.data: .* samples are too few"):
        data(changed(run, data={"domains": [], "partition": "class", "min_per_share": 100}))


def test_test_sets_that_are_too_small_name_their_clients(run: Run) -> None:
    few = {"clients": 180, "domains": [], "partition": "class", "classes_per_client": 1, "min_per_share": 2}
    few |= {"test_fraction": 0.12, "validation_fraction": 0.5}
    with pytest.raises(UserError, match=r"digits: client \d+ has 1 test image, too few: batch statistics need at least 2"):
        data(changed(run, data=few))


@pytest.mark.parametrize("method", ["split-mix", "sheterofl", "heterofl", "fedavg-w0125"])
def test_clients_without_a_minibatch_are_a_users_mistake(method: str, run: Run) -> None:
    run = replace(Study.read("demo", ROOT).find(f"{TASK}/digits-domains/{method}/seed10"), root=run.root)
    other = changed(run, batch_size=60)
    (federation,) = other.build()
    with pytest.raises(UserError, match="protocol: client 0 has 50 samples, which make no minibatch of 60 with drop_last"):
        federation.start(data(other), other.protocol_model(), CPU, 0)


def test_the_last_batch_is_never_one_image() -> None:
    examples = LabelledImages(torch.arange(7 * 4, dtype=torch.uint8).reshape(7, 1, 2, 2), torch.arange(7))
    assert [len(labels) for _, labels in examples.batches(3)] == [3, 4]
    images = torch.cat([images for images, _ in examples.batches(3)])
    assert torch.allclose(images, examples.images / 255)
    assert torch.equal(torch.cat([labels for _, labels in examples.batches(3)]), examples.labels)


@pytest.mark.parametrize("name", list(CHANGES))
def test_domain_changes_keep_shape_and_range(name: str) -> None:
    x = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        found = CHANGES[name](x, torch.Generator().manual_seed(1))
        assert found.shape == x.shape
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert torch.equal(found, CHANGES[name](x, torch.Generator().manual_seed(1)))
    assert torch.equal(found, x) == (name == "identity")


def test_blended_digits_by_hand() -> None:
    x = torch.zeros(1, 1, 4, 4)
    generator = torch.Generator().manual_seed(2)
    background = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    found = CHANGES["blended"](x, generator)
    assert torch.equal(found[0, 0, :2, 2:], (0.5 * background[0, 0, 0, 1]).expand(2, 2))


def test_augmentation_shifts_flips_and_rotates_as_drawn() -> None:
    x = torch.arange(2 * 16, dtype=torch.float32).reshape(2, 1, 4, 4) / 32
    still = torch.tensor([[0.5, 0.5, 0.9, 0.5]] * 2)
    assert torch.equal(Augmentation(padding=1, flip=True)(x, still), x)
    assert torch.equal(Augmentation(flip=True)(x, torch.zeros(2, 4)), x.flip(-1))
    corner = Augmentation(padding=1)(x, torch.zeros(2, 4))
    assert torch.equal(corner[:, :, 1:, 1:], x[:, :, :-1, :-1])
    assert float(corner[:, :, 0].abs().max()) == 0
    assert torch.allclose(Augmentation(degrees=30.0)(x, still), x, atol=1e-5)
    turned = Augmentation(degrees=90.0)(x, torch.ones(2, 4))
    assert torch.allclose(turned, x.rot90(1, (-2, -1)), atol=1e-4) or torch.allclose(turned, x.rot90(-1, (-2, -1)), atol=1e-4)
    draws = Augmentation().draw(5, torch.Generator().manual_seed(0))
    assert draws.shape == (5, 4)


def test_the_best_round_is_kept_or_the_last() -> None:
    best, last = Best(True), Best(False)
    for score, index in ((0.5, 5), (0.7, 10), (0.6, 15)):
        for one in (best, last):
            one.offer(score, index, {"w": torch.tensor(float(index))})
    assert (best.round, float(best.tensors["w"])) == (10, 10.0)
    assert (last.round, float(last.tensors["w"])) == (15, 15.0)
    other = Best(True)
    other.load_state_dict(best.state_dict())
    other.offer(0.65, 20, {"w": torch.tensor(20.0)})
    assert other.round == 10


def test_convergence_by_hand() -> None:
    found = convergence([(5, 0.2), (10, 0.77), (20, 0.8)])
    assert found["rounds_to_95"] == 10
    assert found["curve_area"] == pytest.approx((5 * 0.2 + 5 * 0.77 + 10 * 0.8) / 20)


def rows(values: dict[tuple[float, object, str], tuple[float, float]]) -> list[dict[str, object]]:
    """Two clients of 10 images each, by (width, λ, attack)."""
    return [
        {"width": width, "lam": lam, "attack": attack, "client": client, "n": 10, "correct": 10 * share}
        for (width, lam, attack), shares in values.items()
        for client, share in enumerate(shares)
    ]


def test_width_metrics_by_hand() -> None:
    found = width_metrics(rows({(w, "", "none"): (a, a) for w, a in ((0.125, 0.4), (0.25, 0.7), (0.5, 0.6), (1.0, 0.65))}), None)
    assert found["accuracy_w0125"] == pytest.approx(0.4)
    assert found["width_gain"] == pytest.approx(0.25)
    assert found["width_worst_step"] == pytest.approx(-0.1)
    assert found["width_shortfall"] == pytest.approx(-0.05)


def test_robust_metrics_by_hand() -> None:
    table = rows(
        {
            **{(1.0, lam, "none"): (0.9 - 0.1 * lam, 0.9 - 0.1 * lam) for lam in (0.0, 0.5, 1.0)},
            **{(1.0, lam, "pgd"): (0.2 + 0.4 * lam, 0.4 + 0.4 * lam) for lam in (0.0, 0.5, 1.0)},
        }
    )
    found = robust_metrics(table, 1.0, (0.0, 0.5, 1.0))
    assert found["robust_accuracy"] == pytest.approx(0.5)
    assert found["robust_gain"] == pytest.approx(0.4)
    assert found["clean_cost"] == pytest.approx(0.1)


def test_accuracy_is_a_mean_over_clients_and_not_over_images() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    examples = LabelledImages(torch.rand(6, 1, 2, 2), torch.tensor([0, 0, 1, 1, 1, 0]))
    assert correct(Always(), examples, 4) == 3


def test_a_run_leaves_its_outcomes_per_client(run: Run) -> None:
    short = changed(run, rounds=2, epochs=1, validate_every=1)
    train_run(short)
    content = evaluate_run(short)
    table = np.genfromtxt(short.results / "evaluation.csv", delimiter=",", names=True, dtype=None, encoding="utf8")
    assert len(table) == 20 * 4
    widest = table[table["width"] == 1.0]
    assert content["metrics"]["accuracy"] == pytest.approx(float((widest["correct"] / widest["n"]).mean()))
    assert content["metrics"]["worst_accuracy"] == pytest.approx(float((widest["correct"] / widest["n"]).min()))
    assert content["metrics"]["over_budget"] == 0
    # 5 clients each with 1, 2, 4 and 8 base networks of 2,874 parameters
    assert content["metrics"]["upload_mebibytes"] == pytest.approx(2874 * 3.75 * 4 / 2**20)
    # 50 images a client and round, 2 rounds, 3 passes of 2,720 multiply–accumulates in 75 pairs
    assert content["metrics"]["train_macs"] == pytest.approx(50 * 2 * 3 * 2720 * 75)
