"""What a process that trains or evaluates one row need not load: torch's compiler, 3 to 4 s of every process, for nothing.

torch imports ``torch._dynamo`` when the first optimizer is made and stepped, only to say that nothing is to be compiled there,
and torchvision (which timm needs) for a question that it asks later. A study has hundreds of short processes, and none compiles.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILER, TOOLS = "torch._dynamo", "torch._dynamo.utils"
UNKNOWN = ("__file__", "__spec__", "__warningregistry__")  # what the import system and tools ask of every module


def defer_compiler() -> None:
    """Put stand-ins where ``torch._dynamo`` would be, until anything asks for more than what is asked for without compiling.

    Then the real one is imported, and the stand-ins are gone. For processes of our own; importing Atlas does not call it.
    """
    if COMPILER in sys.modules:
        return
    import torch

    sys.modules[COMPILER] = compiler = _Compiler(COMPILER)
    sys.modules[TOOLS] = _Tools(TOOLS)
    torch._dynamo = compiler  # type: ignore[attr-defined]


def _real(name: str) -> ModuleType:
    """The real module, in place of all stand-ins."""
    for stand_in in (COMPILER, TOOLS):
        if isinstance(sys.modules.get(stand_in), _StandIn):
            del sys.modules[stand_in]
    return importlib.import_module(name)


class _StandIn(ModuleType):
    """A module that becomes the real one as soon as something else than its own methods is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in UNKNOWN or (name == "__path__" and self.__name__ == TOOLS):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Compiler(_StandIn):
    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Nothing: outside of a compiled function that is what the real one does."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """The function as it is while there is no compiler, and exempt from compilation as soon as there is one."""
        exempt: list[Callable[..., Any]] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            if not exempt and isinstance(sys.modules.get(COMPILER), _StandIn):
                return fn(*args, **kwargs)
            if not exempt:
                exempt.append(_real(COMPILER).disable(fn, recursive, **options))
            return exempt[0](*args, **kwargs)

        return call


class _Tools(_StandIn):
    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """Ask the real one; torchvision does so when it aligns regions, which Atlas never does."""
        answer: bool = _real(TOOLS).is_compile_supported(device_type)
        return answer
