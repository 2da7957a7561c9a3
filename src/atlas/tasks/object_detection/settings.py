"""What can be chosen in the task's own rows."""

from __future__ import annotations

from atlas.settings import Natural, Settings


class PlainSettings(Settings):
    """Width, depth and heads of a plain transformer with patches of 16 pixels; the defaults are DeiT-S."""

    embed_dim: Natural = 384
    depth: Natural = 12
    num_heads: Natural = 6
