"""A self-distilled ViT that is small enough to train where it is used: the offline substitute for DINO's weights.

It shows the machinery (gradients to the image, caching, schedule). It knows the palettes and textures of a handful of photographs
and nothing of semantics; results that use it are labelled ``tiny_dino``, never DINO.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sinnerf.encoders import FrozenEncoder, brought_to, freeze
from atlas.methods.sinnerf.settings import Distillation
from atlas.nn.examples import as_tensor, require_tensors
from atlas.nn.kinds import require_sequence
from atlas.nn.precision import forget_casts

SIZE, PATCH = 32, 8
AT_ONCE = 20
"""Crops that are encoded at once when an encoder is judged: 224 × 224 pixels of each may be more than the memory holds."""


class TinyViT(nn.Module):
    """A ViT of 32 × 32 pixels in patches of 8: width 64, depth 3, 4 heads; returns the class token."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Class tokens (b, width) of images (b, 3, 32, 32) in [0, 1]."""
        patches = self.embed(2 * image - 1).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), patches], dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


class TinyDino(FrozenEncoder):
    """The trained substitute, frozen.

    Parameters
    ----------
    vit : TinyViT
        The network; a copy is frozen.
    """

    def __init__(self, vit: TinyViT | None = None) -> None:
        super().__init__()
        self.model = freeze(copy.deepcopy(vit) if vit is not None else TinyViT())
        self.dim = int(self.model.width)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Features (b, 64) of images (b, 3, h, w) in [0, 1], brought to 32 × 32."""
        return self.model(brought_to(image, SIZE))


class SelfDistiller(nn.Module):
    """Student, teacher, prototypes, centre and optimiser of one self-distillation.

    Parameters
    ----------
    images : list of Tensor or array
        Photographs (3, h, w) in [0, 1], each at least 96 pixels in height and width.
    settings : Distillation, optional
        How it learns.
    """

    center: Tensor

    def __init__(self, images: list[Tensor], settings: Distillation | None = None) -> None:
        super().__init__()
        self.settings = settings or Distillation()
        require_sequence("a list of photographs (3, h, w)", images=images)
        self.images = [as_tensor(image, f"images[{index}]") for index, image in enumerate(images)]
        require_tensors(**{f"images[{index}]": image for index, image in enumerate(self.images)})
        self.student = TinyViT()
        self.head = nn.Linear(self.student.width, self.settings.prototypes, bias=False)
        self.teacher = copy.deepcopy(self.student)
        self.teacher_head = copy.deepcopy(self.head)
        freeze(self.teacher)
        freeze(self.teacher_head)
        self.register_buffer("center", torch.zeros(self.settings.prototypes))
        trained = [*self.student.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=self.settings.learning_rate)

    def step(self, generator: torch.Generator) -> float:
        """One step; returns the cross-entropy between teacher and student."""
        settings = self.settings
        first, second, local = self._views(generator)
        with torch.no_grad():
            wanted = self.teacher_head(self.teacher(torch.cat([first, second])))
            targets = functional.softmax((wanted - self.center) / settings.teacher_temperature, dim=-1).chunk(2)
        seen = functional.log_softmax(
            self.head(self.student(torch.cat([first, second, local]))) / settings.student_temperature, dim=-1
        ).chunk(3)
        pairs = [(0, 1), (1, 0), (0, 2), (1, 2)]
        loss = torch.stack([-(targets[a] * seen[b]).sum(-1).mean() for a, b in pairs]).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        forget_casts()
        with torch.no_grad():
            for own, other in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                other.lerp_(own, 1 - settings.ema)
            self.teacher_head.weight.lerp_(self.head.weight, 1 - settings.ema)
            self.center.lerp_(wanted.mean(0), 1 - settings.centring)
        return float(loss.detach())

    def encoder(self) -> TinyDino:
        """The teacher as a frozen encoder."""
        return TinyDino(self.teacher)

    def _views(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Two global crops and a local one per example, (batch, 3, 32, 32) each."""
        views: list[list[Tensor]] = [[], [], []]
        for _ in range(self.settings.batch):
            drawn = torch.rand(16, generator=generator).tolist()
            image = self.images[int(drawn[0] * len(self.images))]
            for view, shares in enumerate(((0.6, 0.4), (0.6, 0.4), (0.3, 0.2))):
                noise = drawn[3 + 4 * view : 7 + 4 * view]
                views[view].append(_crop(image, drawn[1:3], shares[0] + shares[1] * noise[0], noise[1:]))
        first, second, local = (_jitter(torch.stack(view), generator) for view in views)
        return first, second, local


def _crop(image: Tensor, center: list[float], share: float, noise: list[float]) -> Tensor:
    """A square around a common centre, moved a little and perhaps mirrored, as 32 × 32 pixels."""
    _, height, width = image.shape
    side = max(SIZE, int(share * 0.5 * min(height, width)))
    top = min(max(int(center[0] * (height - side) + (noise[0] - 0.5) * 0.5 * side), 0), height - side)
    left = min(max(int(center[1] * (width - side) + (noise[1] - 0.5) * 0.5 * side), 0), width - side)
    crop = functional.adaptive_avg_pool2d(image[:, top : top + side, left : left + side], SIZE)
    return crop.flip(-1) if noise[2] < 0.5 else crop


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random gain per colour and offset, clipped to [0, 1]."""
    gain = 0.8 + 0.4 * torch.rand(len(images), 3, 1, 1, generator=generator)
    offset = 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 0.1
    return (images * gain + offset).clamp(0, 1)


def nearest_neighbour_accuracy(encoder: nn.Module, distiller: SelfDistiller, count: int, generator: torch.Generator) -> float:
    """Share of fresh crops whose nearest other crop in feature space comes from the same photograph."""
    crops, sources = [], []
    for index in range(count):
        drawn = torch.rand(6, generator=generator).tolist()
        source = index % len(distiller.images)
        crops.append(_crop(distiller.images[source], drawn[:2], 0.6 + 0.4 * drawn[2], drawn[3:]))
        sources.append(source)
    with torch.no_grad():
        features = functional.normalize(torch.cat([encoder(part) for part in torch.stack(crops).split(AT_ONCE)]), dim=-1)
    similarity = features @ features.T
    similarity.fill_diagonal_(-2)
    labels = torch.tensor(sources)
    return float((labels[similarity.argmax(1)] == labels).float().mean())
