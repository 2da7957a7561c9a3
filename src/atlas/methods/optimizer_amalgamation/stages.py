"""The rows of the paper as competitors of the task: the pool and its oracle, choice policies, students, and L2O-DM."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from atlas.harness.execute import training_summary
from atlas.harness.files import write_json, write_text
from atlas.harness.resume import training
from atlas.harness.seeds import derive_seed
from atlas.l2o import L2ODM, Policy, random_effects, save_policy
from atlas.methods.optimizer_amalgamation.choice import ChoicePolicy
from atlas.methods.optimizer_amalgamation.distill import finished, seeded
from atlas.methods.optimizer_amalgamation.entry import Schedule
from atlas.methods.optimizer_amalgamation.losses import Amalgamation
from atlas.methods.optimizer_amalgamation.noise import AdversarialWeightNoise, Perturbation, RandomWeightNoise
from atlas.methods.optimizer_amalgamation.scale import L2OScale
from atlas.methods.optimizer_amalgamation.schedule import Curriculum
from atlas.methods.optimizer_amalgamation.student import Student
from atlas.methods.optimizer_amalgamation.teachers import POOLS, TEACHERS, make_pool, teacher
from atlas.methods.optimizer_amalgamation.trainer import Trainer, TrainerConfig
from atlas.tasks.learned_optimization.competitors import Competitor, Learned, restore_policies, store_policies, tune_on
from atlas.tasks.learned_optimization.evaluate import Evaluation

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.learned_optimization.data import Arena

TEACHERS_FILE, STUDENT_FILE = "teachers.json", "student.safetensors"
METHOD_OF: dict[str, Amalgamation] = {
    "amalgamated-mean": "mean",
    "amalgamated-minmax": "minmax",
    "amalgamated-noisy": "minmax",
    "amalgamated-choice": "choice",
    "amalgamated-choice-large": "choice",
    "stronger": "mean",
}


class Oracle(Competitor):
    """The pool with tuned step sizes; on each problem the member that is best there."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Tune every teacher of the pool; leaves ``teachers.json`` for the rows that are taught, and ``tuning.csv``."""
        found = {name: tune_on(self.run, arena, name, {}, TEACHERS) for name in POOLS[self.settings.pool]}
        content = {name: {"lr": one.lr, "on_edge": one.on_edge} for name, one in found.items()}
        write_json(self.run.checkpoint / TEACHERS_FILE, content)
        rows = [f"{name},{lr:g},{score:.6g}" for name, one in found.items() for lr, score in one.table.items()]
        write_text(self.run.results / "tuning.csv", "\n".join(["teacher,lr,score", *rows]) + "\n")
        return {f"lr_{name}": one.lr for name, one in found.items()}

    def policies(self) -> Sequence[Policy]:
        """The pool."""
        return list(tuned_pool(self.run, self.settings.pool))

    def select(self, evaluation: Evaluation) -> Evaluation:
        """The best member on each problem, by the validation loss; leaves ``oracle.csv`` with what all reached."""
        stream = io.StringIO()
        stream.write("problem,teacher,best_log_val,best_log_train,chosen\n")
        chosen = Evaluation(evaluation.arena)
        for problem, outcome in evaluation.outcomes.items():
            means = outcome.best_log_val.mean(1)
            best = int(means.argmin())
            chosen.outcomes[problem] = outcome.replicate(best)
            for place, name in enumerate(POOLS[self.settings.pool]):
                train = float(outcome.best_log_train[place].mean())
                stream.write(f"{problem},{name},{float(means[place]):.5g},{train:.5g},{int(place == best)}\n")
        write_text(self.run.results / "oracle.csv", stream.getvalue())
        return chosen

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The chosen member counts as the one replicate."""
        return {"best_replicate": float(evaluation.home.best_log_val.mean())}


def tuned_pool(run: Run, name: str) -> list[Policy]:
    """A pool with the step sizes that the oracle's run found."""
    content = json.loads((run.checkpoint / TEACHERS_FILE).read_text())
    missing = [member for member in POOLS[name] if member not in content]
    if missing:
        raise ValueError(f"{run.cell} tuned no {', '.join(missing)}; give it the pool {name}")
    return make_pool(name, {member: found["lr"] for member, found in content.items()})  # type: ignore[arg-type]


class Trained(Competitor):
    """What a :class:`.trainer.Trainer` trains, as resumable runs; override the three methods that say what."""

    def starts(self) -> list[Policy]:
        """The replicates' starts."""
        raise NotImplementedError

    def teachers(self) -> list[Policy]:
        """Frozen teachers, none by default."""
        return []

    def method(self) -> Amalgamation:
        """How teachers are amalgamated."""
        return "mean"

    def noise(self) -> Perturbation | None:
        """Perturbation of the weights in meta-steps."""
        return None

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Meta-train all replicates, window by window; goes on where it was interrupted."""
        starts = [policy.to(arena.device) for policy in self.starts()]
        curriculum = curriculum_of(self.settings.schedule)
        cfg = TrainerConfig(**self.settings.meta.model_dump())
        trainer = Trainer(
            arena.train,
            starts,
            [policy.to(arena.device) for policy in self.teachers()],
            curriculum,
            cfg,
            self.seeds("replicate"),
            self.method(),
            self.noise(),
        )
        loop = training(self.run, curriculum.windows_at_most(cfg.longest), parts={"trainer": trainer})
        for _ in loop:
            if trainer.done:
                continue  # the curriculum may end before its bound
            rows = trainer.step()
            names = [name for name in rows[0] if name not in ("window", "replicate", "skipped", "validation")]
            loop.log(**{name: sum(row[name] for row in rows) / len(rows) for name in names})
        policies = finished(trainer, starts)
        store_policies(self.run, policies)
        self.leave(arena, policies)
        write_text(self.run.results / "curriculum.csv", trace_table(trainer))
        return {"windows": trainer.windows, "skipped": int(sum(row["skipped"] for row in trainer.history))}

    def seeds(self, purpose: str) -> list[int]:
        """One seed per replicate."""
        return [derive_seed(self.run.seed, purpose, replicate) for replicate in range(self.settings.replicates)]

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """Leave further files."""

    def policies(self) -> Sequence[Policy]:
        """The trained replicates, frozen."""
        return [policy.requires_grad_(False) for policy in restore_policies(self.run, self.starts())]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """What varies between evaluations and between replicates, on the problem at home."""
        home = evaluation.home
        effects, train = (_effects(values) for values in (home.best_log_val, home.best_log_train))
        return {
            "eval_sd": effects[0],
            "meta_sd": effects[1],
            "meta_sd_train": train[1],
            "best_replicate": float(home.best_log_val.mean(1).min()),
            "windows": training_summary(self.run)["windows"],
        }


class Distilled(Trained):
    """A student, taught or not; which is said by its row's method."""

    def starts(self) -> list[Policy]:
        """Fresh students."""
        return [seeded(lambda: Student(self.settings.hidden), seed) for seed in self.seeds("student")]

    def method(self) -> Amalgamation:
        """By the registered name."""
        return METHOD_OF.get(self.run.recipe[0], "mean")

    def teachers(self) -> list[Policy]:
        """The tuned pool, the frozen choice policy, Adam alone, or none."""
        name = self.run.recipe[0]
        if "choice" in self.run.needs:
            needed = self.run.needed("choice")
            return list(needed.build()[0].policies())
        if name == "stronger":
            (adam,) = [one for one in tuned_pool(self.run.needed("teachers"), "small") if isinstance(one, TEACHERS["adam_ema"])]
            return [teacher("adam_ema", adam.lr)]
        return tuned_pool(self.run.needed("teachers"), self.settings.pool) if "teachers" in self.run.needs else []

    def noise(self) -> Perturbation | None:
        """As the settings say."""
        kind = getattr(self.settings, "noise", "none")
        if kind == "none":
            return None
        return RandomWeightNoise(self.settings.eps) if kind == "random" else AdversarialWeightNoise(self.settings.eps)

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """The first replicate as a file that ``load`` reads."""
        save_policy(self.run.checkpoint / STUDENT_FILE, policies[0])


class Choice(Trained):
    """A choice policy over the tuned pool."""

    def starts(self) -> list[Policy]:
        """A fresh one."""
        if self.settings.pool_lr == "official":
            pool = make_pool(self.settings.pool, pool_lr="official")
        else:
            pool = tuned_pool(self.run.needed("teachers"), self.settings.pool)
        return [seeded(lambda: ChoicePolicy(pool, self.settings.hidden), seed) for seed in self.seeds("choice")]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """As of every trained row; a single replicate has no spread between replicates."""
        return {name: value for name, value in super().evaluate(evaluation).items() if not name.startswith("meta_sd")}

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """Leave ``weights.csv``: the mean weight of every member while the policy trains the meta-training problem."""
        policy = policies[0]
        assert isinstance(policy, ChoicePolicy)
        steps = arena.protocol.epochs * arena.steps_per_epoch()
        gen = torch.Generator().manual_seed(derive_seed(self.run.seed, "weights"))
        theta = arena.train.init(1, gen)
        state, history = policy.init_state(theta, arena.train.layout), []
        with torch.no_grad():
            for batch in arena.train.stream(1, steps, gen):
                gradient = arena.train.gradients(theta, batch)[1]
                history.append(gradient)
                update, state = policy.step(gradient, state)
                theta = theta + update
        weights = policy.weights(history, arena.train.layout)
        names = POOLS[self.settings.pool]
        shown = sorted({*range(0, steps, max(1, steps // 50)), steps - 1})
        rows = [f"{step + 1},{','.join(f'{value:.5g}' for value in weights[step].tolist())}" for step in shown]
        write_text(self.run.results / "weights.csv", "\n".join([f"step,{','.join(names)}", *rows]) + "\n")


class PlainDM(Learned):
    """L2O-DM."""

    def fresh(self) -> Policy:
        """An untrained one."""
        return L2ODM(self.settings.hidden, lr=self.settings.scale, preprocess=self.settings.preprocess)


class PlainScale(Learned):
    """L2O-Scale."""

    def fresh(self) -> Policy:
        """An untrained one."""
        return L2OScale(self.settings.hidden, lr=self.settings.scale)


def curriculum_of(schedule: Schedule) -> Curriculum:
    """The curriculum that settings describe."""
    return Curriculum(**schedule.model_dump())


def trace_table(trainer: Trainer) -> str:
    """CSV of what every replicate's curriculum decided at the end of every period."""
    rows = [
        f"{index},{stage},{period},{repeat},{train:.5g},{validation:.5g},{action}"
        for index, one in enumerate(trainer.replicates)
        for stage, period, repeat, train, validation, action in one.progress.trace
    ]
    return "\n".join(["replicate,stage,period,repeat,training,validation,action", *rows]) + "\n"


def _effects(values: torch.Tensor) -> tuple[float, float]:
    """Deviations (between evaluations, between replicates); not a number where they are undefined."""
    if min(values.shape) >= 2:
        found = random_effects(values.numpy())
        return found.eval_sd, found.meta_sd
    single = float(values.std()) if values.numel() > 1 else float("nan")
    return single, float("nan")
