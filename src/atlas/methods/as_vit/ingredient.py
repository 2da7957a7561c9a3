"""As-ViT in the task's training loop: hierarchical networks as backbones, and re-tokenisation as a schedule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from atlas.datasets import get_dataset
from atlas.errors import UserError
from atlas.harness.seeds import generator, pick_device
from atlas.methods.as_vit.entry import RankingSettings
from atlas.methods.as_vit.layout import PositionEmbedding, count
from atlas.methods.as_vit.network import Design, HierarchicalViT, build, published
from atlas.methods.as_vit.retokenize import ProgressiveTokenizer
from atlas.methods.as_vit.topology import SearchSpace, Topology
from atlas.tasks.image_classification.ingredients import Ingredient

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.training import Training

SEARCH = "search.json"
FAMILY = "family.json"
DesignOf = Callable[["Run", int], Design]


def shapes_of(run: Run, classes: int) -> dict[str, Any]:
    """What the protocol fixes of a network: images, classes, stochastic depth."""
    backbone = run.protocol_model().backbone
    return {
        "img_size": backbone.img_size,
        "in_chans": backbone.in_chans,
        "num_classes": classes,
        "drop_path": backbone.drop_path_rate,
    }


def read_artefact(run: Run, role: str, name: str) -> dict[str, Any]:
    """Read the JSON file that a needed stage left."""
    content: dict[str, Any] = json.loads((run.needed(role).checkpoint / name).read_text())
    return content


def design_of(source: str, key: str, pos_embed: PositionEmbedding) -> DesignOf:
    """Say which network a row trains, to be looked up when it is built.

    Parameters
    ----------
    source : {"search", "growth", "published"}
        Stage that chose it; or the paper.
    key : str
        Which of what the stage chose; ``random`` of a search is a draw of the run's own seed.
    """

    def from_search(run: Run, classes: int) -> Design:
        found = read_artefact(run, "search", SEARCH)
        if key == "random":
            topology = SearchSpace(found["space"]).sample(generator(run.seed, "random-topology"))
        else:
            topology = Topology.parse(found[key])[0]
        shape = {name: found[name] for name in ("width", "stride", "max_width")}
        return Design(topology, pos_embed=pos_embed, **shape, **shapes_of(run, classes))

    def from_growth(run: Run, classes: int) -> Design:
        found = read_artefact(run, "growth", FAMILY)
        if not found[key]:
            raise UserError(f"{run.cell}: the growth found no {key} scaling of {found['budget']:,} parameters")
        topology, depths, width = Topology.parse(found[key][-1]["architecture"])
        assert depths is not None
        assert width is not None
        shape = {name: found[name] for name in ("stride", "max_width")}
        return Design(topology, width, depths, pos_embed=pos_embed, **shape, **shapes_of(run, classes))

    def from_paper(run: Run, classes: int) -> Design:
        return published(key, **shapes_of(run, classes))

    return {"search": from_search, "growth": from_growth, "published": from_paper}[source]


def hierarchical(model: nn.Module, run: Run) -> HierarchicalViT:
    """Return the model as what it must be for re-tokenisation, or say what is wrong with the recipe."""
    if not isinstance(model, HierarchicalViT):
        raise UserError(f"{run.cell}: re-tokenisation needs a network of As-ViT before it, for example as-vit+retokenize")
    return model


@lru_cache
def image_macs(design: Design, stride: int) -> int:
    """Multiply-accumulates of one image at a stride."""
    return count(design.topology, **design.options(stride=stride, ceil=design.ceil or stride != design.stride)).macs


def tokens_and_cost(design: Design, stride: int) -> dict[str, float]:
    """What the curves show of a tokenisation."""
    return {"tokens": (design.img_size // stride) ** 2, "image_macs": image_macs(design, stride)}


class Network(Ingredient):
    """A network of the hierarchical space as the backbone; its weights follow from the run's seed."""

    def __init__(self, design: DesignOf) -> None:
        self.design = design

    def backbone(self, run: Run, classes: int) -> HierarchicalViT:
        """Build the network at its published initialisation."""
        design = self.design(run, classes)
        return build(design.topology, **design.options(), generator=generator(run.seed, "init"))

    def watched(self, training: Training) -> Mapping[str, float]:
        """Tokens of the first stage and cost of an image, which re-tokenisation changes."""
        model = training.model
        return tokens_and_cost(model.design, model.stride) if isinstance(model, HierarchicalViT) else {}


class Retokenize(Ingredient):
    """Sets the tokenisation before every step; training ends, and evaluation is, at the finest."""

    def __init__(self, phases: Sequence[tuple[float, int]]) -> None:
        self.phases = phases
        self.tokenizer: ProgressiveTokenizer | None = None

    def start(self, training: Training) -> None:
        """Check the phases against the network; a rehearsal, of one step, takes it at the finest and most expensive one."""
        phases = self.phases if training.run.limit is None else [(0.0, self.phases[-1][1])]
        try:
            self.tokenizer = ProgressiveTokenizer(hierarchical(training.model, training.run), phases)
        except ValueError as error:
            raise UserError(f"{training.run.cell}: retokenize: {error}") from None

    def on_epoch(self, training: Training, epoch: int) -> None:
        """Set the tokenisation of the step that comes, also where training goes on after an interruption."""
        self._set(training, training.step)

    def after_step(self, training: Training, step: int) -> None:
        """Set the tokenisation of the next step."""
        self._set(training, step + 1)

    def watched(self, training: Training) -> Mapping[str, float]:
        """Tokens and cost of the step that was taken; the network is set for the next one already."""
        if self.tokenizer is None:
            return {}
        stride = self.tokenizer.stride(training.step / training.total_steps)
        return tokens_and_cost(self.tokenizer.model.design, stride)

    def _set(self, training: Training, step: int) -> None:
        if self.tokenizer is not None and self.tokenizer.step(step / training.total_steps):
            training.shape_changed()

    def after(self, training: Training) -> nn.Module:
        """Leave the network at its finest tokenisation."""
        if self.tokenizer is not None:
            self.tokenizer.step(1.0)
        return training.model


def mean_share(run: Run) -> float:
    """What an image costs on average over the phases of a recipe's re-tokenisation, relative to one at the finest of them."""
    ingredients = run.build()
    (network,) = (one for one in ingredients if isinstance(one, Network))
    (schedule,) = (one for one in ingredients if isinstance(one, Retokenize))
    model = network.backbone(run, int(str(get_dataset(run.data).facts["classes"])))
    tokenizer = ProgressiveTokenizer(model, schedule.phases)
    return tokenizer.average_macs() / tokenizer.macs(1.0)


class Candidates(Ingredient):
    """The topologies of a ranking study; as a backbone, the first of them."""

    def __init__(self, settings: RankingSettings) -> None:
        self.settings = settings

    @property
    def shape(self) -> dict[str, Any]:
        """Stem width, stride of the stem and cap on the width: arguments of ``build`` and ``count``."""
        settings = self.settings
        return {"width": settings.width, "stride": settings.stride, "max_width": settings.max_width}

    def space(self) -> SearchSpace:
        """The published space with the study's own choices."""
        return space_with(self.settings.choices)

    def topologies(self, seed: int) -> list[Topology]:
        """The uniform sample of a seed."""
        random = generator(seed, "ranking")
        return [self.space().sample(random) for _ in range(self.settings.topologies)]

    def build(self, run: Run, classes: int, index: int) -> HierarchicalViT:
        """One of the networks at its initialisation."""
        topology = self.topologies(run.seed)[index]
        return build(topology, **self.shape, **shapes_of(run, classes), generator=generator(run.seed, "init", index))  # type: ignore[arg-type]

    def backbone(self, run: Run, classes: int) -> HierarchicalViT:
        """The first network."""
        return self.build(run, classes, 0)


def space_with(choices: Mapping[str, Sequence[int]]) -> SearchSpace:
    """The published space, some of its groups replaced.

    Raises
    ------
    UserError
        A group does not exist or is empty.
    """
    try:
        return SearchSpace({**SearchSpace.official().groups, **choices})
    except ValueError as error:
        raise UserError(f"choices: {error}") from None


def evaluate(run: Run) -> dict[str, float]:
    """Evaluate a trained network on the test split."""
    from atlas.tasks.image_classification.data import load_data
    from atlas.tasks.image_classification.evaluate import essentials, load_trained

    data = load_data(run, run.protocol_model(), pick_device(run.resources.device))
    model = hierarchical(load_trained(run, data), run)
    return {**essentials(run, model, data), "macs": image_macs(model.design, model.design.stride)}


def write_artefact(run: Run, name: str, content: Mapping[str, Any]) -> None:
    """Write what a stage found, for the runs that need it and for the reader."""
    from atlas.harness.files import write_json

    for folder in (run.checkpoint, run.results):
        write_json(Path(folder) / name, content)
