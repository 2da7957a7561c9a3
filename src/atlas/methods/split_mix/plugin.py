"""Split-Mix and its baselines as federations of the task federated-learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atlas.errors import UserError
from atlas.harness.run import Run
from atlas.methods.split_mix.adversary import PGD
from atlas.methods.split_mix.clients import Client
from atlas.methods.split_mix.costs import Complexity, complexity
from atlas.methods.split_mix.federation import FedTrainer
from atlas.methods.split_mix.networks import WidthFactory, network
from atlas.methods.split_mix.norms import NormSpec, post_statistics, set_norm_mode, zero_samples
from atlas.methods.split_mix.settings import FederatedSettings, Method, RateSettings
from atlas.methods.split_mix.widths import base_count, blank
from atlas.tasks.federated_learning.augment import augmentation
from atlas.tasks.federated_learning.data import FederatedData
from atlas.tasks.federated_learning.federation import ClientCosts, Federation
from atlas.tasks.federated_learning.protocol import WIDTHS, Protocol

TRAINING_PASSES = 3
ATTACK_PASSES = 2
"""A gradient with respect to the input alone costs a forward pass and another one."""


def factory_of(protocol: Protocol, data: FederatedData) -> WidthFactory:
    """The protocol's network for the data's images and classes."""
    if protocol.network == "mlp":
        inputs = int(torch.Size(data.shape).numel())
        return network("mlp", inputs=inputs, hidden=protocol.hidden, classes=data.classes)
    return network(protocol.network, channels=data.shape[0], classes=data.classes)


class TrainedFederation(Federation):
    """A :class:`FedTrainer` of the method library as a row of the task.

    Parameters
    ----------
    run, settings
        As every plug-in's.
    method : str
        Which federation it is.
    fixed
        Those of :class:`FederatedSettings` that the row does not leave open.
    """

    settings: FederatedSettings

    def __init__(self, run: Run, settings: RateSettings, *, method: Method, **fixed: Any) -> None:
        super().__init__(run, FederatedSettings(**{**settings.model_dump(), **fixed}))
        self.method = method
        self.counted: dict[float, Complexity] = {}

    def start(self, data: FederatedData, protocol: Protocol, device: torch.device, seed: int) -> None:
        """Make the trainer that the settings and the protocol describe, and give it the clients' training data.

        Raises
        ------
        UserError
            The protocol leaves a client without a minibatch, or asks for what cannot be trained; see :class:`FedTrainer`.
        """
        self.data, self.protocol, settings = data, protocol, self.settings
        self.factory = factory_of(protocol, data)
        self.trainer = FedTrainer(
            self.method,
            self.factory,
            rounds=protocol.rounds,
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            drop_last=protocol.drop_last,
            lr=settings.learning_rate or protocol.learning_rate,
            schedule=self._schedule(),
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            loss=protocol.loss,
            norm=self._norm(),
            adversary=self._adversary(),
            lam=settings.lam,
            atom=settings.atom,
            width=settings.width,
            widths=WIDTHS,
            rescale_init=settings.rescale_init,
            clients_per_round=protocol.clients_per_round,
            augment=augmentation(protocol.data),
            stack_limit=protocol.stack_limit,
            device=device,
            seed=seed,
        )
        # one network of full width, trained by all whatever their budgets, where the atom is the whole network
        budgets = [1.0 if self.settings.atom == 1 else member.budget for member in data.members]
        pairs = zip(data.members, budgets, strict=True)
        try:
            self.trainer.start([Client(member.train.images, member.train.labels, budget) for member, budget in pairs])
        except ValueError as error:
            raise UserError(f"protocol: {error}") from None

    def _schedule(self) -> str | Sequence[int]:
        if self.protocol.schedule != "milestones":
            return self.protocol.schedule
        fractions = self.settings.milestones or self.protocol.milestones
        return tuple(round(fraction * self.protocol.rounds) for fraction in fractions)

    def _norm(self) -> NormSpec:
        settings = self.settings
        if settings.norm == "film_bn" and self.protocol.attack is None:
            raise UserError(f"{self.run.cell}: protocol.attack is missing, whose trade-offs the network is conditioned on")
        lams = tuple(sorted({0.0, *self.lams})) if settings.norm == "film_bn" else ()
        return NormSpec(settings.norm, "batch" if settings.statistics == "post" else settings.statistics, lams=lams)

    def _adversary(self) -> PGD | None:
        attack = self.protocol.attack
        return PGD(attack.eps, attack.train_steps) if attack is not None and self.trains_with_attacks else None

    @property
    def widths(self) -> tuple[float, ...]:
        """All widths that the task asks for, or the one of a federation with a single network."""
        if self.method == "fedavg":
            return (self.settings.width,)
        return (1.0,) if self.settings.atom == 1 else WIDTHS

    @property
    def lams(self) -> tuple[float, ...]:
        """The protocol's trade-offs where norms make a knob of them, else none."""
        attack = self.protocol.attack
        return attack.lams if attack is not None and self.settings.norm != "bn" else ()

    @property
    def trains_with_attacks(self) -> bool:
        """Whether the row trains with attacks."""
        return self.settings.adversarial

    @property
    def robust_weight(self) -> float:
        """λ of the training; 0 without attacks."""
        return self.settings.lam if self.settings.adversarial else 0.0

    @property
    def personal(self) -> bool:
        """Whether batch statistics are a client's own, and with them its model."""
        return self.settings.statistics in ("local", "post")

    def round(self) -> dict[str, float]:
        """Run the next round; returns its loss and learning rate."""
        row = self.trainer.round()
        return {"loss": row["loss"], "learning_rate": row["learning_rate"]}

    def state_dict(self) -> dict[str, Any]:
        """State of the trainer, all that later rounds depend on."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that :meth:`state_dict` returned."""
        self.trainer.load_state_dict(state)

    def tensors(self) -> dict[str, Tensor]:
        """Global weights by name, of any shapes (…), and norms that stay on clients."""
        return self.trainer.server.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights that :meth:`tensors` returned, of any shapes (…)."""
        self.trainer.server.load_tensors(tensors)

    def deploy(self, width: float, lam: float | None = None, client: int | None = None) -> nn.Module:
        """A model of a width: base networks merged into one, or a prefix."""
        own = client if self.settings.statistics == "local" else None
        made = self.trainer.server.model(own).customize(width, lam=lam)
        if self.settings.statistics == "post" and client is not None:
            batches = self.data.members[client].train.batches(self.protocol.batch_size)
            post_statistics(made, [images for images, _ in batches if len(images) > 1])
        return made

    def deploy_for(self, kind: Literal["clean", "noise"], client: int | None = None) -> nn.Module:
        """The widest model with one of its two kinds of norms, as validation uses it."""
        made = self.deploy(self.widths[-1], client=client)
        set_norm_mode(made, kind)
        return made

    def costs(self, client: int) -> ClientCosts:
        """Parameters that a client sends, its multiply–accumulates per image, and whether it keeps to its budget."""
        budget = self.data.members[client].budget
        if self.method == "split-mix":
            count = 1 if self.settings.atom == 1 else base_count(budget, self.settings.atom)
            sizes, sent = [self.settings.atom] * count, count * self._complexity(self.settings.atom).parameters
        elif self.method == "sheterofl":
            sizes = [width for width in WIDTHS if width <= budget]
            sent = self._complexity(sizes[-1]).parameters
        else:
            sizes = [self.settings.width if self.method == "fedavg" else max(width for width in WIDTHS if width <= budget)]
            sent = self._complexity(sizes[0]).parameters
        macs = sum(self._complexity(size).macs for size in sizes) * self._passes()
        widest = sum(sizes) if self.method == "split-mix" else sizes[-1]
        return ClientCosts(sent, macs, widest <= budget)

    def _passes(self) -> float:
        """Forward passes that a training image costs, backward passes and attacks converted to them."""
        attack, settings = self.protocol.attack, self.settings
        if not settings.adversarial or attack is None:
            return TRAINING_PASSES
        if settings.norm == "film_bn":  # all images clean, and all but those with λ = 0 attacked
            share = 1 - zero_samples(self.protocol.batch_size, len(self.trainer.norm.lams)) / self.protocol.batch_size
            return TRAINING_PASSES + share * (TRAINING_PASSES + ATTACK_PASSES * attack.train_steps)
        dual = settings.norm == "dual_bn"
        clean = TRAINING_PASSES if dual or settings.lam < 1 else 0
        attacked = TRAINING_PASSES + ATTACK_PASSES * attack.train_steps if dual or settings.lam > 0 else 0
        return clean + attacked

    def _complexity(self, width: float) -> Complexity:
        """Cost of a network of a width on the data's images, counted once."""
        if width not in self.counted:
            self.counted[width] = complexity(blank(self.factory, width, self.trainer.norm), self.data.shape)
        return self.counted[width]
