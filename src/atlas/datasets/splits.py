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


def balanced_order(labels: np.ndarray, seed: int = SPLIT_SEED) -> np.ndarray:
    """Put examples in an order in which every class comes at the pace of its share.

    So the first n, the last n, and any n in a row, hold each class as often as all do, to within one example: whoever takes the
    beginning or the end of the order has a stratified subset.

    Parameters
    ----------
    labels : ndarray
        (n,) class indices.
    seed : int
        Which examples of a class come first, and which class of a round, is drawn with it.

    Returns
    -------
    order : ndarray
        (n,) a permutation of the indices.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat([0, 1], [6, 3])
    >>> [int((labels[balanced_order(labels)[:n]] == 1).sum()) for n in (3, 6, 9)]
    [1, 2, 3]
    """
    import numpy as np

    random = np.random.default_rng(seed)
    due = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        due[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.random(len(labels)), due))
