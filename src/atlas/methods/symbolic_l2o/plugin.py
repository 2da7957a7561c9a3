"""The chain of the paper as competitors of learned optimization, and its optimizer as an ingredient of image classification.

Teacher → records → equation → optimizer, and the template that is fitted to the records and then meta-tuned.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from atlas.errors import UserError
from atlas.harness.execute import training_summary
from atlas.harness.files import write_bytes, write_json, write_text
from atlas.harness.registry import Amount, Amounts
from atlas.harness.seeds import derive_seed, generator
from atlas.l2o import MetaTrainer, Policy, rnnprop
from atlas.l2o.recurrent import L2ODM, RNNprop
from atlas.methods.symbolic_l2o.distillation import Distillation, distill_records
from atlas.methods.symbolic_l2o.expressions import parse
from atlas.methods.symbolic_l2o.interpretability import (
    mapping_complexity,
    network_field,
    r_squared,
    responses,
    widest_field,
)
from atlas.methods.symbolic_l2o.optimizer import SymbolicOptimizer
from atlas.methods.symbolic_l2o.policy import SymbolicPolicy
from atlas.methods.symbolic_l2o.recording import Records, features_of, record, trace
from atlas.methods.symbolic_l2o.rules import ExpressionRule, TanhTemplate
from atlas.nn.work import work
from atlas.tasks.image_classification.ingredients import Ingredient
from atlas.tasks.learned_optimization.competitors import (
    Competitor,
    Learned,
    MetaTrained,
    restore_policies,
    store_policies,
)

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.methods.symbolic_l2o.settings import EquationSettings, RecordSettings
    from atlas.tasks.learned_optimization.data import Arena
    from atlas.tasks.learned_optimization.evaluate import Evaluation

ROWS, RULE = "rows.npz", "rule.json"
UNROLLED = 60
"""Steps through which the recurrence of a network is differentiated, as in the paper."""
RECORDING = "recording"
"""Kind of work: letting the teacher train, to see what it does."""


class Teacher(Learned):
    """RNNprop, meta-trained as the paper trains it."""

    def fresh(self) -> Policy:
        """An untrained network of the size that the settings name."""
        return rnnprop(self.settings.size, lr=self.settings.scale)


def teacher_of(run: Run) -> RNNprop | L2ODM:
    """The trained network that fills the role ``teacher``."""
    competitor: Competitor = run.needed("teacher").build()[0]
    return cast(RNNprop | L2ODM, competitor.policies()[0].eval())


def inputs_of(teacher: Policy) -> tuple[str, ...]:
    """The features that a network is fed, as regression data names them."""
    return ("grad",) if isinstance(teacher, L2ODM) else features_of(teacher)


class Recorder(Competitor):
    """Records the teacher on the meta-training problem; leaves ``rows.npz``."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Let the teacher train, and keep what it sees and does."""
        teacher = teacher_of(self.run).to(arena.device)
        with work(RECORDING):
            records = record(
                teacher,
                arena.train,
                features=inputs_of(teacher),
                seed=derive_seed(self.run.seed, "records"),
                **{**self.settings.model_dump(), "steps": recorded_steps(self.run)},
            )
        buffer = io.BytesIO()
        records.save(buffer)
        write_bytes(self.run.checkpoint / ROWS, buffer.getvalue())
        return {"rows": len(records.y), "lags": self.settings.lags}


def recorded_steps(run: Run) -> int:
    """Steps of a recorded run; in a rehearsal no more than a window of all lags needs."""
    settings: RecordSettings = run.settings_model(run.recipe[0])
    return settings.steps if run.limit is None else min(settings.steps, 3 * settings.lags)


def recording_amounts(run: Run) -> Amounts:
    """Steps of the recorded runs, one after the other."""
    return {RECORDING: Amount(1, run.settings_model(run.recipe[0]).runs * recorded_steps(run), 1)}


def search_equation(run: Run, settings: EquationSettings, records: Records, features: Sequence[str]) -> Distillation:
    """Search the equation behind records, with randomness that follows from the run's seed."""
    return distill_records(
        records,
        features,
        records.lags(features),
        backend=settings.engine,
        cfg=settings,
        seed=derive_seed(run.seed, "search") % 2**31,
        searches=settings.searches,
    )


def scores_of(distillation: Distillation) -> dict[str, float]:
    """The scores of a distillation that tables hold."""
    return {
        "r2_test": distillation.r2,
        "r2_bound": distillation.bound,
        "mapping_complexity": float(distillation.mc),
        "tpf_max": widest_field(distillation.tpf),
    }


class Regression(Competitor):
    """Searches the equation behind the records; leaves ``rule.json``: the front, the selected equation, and its scores."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Search; an engine runs from start to end, so an interrupted search starts again."""
        teacher = teacher_of(self.run)
        records = Records.load(self.run.needed("records").checkpoint / ROWS)
        distillation = search_equation(self.run, self.settings, records, inputs_of(teacher))
        network = self.field_of_network(teacher, arena)
        write_json(self.run.checkpoint / RULE, {**distillation.as_json(), "lr": float(teacher.lr), "network": network})
        return {"expression": str(distillation.selected), **scores_of(distillation)}

    def field_of_network(self, teacher: RNNprop | L2ODM, arena: Arena) -> dict[str, float | None]:
        """Temporal perception field of the network itself, through 60 unrolled steps of what it saw in a run."""
        features = inputs_of(teacher)
        coordinates = torch.arange(0, arena.train.init(1, torch.Generator().manual_seed(0)).shape[1], 7)[:64]
        seen = trace(
            teacher.to(arena.device),
            arena.train,
            features=features,
            steps=2 * UNROLLED,
            coordinates=coordinates,
            gen=generator(self.run.seed, "field"),
        )
        field = network_field(teacher, seen["z"][-UNROLLED:].transpose(1, 0, 2), features)
        return {feature: None if math.isnan(value) else value for feature, value in field.items()}


class Symbolic(Competitor):
    """The selected equation as an optimizer, run as the search left it."""

    @property
    def rule(self) -> dict[str, Any]:
        """Return the equation that the search left in ``rule.json``."""
        content: dict[str, Any] = json.loads((self.run.needed("equation").checkpoint / RULE).read_text())
        return content

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """There is nothing to train; the equation is written down for the reader."""
        rule = self.rule
        write_text(self.run.checkpoint / "equation.txt", rule["expression"] + "\n")
        return {"expression": rule["expression"], "engine": rule["engine"]}

    def policies(self) -> Sequence[SymbolicPolicy]:
        """The equation as a policy, at the scale of its network's updates."""
        rule = self.rule
        form = ExpressionRule(parse(rule["expression"]), rule["features"], rule["lags"])
        return [SymbolicPolicy(form, rule["lr"], clamp=self.settings.clamp)]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Fidelity and complexity; leaves ``front.csv``, ``rule.json`` and ``surface.csv`` for figures."""
        rule = self.rule
        lines = [
            f'{entry["complexity"]},{entry["loss"]:.6g},{entry["r2_test"]:.6g},"{entry["expression"]}"' for entry in rule["front"]
        ]
        write_text(self.run.results / "front.csv", "\n".join(["complexity,loss,r2_test,expression", *lines]) + "\n")
        write_json(self.run.results / RULE, {name: value for name, value in rule.items() if name != "front"})
        table = responses(teacher_of(self.run).cpu(), self.policies()[0], len(rule["features"]))
        rows = [f"{first:.4g},{second:.4g},{network:.5g},{equation:.5g}" for first, second, network, equation in table.tolist()]
        write_text(self.run.results / "surface.csv", "\n".join(["first,second,network,equation", *rows]) + "\n")
        return {
            "r2_test": rule["r2_test"],
            "r2_bound": rule["r2_bound"],
            "mapping_complexity": float(rule["mapping_complexity"]),
            "tpf_max": widest_field(rule["temporal_perception_field"]),
            "network_tpf_max": widest_field(rule["network"]),
        }


class Template(Competitor):
    """The template whose weights are fitted to the records by least squares."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Fit on all runs but the last, score on the last; leaves the numbers as weights, and ``rule.json``."""
        records = Records.load(self.run.needed("records").checkpoint / ROWS)
        features = inputs_of(teacher_of(self.run))
        train, test = records.split()
        template = TanhTemplate.fit(train.X, train.y, features, records.lags(features), self.settings.gammas)
        store_policies(self.run, [SymbolicPolicy(template)])
        predicted = template.expression.numpy(dict(zip(test.names, test.X.T, strict=True)))
        return {"r2_test": r_squared(predicted, test.y), **self.write_down(template)}

    def write_down(self, template: TanhTemplate) -> dict[str, Any]:
        """Leave the template's equation as ``rule.json``, and return what the training reports of it."""
        expression = template.expression
        content = {"expression": str(expression), "features": list(template.features), "lags": template.lags}
        write_json(self.run.checkpoint / RULE, {**content, "lr": float(teacher_of(self.run).lr)})
        return {
            "lags": template.lags,
            "mapping_complexity": mapping_complexity(expression),
            "expression": str(expression),
        }

    def policies(self) -> Sequence[Policy]:
        """The template with the numbers that training left, at the scale of the teacher's updates."""
        return restore_policies(self.run, [self.blank(int(training_summary(self.run)["lags"]))])

    def blank(self, lags: int) -> SymbolicPolicy:
        """A template that looks at what the teacher is fed, over some steps, with numbers that are still to be filled in."""
        teacher = teacher_of(self.run)
        return SymbolicPolicy(TanhTemplate(inputs_of(teacher), lags), float(teacher.lr), clamp=self.settings.clamp)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return the fidelity of the template to the network, R² on test data, and its mapping complexity."""
        summary = training_summary(self.run)
        return {name: float(summary[name]) for name in ("r2_test", "mapping_complexity")}


class TunedTemplate(MetaTrained, Template):
    """The template, its numbers fine-tuned by meta-training on the meta-training problem."""

    purpose = "tuning"

    def start(self) -> Policy:
        """The template with the numbers of the least-squares fit."""
        source = self.run.needed("template")
        return restore_policies(source, [self.blank(int(training_summary(source)["lags"]))])[0]

    def summary(self, trainer: MetaTrainer) -> Mapping[str, Any]:
        """The equation, which is written down for the reader."""
        return self.write_down(cast(TanhTemplate, cast(SymbolicPolicy, trainer.policy).rule))

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Complexity; what the template imitated no longer matters."""
        return {"mapping_complexity": float(training_summary(self.run)["mapping_complexity"])}


class SymbolicTraining(Ingredient):
    """Puts an equation in the place of AdamW; the loop's schedule acts on its scale."""

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """The equation, on the loop's parameter groups."""
        options = self.settings.model_dump(exclude={"rule", "file"})
        rule: str | Path = self.run.root / self.settings.file if self.settings.file else self.settings.rule
        try:
            return SymbolicOptimizer(groups, rule, **options)
        except (ValueError, OSError) as error:
            raise UserError(f"symbolic-optimizer: {error}") from None
