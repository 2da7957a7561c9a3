"""Compression in the task's loop: what comes after training, in resumable phases, and back from the files that it leaves.

``plan.json`` says what is kept, ``exported.safetensors`` holds the smaller model before fine-tuning. The batches, their mixing
and label smoothing are the protocol's; the loss is (1 − α) · the protocol's + α · distillation from the dense model.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import AtlasError
from atlas.harness.files import read_tensors, write_json, write_tensors, write_text
from atlas.harness.seeds import generator
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.compression import ANNEALED, cosine_rate, settle, weight_step
from atlas.methods.uvc.controller import UVCController
from atlas.methods.uvc.distillation import kd_term
from atlas.methods.uvc.exporting import export
from atlas.methods.uvc.gates import apply_gates, remove_gates
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.repair import uniform_widths
from atlas.methods.uvc.scores import UnitScores, unit_scores
from atlas.methods.uvc.settings import BudgetSettings, CompressorSettings, DistillSettings, UVCSettings, ValueLayout
from atlas.nn.counts import forward_flops
from atlas.nn.precision import mixed_precision
from atlas.nn.timing import interleaved_seconds, median_ratio
from atlas.nn.work import TRAIN
from atlas.tasks.image_classification.entry import training_amount
from atlas.tasks.image_classification.evaluate import Evaluation, predict
from atlas.tasks.image_classification.ingredients import Batch, Ingredient
from atlas.tasks.image_classification.models import parameter_groups
from atlas.tasks.image_classification.training import TRAINING_PASSES

if TYPE_CHECKING:
    from atlas.harness.registry import Amounts
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.passing import Passing
    from atlas.tasks.image_classification.training import Training

PLAN, EXPORTED, SEARCH = "plan.json", "exported.safetensors", "search.json"
SEARCH_PHASE = "search"
"""Name of the loop before the export."""
LATENCY_ROUNDS = 20
SLACK = 0.01
"""How far below its budget a model may stay that counts as having met it."""
Hook = Callable[[int, float], Mapping[str, float]]
"""Called after each step with its number and learning rate; returns what the curves show of it."""


class Distilled(Ingredient):
    """Base of all rows: trains on from the dense model of the recipe, with that model as the teacher."""

    dense_role = "dense"
    settings: CompressorSettings

    @property
    def budget(self) -> float:
        """Share of multiply-accumulates that the row may keep."""
        return self.settings.budget if isinstance(self.settings, BudgetSettings) else 1.0

    @property
    def layout(self) -> ValueLayout:
        """How heads whose values differ in width are laid out in the exported model."""
        return self.settings.v_layout if isinstance(self.settings, BudgetSettings) else "padded"

    def trainer(self, training: Training) -> Trainer:
        """Return what trains, with the model as it is now as the teacher."""
        return Trainer(training, self.settings)

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Decide what to keep; may train ``training.model``."""
        raise NotImplementedError

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train the exported model for the epochs after the export, with the same teacher."""
        before, after = self.settings.stages
        trainer.fit(TRAIN, small, after, before, self.rate(training))

    def rate(self, training: Training) -> Callable[[int], float]:
        """Return the learning rate by step of fine-tuning: a linear warm-up, then half a cosine."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        warmup, total = int(settings.warmup_epochs * per_epoch), settings.epochs * per_epoch
        return lambda step: cosine_rate(step, total, settings.learning_rate, warmup, settings.min_learning_rate)

    def after(self, training: Training) -> nn.Module:
        """Decide, export, fine-tune; leave the plan and the model before fine-tuning beside the weights."""
        trainer = self.trainer(training)
        training.spent.train_flops = 0.0
        plan = self.choose(training, trainer)
        small = export(training.model, plan, self.layout)
        folder = training.run.checkpoint
        write_text(folder / PLAN, plan.to_json())
        write_tensors(folder / EXPORTED, small.state_dict())
        self.finetune(training, trainer, small)
        write_json(training.run.results / PLAN, kept_units(plan, ViTShape.from_timm(training.model)))
        return small

    def restore(self, model: nn.Module, run: Run) -> nn.Module:
        """Cut a dense model to the shapes of the plan that training left, so that its weights can be loaded."""
        plan = CompressionPlan.from_json((run.checkpoint / PLAN).read_text())
        return export(model, plan, self.layout, check=False)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Accuracy before fine-tuning, what is left, and latency beside the dense backbone."""
        folder = evaluation.run.checkpoint
        plan = CompressionPlan.from_json((folder / PLAN).read_text())
        shape = ViTShape.from_timm(evaluation.baseline)
        seconds = json.loads((folder / SEARCH).read_text())["seconds"] if (folder / SEARCH).is_file() else 0.0
        kept = plan.keep[:, None]
        return {
            "acc_pre_ft": accuracy_before(evaluation),
            "r_phys": plan.r_phys(shape),
            "r_paper": plan.r_paper(shape),
            "budget_error": plan.r_phys(shape) - self.budget,
            "budget_met": float(0 <= self.budget - plan.r_phys(shape) <= SLACK),
            "macs": plan.macs(shape),
            "blocks_kept": int(plan.keep.sum()),
            "heads_kept": int((plan.heads & kept).sum()),
            "neurons_kept": int((plan.neurons & kept).sum()),
            "search_seconds": seconds,
            **latencies(evaluation),
        }


def accuracy_before(evaluation: Evaluation) -> float:
    """Accuracy on the test split of the exported model as it was before it was trained on."""
    before = copy.deepcopy(evaluation.model)
    before.load_state_dict(read_tensors(evaluation.run.checkpoint / EXPORTED))
    logits, labels = predict(before, evaluation.data.batches("test"))
    return float((logits.argmax(1) == labels).double().mean())


class Searched(Distilled):
    """UVC: the primal–dual search decides, with counts of units (``prune``), gates on blocks (``skip``), or both."""

    settings: UVCSettings

    def __init__(self, run: Run, settings: UVCSettings, *, prune: bool = True, skip: bool = True) -> None:
        super().__init__(run, settings)
        self.prune, self.skip = prune, skip

    def controller(self, training: Training) -> UVCController:
        """Return the primal–dual controller of the dense model, whose gates are drawn from the run's seed."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        return UVCController(
            training.model,
            settings.budget,
            settings.preset,
            prune=self.prune,
            skip=self.skip,
            generator=generator(training.run.seed, "gates"),
            anneal_steps=int(ANNEALED * (settings.search_epochs - settings.search_warmup_epochs) * per_epoch),
            gate=settings.gate,
            pace=settings.pace,
        )

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Search in the resumable loop ``search``, and repair the plan to the budget."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        controller = self.controller(training)
        warmup = settings.search_warmup_epochs * per_epoch
        total = settings.search_epochs * per_epoch

        def before(step: int) -> None:
            controller.warming_up = step < warmup
            if step % per_epoch == 0:
                controller.start_epoch()

        def after(step: int, rate: float) -> Mapping[str, float]:
            seen = controller.step(rate)
            return seen.values() if trainer.logs(step, total) else {}

        apply_gates(training.model, controller)
        seconds = trainer.fit(
            SEARCH_PHASE,
            training.model,
            settings.search_epochs,
            0,
            lambda step: cosine_rate(step, total, settings.search_learning_rate, max(1, warmup)),
            parts={"controller": controller},
            clipped=controller.parameters(),
            before=before,
            again=controller.rewind,
            after=after,
        )
        remove_gates(training.model)
        write_json(training.run.checkpoint / SEARCH, {"seconds": seconds})
        plan = settle(controller, settings.budget)
        return uniform_widths(plan, controller.shape, controller.scores()) if settings.v_layout == "uniform" else plan


class Trainer:
    """Distillation from the dense model, in resumable phases."""

    def __init__(self, training: Training, settings: CompressorSettings) -> None:
        self.training, self.settings = training, settings
        self.teacher: nn.Module = copy.deepcopy(training.model).eval().requires_grad_(False)
        self.taught = not isinstance(settings, DistillSettings) or settings.alpha > 0
        self.teacher_flops = forward_flops(self.teacher, training.data.example(1)) if self.taught else 0.0
        self.optimizer: torch.optim.Optimizer | None = None

    def forward_flops(self, model: nn.Module) -> float:
        """Operations of a training image's forward pass."""
        return forward_flops(model, self.training.data.example(1))

    def logs(self, step: int, total: int) -> bool:
        """Return whether the curves get a row at a step, counted from 0."""
        return (step + 1) % self.training.protocol.log_every == 0 or step + 1 == total

    def fit(
        self,
        phase: str,
        model: nn.Module,
        epochs: int,
        first_epoch: int,
        rate: Callable[[int], float],
        *,
        parts: Mapping[str, Any] | None = None,
        clipped: list[Tensor] | None = None,
        before: Callable[[int], None] | None = None,
        again: Callable[[], None] | None = None,
        after: Hook | None = None,
    ) -> float:
        """Train a model for some epochs; return the seconds that it took, over all processes that worked on it.

        ``first_epoch`` numbers the first one, for the order of the data; ``parts`` is further state, ``clipped`` are tensors of
        any shapes (…) whose gradients are clipped with the weights', ``before`` and ``after`` act around each step. A batch goes
        through the model in the pieces of the protocol's ``micro_batch``; ``again`` acts before each of them but the first.
        """
        training, settings = self.training, self.settings
        data, per_epoch = training.data, training.data.steps_per_epoch
        factor = training.ingredients.lr_multiplier
        groups = parameter_groups(model, 1.0, settings.weight_decay, lambda name: factor(name.replace(".block.", ".")))
        self.optimizer = optimizer = torch.optim.AdamW(groups, foreach=True)
        total = epochs * per_epoch
        flops = TRAINING_PASSES * self.forward_flops(model) + self.teacher_flops
        training.spent.train_flops += flops * total * training.protocol.batch_size
        loop = training.phase(phase, total, {"model": model, "optimizer": optimizer, **(parts or {})})
        passing = training.passing(model)

        def batches(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
            return data.train_batches(first_epoch + epoch, first)

        for step, (images, labels) in loop.over_epochs(per_epoch, batches):
            if before is not None:
                before(step)
            training.step = first_epoch * per_epoch + step
            model.train()
            losses = self.losses(passing, Batch(images, labels, labels), again, clipped or [])
            loss = weight_step(optimizer, losses, rate(step), [*model.parameters(), *(clipped or [])], settings.clip_norm)
            values = after(step, rate(step)) if after is not None else {}
            if self.logs(step, total):
                value = float(training.ranks.mean(loss))
                if not math.isfinite(value):
                    raise AtlasError(f"{training.run.cell}: the loss is not finite at step {step + 1} of {phase}: {value}")
                loop.log(loss=value, **values, learning_rate=rate(step))
        return loop.seconds

    def losses(
        self, passing: Passing, batch: Batch, again: Callable[[], None] | None, others: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """The scalar loss of a batch in shares, one for each piece that goes through the model.

        The gradients of ``others``, which are no weights of the model, are averaged over ranks after the last of them.
        """
        for index, (share, piece) in enumerate(passing.passes(batch)):
            if index and again is not None:
                again()
            yield share * self.loss(passing, self.training.mixed(piece))
        for tensor in others:
            if tensor.grad is not None:
                tensor.grad = self.training.ranks.mean(tensor.grad)

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(1 − α) · the protocol's loss + α · distillation, a scalar; at α = 0 the teacher is not asked."""
        settings = self.settings
        assert isinstance(settings, DistillSettings)
        if not self.taught:
            with self.autocast():
                logits = model(batch.images)
            return self.training.base_loss(logits, batch)
        with torch.no_grad(), self.autocast():
            wanted = self.teacher(batch.images)
        with self.autocast():
            logits = model(batch.images)
        term = kd_term(logits, wanted, settings.temperature, settings.kd_norm, settings.hard)
        return (1 - settings.alpha) * self.training.base_loss(logits, batch) + settings.alpha * term

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where the protocol asks for mixed precision: the controller reads gradients, which must not be scaled."""
        return mixed_precision(self.training.device, self.training.protocol.precision, scaled=False)


def kept_units(plan: CompressionPlan, shape: ViTShape) -> dict[str, Any]:
    """Return how many heads, dims and neurons every block of a plan keeps, and of how many, as plain values for figures."""
    heads, dims = plan.heads.sum(-1), plan.dims.sum((1, 2))
    total = torch.tensor(shape.per_block("heads")) * torch.tensor(shape.per_block("head_dim"))
    return {
        "keep": plan.keep.int().tolist(),
        "heads": heads.tolist(),
        "dims": dims.tolist(),
        "neurons": plan.neurons.sum(-1).tolist(),
        "of": {"heads": [*shape.per_block("heads")], "dims": total.tolist(), "neurons": [*shape.per_block("mlp_dim")]},
    }


def forward_seconds(models: list[nn.Module], images: Tensor, rounds: int, warmup: int = 3) -> list[list[float]]:
    """Time forward passes of (batch, channels, height, width) images; seconds by model and round, see :mod:`atlas.nn.timing`."""
    return interleaved_seconds([partial(model.eval(), images) for model in models], rounds, device=images.device, warmup=warmup)


def latencies(evaluation: Evaluation) -> dict[str, float]:
    """Median milliseconds of the compressed model, and of its ratio to the dense backbone, at batches of 1 and 64."""
    metrics: dict[str, float] = {}
    rehearsed = evaluation.run.limit is not None
    for batch in (1, 64):
        images = evaluation.data.example(1 if rehearsed else batch)
        dense, own = forward_seconds([evaluation.baseline, evaluation.model], images, 1 if rehearsed else LATENCY_ROUNDS)
        metrics[f"latency_ms_b{batch}"] = 1e3 * statistics.median(own)
        metrics[f"latency_ratio_b{batch}"] = median_ratio(own, dense)
    return metrics


def scores_of(training: Training) -> tuple[ViTShape, UnitScores]:
    """Return the shape of the model in training, and the squared norms of what its units feed forward."""
    shape = ViTShape.from_timm(training.model)
    return shape, unit_scores(training.model, shape)


def amounts(run: Run) -> Amounts:
    """Return how much is trained in the epochs before the export, and in those after it."""
    (settings,) = (own for own in map(run.settings_model, run.recipe) if isinstance(own, CompressorSettings))
    before, after = settings.stages
    return {SEARCH_PHASE: training_amount(run, before), TRAIN: training_amount(run, after)}
