"""The cost of a design: its parts scale as they should, and a draw costs what a measure of that network costs."""

from __future__ import annotations

import pytest
import torch

from atlas.methods.as_vit import Topology, build
from atlas.methods.as_vit.costs import Work, growth_work, measured_once, search_work, training_work
from atlas.methods.as_vit.growth import Growth, GrowthPlan
from atlas.methods.as_vit.layout import SINGLE_BLOCKS, count
from atlas.methods.as_vit.settings import DesignCostSettings
from atlas.methods.as_vit.stages import hours
from atlas.nn.counts import forward_flops

SMALL = DesignCostSettings(pixels=32, points=3, images=2, target=2_500_000, trials=7, repeats=2)
TOPOLOGY = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]


def test_a_search_is_so_many_draws_and_a_draw_a_few_passes_of_the_network() -> None:
    draw = measured_once(TOPOLOGY, SMALL, SINGLE_BLOCKS, 32)
    assert search_work(TOPOLOGY, SMALL) == draw * 14
    assert draw.launches > 100
    passed = forward_flops(build(TOPOLOGY, width=32, img_size=32), torch.zeros(1, 3, 32, 32))
    # the kernel takes a forward and a backward pass of 2 images, the length a forward pass and its tangent at 3 points
    assert 8 * passed < draw.flops < 20 * passed


def test_growth_counts_every_candidate_at_the_size_of_its_step() -> None:
    plan = GrowthPlan(TOPOLOGY, target=SMALL.target, options={"img_size": 32, "in_chans": 3})
    steps = list(Growth(plan, policy="max-width", generator=torch.Generator().manual_seed(0)))
    work, candidates = growth_work(TOPOLOGY, SMALL)
    assert candidates == sum(step.candidates for step in steps) > len(steps)
    assert work.flops == pytest.approx(
        sum(measured_once(TOPOLOGY, SMALL, step.depths, step.width).flops * 2 * step.candidates for step in steps)
    )


def test_training_is_three_passes_of_every_topology_over_every_image() -> None:
    one = SMALL.model_copy(update={"trials": 1, "training_images": 10})
    ten = SMALL.model_copy(update={"trials": 10, "training_images": 10})
    cheapest = count(Topology.parse("4,8,2|2,4,2|2,2,2|2,1,2|16")[0], width=32, img_size=32).macs
    assert training_work(one).flops > 60 * cheapest
    assert training_work(ten).flops > 5 * training_work(one).flops
    assert training_work(one.model_copy(update={"training_images": 20})).flops == 2 * training_work(one).flops


def test_hours_are_those_of_arithmetic_or_of_launches() -> None:
    assert hours(Work(flops=125e12 * 0.3 * 3600), "V100-32GB") == pytest.approx(1)
    assert hours(Work(flops=1.0, launches=7200 / 1e-5), "V100-32GB") == pytest.approx(2)
