"""What a person says to the workflow: the keys and values of ``snakemake --config``, checked as a study's file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, field_validator

from atlas.settings import Settings, validate_settings


class WorkflowOptions(Settings):
    """The choices of ``snakemake --config``, which a profile can make, too.

    Attributes
    ----------
    tier : str
        The study: ``config/<tier>.yaml``.
    only : tuple of str
        Patterns of the rows that are meant, with what they need; all where there are none. Commas stand between several.
    here : bool
        Whether what another machine made is made again.
    code : "new", optional
        Trains again what was trained with other code.
    warm : bool
        Whether jobs of this machine are forks of a process that has loaded everything.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # Snakemake reads a name of digits as a number

    tier: str = "demo"
    only: tuple[str, ...] = ()
    here: bool = False
    code: Literal["new"] | None = None
    warm: bool = True

    @field_validator("only", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """Patterns in one text, a number, or nothing, as a list."""
        if value is None:
            return ()
        return str(value).split(",") if isinstance(value, str | int | float) else value

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Make sense of Snakemake's ``config``.

        Raises
        ------
        UserError
            A key is not known or a value means nothing; one line that says what would be right.

        Examples
        --------
        >>> WorkflowOptions.read({"tier": 2024, "only": "vfds,uvc/*"}).only
        ('vfds', 'uvc/*')
        """
        return cls(**validate_settings(cls, config, "--config", "the workflow"))
