"""Partitions, budgets and the sampling of base networks."""

from __future__ import annotations

import numpy as np
import pytest

from atlas.methods.split_mix import BaseScheduler, budgets, partition_by_class, partition_uniform
from atlas.nn.federation import assign_classes, split_by_class


def labels(classes: int = 10, each: int = 100) -> np.ndarray:
    return np.random.default_rng(3).permutation(np.repeat(np.arange(classes), each))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dirichlet", [False, True])
def test_uniform_shares_cover_and_respect_the_minimum(legacy: bool, dirichlet: bool) -> None:
    sizes = partition_uniform(1003, 10, min_per_share=16, seed=4, legacy=legacy, dirichlet=dirichlet)
    assert sizes.sum() == 1003
    assert sizes.min() >= 16
    if not dirichlet:
        assert sizes.min() == 100
        assert sizes.max() <= 103
    assert np.array_equal(sizes, partition_uniform(1003, 10, min_per_share=16, seed=4, legacy=legacy, dirichlet=dirichlet))


def test_uniform_shares_in_the_official_stream() -> None:
    expected = np.full(7, 13)
    np.add.at(expected, np.random.RandomState(6).choice(7, 2), 1)
    assert np.array_equal(partition_uniform(93, 7, min_per_share=5, seed=5, legacy=True), expected)


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="31 samples are too few for 2 shares of at least 16"):
        partition_uniform(31, 2, seed=0)
    with pytest.raises(ValueError, match="n_shares must be at least 1, not 0"):
        partition_uniform(31, 0, seed=0)


def test_class_partition_is_disjoint_and_gives_each_client_its_classes() -> None:
    truth = labels()
    parts = partition_by_class(truth, 20, 3, seed=1)
    assert all(len(np.unique(truth[part])) == 3 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(truth)))
    for part in parts:
        assert min(np.unique(truth[part], return_counts=True)[1]) >= 16
    again = partition_by_class(truth, 20, 3, seed=1)
    assert all(np.array_equal(first, second) for first, second in zip(parts, again, strict=True))


def test_legacy_class_draw_may_repeat_around_a_shuffle() -> None:
    def fewest(legacy: bool) -> int:
        found = []
        for seed in range(30):
            np.random.seed(seed)  # noqa: NPY002 - the official stream
            owners = assign_classes(10, 20, 3, seed=seed, legacy=legacy)
            assert {len(mine) for mine in owners} == {3}
            found += [len(set(mine)) for mine in owners]
        return min(found)

    assert fewest(legacy=False) == 3
    assert fewest(legacy=True) == 2


def test_a_class_drawn_twice_is_two_shares() -> None:
    # class 7 has three shares, two of them the first client's; class 3 comes first in the labels and is split first
    truth = np.array([3, 3, 7, 3, 7, 7, 7, 3, 7, 7, 7, 3, 7, 3])
    owners = [[7, 7], [7, 3], [3, 5]]
    threes, sevens = np.flatnonzero(truth == 3), np.flatnonzero(truth == 7)
    random = np.random.RandomState(5)
    sizes = np.full(2, 3)  # 6 samples of class 3
    random.choice(2, 0)
    shares = np.full(3, 2)  # 8 samples of class 7, the remainder drawn
    np.add.at(shares, random.choice(3, 2), 1)
    found = split_by_class(truth, owners, min_per_share=1, seed=4, legacy=True)
    assert found[0].tolist() == sevens[: shares[0] + shares[1]].tolist()
    assert found[1].tolist() == [*threes[: sizes[0]], *sevens[shares[0] + shares[1] :]]
    assert found[2].tolist() == threes[sizes[0] :].tolist()


def test_legacy_partition_draws_a_share_for_every_class_of_every_client() -> None:
    truth = labels()
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002 - the official stream
        parts = partition_by_class(truth, 20, 3, seed=1, legacy=True)
        np.random.seed(seed)  # noqa: NPY002 - the official stream
        owners = assign_classes(10, 20, 3, legacy=True)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(truth)))
        # 60 shares of 10 classes: every class has 6 of them, however they fall on clients, so none has fewer than 16 samples
        assert np.bincount(np.concatenate(owners), minlength=10).tolist() == [6] * 10
        for mine, part in zip(owners, parts, strict=True):
            classes, counts = np.unique(truth[part], return_counts=True)
            for value, count in zip(classes, counts, strict=True):
                assert count // 16 >= mine.count(int(value))


def test_every_class_goes_around_before_it_comes_again() -> None:
    owners = assign_classes(6, 8, 3, seed=2)
    counts = np.bincount(np.concatenate(owners), minlength=6)
    assert counts.tolist() == [4] * 6


def test_test_split_of_a_client_has_its_training_classes() -> None:
    owners = assign_classes(10, 20, 3, seed=5)
    test = split_by_class(labels(each=120), owners, min_per_share=2, seed=9)
    for mine, part in zip(owners, test, strict=True):
        assert set(labels(each=120)[part]) == set(mine)


def test_clients_that_cannot_share_the_classes() -> None:
    with pytest.raises(ValueError, match="3 clients with 3 classes each cannot share 10 classes"):
        partition_by_class(labels(), 3, 3, seed=0)
    with pytest.raises(ValueError, match="classes_per_client must be in 1 … 10, not 11"):
        partition_by_class(labels(), 3, 11, seed=0)


def test_budgets() -> None:
    widths, counts = np.unique(budgets("8-4-2-1", 50), return_counts=True)
    assert widths.tolist() == [0.125, 0.25, 0.5, 1.0]
    assert counts.tolist() == [13, 12, 13, 12]
    assert budgets("8-4-8d3-2", 4).tolist() == [0.125, 0.25, 0.375, 0.5]
    assert (np.diff(budgets("1-2-4-8", 11)) >= 0).all()
    assert budgets("1", 3).tolist() == [1, 1, 1]


def test_log_normal_budgets_follow_the_distribution() -> None:
    found = budgets("ln0.5_0.4", 1000)
    assert len(found) == 1000
    assert (np.diff(found) >= 0).all()
    assert set(found) <= {index / 8 for index in range(1, 9)}
    from scipy.stats import lognorm

    below = lognorm.cdf(np.arange(1, 9) / 8, 0.5, scale=0.4)
    bounds = np.floor(1000 * (below - below[0]) / (1 - below[0]))
    assert [int((found < width).sum()) for width in np.arange(1, 9) / 8] == bounds.tolist()


@pytest.mark.parametrize("spec", ["", "8-0", "8d9", "ln0.5", "ln-1_0.4", "x"])
def test_budgets_that_cannot_be_read(spec: str) -> None:
    with pytest.raises(ValueError, match="budgets"):
        budgets(spec, 4)


def test_first_slots_sweep_all_bases_and_draws_have_no_duplicates() -> None:
    scheduler = BaseScheduler(8, np.random.default_rng(0))
    for _ in range(5):
        draws = [scheduler.draw(1 + visit % 8) for visit in range(8)]
        assert sorted(draw[0] for draw in draws) == list(range(8))
        assert all(len(set(draw)) == len(draw) == 1 + visit for visit, draw in enumerate(draws))
    assert sorted(scheduler.draw(8)) == list(range(8))


def test_draws_are_uniform_beyond_the_first_slot() -> None:
    scheduler = BaseScheduler(4, np.random.default_rng(1))
    counts = np.zeros(4)
    for _ in range(4000):
        counts[scheduler.draw(2)[1]] += 1
    assert abs(counts / 4000 - 0.25).max() < 0.03


def test_legacy_draws_follow_the_global_stream() -> None:
    np.random.seed(3)  # noqa: NPY002 - the official stream
    scheduler = BaseScheduler(4, np.random.default_rng(0), legacy=True)
    found = [scheduler.draw(n) for n in (1, 3, 2, 4, 2)]
    np.random.seed(3)  # noqa: NPY002 - the official stream
    order, expected = list(range(4)), []
    np.random.shuffle(order)  # noqa: NPY002 - the official stream
    for index, n in enumerate((1, 3, 2, 4, 2)):
        if index == 4:
            np.random.shuffle(order)  # noqa: NPY002 - the official stream
        first = order[index % 4]
        rest = [base for base in order if base != first]
        if n > 1:
            np.random.shuffle(rest)  # noqa: NPY002 - the official stream
        expected.append([first, *rest[: n - 1]])
    assert found == expected


def test_scheduler_goes_on_from_its_state() -> None:
    first = BaseScheduler(5, np.random.default_rng(7))
    for _ in range(3):
        first.draw(2)
    second = BaseScheduler(5, np.random.default_rng(0))
    second.load_state_dict(first.state_dict())
    assert [first.draw(3) for _ in range(9)] == [second.draw(3) for _ in range(9)]


@pytest.mark.parametrize("n", [0, 6])
def test_impossible_draws(n: int) -> None:
    scheduler = BaseScheduler(5, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"1 … 5 base networks, not {n}"):
        scheduler.draw(n)
    with pytest.raises(ValueError, match="the state has 5"):
        BaseScheduler(4, np.random.default_rng(0)).load_state_dict(scheduler.state_dict())
