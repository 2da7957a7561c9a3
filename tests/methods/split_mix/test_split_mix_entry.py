"""Split-Mix's rows: every tier builds what it says, at full size, with the published counts."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas.datasets import stand_in
from atlas.errors import UserError
from atlas.harness.claims import load_reported
from atlas.harness.registry import load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.methods.split_mix import FedTrainer, SplitMix, local_train
from atlas.methods.split_mix.plugin import TrainedFederation
from atlas.methods.split_mix.settings import FederatedSettings, LocalSettings
from atlas.methods.split_mix.stages import network_costs
from atlas.settings import merge, validate_settings
from atlas.tasks.federated_learning.data import load_data

ROOT = Path(__file__).resolve().parents[3]
TASK = "federated-learning"


def rows(tier: str) -> list[Run]:
    """The first run of every row of the task that trains."""
    study = Study.read(tier, ROOT)
    runs = [seeds[0] for (task, _, _), seeds in study.by_row.items() if task == TASK]
    return [run for run in runs if not run.method_entries[0].train]


def smallest(run: Run, root: Path, **protocol: object) -> Run:
    """The run as a rehearsal cuts it, on stand-in data."""
    if not (root / "data" / run.data).is_dir():
        stand_in(run.data, root / "data")
    values = merge(merge(run.protocol, run.task_entry.rehearsal), protocol)
    return replace(run, root=root, protocol=validate_settings(run.task_entry.protocol, values, "test", TASK))


@pytest.mark.parametrize("tier", ["demo", "lab", "paper"])
def test_rows_of_every_tier_are_what_they_say(tier: str) -> None:
    trained = rows(tier)
    by_method = {run.recipe[0] for run in trained}
    assert by_method == {"split-mix", "sheterofl", "heterofl", "fedavg", "fedavg-at", "fedavg-oat", "fedavg-dat", "split-mix-dat"}
    for run in trained:
        (federation,) = run.build()
        assert isinstance(federation, TrainedFederation)
        protocol = run.protocol_model()
        assert (protocol.attack is not None) == federation.trains_with_attacks
        assert protocol.attack is None or federation.widths[-1] in (*protocol.attack.widths, federation.settings.width)
        assert federation.settings.statistics != "batch" or not federation.trains_with_attacks


def test_larger_studies_build_at_full_size_and_match_published_counts(tmp_path: Path) -> None:
    seen = set()
    for run in rows("paper"):
        protocol = run.protocol_model()
        key = (protocol.network, run.recipe, str(run.settings))
        published = {
            number.value
            for number in load_reported(TASK, run.dataset)
            if (number.row, number.metric) == (run.method, "parameters")
        }
        if key in seen or not (published or run.dataset.endswith("robust")) or protocol.network == "alexnet":
            continue
        seen.add(key)
        small = smallest(run, tmp_path)
        (federation,) = small.build()
        data = load_data(small, small.protocol_model(), torch.device("cpu"))
        federation.start(data, small.protocol_model(), torch.device("cpu"), 0)
        count = sum(p.numel() for p in federation.deploy(federation.widths[-1], client=0).parameters())
        assert all(abs(count / value - 1) < 0.01 for value in published), (run.cell, count, published)
    assert len(seen) >= 14


def test_costs_of_clients(workspace: Path) -> None:
    study = Study.read("demo", ROOT)
    run = replace(study.find(f"{TASK}/digits-robust/split-mix-dat/seed10"), root=workspace)
    protocol = run.protocol_model()
    data = load_data(run, protocol, torch.device("cpu"))

    def costs(name: str, client: int, **settings: object):  # type: ignore[no-untyped-def]
        entry = load().method(TASK, name)
        federation = entry.build(run, entry.settings(**settings))
        federation.start(data, protocol, torch.device("cpu"), 0)
        return federation.costs(client)

    base, macs = 2874, 2720
    poor, rich = costs("split-mix", 0), costs("split-mix", 19)
    assert (poor.upload_parameters, poor.image_macs, poor.within_budget) == (base, 3 * macs, True)
    assert (rich.upload_parameters, rich.image_macs) == (8 * base, 8 * 3 * macs)
    slim = costs("sheterofl", 19)
    assert slim.upload_parameters == 51594
    assert slim.image_macs == 3 * (2720 + 6464 + 17024 + 50432)
    assert costs("heterofl", 19).image_macs == 3 * 50432
    assert not costs("fedavg", 0).within_budget
    assert costs("fedavg", 0, width=0.125).within_budget
    # a clean pass, an attacked pass, and 5 attack steps of a forward and an input-gradient pass
    assert costs("split-mix-dat", 0).image_macs == (3 + 3 + 10) * macs
    assert costs("fedavg-at", 19, lam=0).image_macs == 3 * 50432
    assert costs("fedavg-at", 19, lam=1).image_macs == 13 * 50432


def test_personal_models_differ_between_clients(workspace: Path) -> None:
    run = replace(Study.read("demo", ROOT).find(f"{TASK}/digits-domains/split-mix/seed10"), root=workspace)
    protocol = run.protocol_model()
    data = load_data(run, protocol, torch.device("cpu"))
    entry = load().method(TASK, "split-mix")
    x = data.tests[0].examples.images[:8]
    for statistics in ("local", "post"):
        federation = entry.build(run, entry.settings(statistics=statistics))
        federation.start(data, protocol, torch.device("cpu"), 0)
        federation.round()
        assert federation.personal
        first, second = (federation.deploy(1.0, client=client)(x) for client in (14, 19))
        assert not torch.allclose(first, second)
        assert torch.isfinite(first).all()


def test_library_calls_have_the_defaults_of_the_rows() -> None:
    settings = {**FederatedSettings().model_dump(), **LocalSettings().model_dump()}
    calls = {
        FedTrainer: {"lr", "epochs", "momentum", "weight_decay", "loss", "temperature", "lam", "atom", "width", "rescale_init"},
        SplitMix: {"atom", "rescale_init"},
        local_train: {"momentum", "weight_decay", "loss", "temperature", "lam"},
    }
    for call, names in calls.items():
        parameters = inspect.signature(call).parameters
        assert {name: parameters[name].default for name in names} == {name: settings[name] for name in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("split-mix", {"method": "split-mix", "norm": "bn", "adversarial": False, "atom": 0.125, "rescale_init": True}),
        ("fedavg", {"method": "fedavg", "norm": "bn", "adversarial": False, "rescale_init": False}),
        ("fedavg-at", {"method": "fedavg", "norm": "bn", "adversarial": True, "rescale_init": False}),
        ("fedavg-dat", {"method": "split-mix", "norm": "dual_bn", "adversarial": True, "atom": 1, "rescale_init": False}),
        ("split-mix-dat", {"method": "split-mix", "norm": "dual_bn", "adversarial": True, "atom": 0.125, "rescale_init": True}),
    ],
)
def test_rows_differ_by_what_they_fix(name: str, expected: dict[str, object]) -> None:
    entry = load().method(TASK, name)
    federation = entry.build(None, entry.settings())
    assert {"method": federation.method, **federation.settings.model_dump()}.items() >= expected.items()


@pytest.mark.parametrize(
    ("network", "shape", "parameters", "macs"),
    [
        ("digit-cnn", (3, 28, 28), 0.126, 0.194),
        ("preresnet18", (3, 32, 32), 0.126, 0.128),
        ("alexnet", (3, 256, 256), 0.126, 0.212),
    ],
)
def test_mixed_networks_cost_an_eighth(network: str, shape: tuple[int, ...], parameters: float, macs: float) -> None:
    costs = network_costs(network, shape, 0.125)
    assert costs["parameters_ratio"] == pytest.approx(parameters, abs=5e-4)
    assert costs["macs_ratio"] == pytest.approx(macs, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("split-mix", {"atom": 0.3}, "must divide 0.125"),
        ("split-mix-dat", {"atom": 0.25}, "must divide 0.125"),
        ("split-mix", {"statistics": "global"}, "statistics"),
        ("split-mix-dat", {"lam": 1.5}, "lam = 1.5"),
        ("fedavg", {"width": 0}, "width = 0"),
        ("mixed-network", {"shape": [64]}, "shape must be channels, height and width"),
    ],
)
def test_impossible_settings(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(load().method(TASK, name).settings, settings, "test", name)
