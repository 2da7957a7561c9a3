"""REINFORCE, random search and growth."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas.methods.as_vit import Measures, Reinforce, SearchSpace, Topology, grow, random_search, reinforce
from atlas.methods.as_vit.growth import Growth, GrowthPlan, next_widths, swin_like, uniform_scaling, width_for
from atlas.methods.as_vit.layout import count
from atlas.methods.as_vit.search import RewardTracker, best_of, dense_ranks

SPACE = SearchSpace.official()
SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]
DIGITS = {"img_size": 32, "in_chans": 1, "num_classes": 10}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def merge_score(topology: Topology, depths: object = None, width: int = 8) -> Measures:
    """A noise-free stand-in for the measures: the length law, and a kernel condition that prefers many heads."""
    return Measures(topology.merge_product * width**2 * 1e-5, 100 / topology.heads)


positive = st.floats(1e-6, 1e6)
measure_lists = st.lists(st.builds(Measures, positive, positive), min_size=1, max_size=12)


# rewards


def test_first_reward_is_zero_and_the_second_is_two_or_zero() -> None:
    for second, expected in ((Measures(2, 1), 2), (Measures(0.5, 3), -2), (Measures(2, 3), 0)):
        tracker = RewardTracker()
        assert tracker(Measures(1, 2)) == (0, 0)
        assert tracker(second)[0] == pytest.approx(expected, abs=1e-5)


def test_equal_consecutive_measures_give_no_reward() -> None:
    tracker = RewardTracker()
    tracker(Measures(1, 2))
    tracker(Measures(3, 5))
    assert tracker(Measures(3, 5))[0] == 0


@given(st.lists(st.builds(Measures, positive, st.one_of(positive, st.just(math.inf))), min_size=1, max_size=40))
def test_rewards_are_bounded_by_two(trials: list[Measures]) -> None:
    tracker = RewardTracker(window=5, relative=True)
    assert all(abs(tracker(measures)[0]) <= 2 for measures in trials)


def test_reward_and_baseline_by_hand() -> None:
    tracker = RewardTracker(window=3, momentum=0.9)
    lengths, kernels = [1.0, 3.0, 2.0, 6.0], [10.0, 20.0, 15.0, 5.0]
    found = [tracker(Measures(a, b)) for a, b in zip(lengths, kernels, strict=True)]
    # last step: window (3, 2, 6) and (20, 15, 5)
    assert found[3][0] == pytest.approx((6 - 2) / (4 + 1e-6) - (5 - 15) / (15 + 1e-6))
    numerator = denominator = 0.0
    for reward, baseline in found:
        numerator, denominator = 0.9 * numerator + 0.1 * reward, 0.9 * denominator + 0.1
        assert baseline == pytest.approx(numerator / denominator)


def test_relative_rewards_do_not_depend_on_the_scale_of_a_measure() -> None:
    big, small = RewardTracker(relative=True), RewardTracker(relative=True)
    for length, ntk in ((1, 5), (2, 3), (1.5, 9), (4, 1)):
        assert big(Measures(length, ntk))[0] == pytest.approx(small(Measures(1e-9 * length, ntk))[0])


def test_tracker_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="window 1"):
        RewardTracker(window=1)


# the policy


def test_first_step_leaves_the_logits() -> None:
    searcher = Reinforce(SPACE, merge_score, generator=generator())
    before = {name: logits.detach().clone() for name, logits in searcher.logits.items()}
    trial = searcher.step()
    assert trial.reward == trial.baseline == 0
    assert all(torch.equal(searcher.logits[name].detach(), before[name]) for name in before)


def test_gradient_of_the_log_probability_is_one_hot_minus_probability() -> None:
    searcher = Reinforce(SPACE, merge_score, generator=generator())
    indices = [len(choices) - 1 for choices in SPACE.groups.values()]
    searcher.log_probability(indices).backward()
    for logits, index in zip(searcher.logits.values(), indices, strict=True):
        expected = torch.nn.functional.one_hot(torch.tensor(index), len(logits)) - logits.detach().softmax(0)
        torch.testing.assert_close(logits.grad, expected)


def test_entropy_starts_near_its_maximum_and_stays_non_negative() -> None:
    searcher = Reinforce(SPACE, merge_score, generator=generator())
    assert searcher.entropy() == pytest.approx(math.log(SPACE.size), rel=1e-4)
    with torch.no_grad():
        searcher.logits["H"] += torch.tensor([1e4, 0, 0])
    assert searcher.entropy() >= 0


def test_policy_finds_what_is_rewarded_and_repeats_itself() -> None:
    first, second = (reinforce(SPACE, merge_score, steps=250, generator=generator(1), relative=True) for _ in range(2))
    assert first.best == second.best
    assert first.history == second.history
    assert first.best.merge_product == 64
    assert first.best.heads == 64
    early, late = ([t.topology.merge_product for t in first.history[part]] for part in (slice(0, 50), slice(-50, None)))
    assert sum(late) > 1.5 * sum(early)


def test_interrupted_search_equals_an_uninterrupted_one() -> None:
    whole = Reinforce(SPACE, merge_score, generator=generator(3))
    expected = [whole.step() for _ in range(12)]
    first = Reinforce(SPACE, merge_score, generator=generator(3))
    found = [first.step() for _ in range(5)]
    second = Reinforce(SPACE, merge_score, generator=generator(99))
    second.load_state_dict(first.state_dict())
    found += [second.step() for _ in range(7)]
    assert found == expected
    assert second.best() == whole.best()


def test_a_saved_search_stays_where_it_was_saved() -> None:
    first = Reinforce(SPACE, merge_score, generator=generator(3))
    for _ in range(5):
        first.step()
    state = first.state_dict()
    expected = [first.step() for _ in range(7)]
    for _ in range(2):  # nor does what was loaded move with the search that goes on from it
        again = Reinforce(SPACE, merge_score, generator=generator(99))
        again.load_state_dict(state)
        assert [again.step() for _ in range(7)] == expected


def test_random_search_returns_the_smallest_rank_sum_of_its_samples() -> None:
    result = random_search(SPACE, merge_score, 60, generator=generator())
    best = merge_score(result.best)
    assert len(result.history) == 60
    assert not any(t.measures.length > best.length and t.measures.ntk < best.ntk for t in result.history)


# ranks


def test_equal_values_share_a_rank() -> None:
    assert dense_ranks([3, 1, 3, 2]) == [2, 0, 2, 1]
    assert dense_ranks([3, 1, 3, 2], descending=True) == [0, 2, 0, 1]


@given(measure_lists)
def test_choice_is_not_dominated(measured: list[Measures]) -> None:
    chosen = measured[best_of(measured)]
    assert not any(m.length > chosen.length and m.ntk < chosen.ntk for m in measured)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12, unique=True))
def test_rank_sums_are_invariant_under_increasing_transforms(pairs: list[tuple[int, int]]) -> None:
    def sums(measured: list[Measures]) -> list[int]:
        kernels = dense_ranks([m.ntk for m in measured])
        lengths = dense_ranks([m.length for m in measured], descending=True)
        return [a + b for a, b in zip(kernels, lengths, strict=True)]

    plain = [Measures(float(a), float(b)) for a, b in pairs]
    transformed = [Measures(math.exp(m.length / 10), m.ntk**3) for m in plain]
    assert sums(plain) == sums(transformed)


def test_ties_go_to_the_measure_that_varies_more() -> None:
    # both rank sums are 1; lengths vary by half, kernels by a tenth
    assert best_of([Measures(1, 9), Measures(2, 10)]) == 1
    assert best_of([Measures(9, 1), Measures(10, 2)]) == 0
    assert best_of([Measures(1, 1), Measures(1, 1)]) == 0
    assert best_of([Measures(1, math.inf), Measures(1, 5)]) == 1


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        best_of([])


# growth


def test_next_widths_round_half_to_even_and_drop_repeats() -> None:
    assert next_widths(8) == [8, 9, 10]
    assert next_widths(9) == [9, 10, 11]
    assert next_widths(20) == [21, 22, 23, 24]


def test_growth_adds_one_block_a_step_from_at_most_16_candidates() -> None:
    steps = grow(SEED, merge_score, limit=110_000_000, target=80_000_000)
    assert [sum(step.depths) for step in steps] == list(range(5, 5 + len(steps)))
    assert all(step.candidates <= 16 for step in steps)
    assert steps[-1].counts.params >= 80_000_000
    assert all(step.counts.params < 80_000_000 for step in steps[:-1])
    assert all(step.counts.params <= 110_000_000 for step in steps)
    assert all(step.counts == count(SEED, depths=step.depths, width=4 * step.width) for step in steps)
    assert all(step.final_width == 4 * step.width for step in steps)


def test_length_law_makes_growth_take_the_widest_candidate() -> None:
    steps = grow(SEED, merge_score, target=80_000_000)
    assert all(step.widest for step in steps)
    assert [step.width for step in steps][:9] == [10, 12, 14, 17, 20, 24, 29, 35, 42]


def test_max_width_policy_follows_the_largest_increase() -> None:
    steps = grow(SEED, policy="max-width", target=400_000_000, limit=500_000_000, generator=generator())
    assert [step.width for step in steps][:10] == [10, 12, 14, 17, 20, 24, 29, 35, 42, 50]
    assert len({step.stage for step in steps}) > 1
    assert all(step.measures is None for step in steps)


def test_random_policy_is_reproducible_and_varies_with_its_generator() -> None:
    first, again, other = (grow(SEED, policy="random", generator=generator(seed)) for seed in (0, 0, 1))
    assert first == again
    assert [s.depths for s in first] != [s.depths for s in other]


def test_growth_keeps_to_its_limit_and_may_run_out_of_candidates() -> None:
    options = {"width_scale": 1, **DIGITS}
    start = count(SEED, width=8, **DIGITS).params  # type: ignore[arg-type]
    steps = grow(SEED, merge_score, limit=start + 1000, target=10**9, **options)  # type: ignore[arg-type]
    assert all(step.counts.params <= start + 1000 for step in steps)
    assert len(steps) < 3


def test_picks_follow_the_scores_and_the_order_of_evaluation() -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def score(topology: Topology, depths: object, width: int) -> Measures:
        asked.append((tuple(depths), width))  # type: ignore[arg-type]
        return Measures(width, 1 if tuple(depths) == (1, 1, 2, 1) else 2)  # type: ignore[arg-type]

    plan = GrowthPlan(SEED, width_scale=1, limit=10**9, target=10**9, options=DIGITS)
    step = Growth(plan, score).step()
    assert step is not None
    assert asked[:4] == [((2, 1, 1, 1), 8), ((2, 1, 1, 1), 9), ((2, 1, 1, 1), 10), ((1, 2, 1, 1), 8)]
    assert (step.depths, step.width, step.stage, step.widest, step.candidates) == ((1, 1, 2, 1), 10, 2, True, 12)


def test_parallel_evaluation_gives_the_same_family() -> None:
    options = {"width_scale": 1, "target": 500_000, **DIGITS}
    with ThreadPoolExecutor(2) as pool:
        shared = grow(SEED, merge_score, evaluate=pool.map, **options)  # type: ignore[arg-type]
    assert shared == grow(SEED, merge_score, **options)  # type: ignore[arg-type]


def test_interrupted_growth_equals_an_uninterrupted_one() -> None:
    plan = GrowthPlan(SEED, width_scale=1, limit=10**9, target=10**6, options=DIGITS)
    expected = list(Growth(plan, policy="random", generator=generator(5)))
    first = Growth(plan, policy="random", generator=generator(5))
    found = [first.step(), first.step()]
    second = Growth(plan, policy="random")
    second.load_state_dict(first.state_dict())
    assert [*found, *second] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (0.1, 0.0)}, "must be positive"),
        ({"ratios": ()}, "must be positive"),
        ({"limit": 1000}, "below the"),
        ({"width0": 0}, "width0 0"),
        ({"policy": "greedy"}, "policy 'greedy'"),
    ],
)
def test_growth_refuses_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow(SEED, merge_score, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a score"):
        grow(SEED)


# manual scaling


def test_manual_scaling_meets_its_budget() -> None:
    budget = 25_000_000
    depths, width = uniform_scaling(SEED, budget)
    assert len(set(depths)) == 1
    assert count(SEED, depths=depths, width=width).params == pytest.approx(budget, rel=0.03)
    swin = swin_like((8, 4, 2, 1))
    width = width_for(swin, budget, depths=(2, 2, 6, 2))
    assert width % 4 == 0
    assert count(swin, depths=(2, 2, 6, 2), width=width).params == pytest.approx(budget, rel=0.06)


def test_manual_scaling_refuses_an_unreachable_budget() -> None:
    with pytest.raises(ValueError, match="no uniform scaling"):
        uniform_scaling(SEED, 1000, **DIGITS)
    with pytest.raises(ValueError, match="no width"):
        width_for(SEED, 1000, depths=(1, 1, 1, 1), **DIGITS)
