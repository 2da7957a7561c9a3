"""What is searched: the topology of a hierarchical vision transformer of four stages, and the space that it is drawn from.

Symbols of the paper: merge kernels K₁…K₄ (``kernels``; K₁ is the stem's), attention splits S₁…S₄ (``splits``), FFN
expansions E₁…E₄ (``expansions``), heads of the last stage H (``heads``). Depths and stem width are not part of a
topology: growth chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from atlas.nn.kinds import is_whole, require_kind, require_sequence

if TYPE_CHECKING:
    import torch

STAGES = 4
FIRST_STAGE_HEADS = 8
"""The first stage has an eighth of the last stage's heads, the second a quarter, the third a half."""

Quadruple = tuple[int, int, int, int]

OFFICIAL_GROUPS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "K1": (4, 5, 6, 7, 8),
        "K2": (2, 3, 4),
        "K3": (2, 3, 4),
        "K4": (2, 3, 4),
        "S1": (2, 4, 8),
        "S2": (1, 2, 4),
        "S3": (1, 2),
        "E1": (2, 3, 4, 5, 6),
        "E2": (2, 3, 4, 5, 6),
        "E3": (2, 3, 4, 5, 6),
        "E4": (2, 3, 4, 5, 6),
        "H": (16, 32, 64),
    }
)


def quadruple(name: str, values: Sequence[int]) -> Quadruple:
    """Return four positive whole numbers as a tuple.

    Raises
    ------
    TypeError
        It is no sequence.
    ValueError
        There are not four, or one is not a positive whole number.
    """
    require_sequence(f"a sequence of {STAGES} whole numbers", **{name: values})
    four = tuple(values)
    if len(four) != STAGES:
        raise ValueError(f"{name} {list(four)} has {len(four)} values; a topology has {STAGES} stages")
    if not all(is_whole(value) and value > 0 for value in four):
        raise ValueError(f"{name} {list(four)} must be positive whole numbers")
    return tuple(map(int, four))  # type: ignore[return-value]


@dataclass(frozen=True)
class Topology:
    """Kernels, splits and expansions of the four stages, and the heads of the last.

    Parameters
    ----------
    kernels : tuple of int
        K₁ of the stem, then K₂, K₃, K₄ of the merges into stages 2 to 4.
    splits : tuple of int
        Windows per axis in each stage's attention; 1 is global attention.
    expansions : tuple of int
        Hidden width of each stage's FFN, relative to its width.
    heads : int
        Heads of the last stage, a multiple of 8.

    Raises
    ------
    ValueError
        Not four values each, values that are not positive whole numbers, or heads that are no multiple of 8.
    """

    kernels: Quadruple
    splits: Quadruple
    expansions: Quadruple
    heads: int

    def __post_init__(self) -> None:
        for name in ("kernels", "splits", "expansions"):
            object.__setattr__(self, name, quadruple(name, getattr(self, name)))
        if not is_whole(self.heads) or self.heads <= 0 or self.heads % FIRST_STAGE_HEADS:
            raise ValueError(f"heads {self.heads!r} must be a positive multiple of {FIRST_STAGE_HEADS}")
        object.__setattr__(self, "heads", int(self.heads))

    @property
    def stage_heads(self) -> Quadruple:
        """Heads of the stages: H/8, H/4, H/2, H."""
        return self.heads // 8, self.heads // 4, self.heads // 2, self.heads

    @property
    def merge_product(self) -> int:
        """K₂K₃K₄, which is what the length measure sees of a topology."""
        return math.prod(self.kernels[1:])

    @classmethod
    def parse(cls, text: str) -> tuple[Topology, Quadruple | None, int | None]:
        """Read an architecture string.

        Parameters
        ----------
        text : str
            ``K1,S1,E1[,L1]|K2,S2,E2[,L2]|K3,S3,E3[,L3]|K4,S4,E4[,L4]|H[,d]``.

        Returns
        -------
        topology : Topology
        depths : tuple of int or None
            L₁…L₄, where the string has them.
        width : int or None
            Stem width d, where the string has it.

        Raises
        ------
        ValueError
            The string has another shape, or holds something else than positive whole numbers.

        Examples
        --------
        >>> Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0].kernels
        (8, 4, 4, 4)
        """
        require_kind(str, "a string such as 8,2,3|4,1,2|4,1,4|4,1,6|32", text=text)
        groups = [_numbers(group, text) for group in text.split("|")]
        if len(groups) != STAGES + 1:
            raise ValueError(f"{text!r} has {len(groups)} groups between '|'; expected {STAGES} stages and the heads")
        *stages, last = groups
        sizes = {len(stage) for stage in stages}
        if sizes not in ({3}, {4}):
            raise ValueError(f"{text!r}: every stage must be K,S,E, or every stage K,S,E,L")
        if len(last) not in (1, 2):
            raise ValueError(f"{text!r}: the last group must be the heads, or the heads and the stem width")
        kernels, splits, expansions, *depths = zip(*stages, strict=True)
        topology = cls(kernels, splits, expansions, last[0])
        return topology, depths[0] if depths else None, last[1] if len(last) == 2 else None

    def format(self, depths: Sequence[int] | None = None, width: int | None = None) -> str:
        """Write the architecture string that :meth:`parse` reads."""
        columns: list[Sequence[int]] = [self.kernels, self.splits, self.expansions]
        if depths is not None:
            columns.append(quadruple("depths", depths))
        stages = ["|".join(",".join(map(str, stage)) for stage in zip(*columns, strict=True))]
        return "|".join([*stages, str(self.heads) if width is None else f"{self.heads},{width}"])

    def __str__(self) -> str:
        return self.format()


def _numbers(group: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in group.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r}: {group!r} is not a list of positive whole numbers")
    return tuple(int(part) for part in parts)


class SearchSpace:
    """Independent categorical choices that together name a topology.

    Parameters
    ----------
    groups : mapping of str to tuple of int
        The choices of K1…K4, S1…S3, E1…E4 and H; S4 may be given and is 1 otherwise. Their order is that of the policy.

    Raises
    ------
    ValueError
        A group is missing, unknown, empty, or holds something else than positive whole numbers.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        require_kind(Mapping, "a mapping of names to choices", groups=groups)
        known = {*OFFICIAL_GROUPS, "S4"}
        if missing := sorted(set(OFFICIAL_GROUPS) - set(groups)):
            raise ValueError(f"the search space lacks the groups {', '.join(missing)}")
        if unknown := sorted(set(groups) - known):
            raise ValueError(f"the search space has unknown groups {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        for name, choices in groups.items():
            require_sequence("a sequence of positive whole numbers", **{f"group {name}": choices})
            if not choices or not all(isinstance(choice, int) and choice > 0 for choice in choices):
                raise ValueError(f"group {name} {list(choices)} must hold positive whole numbers")
        self.groups: dict[str, tuple[int, ...]] = {name: tuple(choices) for name, choices in groups.items()}

    @classmethod
    def official(cls) -> SearchSpace:
        """Return the published space: 12 groups, 45 choices, 4,556,250 topologies."""
        return cls(OFFICIAL_GROUPS)

    @property
    def size(self) -> int:
        """Number of topologies in the space, the product of its choices."""
        return math.prod(len(choices) for choices in self.groups.values())

    def topology(self, indices: Sequence[int]) -> Topology:
        """Return the topology of one choice per group, in the order of the groups."""
        chosen = {name: choices[index] for (name, choices), index in zip(self.groups.items(), indices, strict=True)}
        chosen.setdefault("S4", 1)
        return Topology(
            tuple(chosen[f"K{stage}"] for stage in range(1, 5)),  # type: ignore[arg-type]
            tuple(chosen[f"S{stage}"] for stage in range(1, 5)),  # type: ignore[arg-type]
            tuple(chosen[f"E{stage}"] for stage in range(1, 5)),  # type: ignore[arg-type]
            chosen["H"],
        )

    def sample(self, generator: torch.Generator) -> Topology:
        """Draw a topology, every one with the same probability."""
        import torch

        sizes = [len(choices) for choices in self.groups.values()]
        return self.topology([int(torch.randint(size, (), generator=generator)) for size in sizes])

    def largest_merges(self) -> Topology:
        """Return the heuristic that the length measure amounts to: the largest K₂, K₃, K₄, the median of everything else."""
        merges = {"K2", "K3", "K4"}
        groups = self.groups.items()
        return self.topology([len(choices) - 1 if name in merges else (len(choices) - 1) // 2 for name, choices in groups])


def require_topology(topology: object) -> None:
    """Refuse what is no topology, text above all.

    Raises
    ------
    TypeError
        It is of another type; says how text becomes one.
    """
    require_kind(Topology, "a Topology, such as Topology.parse(text)[0],", topology=topology)
