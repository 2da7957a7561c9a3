"""The rows of the paper as competitors of the task: the pool and its oracle, choice policies, and students."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from atlas.harness.execute import training_summary
from atlas.harness.files import write_json, write_text
from atlas.harness.registry import Amount, Amounts
from atlas.harness.resume import training
from atlas.harness.seeds import derive_seed
from atlas.l2o import Policy, random_effects, save_policy
from atlas.methods.optimizer_amalgamation.choice import ChoicePolicy
from atlas.methods.optimizer_amalgamation.distill import finished, seeded
from atlas.methods.optimizer_amalgamation.noise import Perturbation, perturbation
from atlas.methods.optimizer_amalgamation.settings import Amalgamation, Curriculum
from atlas.methods.optimizer_amalgamation.student import Student
from atlas.methods.optimizer_amalgamation.teachers import POOLS, TEACHERS, make_pool, teacher
from atlas.methods.optimizer_amalgamation.trainer import Trainer
from atlas.nn.work import TRAIN, VALIDATION, WARM_UP, work
from atlas.tasks.learned_optimization.competitors import (
    Competitor,
    epoch_steps,
    restore_policies,
    store_policies,
    tune_on,
    window_amount,
)
from atlas.tasks.learned_optimization.evaluate import Evaluation

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.learned_optimization.data import Arena

TEACHERS_FILE, STUDENT_FILE = "teachers.json", "student.safetensors"
WEIGHING = "weighing"
"""Kind of work: letting a trained choice policy train, to see how it weighs its pool."""
WEIGHTS_SHOWN = 50
"""About as many steps of a choice policy's weights are written down."""


class Oracle(Competitor):
    """The pool with tuned step sizes; on each problem the member that is best there."""

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Tune every teacher of the pool; leaves ``teachers.json`` for the rows that are taught, and ``tuning.csv``."""
        tuned = {name: tune_on(self.run, arena, TEACHERS[name]) for name in POOLS[self.settings.pool]}
        content = {name: {"lr": result.lr, "on_edge": result.on_edge} for name, result in tuned.items()}
        write_json(self.run.checkpoint / TEACHERS_FILE, content)
        rows = [f"{name},{lr:g},{score:.6g}" for name, result in tuned.items() for lr, score in result.table.items()]
        write_text(self.run.results / "tuning.csv", "\n".join(["teacher,lr,score", *rows]) + "\n")
        return {f"lr_{name}": result.lr for name, result in tuned.items()}

    def policies(self) -> Sequence[Policy]:
        """Every member of the pool, with its tuned step size."""
        return tuned_teachers(self.run, POOLS[self.settings.pool])

    def select(self, evaluation: Evaluation) -> Evaluation:
        """The best member on each problem, by the validation loss; leaves ``oracle.csv`` with what all reached."""
        stream = io.StringIO()
        stream.write("problem,teacher,best_log_val,best_log_train,chosen\n")
        chosen = Evaluation(evaluation.arena)
        for problem, outcome in evaluation.outcomes.items():
            means = outcome.best_log_val.mean(1)
            best = int(means.argmin())
            chosen.outcomes[problem] = outcome.replicate(best)
            for member, name in enumerate(POOLS[self.settings.pool]):
                train = float(outcome.best_log_train[member].mean())
                stream.write(f"{problem},{name},{float(means[member]):.5g},{train:.5g},{int(member == best)}\n")
        write_text(self.run.results / "oracle.csv", stream.getvalue())
        return chosen

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The chosen member counts as the one replicate."""
        return {"best_replicate": float(evaluation.home.best_log_val.mean())}


def tuned_teachers(oracle: Run, names: Sequence[str]) -> list[Policy]:
    """Teachers with the step sizes that the oracle's run found.

    Raises
    ------
    ValueError
        The oracle tuned another pool, without some of them.
    """
    content = json.loads((oracle.checkpoint / TEACHERS_FILE).read_text())
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{oracle.cell} tuned no {', '.join(missing)}; give it a pool that has them")
    return [teacher(name, content[name]["lr"]) for name in names]


class CurriculumTrained(Competitor):
    """Base of what a :class:`.trainer.Trainer` trains, window by window, in resumable runs.

    The settings have ``schedule``, ``trainer`` and ``replicates``. Override :meth:`starts`, and what else differs.
    """

    method: Amalgamation = "mean"

    def starts(self) -> list[Policy]:
        """Make the replicates as they are before training."""
        raise NotImplementedError

    def teachers(self) -> Sequence[Policy]:
        """Frozen teachers that are imitated, none by default."""
        return []

    def count_teachers(self) -> int:
        """How many there are, from the row's settings alone."""
        return 0

    def noise(self) -> Perturbation | None:
        """Perturbation of the weights in meta-steps, none by default."""
        return None

    def train(self, arena: Arena) -> Mapping[str, Any]:
        """Meta-train all replicates, window by window; goes on where it was interrupted."""
        curriculum, trainer_settings = self.settings.schedule, self.settings.trainer
        starts = [policy.to(arena.device) for policy in self.starts()]
        teachers = [policy.to(arena.device) for policy in self.teachers()]
        seeds, noise = self.seeds("replicate"), self.noise()
        trainer = Trainer(arena.train, starts, teachers, curriculum, trainer_settings, seeds, self.method, noise)
        loop = training(self.run, curriculum.windows_at_most(trainer_settings.longest), parts={"trainer": trainer})
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
        """A seed for every replicate, of which the first does not depend on how many there are."""
        return [derive_seed(self.run.seed, purpose, replicate) for replicate in range(self.settings.replicates)]

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """Leave further files beside the trained replicates; by default there are none."""

    def policies(self) -> Sequence[Policy]:
        """Return the trained replicates, frozen, one for each seed."""
        return [policy.requires_grad_(False) for policy in restore_policies(self.run, self.starts())]

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """What varies between evaluations on the problem at home, and the best replicate's mean there."""
        best_log_val = evaluation.home.best_log_val
        return {
            "eval_sd": deviations(best_log_val)[0],
            "best_replicate": float(best_log_val.mean(1).min()),
            "windows": training_summary(self.run)["windows"],
        }


class TrainedStudent(CurriculumTrained):
    """A student: taught by a choice policy, by a pool, or by nobody, as the row's needs say.

    Parameters
    ----------
    method : {"mean", "minmax", "choice"}
        How the distances from several teachers become one.
    members : tuple of str
        Which tuned teachers are imitated; those of the pool in the settings if left out.
    """

    def __init__(self, run: Run, settings: Any, method: Amalgamation = "mean", members: tuple[str, ...] = ()) -> None:
        super().__init__(run, settings)
        self.method, self.members = method, members

    def starts(self) -> list[Policy]:
        """Fresh students, each from its own seed."""
        return [seeded(partial(Student, self.settings.hidden), seed) for seed in self.seeds("student")]

    def teachers(self) -> Sequence[Policy]:
        """The frozen choice policy, or tuned teachers, or none."""
        if "choice" in self.run.needs:
            return self.run.needed("choice").build()[0].policies()
        if "teachers" in self.run.needs:
            return tuned_teachers(self.run.needed("teachers"), self.members or POOLS[self.settings.pool])
        return []

    def count_teachers(self) -> int:
        """One where a choice policy teaches; else the tuned members of a pool, or none."""
        if "choice" in self.run.needs:
            return 1
        return len(self.members or POOLS[self.settings.pool]) if "teachers" in self.run.needs else 0

    def noise(self) -> Perturbation | None:
        """Noise of the kind that the settings name; rows without such a setting have none."""
        return perturbation(self.settings.noise, self.settings.eps) if hasattr(self.settings, "noise") else None

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """Leave the first replicate as a file that :func:`.optimizer.load` reads."""
        save_policy(self.run.checkpoint / STUDENT_FILE, policies[0])

    def evaluate(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The same, and how far replicates end from each other, on validation and on training examples."""
        home = evaluation.home
        between = {"meta_sd": deviations(home.best_log_val)[1], "meta_sd_train": deviations(home.best_log_train)[1]}
        return {**super().evaluate(evaluation), **between}


class TrainedChoice(CurriculumTrained):
    """A choice policy over the pool of teachers whose step sizes were tuned."""

    def starts(self) -> list[Policy]:
        """Return a new choice policy for every seed, over the settings' pool of teachers."""
        if self.settings.pool_lr == "official":
            pool = make_pool(self.settings.pool, pool_lr="official")
        else:
            pool = tuned_teachers(self.run.needed("teachers"), POOLS[self.settings.pool])
        return [seeded(partial(ChoicePolicy, pool, self.settings.hidden), seed) for seed in self.seeds("choice")]

    def leave(self, arena: Arena, policies: Sequence[Policy]) -> None:
        """Leave ``weights.csv``: the mean weight of every member while the policy trains the meta-training problem."""
        with work(WEIGHING):
            self._weigh(arena, policies[0])

    def _weigh(self, arena: Arena, policy: Policy) -> None:
        assert isinstance(policy, ChoicePolicy)
        steps = arena.protocol.epochs * arena.steps_per_epoch()
        gen = torch.Generator().manual_seed(derive_seed(self.run.seed, "weights"))
        theta = arena.train.init(1, gen)
        state, gradients = policy.init_state(theta, arena.train.layout), []
        with torch.no_grad():
            for batch in arena.train.stream(1, steps, gen):
                gradients.append(arena.train.gradients(theta, batch)[1])
                update, state = policy.step(gradients[-1], state)
                theta = theta + update
        weights = policy.weights(gradients, arena.train.layout)
        names = POOLS[self.settings.pool]
        shown = sorted({*range(0, steps, max(1, steps // WEIGHTS_SHOWN)), steps - 1})
        rows = [f"{step + 1},{','.join(f'{value:.5g}' for value in weights[step].tolist())}" for step in shown]
        write_text(self.run.results / "weights.csv", "\n".join([f"step,{','.join(names)}", *rows]) + "\n")


def curriculum_amounts(run: Run) -> Amounts:
    """What the schedule takes if nothing is repeated, in updates of optimizees.

    Training: windows, and updates in each over replicates side by side. Validation and warm-up, of which the student and each
    teacher have their own: the updates of all replicates, one replicate after the other. Weighing: those of the one optimizee
    that a trained choice policy trains.
    """
    settings = run.settings_model(run.recipe[0])
    schedule: Curriculum = settings.schedule
    instances, replicates = settings.trainer.instances, settings.replicates
    validated = schedule.validation_windows_at_least() * schedule.unroll * instances * replicates
    cold = schedule.cold_start
    draws = schedule.draws_at_least() - (schedule.resets[0] if cold else 0)
    validations = (schedule.validations_at_least() - cold) * schedule.validation_resets
    watched = draws * (1 + run.build()[0].count_teachers()) + max(0, validations)
    warmed = watched * schedule.warmup * schedule.unroll * instances * replicates
    return {
        TRAIN: window_amount(schedule.windows_at_least(), schedule.unroll, instances * replicates),
        VALIDATION: Amount(1, validated, instances),
        WARM_UP: Amount(1, warmed, instances),
        WEIGHING: Amount(1, run.protocol_model().epochs * epoch_steps(run), 1),
    }


def trace_table(trainer: Trainer) -> str:
    """CSV of what every replicate's curriculum decided at the end of every period."""
    rows = [
        f"{index},{stage},{period},{repeat},{train:.5g},{validation:.5g},{action}"
        for index, replicate in enumerate(trainer.replicates)
        for stage, period, repeat, train, validation, action in replicate.progress.trace
    ]
    return "\n".join(["replicate,stage,period,repeat,training,validation,action", *rows]) + "\n"


def deviations(values: torch.Tensor) -> tuple[float, float]:
    """Standard deviations (between evaluations, between replicates) of values (replicates, evaluations).

    Not a number where they are undefined.
    """
    if not bool(values.isfinite().all()):
        return float("nan"), float("nan")
    if min(values.shape) >= 2:
        effects = random_effects(values.numpy())
        return effects.eval_sd, effects.meta_sd
    return float(values.std()) if values.numel() > 1 else float("nan"), float("nan")
