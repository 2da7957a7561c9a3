"""The chain of the paper as competitors of the task: teacher → records → equation → optimizer, and the tuned template."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from atlas.errors import AtlasError
from atlas.harness.execute import training_summary
from atlas.harness.files import write_bytes, write_json, write_text
from atlas.harness.resume import training
from atlas.harness.seeds import derive_seed, generator
from atlas.l2o import ANALYTIC, Layout, MetaConfig, MetaTrainer, Momentum, Policy, State, rnnprop
from atlas.l2o.recurrent import L2ODM, RNNprop
from atlas.methods.symbolic_l2o.distillation import Distillation, distill_records
from atlas.methods.symbolic_l2o.entry import RECORDING, EquationSettings
from atlas.methods.symbolic_l2o.expressions import parse
from atlas.methods.symbolic_l2o.interpretability import mapping_complexity, network_field, r_squared
from atlas.methods.symbolic_l2o.recording import Records, features_of, record, trace, windows
from atlas.methods.symbolic_l2o.regression import DEFAULT_OPERATORS, PAPER_OPERATORS, SRConfig
from atlas.methods.symbolic_l2o.rules import ExpressionRule, SymbolicPolicy, TanhTemplate, column_names
from atlas.nn.work import work
from atlas.tasks.learned_optimization.competitors import (
    Competitor,
    Learned,
    restore_policies,
    store_policies,
    tune_on,
    write_table,
)

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.learned_optimization.data import Arena
    from atlas.tasks.learned_optimization.evaluate import Evaluation

ROWS, RULE = "rows.npz", "rule.json"
UNROLLED = 60
SURFACE_POINTS = 41


class Teacher(Learned):
    """RNNprop, meta-trained as the paper trains it."""

    def fresh(self) -> Policy:
        """The network in its size."""
        return rnnprop(self.settings.size, lr=self.settings.scale)


def teacher_of(run: Run) -> Policy:
    """The trained network that fills the role ``teacher``."""
    competitor: Competitor = run.needed("teacher").build()[0]
    return competitor.policies()[0].eval()


def inputs_of(policy: Policy) -> tuple[str, ...]:
    """The features that a network is fed, as regression data names them."""
    return ("grad",) if isinstance(policy, L2ODM) else features_of(policy)


class Recorder(Competitor):
    """Records the teacher on the meta-training problem; leaves ``rows.npz``."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Let the teacher train, and keep what it sees and does."""
        teacher = teacher_of(self.run).to(arena.device)
        with work(RECORDING):
            found = record(
                teacher,
                arena.train,
                features=inputs_of(teacher),
                seed=derive_seed(self.run.seed, "records"),
                **self.settings.model_dump(),
            )
        buffer = io.BytesIO()
        found.save(buffer)
        write_bytes(self.run.checkpoint / ROWS, buffer.getvalue())
        return {"rows": len(found.y), "lags": self.settings.lags}


def search_of(settings: EquationSettings) -> SRConfig:
    """The search that settings describe."""
    operators = PAPER_OPERATORS if settings.operators == "paper" else DEFAULT_OPERATORS
    own = settings.model_dump(include={"rows", "max_size", "generations", "population", "time_limit_s"})
    return SRConfig(operators=operators, **own)


class Regression(Competitor):
    """Searches the equation behind the records; leaves ``rule.json``: the front, the selected equation, and its scores."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Search; an engine runs from start to end, so an interrupted search starts again."""
        teacher = teacher_of(self.run)
        records = Records.load(self.run.needed("records").checkpoint / ROWS)
        features = inputs_of(teacher)
        lags = len(records.names) // len(features)
        settings = self.settings
        found = distill_records(
            records,
            features,
            lags,
            backend=settings.engine,
            cfg=search_of(settings),
            seed=derive_seed(self.run.seed, "search") % 2**31,
            searches=settings.searches,
        )
        content = {**found.as_json(), "lr": float(teacher.lr), "network": fields_of(teacher, arena, self.run.seed)}
        write_json(self.run.checkpoint / RULE, content)
        return {"expression": str(found.selected), **scores_of(found)}


def fields_of(teacher: Policy, arena: Arena, seed: int) -> dict[str, float | None]:
    """Temporal perception field of the network itself, through 60 unrolled steps of what it saw in a run."""
    features = inputs_of(teacher)
    picked = torch.arange(0, arena.train.init(1, torch.Generator().manual_seed(0)).shape[1], 7)[:64]
    seen = trace(
        teacher.cpu(), arena.train, features=features, steps=2 * UNROLLED, coordinates=picked, gen=generator(seed, "field")
    )
    sequences = seen["z"][-UNROLLED:].transpose(1, 0, 2)
    found = network_field(cast(RNNprop | L2ODM, teacher), sequences, features)
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def scores_of(found: Distillation) -> dict[str, float]:
    """The scores of a distillation that tables hold."""
    return {
        "r2_test": found.r2,
        "r2_bound": found.bound,
        "mapping_complexity": float(found.mc),
        "tpf_max": widest(found.tpf),
    }


def widest(fields: Mapping[str, float | None]) -> float:
    """The largest temporal perception field over features; 0 where none is used."""
    return max((value for value in fields.values() if value is not None and not math.isnan(value)), default=0.0)


class Symbolic(Competitor):
    """The selected equation, run as it is."""

    @property
    def rule(self) -> dict[str, Any]:
        """What the search left."""
        content: dict[str, Any] = json.loads((self.run.needed("equation").checkpoint / RULE).read_text())
        return content

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """There is nothing to train; the equation is written down for the reader."""
        rule = self.rule
        write_text(self.run.checkpoint / "equation.txt", rule["expression"] + "\n")
        return {"expression": rule["expression"], "engine": rule["engine"]}

    def policies(self) -> Sequence[Policy]:
        """The equation as a policy."""
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
        write_text(self.run.results / "surface.csv", surface(teacher_of(self.run).cpu(), self.policies()[0], rule["features"]))
        return {
            "r2_test": rule["r2_test"],
            "r2_bound": rule["r2_bound"],
            "mapping_complexity": float(rule["mapping_complexity"]),
            "tpf_max": widest(rule["temporal_perception_field"]),
            "network_tpf_max": widest(rule["network"]),
        }


@torch.no_grad()
def surface(teacher: Policy, equation: Policy, features: Sequence[str]) -> str:
    """CSV of what both do when the first two features have kept their values for as long as the equation looks back.

    One feature alone has a line.
    """
    axis = torch.linspace(-1, 1, SURFACE_POINTS)
    second = axis if len(features) > 1 else torch.zeros(1)
    x, y = torch.meshgrid(axis, second, indexing="ij")
    z = torch.zeros(1, x.numel(), len(features))
    z[0, :, 0] = x.reshape(-1)
    if len(features) > 1:
        z[0, :, 1] = y.reshape(-1)
    network = cast(RNNprop | L2ODM, teacher)
    policy = cast(SymbolicPolicy, equation)
    cells = network.cells.init_state(z[:, :, 0])
    for _ in range(policy.rule.lags):
        wide, cells = network.respond(z, cells)
    history = z[0].T.expand(1, policy.rule.lags, -1, -1)
    clamp = policy.clamp or math.inf
    simple = policy.rule(history)[0].nan_to_num(0.0, 0.0, 0.0).clamp(-clamp, clamp)
    rows = zip(x.reshape(-1).tolist(), y.reshape(-1).tolist(), wide[0].tolist(), simple.tolist(), strict=True)
    return "\n".join(["first,second,network,equation", *(f"{a:.4g},{b:.4g},{c:.5g},{d:.5g}" for a, b, c, d in rows)]) + "\n"


class Template(Competitor):
    """The template whose weights are fitted to the records by least squares."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Fit on all runs but the last, score on the last."""
        records = Records.load(self.run.needed("records").checkpoint / ROWS)
        features = inputs_of(teacher_of(self.run))
        lags = len(records.names) // len(features)
        train, test = records.split()
        template = TanhTemplate.fit(train.X, train.y, features, lags, self.settings.gammas)
        store_policies(self.run, [SymbolicPolicy(template)])
        found = template.expression.numpy(dict(zip(test.names, test.X.T, strict=True)))
        write_json(self.run.checkpoint / RULE, {"expression": str(template.expression), "features": features, "lags": lags})
        return {
            "lags": lags,
            "r2_test": r_squared(found, test.y),
            "mapping_complexity": mapping_complexity(template.expression),
            "expression": str(template.expression),
        }

    def policies(self) -> Sequence[Policy]:
        """The template with the weights that were found, at the teacher's scale."""
        return restore_policies(self.run, [self.blank(int(training_summary(self.run)["lags"]))])

    def blank(self, lags: int) -> SymbolicPolicy:
        """A template of the right shape."""
        teacher = teacher_of(self.run)
        return SymbolicPolicy(TanhTemplate(inputs_of(teacher), lags), float(teacher.lr), clamp=self.settings.clamp)

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Fidelity and complexity."""
        summary = training_summary(self.run)
        return {name: float(summary[name]) for name in ("r2_test", "mapping_complexity")}


class TunedTemplate(Template):
    """The template, its numbers fine-tuned by meta-training on the meta-training problem."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Meta-train from the least-squares fit, window by window; goes on where it was interrupted."""
        source = self.run.needed("template")
        lags = int(training_summary(source)["lags"])
        policy = cast(SymbolicPolicy, restore_policies(source, [self.blank(lags)])[0]).to(arena.device)
        cfg = MetaConfig(**self.settings.meta.model_dump())
        trainer = MetaTrainer(policy, arena.train, cfg, generator(self.run.seed, "tuning"))
        loop = training(self.run, cfg.windows, parts={"trainer": trainer})
        for _ in loop:
            row = trainer.window()
            loop.log(**{name: value for name, value in row.items() if name != "window"})
        store_policies(self.run, [policy])
        tuned = cast(TanhTemplate, policy.rule).expression
        features = list(inputs_of(teacher_of(self.run)))
        write_json(self.run.checkpoint / RULE, {"expression": str(tuned), "features": features, "lags": lags})
        return {"lags": lags, "mapping_complexity": mapping_complexity(tuned), "expression": str(tuned)}

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Complexity; what it imitates no longer matters."""
        return {"mapping_complexity": float(training_summary(self.run)["mapping_complexity"])}


class CosineMomentum(Policy):
    """Heavy ball times (1 + cos(π t/T))/2, t steps after the first, 0 from T on."""

    def __init__(self, lr: float | Tensor, beta: float = 0.9, steps: int = 1000) -> None:
        super().__init__()
        self.inner = Momentum(lr, beta)
        self.lr, self.steps = self.inner.lr, steps

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """That of the heavy ball, which counts the steps."""
        return self.inner.init_state(theta, layout)

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """The heavy ball's update, less as time goes on."""
        update, new = self.inner.step(g, state)
        share = (state["step"] / self.steps).clamp(max=1.0)
        return update * (0.5 * (1 + torch.cos(math.pi * share))), new


class Cosine(Competitor):
    """Heavy ball with a cosine schedule, its step size found on the meta-training problem."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Find the step size with the schedule ending where tuning does, unless the settings fix it."""
        if self.settings.lr is not None:
            return {"lr": self.settings.lr, "on_edge": 0}
        steps = arena.protocol.tuning.epochs * arena.steps_per_epoch()
        options = {"beta": self.settings.beta, "steps": steps}
        found = tune_on(self.run, arena, "cosine", options, {"cosine": CosineMomentum})
        write_table(self.run, found)
        return {"lr": found.lr, "on_edge": int(found.on_edge)}

    def policies(self) -> Sequence[Policy]:
        """The heavy ball with the step size that was found."""
        return [CosineMomentum(training_summary(self.run)["lr"], self.settings.beta, self.settings.steps)]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The step size."""
        return {"tuned_lr": training_summary(self.run)["lr"]}


def recover(run: Run) -> Mapping[str, Any]:
    """Feed synthetic gradients to a known optimizer and search its equation; leaves ``rule.json``."""
    settings = run.settings_model("recovery")
    random = np.random.default_rng(derive_seed(run.seed, "gradients"))
    options = {"beta": settings.beta} if settings.target == "momentum" else {}
    policy = ANALYTIC[settings.target](0.01, **options)
    columns: dict[str, list[np.ndarray]] = {"X": [], "y": [], "run": [], "coordinate": [], "step": []}
    for index in range(settings.runs):
        gradients = torch.from_numpy(random.normal(size=(settings.steps, settings.coordinates)))
        state = policy.init_state(gradients[:1])
        updates = []
        for g in gradients:
            update, state = policy.step(g.unsqueeze(0), state)
            updates.append(update[0])
        traced = {
            "z": gradients.unsqueeze(-1).numpy(),
            "update": torch.stack(updates).numpy(),
            "gradient": gradients.numpy(),
        }
        X, y, place, step = windows(traced, settings.lags, random)
        for name, column in {"X": X, "y": y, "run": np.full(len(y), index), "coordinate": place, "step": step}.items():
            columns[name].append(column)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not len(joined["y"]):
        raise AtlasError(f"{run.cell}: no window of {settings.lags} steps fits runs of {settings.steps}")
    records = Records(**joined, names=tuple(column_names(("grad",), settings.lags)))
    found = distill_records(
        records,
        ("grad",),
        settings.lags,
        backend=settings.search.engine,
        cfg=search_of(settings.search),
        seed=derive_seed(run.seed, "search") % 2**31,
        searches=settings.search.searches,
    )
    write_json(run.checkpoint / RULE, found.as_json())
    return {"expression": str(found.selected), **scores_of(found)}
