"""Architecture strings, the search space, sizes and costs in closed form, and the published models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas.methods.as_vit import HierarchicalViT, SearchSpace, Topology, build, count, published, total_width
from atlas.methods.as_vit.layout import layout
from atlas.methods.as_vit.network import PUBLISHED

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"


def test_parses_and_formats_architecture_strings() -> None:
    topology, depths, width = Topology.parse(SEED)
    assert (topology.kernels, topology.splits, topology.expansions) == ((8, 4, 4, 4), (2, 1, 1, 1), (3, 2, 4, 6))
    assert (topology.heads, depths, width, topology.merge_product) == (32, None, None, 64)
    assert str(topology) == SEED
    same, depths, width = Topology.parse(LARGE)
    assert (same, depths, width) == (topology, (5, 2, 5, 2), 180)
    assert topology.format(depths, width) == LARGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8,2,3|4,1,2|4,1,4|32", "4 groups"),
        ("8,2|4,1|4,1|4,1|32", "every stage must be K,S,E"),
        ("8,2,3,1|4,1,2|4,1,4|4,1,6|32", "every stage"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,8,1", "last group"),
        ("8,2,x|4,1,2|4,1,4|4,1,6|32", "'8,2,x' is not a list of positive whole numbers"),
        ("8,2,0|4,1,2|4,1,4|4,1,6|32", "positive whole numbers"),
        ("8,2,-3|4,1,2|4,1,4|4,1,6|32", "positive whole numbers"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|30", "multiple of 8"),
    ],
)
def test_refuses_malformed_strings(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        Topology.parse(text)


def test_refuses_wrong_number_of_stages() -> None:
    with pytest.raises(ValueError, match="has 3 values"):
        Topology((4, 2, 2), (1, 1, 1, 1), (2, 2, 2, 2), 16)  # type: ignore[arg-type]


def test_official_space_has_12_groups_45_choices_and_4556250_topologies() -> None:
    space = SearchSpace.official()
    assert len(space.groups) == 12
    assert sum(map(len, space.groups.values())) == 45
    assert space.size == 4_556_250
    assert list(space.groups)[:4] == ["K1", "K2", "K3", "K4"]


def test_samples_are_reproducible_members_with_global_attention_last() -> None:
    space = SearchSpace.official()
    drawn = [[space.sample(g) for _ in range(20)] for g in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 15
    for topology in drawn[0]:
        assert topology.splits[3] == 1
        assert topology.kernels[0] in space.groups["K1"]
        assert topology.heads in space.groups["H"]


def test_largest_merges_takes_every_largest_merge_kernel() -> None:
    topology = SearchSpace.official().largest_merges()
    assert topology.merge_product == 64
    assert topology.kernels[0] == 6
    assert topology.heads == 32


def test_space_refuses_missing_unknown_and_empty_groups() -> None:
    groups = dict(SearchSpace.official().groups)
    with pytest.raises(ValueError, match="lacks the groups H"):
        SearchSpace({name: values for name, values in groups.items() if name != "H"})
    with pytest.raises(ValueError, match="unknown groups K5"):
        SearchSpace({**groups, "K5": (1,)})
    with pytest.raises(ValueError, match="group K1"):
        SearchSpace({**groups, "K1": ()})


CASES = [
    ({}, SEED),
    ({"width": 20, "depths": (1, 2, 1, 3), "pos_embed": "absolute", "num_classes": 7}, "4,4,2|2,2,3|3,2,2|4,1,5|16"),
    ({"width": 9, "img_size": 64, "stride": 2, "in_chans": 1, "num_classes": 10}, "5,8,2|3,4,3|2,2,2|3,1,2|32"),
    ({"width": 8, "img_size": 32, "in_chans": 1, "num_classes": 10}, "6,8,2|3,4,3|2,2,2|3,1,2|64"),
    ({"width": 150, "img_size": 32, "max_width": 512}, SEED),
]


@pytest.mark.parametrize(("options", "text"), CASES)
def test_parameter_count_equals_the_built_network(options: dict[str, object], text: str) -> None:
    topology = Topology.parse(text)[0]
    model = build(topology, **options)  # type: ignore[arg-type]
    assert count(topology, **options).params == sum(p.numel() for p in model.parameters())  # type: ignore[arg-type]


def test_macs_equal_torchs_flop_counter_but_for_pooling_and_stem_bias() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for options, text in CASES[2:4]:
        topology = Topology.parse(text)[0]
        model = build(topology, **options).eval()  # type: ignore[arg-type]
        side = model.design.img_size
        with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model(torch.zeros(1, 1, side, side))
        stages = layout(topology, width=model.design.width, img_size=side, stride=model.design.stride)
        free = stages[0].tokens * stages[0].width + 2 * stages[-1].width * (stages[-1].tokens + 1)
        assert count(topology, **options).macs == counter.get_total_flops() // 2 + free  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "params", "with_positions", "macs"),
    [
        ("as-vit-small", 28_775_328, 29_051_296, 5.13e9),
        ("as-vit-base", 52_258_652, 52_622_428, 8.75e9),
        ("as-vit-large", 87_580_820, 88_145_300, 22.36e9),
    ],
)
def test_published_sizes(name: str, params: int, with_positions: int, macs: float) -> None:
    """The released code has no position embedding; the sizes that papers print (29.0, 52.6 and 88.1 million) are with one."""
    design = published(name)
    counts = count(design.topology, **design.options())
    assert counts.params == params
    assert counts.macs == pytest.approx(macs, rel=1e-3)
    embedded = published(name, pos_embed="absolute")
    assert count(embedded.topology, **embedded.options()).params == with_positions == params + 56**2 * design.width


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_build_with_their_counts(name: str) -> None:
    design = published(name)
    with torch.device("meta"):  # shapes and no arithmetic
        model = HierarchicalViT(design)
        assert model.pos_embed is None
        assert sum(p.numel() for p in model.parameters()) == count(design.topology, **design.options()).params
        assert model.num_features == min(1024, 8 * design.width)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_head_dimensions_of_the_published_models() -> None:
    dims = {name: [s.head_dim for s in layout(d.topology, width=d.width, depths=d.depths)] for name, d in _designs().items()}
    assert dims["as-vit-small"] == [22] * 4
    assert dims["as-vit-base"] == [29] * 4
    assert dims["as-vit-large"] == [45, 45, 45, 32]


def _designs() -> dict[str, object]:
    return {name: published(name) for name in PUBLISHED}


def test_total_width_counts_every_block_and_the_cap() -> None:
    assert total_width((1, 1, 2, 1), 40) == 40 + 80 + 2 * 160 + 320
    assert total_width((5, 2, 5, 2), 180) == 5 * 180 + 2 * 360 + 5 * 720 + 2 * 1024


def test_unknown_published_model() -> None:
    with pytest.raises(ValueError, match="no published model 'as-vit-huge'"):
        published("as-vit-huge")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("8,4,3|4,1,2|4,1,4|4,1,6|32", {"img_size": 24}, "cannot be split 4 × 4"),
        (SEED, {"width": 3}, "width ≥ 4"),
        ("8,1,3|4,1,2|4,1,4|4,1,6|32", {"img_size": 28}, "odd grid"),
        (SEED, {"img_size": 30}, "stride 4 does not divide"),
        ("3,1,3|4,1,2|4,1,4|4,1,6|32", {}, "smaller than its stride"),
        (SEED, {"depths": (1, 1, 1)}, "has 3 values"),
        (SEED, {"depths": (1, 0, 1, 1)}, "positive whole numbers"),
        (SEED, {"pos_embed": "sine"}, "pos_embed"),
        (SEED, {"drop_path": 1.0}, "drop_path"),
    ],
)
def test_refuses_shapes_that_do_not_fit(text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Topology.parse(text)[0], **options)  # type: ignore[arg-type]


def test_odd_grids_are_accepted_when_asked_for() -> None:
    topology = Topology.parse("8,4,3|4,1,2|4,1,4|4,1,6|32")[0]
    model = build(topology, img_size=36, ceil=True, num_classes=3)
    assert [stage.grid for stage in layout(topology, img_size=36, ceil=True)] == [9, 5, 3, 2]
    assert model(torch.zeros(2, 3, 36, 36)).shape == (2, 3)


def test_numbers_of_numpy_are_whole_and_truth_values_are_not() -> None:
    plain = Topology((5, 2, 2, 2), (2, 2, 1, 1), (4, 4, 4, 4), 32)
    arrays = [np.array(values) for values in (plain.kernels, plain.splits, plain.expansions)]
    assert Topology(*map(tuple, arrays), np.int64(32)) == plain
    assert str(Topology(*map(tuple, arrays), np.int64(32))) == str(plain)
    with pytest.raises(ValueError, match="positive whole numbers"):
        Topology((5, 2, 2, True), plain.splits, plain.expansions, 32)
