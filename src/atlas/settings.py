"""Settings: what a person can choose, typed, checked and explained in one place.

A method's ``settings.py`` holds classes of these, and both its library call and its row in a study read them, so that a
default, a range and an explanation stand once. Nothing here imports a numerical library.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NoReturn, Self, dataclass_transform

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError

from atlas.errors import UserError, did_you_mean

Count = Annotated[int, Ge(0)]
"""A whole number from 0."""
Natural = Annotated[int, Ge(1)]
"""A whole number from 1."""
Positive = Annotated[float, Gt(0)]
"""A number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A number from 0."""
Fraction = Annotated[float, Ge(0), Le(1)]
"""A share of something, 0 and 1 included."""
Share = Annotated[float, Gt(0), Le(1)]
"""A share of something that is not nothing."""


class Settings(BaseModel):
    """Base of every settings class: typed, immutable, and strict about names.

    Defaults are the paper's values; a study overrides only what it must, and a library call what its caller wants.

    Raises
    ------
    ValueError
        A value is of the wrong type or out of its range, or a name is not a setting; one line. ``model_validate`` has pydantic's
        own error, which is a ``ValueError`` too and lists all that is wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(_refusal(type(self), error)) from None

    # Pydantic validates a mapping by a class's own __init__ unless it is marked so; a problem's place would be lost there.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def chosen(cls, given: Self | None = None, **changes: Any) -> Self:
        """Return the given settings, or the defaults, with some values changed.

        For library calls that take a settings object, single settings by keyword, or both.

        Raises
        ------
        TypeError
            A keyword is not a setting; says which is the nearest. Or what is given is no settings object.
        ValueError
            A value is not allowed.
        """
        for name in changes:
            if name not in cls.model_fields:
                raise TypeError(f"{name} is not a setting of {cls.__name__}; {did_you_mean(name, cls.model_fields)}")
        if given is not None and not isinstance(given, Settings):
            raise TypeError(f"{cls.__name__}(…) is needed, not a {type(given).__name__}")
        values = {} if given is None else {name: getattr(given, name) for name in type(given).model_fields}
        try:
            return (cls if given is None else type(given)).model_validate({**values, **changes})
        except ValidationError as error:
            raise ValueError(_refusal(cls, error)) from None


@dataclass_transform()
class DataclassSettings(Settings):
    """Settings that are a frozen dataclass, too, for a library call whose caller writes them.

    Values can be given by place; :mod:`dataclasses`' ``fields``, ``replace``, ``asdict`` and ``astuple`` take them.

    Raises
    ------
    TypeError
        There are too many values by place, one is given twice, or a keyword is not a setting; says which is the nearest.
    ValueError
        A value is of the wrong type or out of its range; one line.
    dataclasses.FrozenInstanceError
        A value is set or deleted later.
    """

    def __init__(self, *args: Any, **values: Any) -> None:
        owner, names = type(self).__name__, list(type(self).model_fields)
        if len(args) > len(names):
            raise TypeError(f"{owner} has {len(names)} settings, not {len(args)}")
        placed = dict(zip(names, args, strict=False))
        for name in values:
            if name not in names:
                raise TypeError(f"{name} is not a setting of {owner}; {did_you_mean(name, names)}")
            if name in placed:
                raise TypeError(f"{name} of {owner} is given twice, by place and by keyword")
        super().__init__(**placed, **values)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        fields: list[tuple[str, Any, Any]] = []
        for name, info in cls.model_fields.items():
            default = {} if info.is_required() else {"default": info.get_default(call_default_factory=True)}
            fields.append((name, info.annotation, dataclasses.field(**default)))
        twin = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
        for attribute in ("__dataclass_fields__", "__dataclass_params__", "__match_args__"):
            setattr(cls, attribute, getattr(twin, attribute))
        cls.__signature__ = inspect.signature(twin)

    def __replace__(self, **changes: Any) -> Self:  # copy.replace, from Python 3.13; pydantic's checks nothing
        return dataclasses.replace(self, **changes)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot set {name} of {type(self).__name__}; dataclasses.replace makes another")

    def __delattr__(self, name: str) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot delete {name} of {type(self).__name__}")


def merge(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge mappings deeply; later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def validate_settings(model: type[BaseModel], values: Mapping[str, Any], where: str, owner: str) -> dict[str, Any]:
    """Validate settings and return them complete, as plain JSON values.

    Raises
    ------
    UserError
        One line: where, what is wrong, and what would be right.
    """
    try:
        return model.model_validate(dict(values)).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(_refusal(model, error, where, owner)) from None


SHOWN = 60
"""Characters of a wrong value that a message shows."""


def _refusal(model: type[BaseModel], error: ValidationError, where: str = "", owner: str = "") -> str:
    """The first problem in one line: where, what is wrong, and what would be right."""
    problem = error.errors()[0]
    if problem["type"] != "extra_forbidden":
        return _line(where, *_first_problem(error))
    path = _address(where, ".".join(str(part) for part in problem["loc"]))
    nearest = did_you_mean(str(problem["loc"][-1]), _fields_at(model, problem["loc"][:-1]))
    return f"{path} is not a setting of {owner or model.__name__}; {nearest}"


def _first_problem(error: ValidationError) -> tuple[str, str]:
    """Where the first problem is, and what: ``= value: what it should have been``.

    Where settings do not go together, or one is missing, the value would be all of them; the message names what it is about.
    """
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = problem.get("input")
    if not isinstance(value, Mapping | BaseModel):
        shown = repr(value)
        message = f"= {shown if len(shown) <= SHOWN else shown[:SHOWN] + '…'}: {message}"
    return ".".join(str(part) for part in problem["loc"]), message


def _line(where: str, path: str, message: str) -> str:
    """One line: a place, the path below it, and what is wrong there."""
    address = _address(where, path)
    if not address:
        return message
    return f"{address} {message}" if message.startswith("= ") else f"{address}: {message}"


def _address(where: str, path: str) -> str:
    """A place and the path below it; an option of the command line stands apart from its key."""
    option = where.startswith("-") and " " not in where
    return (" " if option else ".").join(filter(None, (where, path)))


def _fields_at(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Names that are legal at a nested place of a settings model."""
    for part in location:
        nested = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return []
        model = nested
    return list(model.model_fields)
