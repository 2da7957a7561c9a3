"""How samples, classes and capacities are spread over the clients of a federation.

Protocols follow J. Hong, H. Wang, Z. Wang, J. Zhou, *Efficient Split-Mix Federated Learning for On-Demand and In-Situ
Customization*, ICLR 2022, Sec. 4 and appendix A. Draws are NumPy's: from a generator of their own, or, with ``legacy``, from the
streams that the authors' code uses, to compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from atlas.nn.kinds import require_kind, require_whole

GRID = 8
"""Log-normal budgets are multiples of one eighth."""


def partition_uniform(
    n: int, n_shares: int, *, min_per_share: int = 16, seed: int, legacy: bool = False, dirichlet: bool = False
) -> np.ndarray:
    """Sizes of the shares of ``n`` samples: equal but for a remainder that is drawn, or Dirichlet-distributed.

    Parameters
    ----------
    n, n_shares : int
        Samples, and shares to split them into.
    min_per_share : int
        Every share gets at least so many.
    dirichlet : bool
        Share what is above the minimum in proportions drawn from Dir(1, …, 1).

    Returns
    -------
    ndarray
        (n_shares,) int64, sum ``n``. The remainder is drawn with replacement, so a share may get two of it.

    Raises
    ------
    ValueError
        There are no shares, or fewer samples than their minima.
    """
    require_whole(n=n, n_shares=n_shares, min_per_share=min_per_share)
    rng = np.random.RandomState(seed + 1) if legacy else np.random.default_rng(seed)
    return _sizes(n, n_shares, min_per_share, rng, dirichlet)


def _sizes(n: int, n_shares: int, minimum: int, rng: np.random.Generator | np.random.RandomState, dirichlet: bool) -> np.ndarray:
    if n_shares < 1:
        raise ValueError(f"n_shares must be at least 1, not {n_shares}")
    free = n - minimum * n_shares
    if free < 0:
        raise ValueError(f"{n} samples are too few for {n_shares} shares of at least {minimum}")
    if dirichlet:
        sizes = (rng.dirichlet(np.ones(n_shares)) * free).astype(np.int64)
    else:
        sizes = np.full(n_shares, free // n_shares, dtype=np.int64)
    np.add.at(sizes, rng.choice(n_shares, free - int(sizes.sum())), 1)
    return sizes + minimum


def assign_classes(n_classes: int, n_clients: int, per_client: int, *, seed: int = 0, legacy: bool = False) -> list[list[int]]:
    """Which classes each client has: every client takes the next ones of a shuffled order, which is shuffled anew when it ends.

    With ``legacy``, around a new shuffle a client may draw a class that it has already; it is then named twice and counts as two
    shares of that class, as in the authors' code, and shuffles are those of NumPy's global generator. Otherwise such a class is
    passed over.

    Raises
    ------
    ValueError
        A client wants more classes than there are, or the clients together cannot cover all of them.
    """
    if not 1 <= per_client <= n_classes:
        raise ValueError(f"classes_per_client must be in 1 … {n_classes}, not {per_client}")
    if n_clients * per_client <= n_classes:
        raise ValueError(f"{n_clients} clients with {per_client} classes each cannot share {n_classes} classes")
    order = np.arange(n_classes)
    shuffle = np.random.shuffle if legacy else np.random.default_rng(seed).shuffle
    shuffle(order)
    cursor, owned = 0, []
    for _ in range(n_clients):
        mine: list[int] = []
        while len(mine) < per_client:
            if cursor == n_classes:
                shuffle(order)
                cursor = 0
            chosen = cursor
            if not legacy:
                chosen = next(later for later in range(cursor, n_classes) if order[later] not in mine)
            order[cursor], order[chosen] = order[chosen], order[cursor]
            mine.append(int(order[cursor]))
            cursor += 1
        owned.append(mine)
    return owned


def split_by_class(
    labels: Sequence[int] | np.ndarray, owners: list[list[int]], *, min_per_share: int = 16, seed: int, legacy: bool = False
) -> list[np.ndarray]:
    """Split the samples of every class over the clients that own it, uniformly and in order.

    Parameters
    ----------
    owners : list of list of int
        Classes of every client, as :func:`assign_classes` gives them. A class that a client names twice is two shares, both of
        them its own.

    Returns
    -------
    list of ndarray
        Indices of every client, class by class in order of first appearance; disjoint. Classes that nobody owns stay out.
    """
    labels = np.asarray(labels)
    rng = np.random.RandomState(seed + 1) if legacy else np.random.default_rng(seed)
    values, first = np.unique(labels, return_index=True)
    parts: list[list[np.ndarray]] = [[] for _ in owners]
    for value in values[np.argsort(first)]:
        clients = [client for client, classes in enumerate(owners) for owned in classes if owned == int(value)]
        if not clients:
            continue
        members = np.flatnonzero(labels == value)
        sizes = _sizes(len(members), len(clients), min_per_share, rng, False)
        for client, part in zip(clients, np.split(members, np.cumsum(sizes)[:-1]), strict=True):
            parts[client].append(part)
    return [np.concatenate(part) if part else np.empty(0, dtype=np.int64) for part in parts]


def partition_by_class(
    labels: Sequence[int] | np.ndarray,
    n_clients: int,
    classes_per_client: int,
    *,
    min_per_share: int = 16,
    seed: int,
    legacy: bool = False,
) -> list[np.ndarray]:
    """Give every client the samples of a few classes only.

    Parameters
    ----------
    labels : array_like
        (n,) class of every sample.
    min_per_share : int
        Every client gets at least so many samples of each of its classes.

    Returns
    -------
    list of ndarray
        Indices of every client; disjoint, and together all samples.

    Raises
    ------
    ValueError
        Clients cannot cover the classes, or a class has too few samples for its owners.
    """
    require_whole(n_clients=n_clients, classes_per_client=classes_per_client, min_per_share=min_per_share)
    if np.ndim(labels) != 1:
        raise TypeError(f"labels must be the class of every sample (n,), not {labels!r}")
    classes = len(np.unique(np.asarray(labels)))
    owners = assign_classes(classes, n_clients, classes_per_client, seed=seed, legacy=legacy)
    known = np.unique(np.asarray(labels))
    named = [[int(known[index]) for index in mine] for mine in owners]
    return split_by_class(labels, named, min_per_share=min_per_share, seed=seed, legacy=legacy)


def budgets(spec: str, n_clients: int) -> np.ndarray:
    """Width that each client can train, in (0, 1].

    Parameters
    ----------
    spec : str
        ``"8-4-2-1"``: widths by their denominators, ``"8d3"`` for 3/8; sorted, and given to equal runs of clients in ascending
        order. Or ``"ln0.5_0.4"``: multiples of 1/8, log-normal with shape 0.5 and median 0.4.

    Returns
    -------
    ndarray
        (n_clients,) float64, ascending. Clients are numbered by domain, so budgets go with domains: that is the point.

    Raises
    ------
    ValueError
        The specification cannot be read, or a width is not in (0, 1].
    """
    require_kind(str, "text such as 8-4-2-1 or ln0.5_0.4", **{"the specification of budgets": spec})
    require_whole(n_clients=n_clients)
    if n_clients < 1:
        raise ValueError(f"n_clients must be at least 1, not {n_clients}")
    try:
        if spec.startswith("ln"):
            shape, median = (float(part) for part in spec[2:].split("_"))
            return _log_normal(shape, median, n_clients)
        widths = sorted(_width(part) for part in spec.split("-"))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"budgets {spec!r} must be like 8-4-2-1, 8-4-8d3-2 or ln0.5_0.4 ({error})") from None
    places = (len(widths) * np.arange(n_clients)) // n_clients
    return np.asarray(widths)[places]


def _width(part: str) -> float:
    denominator, _, numerator = part.partition("d")
    width = int(numerator or 1) / int(denominator)
    if not 0 < width <= 1:
        raise ValueError(f"{part} is the width {width:g}, outside (0, 1]")
    return width


def _log_normal(shape: float, median: float, n_clients: int) -> np.ndarray:
    if not (shape > 0 and median > 0):
        raise ValueError(f"shape and median must be above 0, not {shape} and {median}")
    widths = np.arange(1, GRID + 1) / GRID
    below = [0.5 * (1 + math.erf(math.log(width / median) / (shape * math.sqrt(2)))) for width in widths]
    bounds = [math.floor(n_clients * (value - below[0]) / (1 - below[0])) for value in below]
    return np.repeat(widths, np.diff([*bounds, n_clients]))
