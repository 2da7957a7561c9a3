"""As-ViT in the task's training loop: hierarchical networks as backbones, and re-tokenisation as a schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from atlas.datasets import get_dataset
from atlas.errors import UserError
from atlas.harness.files import read_tensors, write_json
from atlas.harness.seeds import generator, pick_device
from atlas.methods.as_vit.detection import four_stages
from atlas.methods.as_vit.growth import width_for
from atlas.methods.as_vit.layout import SEARCH_WIDTH, SINGLE_BLOCKS, count
from atlas.methods.as_vit.network import PUBLISHED, Design, HierarchicalViT, build, published
from atlas.methods.as_vit.retokenize import ProgressiveTokenizer
from atlas.methods.as_vit.settings import DetectorSettings, ModelSettings, RetokenizeSettings
from atlas.methods.as_vit.topology import SearchSpace, Topology
from atlas.nn.pyramids import StagePyramid
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.image_classification.entry import training_amount
from atlas.tasks.image_classification.ingredients import Ingredient
from atlas.tasks.object_detection.backbones import Backbone

if TYPE_CHECKING:
    from atlas.harness.registry import Amounts
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.training import Training

SEARCH, FAMILY = "search.json", "family.json"
"""What the stages leave."""
ATTEMPTS = 200  # draws of a random topology of a given size
SAME_SIZE = 0.1  # relative difference of parameters up to which two networks have one size


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
    """Return the number of tokens and the multiply-accumulates of an image at a stride, for the curves."""
    return {"tokens": (design.img_size // stride) ** 2, "image_macs": image_macs(design, stride)}


class Network(Ingredient):
    """A network of the hierarchical space as the backbone; its weights follow from the run's seed."""

    settings: ModelSettings

    def design(self, run: Run, classes: int) -> Design:
        """Return which network a run trains; called once what it needs is there."""
        raise NotImplementedError

    def backbone(self, run: Run, classes: int) -> HierarchicalViT:
        """Build the network at its published initialisation."""
        design = self.design(run, classes)
        return build(design.topology, **design.options(), generator=generator(run.seed, "init"))

    def watched(self, training: Training) -> Mapping[str, float]:
        """Tokens of the first stage and cost of an image, which re-tokenisation changes."""
        model = training.model
        return tokens_and_cost(model.design, model.stride) if isinstance(model, HierarchicalViT) else {}


class Searched(Network):
    """A topology that the search left under ``key``; ``random`` is a draw of the run's own seed from the searched space."""

    def __init__(self, run: Run, settings: ModelSettings, *, key: str) -> None:
        super().__init__(run, settings)
        self.key = key

    def design(self, run: Run, classes: int) -> Design:
        """Return the topology at the width of the search, one block in every stage."""
        record = read_artefact(run, "search", SEARCH)
        if self.key == "random":
            topology = SearchSpace(record["space"]).sample(generator(run.seed, "random-topology"))
        else:
            topology = Topology.parse(record[self.key])[0]
        shape = {name: record[name] for name in ("width", "stride", "max_width")}
        return Design(topology, pos_embed=self.settings.pos_embed, **shape, **shapes_of(run, classes))


class Grown(Network):
    """The last network of a scaling that growth left under ``key``."""

    def __init__(self, run: Run, settings: ModelSettings, *, key: str) -> None:
        super().__init__(run, settings)
        self.key = key

    def design(self, run: Run, classes: int) -> Design:
        """Return the network of the grown size."""
        family = read_artefact(run, "growth", FAMILY)
        if not family[self.key]:
            raise UserError(f"{run.cell}: the growth found no {self.key} scaling of {family['budget']:,} parameters")
        topology, depths, width = Topology.parse(family[self.key][-1]["architecture"])
        assert depths is not None
        assert width is not None
        shape = {name: family[name] for name in ("stride", "max_width")}
        return Design(topology, width, depths, pos_embed=self.settings.pos_embed, **shape, **shapes_of(run, classes))


class Published(Network):
    """A model of the paper, by its name."""

    def __init__(self, run: Run, settings: Settings, *, name: str) -> None:
        super().__init__(run, settings)
        self.name = name

    def design(self, run: Run, classes: int) -> Design:
        """Return the published design, at the protocol's size of images."""
        return published(self.name, **shapes_of(run, classes))


class Retokenize(Ingredient):
    """Sets the tokenisation before every step; training ends, and evaluation is, at the finest."""

    settings: RetokenizeSettings

    def __init__(self, run: Run, settings: RetokenizeSettings) -> None:
        super().__init__(run, settings)
        self.tokenizer: ProgressiveTokenizer | None = None

    def start(self, training: Training) -> None:
        """Check the phases against the network; a rehearsal, of one step, takes it at the finest and most expensive one."""
        phases = self.settings.phases
        if training.run.limit is not None:
            phases = ((0.0, phases[-1][1]),)
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
    (network,) = (plugin for plugin in ingredients if isinstance(plugin, Network))
    (schedule,) = (plugin for plugin in ingredients if isinstance(plugin, Retokenize))
    model = network.backbone(run, int(str(get_dataset(run.data).facts["classes"])))
    tokenizer = ProgressiveTokenizer(model, schedule.settings.phases)
    return tokenizer.average_macs() / tokenizer.macs(1.0)


def retokenized_amounts(run: Run) -> Amounts:
    """A rehearsal trains at the finest tokenisation alone: its images are counted in images of the mean cost of all phases."""
    amount = training_amount(run, run.protocol_model().epochs)
    return {TRAIN: amount if run.limit is None else amount._replace(batch=amount.batch / mean_share(run))}


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
    """Evaluate a trained network on the test split: accuracy, size and cost of an image."""
    from atlas.tasks.image_classification.data import load_data
    from atlas.tasks.image_classification.evaluate import essentials, load_trained

    data = load_data(run, run.protocol_model(), pick_device(run.resources.device))
    model = hierarchical(load_trained(run, data), run)
    return {**essentials(run, model, data), "macs": image_macs(model.design, model.design.stride)}


def write_artefact(run: Run, name: str, content: Mapping[str, Any]) -> None:
    """Write what a stage found, for the runs that need it and for the reader."""
    for folder in (run.checkpoint, run.results):
        write_json(folder / name, content)


class Body(Backbone):
    """A network of the space, its four stages under a feature pyramid."""

    def design(self, run: Run) -> Design:
        """Return the architecture of the network to build."""
        raise NotImplementedError

    def reference(self, run: Run) -> int:
        """Pixels at which windows of attention have the side that they keep."""
        raise NotImplementedError

    def pyramid(self, run: Run) -> nn.Module:
        """Body and pyramid, at the published initialisation."""
        body = four_stages(self.design(run), self.reference(run))
        return StagePyramid(body, body.widths, run.protocol_model().pyramid_channels)


class DetectorBody(Body):
    """The network that the settings name."""

    settings: DetectorSettings

    def design(self, run: Run) -> Design:
        """The settings' architecture at the size of the protocol's pictures."""
        text = self.settings.architecture or PUBLISHED["as-vit-large"]
        return detector_design(run, text, stride=self.settings.stride)

    def reference(self, run: Run) -> int:
        """Pixels at which attention's windows have the side that they keep, from the settings."""
        return self.settings.reference

    def pyramid(self, run: Run) -> nn.Module:
        """Body and pyramid; the body's weights are those of a classifier where the settings name a file."""
        body = four_stages(self.design(run), self.reference(run))
        if self.settings.weights:
            load_classifier(body, run, run.root / self.settings.weights.replace("{seed}", str(run.seed)))
        return StagePyramid(body, body.widths, run.protocol_model().pyramid_channels)


class RandomDetectorBody(DetectorBody):
    """A topology drawn by the run's seed, as wide as gives it the parameters of the settings' architecture."""

    def design(self, run: Run) -> Design:
        """The architecture's depths and size, and any topology."""
        return of_equal_size(run, super().design(run))


class GrownDetectorBody(Body):
    """The network that search and growth left; windows of attention keep the side with which it was grown."""

    def design(self, run: Run) -> Design:
        """The last member of the family, at the size of the protocol's pictures."""
        family = read_artefact(run, "design", FAMILY)
        shape = {name: family[name] for name in ("stride", "max_width")}
        return detector_design(run, family["rank"][-1]["architecture"], **shape)

    def reference(self, run: Run) -> int:
        """The protocol's pixels, at which it was grown."""
        return int(run.protocol_model().image_size)


class RandomGrownDetectorBody(GrownDetectorBody):
    """A topology drawn by the run's seed, as wide as gives it the parameters of the grown network."""

    def design(self, run: Run) -> Design:
        """The grown network's depths and size, and any topology."""
        return of_equal_size(run, super().design(run))


def detector_design(run: Run, text: str, **shape: Any) -> Design:
    """An architecture, as the authors write it, for pictures of the protocol; the classifier that a body lacks counts nothing."""
    protocol = run.protocol_model()
    topology, depths, width = Topology.parse(text)
    return Design(
        topology,
        width=width or SEARCH_WIDTH,
        depths=depths or SINGLE_BLOCKS,
        img_size=protocol.image_size,
        in_chans=protocol.in_chans,
        num_classes=1,
        drop_path=protocol.drop_path_rate,
        **shape,
    )


def of_equal_size(run: Run, given: Design) -> Design:
    """Another topology, drawn by the run's seed, of a network's depths and as many parameters as it has.

    Raises
    ------
    UserError
        No topology that was drawn can have them.
    """
    choices = {"K1": [kernel for kernel in SearchSpace.official().groups["K1"] if kernel >= given.stride]}
    space = space_with(choices)
    budget = count(given.topology, **given.options(ceil=True)).params
    shapes = given.options(ceil=True)
    del shapes["width"]
    random = generator(run.seed, "random-topology")
    for _ in range(ATTEMPTS):
        drawn = replace(space.sample(random), heads=given.topology.heads)
        try:
            width = width_for(drawn, budget, **shapes)
        except ValueError:
            continue
        made = replace(given, topology=drawn, width=width)
        if abs(count(drawn, **made.options(ceil=True)).params / budget - 1) <= SAME_SIZE:
            return made
    raise UserError(f"{run.cell}: none of {ATTEMPTS} random topologies can have {budget:,} parameters")


def load_classifier(body: nn.Module, run: Run, path: Path) -> None:
    """Give a body the weights of a classifier of its architecture.

    Raises
    ------
    UserError
        There is no such file, or it is of another network.
    """
    if not path.is_file():
        raise UserError(f"{run.cell}: there are no weights {path}; train that classifier first, or set weights to nothing")
    saved = read_tensors(path)
    own = body.state_dict()
    wrong = [name for name, value in own.items() if name not in saved or saved[name].shape != value.shape]
    if wrong:
        raise UserError(f"{run.cell}: {path} is of another network: {wrong[0]} is missing or has another shape")
    body.load_state_dict({name: saved[name] for name in own})
