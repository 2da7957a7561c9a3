"""Trainings inside a caller's block of autocast go on from step to step.

Autocast keeps what it has cast of a weight until its outermost block ends, whatever has become of the weight (PyTorch 2.15):
every later step would look at the network of the first one. With its cache off there is nothing to forget, and both must agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from atlas.l2o import Examples, MetaConfig, RNNprop, meta_train, mlp
from atlas.methods.sinnerf import Camera, LossWeights, NeRFNetwork, OrbitGaussian, RGBDView, Sampler, SinNeRF, Stage
from atlas.methods.sparse_robust import FlyingBird
from atlas.methods.split_mix import Client, FedTrainer
from atlas.methods.split_mix.networks import MLP
from atlas.methods.uvc import compress
from atlas.methods.vfds import SelectiveGRU, fit


def batches(count: int, *shape: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(2)
    return [(torch.rand(8, *shape, generator=random), torch.randint(3, (8,), generator=random)) for _ in range(count)]


def compressed() -> list[Tensor]:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return [*compress(model, 0.7, batches(4, 1, 8, 8), epochs=(3, 2), learning_rate=1e-3).model.parameters()]


def selected() -> list[Tensor]:
    torch.manual_seed(1)
    model = SelectiveGRU(4, 5, 3)
    (x, y) = batches(1, 6, 4)[0]
    fit(model, (x, y[:, None].expand(8, 6)), lam=0.5, steps=6, batch_size=4)
    return [*model.parameters()]


def federated() -> list[Tensor]:
    people = [Client(*batch, 1.0) for batch in batches(3, 6)]
    factory = lambda width, **options: MLP(width, inputs=6, hidden=(16, 8), classes=3, **options)  # noqa: E731
    trainer = FedTrainer("split-mix", factory, rounds=2, epochs=2, batch_size=4, lr=0.1)
    trainer.fit(people)
    return [*trainer.server.tensors().values()]


def sparse() -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    bird = FlyingBird(model, optimizer, total_steps=8, interval=2)
    for x, y in batches(8, 6):
        loss = functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        bird.step()
    return [*model.parameters()]


def meta_trained() -> list[Tensor]:
    splits = dict(zip(("train", "val"), batches(2, 5), strict=True))
    torch.manual_seed(0)
    policy = RNNprop(hidden=(4,), pre=0, lr=0.05)
    cfg = MetaConfig(windows=4, unroll=5, depth=2, instances=2, lr=1e-2)
    meta_train(policy, mlp((5, 4, 3), data=Examples(splits, batch_size=4)), cfg, torch.Generator().manual_seed(0))
    return [*policy.parameters()]


def rendered() -> list[Tensor]:
    torch.manual_seed(0)
    camera = Camera(np.diag([8.0, 8.0, 1.0]), np.eye(4), 8, 8)
    view = RGBDView(np.random.default_rng(0).random((8, 8, 3)), np.full((8, 8), 2.0), camera)
    weights = LossWeights(rgb=1, depth=0, side=0)
    field = NeRFNetwork(depth=2, width=16, frequencies=2, view_frequencies=None)
    model = SinNeRF(
        field,
        bounds=[[-1, -1, -3], [1, 1, -1]],
        near=1,
        far=3,
        pose_prior=OrbitGaussian(5.0),
        stages=[Stage(6, 1, 0.05, weights)],
        sampler=Sampler(coarse=8, fine=0),
    )
    model.fit(view)
    return [*field.parameters()]


@pytest.mark.parametrize("training", [compressed, selected, federated, sparse, meta_trained, rendered])
def test_casts_of_weights_are_forgotten_with_them(training: Callable[[], list[Tensor]]) -> None:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = training()
    with torch.autocast("cpu", torch.bfloat16):
        found = training()
    flat, right = (torch.cat([weight.detach().flatten() for weight in weights]) for weights in (found, wanted))
    # a weight that is used twice has its gradients added up before or after they are cast back
    assert float((flat - right).norm() / right.norm()) < 1e-4
