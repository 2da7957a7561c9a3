"""The stages of As-ViT as resumable jobs: search and growth. Their artefacts are readable JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from atlas.errors import UserError, did_you_mean
from atlas.harness.registry import Amount, Amounts
from atlas.harness.rehearsal import GPUS, LAUNCH_SECONDS, UTILISATION
from atlas.harness.resume import TrainingLoop, training
from atlas.harness.seeds import derive_seed, generator, pick_device
from atlas.methods.as_vit.costs import Work, growth_work, search_work, training_work
from atlas.methods.as_vit.growth import Growth, GrowthPlan, GrowthStep, matched, swin_like, uniform_scaling, width_for
from atlas.methods.as_vit.layout import MAX_WIDTH, count, layout, total_width
from atlas.methods.as_vit.measures import Measures, MeasureSpec, Scorer
from atlas.methods.as_vit.network import PUBLISHED
from atlas.methods.as_vit.plugin import FAMILY, SEARCH, read_artefact, shapes_of, space_with, write_artefact
from atlas.methods.as_vit.search import RandomSearch, Reinforce, RewardTracker
from atlas.methods.as_vit.settings import (
    DesignCostSettings,
    DetectorDesignSettings,
    GrowthSettings,
    MeasureSettings,
    SearchSettings,
)
from atlas.methods.as_vit.topology import STAGES, Quadruple, SearchSpace, Topology
from atlas.nn.work import work
from atlas.tasks.image_classification.data import load_data
from atlas.tasks.object_detection.data import load_pictures

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.data import ImageData

REINFORCE, RANDOM_SEARCH, CHECK, GROWTH = "reinforce", "random-search", "check", "growth"
"""Loops of the stages, and the comparison of what was found."""


def first_images(run: Run, data: ImageData, number: int) -> tuple[Tensor, Tensor]:
    """Training images (number, channels, height, width) that every measure of a run sees, and their labels (number,).

    They are drawn by the run's seed, without augmentation.
    """
    order = torch.randperm(data.size("train"), generator=generator(run.seed, "measured-images"))
    return data.chosen("train", order[:number].tolist())


def spec_of(run: Run, settings: MeasureSettings, images: Tensor, repeats: int | None = None) -> MeasureSpec:
    """Return how a run measures candidates, on images (n, channels, side, side); the circles follow from its seed."""
    return MeasureSpec(
        repeats or settings.repeats,
        settings.points,
        images,
        average=settings.average,
        circle_seed=derive_seed(run.seed, "circles", repeats or 0),
    )


# search


def search_amounts(run: Run) -> Amounts:
    """Trials of either search, and the three topologies that are compared; draws of the weights in each."""
    settings: SearchSettings = run.settings_model("as-vit-search")
    trials = Amount(settings.steps, settings.repeats, 1)
    return {REINFORCE: trials, RANDOM_SEARCH: trials, CHECK: Amount(1, settings.check_repeats, 1)}


def search_topology(run: Run) -> dict[str, float]:
    """Search a topology twice, with REINFORCE and with random search; leave ``search.json`` and the curves of both."""
    settings: SearchSettings = run.settings_model("as-vit-search")
    data = load_data(run, run.protocol_model(), pick_device(run.resources.device))
    return search_on(run, settings, first_images(run, data, settings.images)[0])


def search_on(run: Run, settings: SearchSettings, images: Tensor) -> dict[str, float]:
    """Search on images (n, channels, side, side); see :func:`search_topology`."""
    space = space_with(settings.choices)
    options = settings.model_dump(include={"stride", "max_width"})
    score = Scorer(spec_of(run, settings, images), derive_seed(run.seed, "search-weights"), settings.width, options)
    reinforce = Reinforce(
        space,
        score,
        lr=settings.learning_rate,
        generator=generator(run.seed, "reinforce"),
        tracker=RewardTracker(settings.window, settings.momentum, settings.relative),
    )
    random = RandomSearch(space, score, generator=generator(run.seed, "random-search"))
    loops = [training(run, settings.steps, {"search": reinforce}, phase=REINFORCE)]
    _follow(loops[0], reinforce)
    loops.append(training(run, settings.steps, {"search": random}, phase=RANDOM_SEARCH))
    _follow(loops[1], random)
    winners = {"topology": reinforce.best(), "random_search": random.best(), "largest_merges": space.largest_merges()}
    check = Scorer(
        spec_of(run, settings, images, settings.check_repeats), derive_seed(run.seed, "check"), settings.width, options
    )
    with work(CHECK):
        measured = {name: check(topology) for name, topology in winners.items()}
    write_artefact(run, SEARCH, _search_record(settings, space, reinforce, winners, measured))
    return {
        "merge_product": winners["topology"].merge_product,
        "random_merge_product": winners["random_search"].merge_product,
        **{f"{prefix}length": measured[name].length for name, prefix in PREFIXES.items()},
        **{f"{prefix}ntk": measured[name].ntk for name, prefix in PREFIXES.items()},
        "search_seconds": sum(loop.seconds for loop in loops),
    }


PREFIXES = {"topology": "", "random_search": "random_", "largest_merges": "merges_"}


def _follow(loop: TrainingLoop, searcher: Reinforce | RandomSearch) -> None:
    """Run a search to its end and log every trial."""
    for _ in loop:
        trial = searcher.step()
        values = {"length": trial.measures.length, "ntk": trial.measures.ntk, "merge_product": trial.topology.merge_product}
        if isinstance(searcher, Reinforce):
            values |= {"reward": trial.reward, "baseline": trial.baseline, "entropy": trial.entropy}
            values["largest_merges"] = statistics.fmean(searcher.probability(name)[-1] for name in ("K2", "K3", "K4"))
        loop.log(**values)


def _search_record(
    settings: SearchSettings,
    space: SearchSpace,
    searcher: Reinforce,
    winners: Mapping[str, Topology],
    measured: Mapping[str, Measures],
) -> dict[str, Any]:
    """Return what the search leaves, as plain values: topologies, their measures, the space, and the policy."""
    probabilities = {
        name: {str(choice): round(p, 6) for choice, p in zip(choices, searcher.probability(name), strict=True)}
        for name, choices in space.groups.items()
    }
    return {
        **{name: str(topology) for name, topology in winners.items()},
        "measures": {name: {"length": finite(m.length), "ntk": finite(m.ntk)} for name, m in measured.items()},
        **{name: getattr(settings, name) for name in ("width", "stride", "max_width")},
        "space": {name: list(choices) for name, choices in space.groups.items()},
        "probabilities": probabilities,
    }


def finite(value: float) -> float | None:
    """Return a number for JSON, or ``None`` where it is infinite or undefined; :func:`from_finite` reads it."""
    return value if math.isfinite(value) else None


# growth


def growth_amounts(run: Run) -> Amounts:
    """Steps of growth and draws of the weights in each; a family has about ten steps."""
    settings: GrowthSettings = run.settings_model("as-vit-growth")
    return {GROWTH: Amount(min(10, settings.max_steps), settings.repeats, 1)}


class Family:
    """Growth together with the members that it has made."""

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self.members: list[dict[str, Any]] = []

    def step(self) -> dict[str, Any] | None:
        """Add a member, or return ``None`` when growth has ended."""
        taken = self.growth.step()
        if taken is None:
            return None
        self.members.append(member(self.growth.plan, taken))
        return self.members[-1]

    def widen(self) -> None:
        """Go on to the end without measures: after a rehearsal's few steps, what is trained shall have its full size."""
        self.growth.policy = "max-width"
        while self.step() is not None:
            pass

    def state_dict(self) -> dict[str, Any]:
        """Return growth and members as plain values and a tensor."""
        return {"growth": self.growth.state_dict(), "members": self.members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the growth and the networks that it has passed from :meth:`state_dict`."""
        self.growth.load_state_dict(state["growth"])
        self.members = list(state["members"])


def member(plan: GrowthPlan, step: GrowthStep) -> dict[str, Any]:
    """Return one member of a family as plain values."""
    cap = plan.options.get("max_width", MAX_WIDTH)
    return {
        "architecture": plan.topology.format(step.depths, step.final_width),
        "parameters": step.counts.params,
        "macs": step.counts.macs,
        "total_width": total_width(step.depths, step.final_width, cap),
        "measured_width": step.width,
        "length": None if step.measures is None else finite(step.measures.length),
        "ntk": None if step.measures is None else finite(step.measures.ntk),
        "stage": step.stage + 1,
        "widest": step.widest,
        "candidates": step.candidates,
    }


def grow_family(run: Run) -> dict[str, float]:
    """Grow the searched topology, and scale it otherwise to the same size; leave ``family.json``."""
    settings: GrowthSettings = run.settings_model("as-vit-growth")
    record = read_artefact(run, "search", SEARCH)
    data = load_data(run, run.protocol_model(), pick_device(run.resources.device))
    return grow_on(run, settings, record, first_images(run, data, settings.images)[0], shapes_of(run, data.classes))


def grow_on(
    run: Run, settings: GrowthSettings, record: Mapping[str, Any], images: Tensor, shapes: Mapping[str, Any]
) -> dict[str, float]:
    """Grow what a search left, measured on images (n, channels, side, side); ``shapes`` is what else a network's count needs."""
    shape = {"stride": record["stride"], "max_width": record["max_width"]}
    counted = {**shape, **shapes}
    topology = Topology.parse(record["topology"])[0]
    sizes = (settings.width0, settings.width_scale, settings.ratios, settings.limit, settings.target)
    plan = GrowthPlan(topology, *sizes, options=counted)
    score = Scorer(spec_of(run, settings, images), derive_seed(run.seed, "growth-weights"), settings.width0, shape)
    family = Family(Growth(plan, score, generator=generator(run.seed, "growth")))
    loop = training(run, settings.max_steps, {"family": family}, phase=GROWTH)
    for _ in loop:
        added = family.step()
        if added is not None:
            values = {name: added[name] for name in ("parameters", "macs", "total_width", "measured_width", "stage")}
            loop.log(**values, widest=float(added["widest"]), length=from_finite(added["length"]), ntk=from_finite(added["ntk"]))
    if run.limit is not None:
        family.widen()
    members = family.members
    if not members:
        raise UserError(f"{run.cell}: growth took no step: its start has the target of {settings.target:,} parameters already")
    others = _other_scalings(run, settings, plan, members[-1]["parameters"])
    budget = {"topology": record["topology"], "budget": members[-1]["parameters"], **shape}
    write_artefact(run, FAMILY, {**budget, "rank": members, **others})
    return {
        "widest_share": statistics.fmean(grown["widest"] for grown in members),
        "growth_steps": len(members),
        **{name: members[-1][name] for name in ("parameters", "macs", "total_width")},
        "random_parameters_ratio": others["random"][-1]["parameters"] / members[-1]["parameters"],
        "growth_seconds": loop.seconds,
    }


def from_finite(value: float | None) -> float:
    """Return a number from JSON; what is missing was infinite."""
    return math.inf if value is None else value


def _other_scalings(run: Run, settings: GrowthSettings, plan: GrowthPlan, budget: int) -> dict[str, list[dict[str, Any]]]:
    """Scalings without measures of the same number of parameters, by name; empty where none comes near."""
    scalings = {
        policy: [
            member(plan, step)
            for step in matched(
                plan,
                budget,
                policy,  # type: ignore[arg-type]
                generator=generator(run.seed, "scaling", policy),
                tolerance=settings.tolerance,
                attempts=settings.attempts,
            )
        ]
        for policy in ("random", "max-width")
    }
    try:
        depths, width = uniform_scaling(plan.topology, budget, **plan.options)
        scalings["uniform"] = [_manual(plan.topology, depths, width, plan.options)]
    except ValueError:
        scalings["uniform"] = []
    scalings["swin"] = _swin(settings, plan, budget)
    return scalings


def _swin(settings: GrowthSettings, plan: GrowthPlan, budget: int) -> list[dict[str, Any]]:
    """The manual design of that size: windows of the asked side, where the grids allow it."""
    shapes = {name: plan.options[name] for name in ("img_size", "stride")}
    grids = [shapes["img_size"] // shapes["stride"] // 2**stage for stage in range(STAGES)]
    splits = [max(1, grid // settings.window) for grid in grids]
    kernel = max(4, plan.options["stride"])
    topology = swin_like(splits)
    topology = Topology((kernel, *topology.kernels[1:]), topology.splits, topology.expansions, topology.heads)
    try:
        layout(topology, width=plan.topology.heads, **shapes)
        width = width_for(topology, budget, depths=settings.swin_depths, **plan.options)
    except ValueError:
        return []
    return [_manual(topology, settings.swin_depths, width, plan.options)]


def _manual(topology: Topology, depths: Quadruple, width: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network that nobody measured as plain values."""
    counts = count(topology, depths=depths, width=width, **options)
    return {
        "architecture": topology.format(depths, width),
        "parameters": counts.params,
        "macs": counts.macs,
        "total_width": total_width(depths, width, options.get("max_width", MAX_WIDTH)),
    }


# the design of a detector's body


def design_amounts(run: Run) -> Amounts:
    """Trials of either search, what is compared, and steps of growth; draws of the weights in each."""
    settings: DetectorDesignSettings = run.settings_model("as-vit-detector-design")
    search, growth = settings.search, settings.growth
    trials = Amount(search.steps, search.repeats, 1)
    steps = Amount(min(10, growth.max_steps), growth.repeats, 1)
    return {REINFORCE: trials, RANDOM_SEARCH: trials, CHECK: Amount(1, search.check_repeats, 1), GROWTH: steps}


def design_detector(run: Run) -> dict[str, float]:
    """Search and grow on a detector's pictures; leave ``search.json`` and ``family.json`` as the two stages do."""
    settings: DetectorDesignSettings = run.settings_model("as-vit-detector-design")
    protocol = run.protocol_model()
    pictures = load_pictures(run, "train")
    random = generator(run.seed, "measured-images")

    def some(number: int) -> Tensor:
        order = torch.randperm(len(pictures), generator=random)[:number].tolist()
        return torch.stack([fitted(pictures[place][0], protocol.image_size, protocol.mean, protocol.std) for place in order])

    found = search_on(run, settings.search, some(settings.search.images))
    record = json.loads((run.checkpoint / SEARCH).read_text())
    shapes = {"img_size": protocol.image_size, "in_chans": protocol.in_chans, "num_classes": 1, "drop_path": 0.0}
    grown = grow_on(run, settings.growth, record, some(settings.growth.images), shapes)
    return {**found, **{name: grown[name] for name in ("widest_share", "growth_steps", "parameters", "macs", "growth_seconds")}}


def fitted(image: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A picture (channels, height, width) in [0, 1] as detectors see it: scaled into a square, normalised, padded with zeros."""
    factor = side / max(image.shape[1:])
    size = [max(1, min(side, round(factor * length))) for length in image.shape[1:]]
    if size != list(image.shape[1:]):
        image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    shape = (-1, 1, 1)
    image = (image - image.new_tensor(mean).view(shape)) / image.new_tensor(std).view(shape)
    return functional.pad(image, (0, side - size[1], 0, side - size[0]))


# what it costs


def design_cost(run: Run) -> dict[str, float]:
    """Count search and growth of the published topology, and one epoch of every topology that the search tries."""
    settings: DesignCostSettings = run.settings_model("as-vit-design-cost")
    if settings.card not in GPUS:
        raise UserError(f"{run.cell}: there is no figure for the card {settings.card}; {did_you_mean(settings.card, GPUS)}")
    topology = Topology.parse(PUBLISHED["as-vit-large"])[0]
    searched = search_work(topology, settings)
    grown, candidates = growth_work(topology, settings)
    trained = training_work(settings)
    both = searched + grown
    return {
        "design_hours": hours(both, settings.card),
        "design_flops": both.flops,
        "search_flops": searched.flops,
        "growth_flops": grown.flops,
        "growth_candidates": candidates,
        "training_hours": hours(trained, settings.card),
        "training_flops": trained.flops,
        "flops_ratio": both.flops / trained.flops,
    }


def hours(spent: Work, card: str) -> float:
    """Hours on a card: arithmetic at the usual utilisation, or launching kernels one by one, whichever is more."""
    return max(spent.flops / (GPUS[card].peak * UTILISATION), spent.launches * LAUNCH_SECONDS) / 3600
