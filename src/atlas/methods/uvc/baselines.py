"""The baselines as plug-ins: the same teacher, loss and path to a smaller model, another decision on what to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.harness.files import write_json, write_tensors
from atlas.harness.resume import Values
from atlas.harness.seeds import generator
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.criteria import (
    batch_gradients,
    cubic_sparsity,
    evenly_spaced_plan,
    gradual_plan,
    one_shot_plan,
    prunable_weights,
    saliency_plan,
    taylor_scores,
    uniform_plan,
    weight_masks,
)
from atlas.methods.uvc.distillation import class_logits, kd_term
from atlas.methods.uvc.exporting import zero_removed
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.plugin import (
    EXPORTED,
    PLAN,
    SEARCH_PHASE,
    SLACK,
    Distilled,
    Trainer,
    accuracy_before,
    kept_units,
    latencies,
    scores_of,
)
from atlas.methods.uvc.regrowth import (
    UnitSignals,
    chosen_plan,
    exchanged,
    exchanged_share,
    random_plan,
    silence,
    unit_counts,
    unit_signals,
)
from atlas.methods.uvc.settings import (
    BlindSettings,
    DynamicViTSettings,
    S2ViTESettings,
    StructuredSettings,
    UnstructuredSettings,
)
from atlas.methods.uvc.tokens import (
    SelectiveBlocks,
    TokenSelector,
    ratio_for_budget,
    ratio_loss,
    select_tokens,
    selective_macs,
    selectors_of,
    token_loss,
)
from atlas.nn.vit import at_least_float32
from atlas.nn.work import TRAIN
from atlas.tasks.image_classification.ingredients import Batch, Ingredients
from atlas.tasks.image_classification.models import build_model

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.evaluate import Evaluation
    from atlas.tasks.image_classification.training import Training


class Dense(Distilled):
    """Keeps everything: the dense model trained on, with itself as the teacher."""

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Return the plan that keeps everything."""
        return CompressionPlan.identity(ViTShape.from_timm(training.model))


class Uniform(Distilled):
    """Removes the same share of dims and neurons from every layer, the smallest first."""

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Rank units by the squared norms of what they feed forward."""
        shape, scores = scores_of(training)
        return uniform_plan(shape, scores, self.budget)


class Blind(Distilled):
    """Keeps blocks by their position alone, without looking at their weights."""

    settings: BlindSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Keep the spaced or the first blocks, from scratch those of the model at its initialisation."""
        if self.settings.from_scratch:
            _start_afresh(training)
        shape = ViTShape.from_timm(training.model)
        return evenly_spaced_plan(shape, self.budget, self.settings.order)


def _start_afresh(training: Training) -> None:
    """Give the model of a recipe its initial weights again."""
    fresh = build_model(training.run, Ingredients(training.run.build()), training.data.classes)
    training.model.load_state_dict(fresh.state_dict())


def _some_batches(training: Training, count: int, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return the first (images, labels) of one of the epochs that no training has; every rank looks at the whole of them."""
    return list(islice(training.data.train_batches(10**6 + epoch, whole=True), count))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels)


class Structured(Distilled):
    """Criteria on heads, dims and neurons; gradual pruning trains while it prunes, the others decide at once."""

    settings: StructuredSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Rank units by magnitude, at once or gradually, by first-order change of the loss, or by saliency."""
        if self.settings.criterion == "gradual":
            return self._gradually(training, trainer)
        shape, scores = scores_of(training)
        model = training.model.eval()
        if self.settings.criterion == "magnitude":
            return one_shot_plan(shape, scores, self.budget)
        batches, size = _some_batches(training, self.settings.batches), training.protocol.micro_batch
        if self.settings.criterion == "taylor":
            importance = taylor_scores(model, batches, _cross_entropy, shape, micro_batch=size)
            return one_shot_plan(shape, importance, self.budget)
        return saliency_plan(model, *batches[0], _cross_entropy, self.budget, micro_batch=size)

    def _gradually(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Prune by magnitude in jumps, while the resumable loop ``search`` trains with what is removed held at 0."""
        shape = ViTShape.from_timm(training.model)
        epochs = self.settings.stages[0]
        total = epochs * training.data.steps_per_epoch
        interval = max(1, total // (self.settings.jumps + 1))
        held = _Held(CompressionPlan.identity(shape))

        def after(step: int, rate: float) -> Mapping[str, float]:
            if step % interval == 0:
                _, scores = scores_of(training)
                times = {"start": 0, "interval": interval, "times": self.settings.jumps}
                held.plan = gradual_plan(shape, scores, self.budget, step, **times)
            zero_removed(training.model, held.plan)
            return {"resource": held.plan.r_phys(shape)} if trainer.logs(step, total) else {}

        parts = {"plan": held}
        trainer.fit(SEARCH_PHASE, training.model, epochs, 0, self.rate(training), parts=parts, after=after)
        return one_shot_plan(shape, scores_of(training)[1], self.budget)

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train for the rest of the epochs, further down the same schedule of the learning rate."""
        _train_on(self, training, trainer, small)


def _train_on(row: Distilled, training: Training, trainer: Trainer, small: nn.Module) -> None:
    """Train an exported model for the epochs after the export, further down the schedule that began before it."""
    before, after = row.settings.stages
    done = before * training.data.steps_per_epoch
    rate = row.rate(training)
    trainer.fit(TRAIN, small, after, before, lambda step: rate(done + step))


class _Held:
    """A plan that changes from step to step, as a part of the resume state."""

    def __init__(self, plan: CompressionPlan) -> None:
        self.plan = plan

    def state_dict(self) -> dict[str, str]:
        return {"plan": self.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        self.plan = CompressionPlan.from_json(state["plan"])


class S2ViTE(Distilled):
    """S²ViTE: heads and neurons are exchanged in the resumable loop ``search``, then the network that is left trains on."""

    settings: S2ViTESettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Train with as many heads and neurons as the plan in the end keeps; what is removed puts out nothing."""
        settings, model = self.settings, training.model
        shape = ViTShape.from_timm(model)
        counts = unit_counts(shape, settings.budget, settings.head_share, settings.neuron_share)
        if settings.from_scratch:
            _start_afresh(training)
            held = _Held(random_plan(shape, counts, generator(training.run.seed, "units")))
        else:
            signals = self.signals(training, shape, 0)
            held = _Held(chosen_plan(shape, counts, signals.keep_heads, signals.keep_neurons))
        silence(model, held.plan)
        epochs = settings.stages[0]
        total = epochs * training.data.steps_per_epoch

        def after(step: int, rate: float) -> Mapping[str, float]:
            silence(model, held.plan)
            done, share = step + 1, 0.0
            if done % settings.interval == 0 and done < total:
                share = exchanged_share(done, total, settings.exchange)
                held.plan = exchanged(held.plan, self.signals(training, shape, done), shape, share)
                silence(model, held.plan)
            return {"resource": held.plan.r_phys(shape), "exchanged": share} if trainer.logs(step, total) else {}

        trainer.fit(SEARCH_PHASE, model, epochs, 0, self.rate(training), parts={"plan": held}, after=after)
        return held.plan

    def signals(self, training: Training, shape: ViTShape, step: int) -> UnitSignals:
        """What one batch, another at every step, says about the units."""
        ((images, labels),) = _some_batches(training, 1, step)
        size = training.protocol.micro_batch
        return unit_signals(training.model.eval(), images, labels, _cross_entropy, shape, size)

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train for the rest of the epochs, further down the same schedule of the learning rate."""
        _train_on(self, training, trainer, small)


class DynamicViT(Distilled):
    """DynamicViT: nothing of the network goes; tokens do, by predictors that learn while it is trained on."""

    settings: DynamicViTSettings

    @property
    def budget(self) -> float:
        """Share of multiply-accumulates that the row may keep; 1 where the share of tokens is given instead."""
        return self.settings.budget if self.settings.budget is not None else 1.0

    def trainer(self, training: Training) -> TokenTrainer:
        """Return what trains, with the dense model as the teacher."""
        return TokenTrainer(training, self.settings)

    def ratio(self, shape: ViTShape) -> float:
        """Share of the patches that stays at each place."""
        settings = self.settings
        return settings.keep_ratio if settings.budget is None else ratio_for_budget(shape, settings.budget, settings.places)

    def lr_multiplier(self, parameter: str) -> float:
        """Of predictors; what is 0 here, the rest, learns as :class:`TokenTrainer` says step by step."""
        return float(".selector." in parameter)

    def selective(self, model: nn.Module, run: Run) -> nn.Module:
        """Return a copy of the dense model that drops tokens, with predictors at their initialisation."""
        ratio = self.ratio(ViTShape.from_timm(model))
        return select_tokens(model, ratio, self.settings.places, generator(run.seed, "token predictors"))

    def after(self, training: Training) -> nn.Module:
        """Put predictors in, train, and leave the model before that beside the weights."""
        trainer = self.trainer(training)
        training.spent.train_flops = 0.0
        plan = CompressionPlan.identity(shape := ViTShape.from_timm(training.model))
        model = self.selective(training.model, training.run)
        write_tensors(training.run.checkpoint / EXPORTED, model.state_dict())
        trainer.train(model, self.rate(training))
        kept = [selector.count for selector in selectors_of(model)]
        write_json(training.run.results / PLAN, {**kept_units(plan, shape), "tokens": kept})
        return model

    def restore(self, model: nn.Module, run: Run) -> nn.Module:
        """Put predictors into a dense model, so that the weights that training left can be loaded."""
        return self.selective(model, run)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The metrics of every row; all units stay, and the formula counts the tokens that are left at each block."""
        shape = ViTShape.from_timm(evaluation.baseline)
        macs = selective_macs(shape, self.ratio(shape), self.settings.places)
        left = macs / shape.full_macs
        return {
            "acc_pre_ft": accuracy_before(evaluation),
            "r_phys": left,
            "r_paper": left,
            "budget_error": left - self.budget,
            "budget_met": float(0 <= self.budget - left <= SLACK),
            "macs": macs,
            "blocks_kept": shape.depth,
            "heads_kept": sum(shape.per_block("heads")),
            "neurons_kept": sum(shape.per_block("mlp_dim")),
            "search_seconds": 0.0,
            **latencies(evaluation),
        }


class TokenTrainer(Trainer):
    """Training with token selection: all tokens pass, decisions mask them, and the teacher's tokens are followed too.

    Attributes
    ----------
    selectors, blocks, patches
        Of the model that trains: its token selectors, all of its blocks, and how many patches a picture has.
    tokens : Tensor
        (batch, tokens, dim) of its last pass, after the final norm.
    """

    settings: DynamicViTSettings
    selectors: list[TokenSelector]
    blocks: SelectiveBlocks
    patches: int
    tokens: Tensor

    def train(self, model: nn.Module, rate: Callable[[int], float]) -> None:
        """Train the predictors at ``rate`` of the step, and the rest slowly, after it stood still for some epochs."""
        settings, per_epoch = self.settings, self.training.data.steps_per_epoch
        selective: Any = model
        self.selectors, self.blocks = list(selectors_of(model)), selective.blocks
        self.patches = int(selective.patch_embed.num_patches)
        quick = {id(parameter) for selector in self.selectors for parameter in selector.parameters()}
        slow = settings.backbone_rate * settings.learning_rate

        def before(step: int) -> None:
            wanted = 0.0 if step < settings.frozen_epochs * per_epoch else min(slow, rate(step)) / rate(step)
            assert self.optimizer is not None
            for group in self.optimizer.param_groups:
                group["lr_scale"] = 1.0 if id(group["params"][0]) in quick else wanted

        handle = selective.norm.register_forward_hook(self._see)
        try:
            self.fit(TRAIN, model, settings.epochs, 0, rate, before=before)
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.tokens = output

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """The protocol's loss, KL from the teacher's predictions, distances of tokens, and of the shares that stay: a scalar."""
        settings, training = self.settings, self.training
        teacher: Any = self.teacher
        with torch.no_grad(), self.autocast():
            wanted = teacher.forward_features(batch.images)
            predicted = teacher.forward_head(wanted)
        with self.autocast():
            logits = model(batch.images)
        prefix, decisions = self.blocks.prefix, self.blocks.decisions
        seen, taught = (at_least_float32(tokens)[:, prefix:] for tokens in (self.tokens, wanted))
        follows = token_loss(seen, taught, decisions[-1], training.ranks)
        ratios = ratio_loss(decisions, [selector.keep_ratio for selector in self.selectors])
        return (
            training.base_loss(logits, batch)
            + settings.class_weight * kd_term(class_logits(logits), class_logits(predicted))
            + settings.token_weight * follows
            + settings.ratio_weight * ratios
        )

    def forward_flops(self, model: nn.Module) -> float:
        """Operations of a training image's forward pass, which all tokens go through."""
        counts = [selector.count for selector in self.selectors]
        for selector in self.selectors:
            selector.count = self.patches
        try:
            return super().forward_flops(model)
        finally:
            for selector, count in zip(self.selectors, counts, strict=True):
                selector.count = count


class Unstructured(Distilled):
    """Masks on single weights; nothing becomes smaller."""

    settings: UnstructuredSettings

    def choose(self, training: Training, trainer: Trainer) -> CompressionPlan:
        """Keep the whole architecture; criteria other than gradual pruning mask its weights at once."""
        if self.settings.criterion != "gradual":
            _apply(training.model, self.masks(training, self.settings.sparsity))
        return CompressionPlan.identity(ViTShape.from_timm(training.model))

    def masks(self, training: Training, sparsity: float) -> dict[str, Tensor]:
        """Return which weights stay, as bool masks by name, of the weights' shapes (…)."""
        weights = prunable_weights(training.model)
        if self.settings.criterion != "taylor":
            return weight_masks({name: weight.detach().abs() for name, weight in weights.items()}, sparsity)
        model = training.model.eval()
        batches = _some_batches(training, self.settings.batches)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for images, labels in batches:
            size = training.protocol.micro_batch
            gradients = batch_gradients(model, images, labels, _cross_entropy, list(weights.values()), size)
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += gradient
        return weight_masks({name: (total[name] * weight.detach()).abs() for name, weight in weights.items()}, sparsity)

    def finetune(self, training: Training, trainer: Trainer, small: nn.Module) -> None:
        """Train with masked weights held at 0; gradual pruning renews the masks at every jump."""
        settings, per_epoch = self.settings, training.data.steps_per_epoch
        total = settings.epochs * per_epoch
        interval = max(1, int(settings.ramp * total) // (settings.jumps + 1))
        held = Values(masks={name: weight != 0 for name, weight in prunable_weights(small).items()})

        def after(step: int, rate: float) -> Mapping[str, float]:
            if settings.criterion == "gradual" and step % interval == 0:
                sparsity = cubic_sparsity(step, 0, interval, settings.jumps, settings.sparsity)
                magnitudes = {name: weight.detach().abs() for name, weight in prunable_weights(small).items()}
                held.masks = weight_masks(magnitudes, sparsity)
            _apply(small, held.masks)
            return {}

        trainer.fit(TRAIN, small, settings.epochs, 0, self.rate(training), parts={"masks": held}, after=after)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return the metrics of every row, and the share of weights that are not 0."""
        weights = prunable_weights(evaluation.model).values()
        kept = sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
        return {**super().evaluate(evaluation), "weights_kept": kept}


@torch.no_grad()
def _apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to 0, in place."""
    for name, weight in prunable_weights(model).items():
        weight.mul_(masks[name].to(weight))
