"""The paper's attack, PGD, and the loss of C&W∞."""

from atlas.nn.attacks import PGD, margin_loss

__all__ = ["PGD", "margin_loss"]
