"""Hooks that watch one model and no copy of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Watch:
    """A hook of one module, which copies and pickles of the module do not take along.

    ``copy.deepcopy`` of a model copies its hooks. What looks at a model from outside would then hear of calls of the copy too, an
    average of weights for example; and where the hook is a method, its object would be copied with all that it has seen. A copy
    of a watch says nothing.

    ``torch.compile`` breaks its graph at a watch; where it may not (``fullgraph=True``, strict ``torch.export``) it refuses the
    model, until the hooks are removed.

    Parameters
    ----------
    tell : callable, optional
        Called as the hook, with what PyTorch gives to one; what it returns is the hook's answer. ``None`` says nothing.

    Examples
    --------
    >>> import copy
    >>> from torch import nn, zeros
    >>> layer = nn.Linear(2, 3)
    >>> handle = layer.register_forward_hook(Watch(lambda module, inputs, output: print(tuple(output.shape))))
    >>> _ = layer(zeros(4, 2))
    (4, 3)
    >>> _ = copy.deepcopy(layer)(zeros(4, 2))
    """

    def __init__(self, tell: Callable[..., Any] | None = None) -> None:
        self.tell = tell

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Tell of a call of the module that is watched."""
        return None if self.tell is None else self._told(*arguments, **options)

    def _told(self, *arguments: Any, **options: Any) -> Any:
        assert self.tell is not None
        return self.tell(*arguments, **options)

    # torch.compile leaves this one call out of its graphs (what torch.compiler.disable sets, without loading the compiler). Taken
    # in, hooks of a compiled vision transformer were heard in its first call only (torch 2.15).
    _told._torchdynamo_disable = True  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:  # copy.deepcopy asks it too
        return Watch, ()
