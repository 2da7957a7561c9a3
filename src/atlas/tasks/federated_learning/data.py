"""Data over clients: who trains, validates and is tested on what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from atlas.datasets import get_dataset
from atlas.datasets.domains import read_domains
from atlas.datasets.images import IMAGES
from atlas.datasets.splits import SPLIT_SEED, stratified_split
from atlas.errors import UserError
from atlas.harness.files import read_tensors
from atlas.harness.seeds import derive_seed, generator, split_seed
from atlas.nn.federation import assign_classes, budgets, partition_uniform, split_by_class
from atlas.tasks.federated_learning.domains import CHANGES
from atlas.tasks.federated_learning.protocol import FEWEST_CLIENTS, Data, Protocol

if TYPE_CHECKING:
    from atlas.harness.run import Run

BYTE = 255
FEWEST_IMAGES = 2
"""Of a client, to train, validate or test on: one image has no batch statistics."""


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, channels, height, width), bytes or floats in [0, 1], and labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray | slice) -> LabelledImages:
        where = torch.as_tensor(index) if isinstance(index, np.ndarray) else index
        return LabelledImages(self.images[where], self.labels[where])

    def to(self, device: torch.device) -> LabelledImages:
        """Return the same images and labels on a device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images (batch, channels, height, width) and labels (batch,) in order.

        A last batch of one joins the one before it.
        """
        starts = list(range(0, len(self), size))
        if len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        for start, end in zip(starts, [*starts[1:], len(self)], strict=True):
            images = self.images[start:end]
            yield images.float() / BYTE if images.dtype == torch.uint8 else images, self.labels[start:end]


@dataclass(frozen=True)
class FederationMember:
    """One client: its domain, the widest network it can train, and its data."""

    domain: str
    budget: float
    train: LabelledImages
    validation: LabelledImages


@dataclass(frozen=True)
class TestSet:
    """Test images of one client, or of several that share them."""

    __test__ = False

    members: tuple[int, ...]
    examples: LabelledImages


@dataclass(frozen=True)
class FederatedData:
    """All clients of a federation, in order; see :class:`~atlas.tasks.federated_learning.protocol.Data`."""

    members: tuple[FederationMember, ...]
    tests: tuple[TestSet, ...]
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (channels, height, width)."""
        return tuple(self.members[0].train.images.shape[1:])


def load_data(run: Run, protocol: Protocol, device: torch.device) -> FederatedData:
    """Read a run's dataset and spread it over clients.

    Raises
    ------
    UserError
        The protocol asks for what the dataset cannot give.
    """
    facts = get_dataset(run.data).facts
    settings = with_fewest(protocol.data, facts) if protocol.data.fewest else protocol.data
    if "domains" in facts:
        if settings.partition != "feature" or settings.domains:
            raise UserError(f"{run.data} has domains of its own: data.partition must be feature, and data.domains empty")
        shares = _own_domains(run, settings)
    else:
        shares = _single(run, settings, facts)
    capacity = member_budgets(protocol, len(shares.train), shares.domains)
    members = []
    for index, share in enumerate(shares.train):
        train, validation = _held_out(share, protocol.data.validation_fraction, index, run.data)
        members.append(FederationMember(shares.domains[index], float(capacity[index]), train.to(device), validation.to(device)))
    for test in shares.tests:
        if len(test.examples) < FEWEST_IMAGES:
            size = f"{len(test.examples)} test image{'' if len(test.examples) == 1 else 's'}"
            need = f"batch statistics need at least {FEWEST_IMAGES}"
            raise UserError(f"{run.data}: client {test.members[0]} has {size}, too few: {need}")
    tests = tuple(TestSet(test.members, test.examples.to(device)) for test in shares.tests)
    return FederatedData(tuple(members), tests, int(str(facts["classes"])))


def with_fewest(data: Data, facts: Mapping[str, object]) -> Data:
    """The same with as few clients as the partition allows and budgets are drawn evenly for: whole rounds of the domains, or
    enough to cover all classes."""
    own = facts.get("domains")
    domains = len(own) if isinstance(own, tuple) else len(data.domains)
    covering = int(str(facts["classes"])) // data.classes_per_client + 1 if data.partition == "class" else 1
    clients = math.lcm(max(domains, 1), FEWEST_CLIENTS) if data.partition == "feature" else max(FEWEST_CLIENTS, covering)
    return data.model_copy(update={"clients": clients})


@dataclass(frozen=True)
class _Shares:
    domains: list[str]
    train: list[LabelledImages]
    tests: list[TestSet]


def member_budgets(protocol: Protocol, clients: int, domains: Sequence[str]) -> np.ndarray:
    """Budgets of all clients: ascending with their number, or spread so that every domain has all of them."""
    ascending = budgets(protocol.budgets, clients)
    if protocol.budget_order == "by-domain":
        return ascending
    rank = {name: order for order, name in enumerate(dict.fromkeys(domains))}
    seen: dict[str, int] = {}
    order = []
    for client, domain in enumerate(domains):
        order.append((seen.get(domain, 0), rank[domain], client))
        seen[domain] = seen.get(domain, 0) + 1
    spread = np.empty(clients)
    spread[[client for _, _, client in sorted(order)]] = ascending
    return spread


def _held_out(share: LabelledImages, fraction: float, index: int, dataset: str) -> tuple[LabelledImages, LabelledImages]:
    """The first part to train on, the rest to validate."""
    held = int(fraction * len(share))
    if min(held, len(share) - held) < FEWEST_IMAGES:
        raise UserError(f"{dataset}: client {index} has {len(share)} samples, too few to hold out {fraction:g} of them")
    return share[: len(share) - held], share[len(share) - held :]


def _own_domains(run: Run, data: Data) -> _Shares:
    """Clients of a dataset of several domains: equal contiguous shares of each, trimmed to the smallest domain."""
    read = read_domains(run.data, run.data_folder, data.train_parts)
    if data.clients % len(read):
        raise UserError(f"{data.clients} clients cannot share the {len(read)} domains of {run.data} evenly")
    each = data.clients // len(read)
    smallest = int(data.train_fraction * min(len(arrays["train_labels"]) for arrays in read.values()))
    if smallest < each:
        raise UserError(f"{run.data}: {smallest} samples of a domain are too few for {each} clients")
    size = smallest // each
    shares = _Shares([], [], [])
    for domain, arrays in read.items():
        train, test = (_examples(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
        for index, part in enumerate(np.array_split(np.arange(len(test)), each)):
            shares.tests.append(TestSet((len(shares.train),), test[part]))
            shares.domains.append(domain)
            shares.train.append(train[index * size : (index + 1) * size])
    return shares


def _single(run: Run, data: Data, facts: Mapping[str, object]) -> _Shares:
    """Clients of one dataset, by domains made of it, by classes, or evenly."""
    top = int(str(facts["top"]))
    tensors = read_tensors(run.data_folder / IMAGES)
    train = LabelledImages(tensors["train_images"], tensors["train_labels"])
    if "test_labels" in tensors:
        test = LabelledImages(tensors["test_images"], tensors["test_labels"])
    else:
        kept, held = stratified_split(train.labels.numpy(), data.test_fraction, split_seed(data.test_split, run.seed))
        train, test = train[kept], train[held]
    if top != BYTE:
        train, test = (LabelledImages(part.images.float() / top, part.labels) for part in (train, test))
    if data.train_fraction < 1:
        train = train[stratified_split(train.labels.numpy(), data.train_fraction)[1]]
    train = train[torch.randperm(len(train), generator=generator(run.seed, "clients")).numpy()]
    build = {"feature": _by_domain, "class": _by_class, "iid": _evenly}[data.partition]
    return build(train, test, data, run.seed)


def _by_domain(train: LabelledImages, test: LabelledImages, data: Data, seed: int) -> _Shares:
    names = data.domains or ("identity",)
    size, each = len(train) // data.clients, data.clients // len(names)
    shares = _Shares([], [], [])
    for index, name in enumerate(names):
        first = len(shares.train)
        own = _changed(train[first * size : (first + each) * size], name, generator(seed, "domain", name))
        shares.domains.extend([name] * each)
        shares.train.extend(own[client * size : (client + 1) * size] for client in range(each))
        # test images do not depend on the run's seed
        shown = _changed(test, name, generator(SPLIT_SEED, "test-domain", index))
        shares.tests.append(TestSet(tuple(range(first, first + each)), shown))
    return shares


def _changed(examples: LabelledImages, name: str, random: torch.Generator) -> LabelledImages:
    """Images of a domain; bytes stay bytes."""
    if name == "identity":
        return examples
    if examples.images.dtype == torch.uint8:
        changed = CHANGES[name](examples.images.float() / BYTE, random)
        return LabelledImages((changed * BYTE).round().to(torch.uint8), examples.labels)
    return LabelledImages(CHANGES[name](examples.images, random), examples.labels)


def _by_class(train: LabelledImages, test: LabelledImages, data: Data, seed: int) -> _Shares:
    classes = int(train.labels.max()) + 1
    try:
        owners = assign_classes(classes, data.clients, data.classes_per_client, seed=derive_seed(seed, "classes"))
        parts = split_by_class(
            train.labels.numpy(), owners, min_per_share=data.min_per_share, seed=derive_seed(seed, "class sizes")
        )
        tested = split_by_class(test.labels.numpy(), owners, min_per_share=1, seed=SPLIT_SEED)
    except ValueError as error:
        raise UserError(f"protocol.data: {error}") from None
    random = np.random.default_rng(derive_seed(seed, "class order"))
    return _Shares(
        ["all"] * data.clients,
        [train[random.permutation(part)] for part in parts],
        [TestSet((client,), test[part]) for client, part in enumerate(tested)],
    )


def _evenly(train: LabelledImages, test: LabelledImages, data: Data, seed: int) -> _Shares:
    try:
        sizes = partition_uniform(len(train), data.clients, min_per_share=data.min_per_share, seed=derive_seed(seed, "sizes"))
    except ValueError as error:
        raise UserError(f"protocol.data: {error}") from None
    bounds = np.cumsum([0, *sizes])
    parts = [train[int(start) : int(end)] for start, end in pairwise(bounds)]
    return _Shares(["all"] * data.clients, parts, [TestSet(tuple(range(data.clients)), test)])


def _examples(images: np.ndarray, labels: np.ndarray) -> LabelledImages:
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))
