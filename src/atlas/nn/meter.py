"""What a stretch of torch code costs: operations of each kind of work, and bytes of tensors that were alive."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atlas.nn.counts import counted_flops
from atlas.nn.work import ONCE, Spent, listening


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operations make, on any device, while the mode is on.

    Weights, their gradients and optimiser states do not grow with the batch, activations do. The two are told apart by shape:
    a tensor that is shaped like a parameter, or like a tensor that is still alive in the end, counts as the former. So does a
    stack of copies of a matrix, transposed or not, or of a kernel, which grows with the copies: of clients, replicates or weights
    of a loss. What was made in work of one kind may grow otherwise than what was made in another: data that are read once do not
    grow at all.

    Attributes
    ----------
    kind : str
        Of which kind the work is that goes on.
    operations : int
        Operations dispatched, views aside; on a GPU each is at least one kernel launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.kind = ONCE
        self._alive: dict[int, tuple[int, torch.Size, str]] = {}
        self._events: list[tuple[int, torch.Size, str]] = []  # bytes made (positive) or released, shape, and kind that made them
        self._parameters: set[torch.Size] = set()
        self._kept: set[torch.Size] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for arg in args:
            for tensor in arg if isinstance(arg, list | tuple) else (arg,):
                if isinstance(tensor, torch.nn.Parameter):
                    self._parameters.add(tensor.shape)
        out = func(*args, **(kwargs or {}))
        self.operations += not func.is_view
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor)
        return out

    def __exit__(self, *details: Any) -> None:
        self._kept = self._parameters | {shape for _, shape, _ in self._alive.values()}
        super().__exit__(*details)

    @property
    def weight_bytes(self) -> int:
        """Most bytes at once of tensors shaped like a parameter, or like something that was alive when the mode was left."""
        return int(self._peak(lambda shape, kind: float(shape in self._weights)))

    @property
    def activation_bytes(self) -> int:
        """Most bytes that all tensors but the weights took at once."""
        return int(self._peak(lambda shape, kind: float(shape not in self._weights)))

    def grown(self, growth: Mapping[str, float], copies: float = 1.0) -> float:
        """Most bytes at once if activations were larger: those made in work of a kind by its factor, others as they are.

        ``copies`` is the factor of stacks of weights.
        """

        def factor(shape: torch.Size, kind: str) -> float:
            if shape in self._weights:
                return 1.0
            return copies if self._is_stack(shape) else growth.get(kind, 1.0)

        return self._peak(factor)

    @property
    def _weights(self) -> set[torch.Size]:
        return self._kept or set()

    def _is_stack(self, shape: torch.Size) -> bool:
        """Whether the shape is that of copies of a parameter: along a dimension before its own, or side by side along its first.

        Of parameters with at least two dimensions; vectors are too easily mistaken. Matrices may be transposed, as batched
        products make their gradients. Side by side stand the kernels of a grouped convolution, which has a group for each copy.
        """
        own = shape[1:]
        if len(own) >= 2 and (own in self._parameters or (len(own) == 2 and own[::-1] in self._parameters)):
            return True
        return len(shape) >= 4 and any(
            len(kernel) == len(shape) and kernel[1:] == own and shape[0] % kernel[0] == 0
            for kernel in self._parameters
            if kernel[0] > 1
        )

    def _peak(self, factor: Callable[[torch.Size, str], float]) -> float:
        live = peak = 0.0
        for size, shape, kind in self._events:
            live += size * factor(shape, kind)
            peak = max(peak, live)
        return peak

    def _follow(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # wrappers, as in functional transforms, hold no memory of their own
            return
        key = storage._cdata
        if key in self._alive or self._kept is not None:
            return
        made = (storage.nbytes(), tensor.shape, self.kind)
        self._alive[key] = made
        self._events.append(made)
        weakref.finalize(storage, self._released, key)

    def _released(self, key: int) -> None:
        size, shape, kind = self._alive.pop(key, (0, torch.Size(), ONCE))
        if self._kept is None:
            self._events.append((-size, shape, kind))


class Meter:
    """Counts what torch does in a ``with`` block, apart for each kind of :func:`~atlas.nn.work.work`.

    Attributes
    ----------
    spent : dict
        Kind of work to what it took.
    memory : LiveMemory
        Bytes that were alive, of all kinds together.
    gradient_bytes : int
        Bytes of gradients that a step's ranks would exchange, of the largest model that trains.
    """

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self.memory = LiveMemory()
        self.gradient_bytes = 0
        self._kind = ONCE
        self._seen = Spent()
        self._block = ExitStack()

    def __enter__(self) -> Meter:
        self._block.enter_context(self.memory)
        self._counter = self._block.enter_context(counted_flops())
        self._block.enter_context(listening(self))
        return self

    def __exit__(self, *details: Any) -> None:
        self.change(ONCE)
        self._block.close()

    def change(self, kind: str) -> str:
        """Credit what was done since the last call to the kind of work that it was, and go on with another kind."""
        now = Spent(float(self._counter.get_total_flops()), self.memory.operations)
        own = self.spent[self._kind]
        own.flops += now.flops - self._seen.flops
        own.launches += now.launches - self._seen.launches
        self._seen = now
        before, self._kind = self._kind, kind
        self.memory.kind = kind
        return before

    def shared(self, gradient_bytes: int) -> None:
        """Note the bytes of gradients that the ranks of a step would exchange."""
        self.gradient_bytes = max(self.gradient_bytes, gradient_bytes)
