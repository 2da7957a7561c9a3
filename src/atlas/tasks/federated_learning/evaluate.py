"""Evaluation: accuracy of every model that a method serves, on every client's test images, and what it all costs."""

from __future__ import annotations

import csv
import io
import itertools
from typing import TYPE_CHECKING, Any

from atlas.harness.execute import training_summary
from atlas.harness.files import read_tensors, write_text
from atlas.harness.seeds import pick_device
from atlas.nn.attacks import PGD
from atlas.nn.counts import forward_macs, parameter_count
from atlas.tasks.federated_learning.data import FederatedData, load_data
from atlas.tasks.federated_learning.federation import Federation
from atlas.tasks.federated_learning.protocol import WIDTHS, Protocol
from atlas.tasks.federated_learning.training import correct, pgd

if TYPE_CHECKING:
    from atlas.harness.run import Run

BYTES = 4
MEBIBYTE = 2**20
MIDDLE = 0.5


def metric_name(kind: str, width: float) -> str:
    """Return the name of the metric of a width: ``accuracy_w0125`` for a width of 0.125."""
    return f"{kind}_w{round(1000 * width):04d}"


def load_trained(run: Run) -> tuple[Federation, FederatedData, Protocol]:
    """Return a run's method with its trained model, its clients and its protocol."""
    protocol: Protocol = run.protocol_model()
    device = pick_device(run.resources.device)
    data = load_data(run, protocol, device)
    (method,) = run.build()
    method.start(data, protocol, device, run.seed)
    method.load_tensors({name: tensor.to(device) for name, tensor in read_tensors(run.weights).items()})
    return method, data, protocol


def outcomes(method: Federation, data: FederatedData, protocol: Protocol, seed: int) -> list[dict[str, Any]]:
    """One row per model, attack and client: width, lam, attack, client, domain, budget, n, correct."""
    rows: list[dict[str, Any]] = []
    attack = protocol.attack
    for width, lam in itertools.product(method.widths, method.lams or (None,)):
        robust = attack is not None and (len(method.widths) == 1 or width in attack.widths)
        for kind in ("none", "pgd") if robust else ("none",):
            strength = pgd(attack, attack.test_steps) if kind == "pgd" and attack is not None else None
            by_client = _by_client(method, data, protocol, width, lam, strength, seed)
            for client, (count, right) in sorted(by_client.items()):
                member = data.members[client]
                who = {"client": client, "domain": member.domain, "budget": member.budget}
                what = {"width": width, "lam": "" if lam is None else lam, "attack": kind}
                rows.append({**what, **who, "n": count, "correct": right})
    return rows


def _by_client(
    method: Federation,
    data: FederatedData,
    protocol: Protocol,
    width: float,
    lam: float | None,
    attack: PGD | None,
    seed: int,
) -> dict[int, tuple[int, int]]:
    """Client to its number of test images and how many of them are right; images that clients share are run once."""
    counts: dict[int, tuple[int, int]] = {}
    shared = None if method.personal else method.deploy(width, lam)
    for test in data.tests:
        for group in [(client,) for client in test.members] if shared is None else [test.members]:
            model = method.deploy(width, lam, group[0]) if shared is None else shared
            right = correct(model, test.examples, protocol.test_batch_size, attack, seed)
            counts |= dict.fromkeys(group, (len(test.examples), right))
    return counts


def accuracy_of(rows: list[dict[str, Any]], width: float, lam: float | None = None, attack: str = "none") -> list[float]:
    """Accuracy of every client under one model and attack, in [0, 1]."""
    wanted = "" if lam is None else lam
    chosen = [row for row in rows if row["width"] == width and row["lam"] == wanted and row["attack"] == attack]
    return [row["correct"] / row["n"] for row in chosen]


def mean(values: list[float]) -> float:
    """Return the mean of a number over clients, each with the same weight."""
    return sum(values) / len(values)


def width_metrics(rows: list[dict[str, Any]], lam: float | None) -> dict[str, float]:
    """Accuracy at every width, what width gains, its worst step, and how far the widest stays behind the best narrower one."""
    by_width = [mean(accuracy_of(rows, width, lam)) for width in WIDTHS]
    steps = [after - before for before, after in itertools.pairwise(by_width)]
    return {
        **{metric_name("accuracy", width): value for width, value in zip(WIDTHS, by_width, strict=True)},
        "width_gain": by_width[-1] - by_width[0],
        "width_worst_step": min(steps),
        "width_shortfall": by_width[-1] - max(by_width[:-1]),
    }


def robust_metrics(rows: list[dict[str, Any]], width: float, lams: tuple[float, ...]) -> dict[str, float]:
    """Clean and attacked accuracy: of the one model that there is, or at λ = 0, ½ and 1 with what the knob moves."""
    if not lams:
        return {"robust_accuracy": mean(accuracy_of(rows, width, None, "pgd"))}
    clean = {lam: mean(accuracy_of(rows, width, lam)) for lam in lams}
    attacked = {lam: mean(accuracy_of(rows, width, lam, "pgd")) for lam in lams}
    return {
        "robust_accuracy": attacked[MIDDLE],
        "accuracy_lam0": clean[0.0],
        "accuracy_lam1": clean[1.0],
        "robust_lam0": attacked[0.0],
        "robust_lam1": attacked[1.0],
        "robust_gain": attacked[1.0] - attacked[0.0],
        "clean_cost": clean[0.0] - clean[1.0],
    }


def cost_metrics(method: Federation, data: FederatedData, protocol: Protocol) -> dict[str, float]:
    """Size and cost of the widest model, and what training costs clients."""
    model = method.deploy(method.widths[-1], client=0 if method.personal else None)
    costs = [method.costs(client) for client in range(len(data.members))]
    share = 1.0 if protocol.clients_per_round is None else protocol.clients_per_round / len(costs)
    images = [len(member.train) * protocol.epochs * protocol.rounds * share for member in data.members]
    sent = sum(cost.upload_parameters for cost in costs) / len(costs)
    example = next(data.tests[0].examples.batches(2))[0]
    return {
        "parameters": parameter_count(model),
        "forward_macs": forward_macs(model, example),
        "upload_mebibytes": sent * BYTES / MEBIBYTE,
        "train_macs": sum(count * cost.image_macs for count, cost in zip(images, costs, strict=True)),
        "over_budget": sum(not cost.within_budget for cost in costs) / len(costs),
    }


def evaluate(run: Run) -> dict[str, float]:
    """Evaluate a trained federation; also writes ``evaluation.csv``, one row per model, attack and client."""
    method, data, protocol = load_trained(run)
    rows = outcomes(method, data, protocol, run.seed)
    _write(run, rows)
    summary = training_summary(run)
    widest, lam = method.widths[-1], MIDDLE if method.lams else None
    clients = accuracy_of(rows, widest, lam)
    values = {
        "accuracy": mean(clients),
        "worst_accuracy": min(clients),
        **cost_metrics(method, data, protocol),
        "rounds_to_95": summary["rounds_to_95"],
        "curve_area": summary["curve_area"],
    }
    if len(method.widths) > 1:
        values |= width_metrics(rows, lam)
    if protocol.attack is not None and method.trains_with_attacks:
        values |= robust_metrics(rows, widest, method.lams)
    return values


def _write(run: Run, rows: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.results / "evaluation.csv", buffer.getvalue())
