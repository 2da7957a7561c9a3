"""Splits: shared by all seeds, so that no run trains on what another is tested on, or drawn anew by every seed.

Intervals over seeds that share a test split cover the noise of training alone; with a split of every seed's own they also cover
which images happened to be tested on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

SPLIT_SEED = 20220
TestSplit = Literal["shared", "per-seed"]


def stratified_split(labels: np.ndarray, fraction: float, seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of every class.

    Parameters
    ----------
    labels : ndarray
        (n,) class indices.
    fraction : float
        Share of each class to hold out, in [0, 1); rounded per class.

    Returns
    -------
    kept, held : ndarray
        Indices, each ascending.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.append(members[: round(fraction * len(members))])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out
