"""Random topologies as a study: what measures of untrained networks say, beside the accuracy of the trained ones."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import UserError
from atlas.harness.files import read_tensors, write_tensors, write_text
from atlas.harness.resume import Values, training
from atlas.harness.seeds import derive_seed, generator, pick_device
from atlas.methods.as_vit.geometry import great_circle
from atlas.methods.as_vit.layout import count
from atlas.methods.as_vit.measures import MeasureSpec, Scorer, length_of
from atlas.methods.as_vit.network import HierarchicalViT, build
from atlas.methods.as_vit.plugin import shapes_of, space_with, write_artefact
from atlas.methods.as_vit.proxies import grad_norm, mean_curvature, synflow
from atlas.methods.as_vit.ranking import correlate, log_fit
from atlas.methods.as_vit.settings import PROXIES, REHEARSED, RankingSettings
from atlas.methods.as_vit.stages import finite, first_images, from_finite, spec_of
from atlas.methods.as_vit.topology import SearchSpace, Topology
from atlas.nn.precision import weight_type
from atlas.tasks.image_classification.data import load_data
from atlas.tasks.image_classification.entry import training_amount
from atlas.tasks.image_classification.evaluate import accuracy
from atlas.tasks.image_classification.ingredients import Batch, Ingredient
from atlas.tasks.image_classification.models import parameter_groups
from atlas.tasks.image_classification.training import Training

if TYPE_CHECKING:
    from atlas.harness.registry import Amounts
    from atlas.harness.run import Run

TOPOLOGIES = "topologies.json"


class RandomTopologies(Ingredient):
    """The topologies of a ranking study; as a backbone, the first of them."""

    settings: RankingSettings

    @property
    def shape(self) -> dict[str, Any]:
        """Stem width, stride of the stem and cap on the width: arguments of ``build`` and ``count``."""
        return self.settings.model_dump(include={"width", "stride", "max_width"})

    def space(self) -> SearchSpace:
        """Return the published space with the study's own choices."""
        return space_with(self.settings.choices)

    def topologies(self) -> list[Topology]:
        """Return the uniform sample of the run's seed."""
        random = generator(self.run.seed, "ranking")
        return [self.space().sample(random) for _ in range(self.settings.topologies)]

    def build(self, classes: int, index: int) -> HierarchicalViT:
        """Build one of the networks at its initialisation."""
        run, topology = self.run, self.topologies()[index]
        return build(topology, **self.shape, **shapes_of(run, classes), generator=generator(run.seed, "init", index))  # type: ignore[arg-type]

    def backbone(self, run: Run, classes: int) -> HierarchicalViT:
        """Build the first network of the run's sample, at its initialisation."""
        return self.build(classes, 0)


def topology_phase(index: int) -> str:
    """Return the name of the loop that trains a topology of the ranking study."""
    return f"topology{index:03d}"


def amounts(run: Run) -> Amounts:
    """A training of each topology that a rehearsal has, as if all the others cost the same; measures cost little beside it."""
    settings: RankingSettings = run.settings_model("as-vit-ranking")
    training_of_one = training_amount(run, run.protocol_model().epochs)
    share = training_of_one._replace(steps=training_of_one.steps * settings.topologies / REHEARSED)
    return {topology_phase(index): share for index in range(REHEARSED)}


def rank_topologies(run: Run) -> None:
    """Train topologies one after the other, and measure them untrained; leave ``topologies.json``, the law, and all weights."""
    settings: RankingSettings = run.settings_model("as-vit-ranking")
    bench = Training(run)
    if not bench.data.size("validation") and run.limit is None:
        raise UserError(f"{run.cell}: the best of several topologies is chosen on validation data; set data.validation_fraction")
    bench.protocol = bench.protocol.model_copy(update={"ema_decay": None, "evaluate_ema": False})
    candidates = RandomTopologies(run, settings)
    trained = [_trained(bench, candidates, index) for index in range(settings.topologies)]
    measured = _measured(run, candidates, bench)
    topologies = [
        {"topology": str(topology), **{name: finite(value) for name, value in values.items()}, **result}
        for topology, values, result in zip(candidates.topologies(), measured, trained, strict=True)
    ]
    law = _kernel_law(run, candidates, bench)
    write_rows(run, "law.csv", law)
    write_artefact(run, TOPOLOGIES, {"topologies": topologies, "law": law})


def _trained(bench: Training, candidates: RandomTopologies, index: int) -> dict[str, float]:
    """Train one topology by the protocol, leave its weights, and return its last loss and its validation accuracy."""
    run, protocol = bench.run, bench.protocol
    bench.model = model = candidates.build(bench.data.classes, index).to(bench.device, weight_type(protocol.precision))
    groups = parameter_groups(model, protocol.learning_rate, protocol.weight_decay, lambda name: 1.0)
    optimizer = torch.optim.AdamW(groups, lr=protocol.learning_rate, foreach=True)
    scaled = bench.device.type == "cuda" and protocol.precision == "float16"
    scaler = torch.amp.GradScaler(bench.device.type, enabled=scaled)
    last = Values(loss=0.0)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "last": last}
    loop = training(run, bench.total_steps, parts, phase=topology_phase(index))
    for step, (images, labels) in loop.over_epochs(bench.data.steps_per_epoch, bench.data.train_batches):
        bench.step = step
        last.loss = float(bench.ranks.mean(bench.take_step(optimizer, scaler, Batch(images, labels, labels))["loss"]))
    write_tensors(weights_of(run, index), model.state_dict())
    validated = accuracy(model, bench.data.batches("validation")) if bench.data.size("validation") else 0.0
    return {"loss": last.loss, "validation_top1": validated}


def weights_of(run: Run, index: int) -> Path:
    """Return where the weights of a trained topology lie."""
    return run.checkpoint / f"{topology_phase(index)}.safetensors"


def _kernel_law(run: Run, candidates: RandomTopologies, bench: Training) -> list[dict[str, Any]]:
    """Length of further topologies beside the product of their merge kernels, one draw of the weights each."""
    settings = candidates.settings
    random = generator(run.seed, "law")
    image = (bench.protocol.backbone.in_chans, settings.law_size, settings.law_size)
    rows = []
    for index in range(settings.law_topologies):
        topology = candidates.space().sample(random)
        weights, drawn = generator(run.seed, "law", index), generator(run.seed, "law-circle", index)
        model = build(topology, img_size=image[1], in_chans=image[0], **candidates.shape, generator=weights).eval()
        length = length_of(model, great_circle(image, settings.points, generator=drawn))
        rows.append({"topology": str(topology), "merge_product": topology.merge_product, "length": length})
    return rows


def _measured(run: Run, candidates: RandomTopologies, bench: Training) -> list[dict[str, float]]:
    """Every proxy of every topology before training, as measured; larger is not always better."""
    settings, data = candidates.settings, bench.data
    spec = spec_of(run, settings, first_images(run, data, settings.images)[0])
    options = settings.model_dump(include={"stride", "max_width"})
    score = Scorer(spec, derive_seed(run.seed, "ranking-weights"), settings.width, options)
    batch = first_images(run, data, settings.proxy_images)
    rows = []
    for index, topology in enumerate(candidates.topologies()):
        counts = count(topology, **candidates.shape, **shapes_of(run, data.classes))
        measures = score(topology)
        repeats = [_proxies(model, spec, batch, repeat) for repeat, model in _draws(run, candidates, bench, index)]
        means = {name: statistics.fmean(repeat[name] for repeat in repeats) for name in repeats[0]}
        sizes = {"merge_product": topology.merge_product, "parameters": counts.params, "macs": counts.macs}
        rows.append({"length": measures.length, "ntk": measures.ntk, **sizes, **means})
    return rows


def _draws(run: Run, candidates: RandomTopologies, bench: Training, index: int) -> Iterator[tuple[int, nn.Module]]:
    """Yield one topology at several draws of its weights, each with its number."""
    model = candidates.build(bench.data.classes, index)
    for repeat in range(candidates.settings.repeats):
        model.cpu().float().reset_parameters(generator(run.seed, "proxy", index, repeat))
        yield repeat, model.to(bench.device, weight_type(bench.protocol.precision)).eval()


def _proxies(model: Any, spec: MeasureSpec, batch: tuple[Tensor, Tensor], repeat: int) -> dict[str, float]:
    return {
        "curvature": mean_curvature(model, spec.circles[repeat]),
        "synflow": synflow(model, batch[0].shape[1:]),
        "grad_norm": grad_norm(model, *batch),
    }


def oriented(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Proxies of all topologies, each so that larger should mean more accurate."""
    signs = {"ntk": -1.0, "curvature": -1.0}
    return {name: [signs.get(name, 1.0) * from_finite(row[name]) for row in rows] for name in PROXIES}


def judge_ranking(run: Run) -> dict[str, float]:
    """Test every trained topology and correlate; leave ``topologies.csv`` and ``taus.csv`` beside the metrics."""
    settings: RankingSettings = run.settings_model("as-vit-ranking")
    content = json.loads((run.checkpoint / TOPOLOGIES).read_text())
    rows = content["topologies"]
    data = load_data(run, run.protocol_model(), pick_device(run.resources.device))
    candidates = RandomTopologies(run, settings)
    for index, row in enumerate(rows):
        model = candidates.build(data.classes, index).to(pick_device(run.resources.device))
        model.load_state_dict(read_tensors(weights_of(run, index)))
        row["top1"] = accuracy(model, data.batches("test"))
    top1 = [row["top1"] for row in rows]
    seed = derive_seed(run.seed, "bootstrap")
    taus, gaps = correlate(oriented(rows), top1, seed=seed, reference="length", draws=settings.draws)
    write_rows(run, "topologies.csv", rows)
    write_rows(run, "taus.csv", [{"proxy": name, **vars(tau)} for name, tau in taus.items()])
    law = content["law"]
    best = max(rows, key=lambda row: row["validation_top1"])
    return {
        **{f"tau_{name}": tau.tau for name, tau in taus.items()},
        "tau_length_low": taus["length"].low,
        "tau_length_high": taus["length"].high,
        **{f"tau_over_{name}": gaps[name].tau for name in ("ntk", "merge_product")},
        **{f"tau_over_{name}_low": gaps[name].low for name in ("ntk", "merge_product")},
        "law_r2": log_fit([row["length"] for row in law], [row["merge_product"] for row in law])[0],
        "top1_mean": statistics.fmean(top1),
        "top1_sd": statistics.stdev(top1),
        "top1_best": best["top1"],
    }


def write_rows(run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a table beside the metrics, for figures."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.results / name, buffer.getvalue())
