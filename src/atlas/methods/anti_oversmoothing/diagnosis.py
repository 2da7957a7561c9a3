"""The per-layer diagnostics that all vision transformers of Atlas share, under the name by which this paper offers them."""

from atlas.nn.diagnostics import diagnose

__all__ = ["diagnose"]
