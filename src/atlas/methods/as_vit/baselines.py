"""Random topologies as a study: what measures of untrained networks say, beside the accuracy of the trained ones."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import UserError
from atlas.harness.files import read_tensors, write_tensors, write_text
from atlas.harness.resume import TrainingLoop, training
from atlas.harness.seeds import derive_seed, generator, pick_device
from atlas.methods.as_vit.entry import PROXIES, RankingSettings
from atlas.methods.as_vit.geometry import great_circle
from atlas.methods.as_vit.ingredient import Candidates, shapes_of, write_artefact
from atlas.methods.as_vit.layout import count
from atlas.methods.as_vit.measures import MeasureSpec, Scorer, length_of
from atlas.methods.as_vit.network import build
from atlas.methods.as_vit.proxies import grad_norm, mean_curvature, synflow
from atlas.methods.as_vit.ranking import correlate, log_fit
from atlas.methods.as_vit.stages import finite, first_images, from_finite, spec_of
from atlas.tasks.image_classification.data import load_data
from atlas.tasks.image_classification.evaluate import accuracy
from atlas.tasks.image_classification.ingredients import Batch
from atlas.tasks.image_classification.models import parameter_groups
from atlas.tasks.image_classification.training import Training

if TYPE_CHECKING:
    from atlas.harness.study import Run
    from atlas.tasks.image_classification.data import Batches

TOPOLOGIES = "topologies.json"


class Trials:
    """The network that is trained at present, while a study trains its topologies one after the other."""

    def __init__(self, bench: Training, candidates: Candidates) -> None:
        self.bench, self.candidates = bench, candidates
        self.index = -1
        self.batches: Batches = iter(())
        self.begin(0)

    def begin(self, index: int) -> None:
        """Start with a topology at its initialisation."""
        bench, protocol = self.bench, self.bench.protocol
        self.index = index
        self.model = self.candidates.build(bench.run, bench.data.classes, index).to(bench.device)
        groups = parameter_groups(self.model, protocol.learning_rate, protocol.weight_decay, lambda name: 1.0)
        self.optimizer = torch.optim.AdamW(groups, lr=protocol.learning_rate, foreach=True)
        scaled = bench.device.type == "cuda" and protocol.precision == "float16"
        self.scaler = torch.amp.GradScaler(bench.device.type, enabled=scaled)

    def step(self, step: int, fresh: bool) -> float:
        """Take one training step of the present topology, with the task's schedule, mixing and loss; return the loss."""
        bench, per_epoch = self.bench, self.bench.data.steps_per_epoch
        bench.step = step
        if fresh or step % per_epoch == 0:
            self.batches = bench.data.train_batches(step // per_epoch, first=step % per_epoch)
        images, labels = next(self.batches)
        batch = bench.mixed(Batch(images, labels, labels))
        for group in self.optimizer.param_groups:
            group["lr"] = bench.learning_rate(step)
        self.model.train()
        with bench.autocast():
            logits = self.model(batch.images)
        loss = bench.base_loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return the present topology's index, weights and optimiser."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return {"index": self.index, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.begin(state["index"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def rank_topologies(run: Run) -> None:
    """Measure topologies untrained, then train them; leave ``topologies.json``, the law's curve, and all weights."""
    settings: RankingSettings = run.settings_model("as-vit-ranking")
    bench = Training(run)
    if not bench.data.size("validation"):
        raise UserError(f"{run.cell}: the best of several topologies is chosen on validation data; set data.validation_fraction")
    candidates = Candidates(settings)
    law = _kernel_law(run, candidates, bench)
    measured = _measured(run, candidates, bench)
    trials = Trials(bench, candidates)
    steps = bench.total_steps
    loop = training(run, settings.topologies * steps, {"trials": trials})
    for step in loop:
        index, within = divmod(step, steps)
        if index != trials.index:
            trials.begin(index)
        loss = trials.step(within, fresh=step == loop.start)
        if within + 1 == steps:
            write_tensors(weights_of(run, index), trials.model.state_dict())
            top1 = accuracy(trials.model, bench.data.batches("validation"))
            loop.log(final_loss=loss, validation_top1=top1)
    found = [
        {
            "topology": str(topology),
            **{name: finite(value) for name, value in row.items()},
            "validation_top1": log["validation_top1"],
        }
        for topology, row, log in zip(candidates.topologies(run.seed), measured, loop.history.rows, strict=True)
    ]
    write_artefact(run, TOPOLOGIES, {"topologies": found, "law": law})


def weights_of(run: Run, index: int) -> Any:
    """Where the weights of a trained topology lie."""
    return run.checkpoint / f"topology{index:03d}.safetensors"


def _rows(loop: TrainingLoop) -> list[dict[str, float]]:
    """The logged values of a finished loop, without the step."""
    return [{name: value for name, value in row.items() if name != "step"} for row in loop.history.rows]


def _kernel_law(run: Run, candidates: Candidates, bench: Training) -> list[dict[str, float]]:
    """Length of further topologies beside the product of their merge kernels, one draw of the weights each."""
    settings = candidates.settings
    random = generator(run.seed, "law")
    topologies = [candidates.space().sample(random) for _ in range(settings.law_topologies)]
    shape = candidates.shape
    image = (bench.protocol.backbone.in_chans, settings.law_size, settings.law_size)
    loop = training(run, len(topologies), {}, phase="law")
    for step in loop:
        weights, drawn = generator(run.seed, "law", step), generator(run.seed, "law-circle", step)
        model = build(topologies[step], img_size=image[1], in_chans=image[0], **shape, generator=weights).eval()
        circle = great_circle(image, settings.points, generator=drawn)
        loop.log(merge_product=topologies[step].merge_product, length=length_of(model, circle))
    return _rows(loop)


def _measured(run: Run, candidates: Candidates, bench: Training) -> list[dict[str, float]]:
    """Every proxy of every topology before training, as measured; larger is not always better."""
    settings, data = candidates.settings, bench.data
    shape = candidates.shape
    spec = spec_of(run, settings, data)
    score = Scorer(
        spec, derive_seed(run.seed, "ranking-weights"), settings.width, {name: shape[name] for name in ("stride", "max_width")}
    )
    batch = first_images(run, data, settings.proxy_images)
    topologies = candidates.topologies(run.seed)
    loop = training(run, len(topologies), {}, phase="measures")
    for step in loop:
        topology = topologies[step]
        counts = count(topology, **shape, **shapes_of(run, data.classes))
        found = score(topology)
        repeats = [_proxies(model, spec, batch, index) for index, model in _draws(run, candidates, bench, step)]
        means = {name: statistics.fmean(one[name] for one in repeats) for name in repeats[0]}
        sizes = {"merge_product": topology.merge_product, "parameters": counts.params, "macs": counts.macs}
        loop.log(length=found.length, ntk=found.ntk, **sizes, **means)
    return _rows(loop)


def _draws(run: Run, candidates: Candidates, bench: Training, index: int) -> Iterator[tuple[int, nn.Module]]:
    """One topology at several draws of its weights."""
    model = candidates.build(run, bench.data.classes, index)
    for repeat in range(candidates.settings.repeats):
        model.cpu().reset_parameters(generator(run.seed, "proxy", index, repeat))
        yield repeat, model.to(bench.device).eval()


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
    for index, row in enumerate(rows):
        model = Candidates(settings).build(run, data.classes, index).to(pick_device(run.resources.device))
        model.load_state_dict(read_tensors(weights_of(run, index)))
        row["top1"] = accuracy(model, data.batches("test"))
    top1 = [row["top1"] for row in rows]
    seed = derive_seed(run.seed, "bootstrap")
    taus, gaps = correlate(oriented(rows), top1, seed=seed, reference="length", draws=settings.draws)
    _write_rows(run, "topologies.csv", rows)
    _write_rows(run, "taus.csv", [{"proxy": name, **vars(tau)} for name, tau in taus.items()])
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


def _write_rows(run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.results / name, buffer.getvalue())
