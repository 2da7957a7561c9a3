"""As-ViT in its task: the rows of every tier, the stages' artefacts, and training with few tokens first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from atlas.errors import UserError
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors, write_json
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.as_vit import HierarchicalViT, Topology, build, count, kendall_tau
from atlas.methods.as_vit.plugin import space_with
from atlas.methods.as_vit.settings import PROXIES
from atlas.nn.counts import parameter_count
from atlas.settings import merge, validate_settings

ROOT = Path(__file__).resolve().parents[3]
TASK = "image-classification"
SEARCHED = "4,2,2|4,2,2|2,1,2|3,1,2|16"
RANDOM_SEARCH = "5,2,2|4,2,2|4,1,2|3,1,2|16"


def demo(root: Path, *recipe: str, protocol: dict[str, Any] | None = None, **settings: Any) -> Run:
    """A run of the demo's benchmark with any of this paper's methods, as short as it can be."""
    run = Study.read("demo", ROOT).find(f"{TASK}/digits-as-vit/as-vit-seed/seed10")
    task, methods = run.task_entry, load().methods[TASK]
    small = merge(merge(run.protocol, task.smallest), {"epochs": 1, "warmup_epochs": 0, "batch_size": 400, **(protocol or {})})
    chosen = {
        name: validate_settings(methods[name].settings, settings if name == recipe[-1] else {}, "test", name) for name in recipe
    }
    made = replace(
        run,
        root=root,
        method="+".join(recipe),
        recipe=recipe,
        method_entries=tuple(methods[name] for name in recipe),
        protocol=validate_settings(task.protocol, small, "test", task.name),
        settings=chosen,
        needs={},
    )
    roles = {role: row for name in recipe for role, row in methods[name].needs.items()}
    return replace(
        made,
        needs={
            role: replace(made, method=row, recipe=(row,), method_entries=(methods[row],), settings={row: {}})
            for role, row in roles.items()
        },
    )


def found(run: Run) -> None:
    """Leave for a run what search and growth would have left."""
    topology = Topology.parse(SEARCHED)[0]
    shape = {"stride": 4, "max_width": 1024}
    search = {"topology": SEARCHED, "random_search": RANDOM_SEARCH, "largest_merges": str(space_with({}).largest_merges())}
    write_json(
        run.needs["search"].checkpoint / "search.json",
        {**search, **shape, "width": 8, "space": dict(space_with({}).groups)},
    )
    write_json(run.needs["search"].record, {"fingerprint": run.needs["search"].fingerprint})
    if "growth" in run.needs:
        keys = {"rank": (2, 1, 1, 1), "random": (1, 2, 1, 1), "max-width": (1, 1, 2, 1), "uniform": (2, 2, 2, 2)}
        grown = {key: [{"architecture": topology.format(depths, 8)}] for key, depths in keys.items()}
        swin = [{"architecture": "4,2,4,1|2,1,4,1|2,1,4,2|2,1,4,1|16,8"}]
        write_json(run.needs["growth"].checkpoint / "family.json", {**grown, **shape, "swin": swin, "budget": 1000})
        write_json(run.needs["growth"].record, {"fingerprint": run.needs["growth"].fingerprint})


ROWS = [
    name
    for name, entry in load().methods[TASK].items()
    if entry.plugin in ("plugin:Searched", "plugin:Grown") and entry.options.get("key")
]


@pytest.mark.parametrize("name", ROWS)
def test_each_row_builds_the_network_that_its_stage_chose(name: str, tmp_path: Path) -> None:
    run = demo(tmp_path, name)
    found(run)
    model = run.build()[0].backbone(run, 10)
    again = run.build()[0].backbone(run, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    topology, depths = str(model.design.topology), model.design.depths
    expected = {
        "as-vit-seed": (SEARCHED, (1, 1, 1, 1)),
        "random-search": (RANDOM_SEARCH, (1, 1, 1, 1)),
        "as-vit": (SEARCHED, (2, 1, 1, 1)),
        "random-scaling": (SEARCHED, (1, 2, 1, 1)),
        "max-width-scaling": (SEARCHED, (1, 1, 2, 1)),
        "uniform-scaling": (SEARCHED, (2, 2, 2, 2)),
        "swin-like": ("4,2,4|2,1,4|2,1,4|2,1,4|16", (1, 1, 2, 1)),
    }
    if name in expected:
        assert (topology, depths) == expected[name]
    elif name == "merge-product":
        assert model.design.topology.merge_product == 64
    else:
        other = replace(run, seed=11).build()[0].backbone(replace(run, seed=11), 10)
        assert str(other.design.topology) != topology


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_are_planned_with_their_needs(tier: str) -> None:
    study = Study.read(tier, ROOT)
    rows = {runs[0].method: runs[0] for runs in study.by_row.values() if "as-vit" in runs[0].dataset}
    assert {"as-vit-search", "as-vit-growth", "as-vit-seed", "random-topology", "merge-product", "as-vit-ranking"} <= set(rows)
    assert rows["as-vit-growth"].needs["search"].method == "as-vit-search"
    if tier != "demo":
        assert set(ROWS) <= set(rows)
        assert {run.method for run in rows["as-vit"].needs.values()} == {"as-vit-search", "as-vit-growth"}
    for run in rows.values():
        if all(entry.plugin for entry in run.method_entries):
            assert len(run.build()) == len(run.recipe)


@pytest.mark.parametrize("tier", ["lab", "paper"])
def test_spaces_of_the_larger_studies_fit_their_grids(tier: str) -> None:
    """Every choice of every group, in one network each; and each phase of re-tokenisation of the tier."""
    study = Study.read(tier, ROOT)
    for run in study.runs:
        if run.recipe[0] not in ("as-vit-search", "as-vit-ranking") or run.seed != study.seeds[0]:
            continue
        settings, backbone = run.settings_model(run.recipe[0]), run.protocol_model().backbone
        space = space_with(settings.choices)
        for index in range(max(map(len, space.groups.values()))):
            topology = space.topology([min(index, len(choices) - 1) for choices in space.groups.values()])
            assert topology.kernels[0] >= settings.stride
            count(topology, width=settings.width, img_size=backbone.img_size, stride=settings.stride)


def test_published_rows_have_the_sizes_of_the_released_code_at_full_size() -> None:
    study = Study.read("paper", ROOT)
    for name, parameters, macs in (("small", 28_775_328, 5.13e9), ("base", 52_258_652, 8.75e9), ("large", 87_580_820, 22.36e9)):
        run = study.find(f"{TASK}/imagenet-as-vit/as-vit-{name}/seed0")
        with torch.device("meta"):
            model = HierarchicalViT(run.build()[0].design(run, 1000))
        assert parameter_count(model) == parameters
        assert count(model.design.topology, **model.design.options()).macs == pytest.approx(macs, rel=1e-3)
        assert model.design.drop_path == run.protocol["backbone"]["drop_path_rate"]


def test_the_manual_designs_of_the_lab_study_are_of_the_grown_size(workspace: Path) -> None:
    growth = Study.read("lab", ROOT).find(f"{TASK}/cifar10-as-vit/as-vit-growth/seed0").settings["as-vit-growth"]
    options = {name: growth[name] for name in ("window", "swin_depths", "tolerance", "attempts")}
    run = demo(workspace, "as-vit-growth", images=2, points=3, repeats=1, max_steps=3, width_scale=1, target=350000, **options)
    found(run)
    train_run(run)
    family = json.loads((run.checkpoint / "family.json").read_text())
    assert family == json.loads((run.results / "family.json").read_text())
    assert [sum(Topology.parse(one["architecture"])[1] or ()) for one in family["rank"]] == [5, 6, 7][: len(family["rank"])]
    for key in ("random", "max-width", "uniform"):
        assert family[key][-1]["parameters"] == pytest.approx(family["budget"], rel=0.1), key
    assert family["swin"][-1]["parameters"] == pytest.approx(family["budget"], rel=0.3)
    for members in (family["rank"], family["random"], family["swin"]):
        topology, depths, width = Topology.parse(members[-1]["architecture"])
        model = build(topology, depths=depths or (), width=width or 0, img_size=32, in_chans=1, num_classes=10)
        assert parameter_count(model) == members[-1]["parameters"]
    summary = json.loads(run.record.read_text())["training"]
    assert summary["widest_share"] == pd.Series([one["widest"] for one in family["rank"]]).mean()


def test_search_leaves_what_it_found_readable(workspace: Path) -> None:
    run = demo(workspace, "as-vit-search", width=8, steps=4, images=2, points=3, repeats=1, check_repeats=1)
    train_run(run)
    record = json.loads((run.checkpoint / "search.json").read_text())
    for name in ("topology", "random_search", "largest_merges"):
        assert Topology.parse(record[name])[0].splits[3] == 1
    assert len(record["probabilities"]) == 12
    assert all(sum(group.values()) == pytest.approx(1, abs=1e-4) for group in record["probabilities"].values())
    curve = pd.read_csv(run.results / "reinforce.csv")
    assert len(curve) == len(pd.read_csv(run.results / "random-search.csv")) == 4
    assert curve["reward"].abs().max() <= 2
    assert curve["reward"][0] == 0


def test_ranking_correlates_what_it_measured_with_what_it_trained(workspace: Path) -> None:
    run = demo(
        workspace,
        "as-vit-ranking",
        width=8,
        images=2,
        points=3,
        repeats=1,
        topologies=4,
        law_topologies=4,
        proxy_images=4,
        draws=10,
    )
    train_run(run)
    metrics = evaluate_run(run)["metrics"]
    table = pd.read_csv(run.results / "topologies.csv")
    assert len(table) == 4
    assert {*PROXIES, "top1", "validation_top1"} <= set(table)
    assert metrics["tau_parameters"] == pytest.approx(kendall_tau(table["parameters"], table["top1"]))
    assert metrics["tau_ntk"] == pytest.approx(-kendall_tau(table["ntk"], table["top1"]))
    assert metrics["top1_best"] == table["top1"][table["validation_top1"].idxmax()]
    assert metrics["top1_mean"] == pytest.approx(table["top1"].mean())
    for index, text in enumerate(table["topology"]):
        counts = count(Topology.parse(text)[0], width=8, img_size=32, in_chans=1, num_classes=10)
        assert (counts.params, counts.macs) == (table["parameters"][index], table["macs"][index])
    assert len(read_tensors(run.checkpoint / "topology003.safetensors")) > 0


def test_ranking_needs_validation_images(workspace: Path) -> None:
    run = demo(workspace, "as-vit-ranking", protocol={"data": {"upsample": 4, "validation_fraction": 0}}, width=8, topologies=4)
    with pytest.raises(UserError, match=r"set data\.validation_fraction"):
        train_run(run)


def test_retokenisation_changes_tokens_and_cost_and_ends_at_the_finest(workspace: Path) -> None:
    phases = [[0, 16], [0.25, 8], [0.5, 4]]
    run = demo(workspace, "as-vit-seed", "retokenize", protocol={"batch_size": 140, "log_every": 1}, phases=phases)
    found(run)
    train_run(run)
    curve = pd.read_csv(run.history)
    assert curve["tokens"].tolist() == [4, 4, 16, 16, 64, 64, 64, 64]
    full = count(Topology.parse(SEARCHED)[0], width=8, img_size=32, in_chans=1, num_classes=10).macs
    assert curve["image_macs"].iloc[-1] == full
    assert curve["image_macs"].is_monotonic_increasing
    metrics = evaluate_run(run)["metrics"]
    assert metrics["macs"] == full
    steps, batch = len(curve), 140
    assert metrics["train_flops"] < 3 * metrics["forward_flops"] * steps * batch
    # torch counts no additions in pooling and no stem bias: the sum over phases agrees to a few per cent
    assert metrics["train_flops"] == pytest.approx(6 * batch * curve["image_macs"].sum(), rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "phases", "message"),
    [
        (("retokenize",), [[0, 8], [0.5, 4]], "needs a network of As-ViT"),
        (("as-vit-seed", "retokenize"), [[0, 5], [0.5, 4]], "stride 5 does not divide"),
    ],
)
def test_retokenisation_refuses_what_it_cannot_do(
    recipe: tuple[str, ...], phases: list[list[float]], message: str, workspace: Path
) -> None:
    run = demo(workspace, *recipe, phases=phases)
    if run.needs:
        found(run)
    with pytest.raises(UserError, match=message):
        train_run(run)


def test_phases_out_of_order_and_unknown_choices_are_refused_when_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="begin at progress 0"):
        demo(tmp_path, "as-vit-seed", "retokenize", phases=[[0.1, 8], [0.5, 4]])
    with pytest.raises(UserError, match="unknown groups K9"):
        space_with({"K9": (1,)})
