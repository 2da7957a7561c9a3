"""Which base networks a client trains in a round (Hong et al., ICLR 2022, Algorithm 2)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


class BaseScheduler:
    """Draws base networks for clients; one for all clients and rounds.

    The first network of a draw is the next of a shuffled list, which is shuffled anew when it ends: so every network is
    trained once per ``n_base`` visits, even if no client can train more than one. The others are drawn uniformly without
    replacement.

    Parameters
    ----------
    n_base : int
        Number of base networks M.
    rng : numpy.random.Generator
        Source of the draws.
    legacy : bool
        Draw from NumPy's global generator in the order of the authors' code instead, to compare with it.
    """

    def __init__(self, n_base: int, rng: np.random.Generator, *, legacy: bool = False) -> None:
        if n_base < 1:
            raise ValueError(f"n_base must be at least 1, not {n_base}")
        self.n_base, self.rng, self.legacy = n_base, rng, legacy
        self.order = list(range(n_base))
        self.cursor = 0
        self._shuffle(self.order)

    def draw(self, n: int) -> list[int]:
        """Return ``n`` different base networks for the next client.

        Raises
        ------
        ValueError
            ``n`` is not in 1 … ``n_base``.
        """
        if not 1 <= n <= self.n_base:
            raise ValueError(f"a client trains 1 … {self.n_base} base networks, not {n}")
        if self.cursor == self.n_base:
            self._shuffle(self.order)
            self.cursor = 0
        first = self.order[self.cursor]
        self.cursor += 1
        if n == 1:
            return [first]
        others = [base for base in self.order if base != first]
        self._shuffle(others)
        return [first, *others[: n - 1]]

    def _shuffle(self, bases: list[int]) -> None:
        if self.legacy:
            np.random.shuffle(bases)  # noqa: NPY002 - the official stream
        else:
            self.rng.shuffle(bases)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, as plain values (with ``legacy``, NumPy's global state besides)."""
        random = json.dumps(self.rng.bit_generator.state, default=lambda array: array.tolist())
        return {"order": list(self.order), "cursor": self.cursor, "rng": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError
            The state is of another number of base networks.
        """
        if len(state["order"]) != self.n_base:
            raise ValueError(f"the state has {len(state['order'])} base networks, this scheduler {self.n_base}")
        self.order, self.cursor = list(state["order"]), int(state["cursor"])
        self.rng.bit_generator.state = json.loads(state["rng"])
