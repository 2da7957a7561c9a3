"""The mode of a model, training or evaluation, for as long as something looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

Mode = Literal["keep", "train", "eval"]


@contextmanager
def mode_of(model: nn.Module, mode: Mode) -> Iterator[None]:
    """While the block runs, the model is in this mode; afterwards every module has its own again."""
    if mode == "keep":
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
