"""A GPU that is not there: what a CUDA device would refuse is refused, on a machine that has only a CPU.

While the block of :func:`pretending` runs, ``torch.device("cuda")`` can be used as if a GPU were there. Its tensors are
:class:`OnDevice`: PyTorch takes them for those of another device (``PrivateUse1``, a place that it keeps for such backends),
Python sees ``device == cuda:0``, and the numbers lie in a CPU tensor inside, on which every operation is computed. An operation
that is given tensors of both devices raises the error that CUDA raises, unless CUDA allows it too:

- ``to``, ``copy_`` and their like cross over;
- a CPU tensor of no dimensions may take part in an elementwise operation, as a number does;
- CPU indices may index a device tensor, and not the other way round;
- ``numpy()``, generators of the other device, products of integers, and saved states that are loaded without ``map_location``
  behave as with CUDA.

:attr:`Pretence.waits` lists the places that made the CPU wait for the device.

What it cannot show: that a kernel exists on CUDA (but for products of integers), is deterministic there, or gives other last
digits; speed and memory; races (``non_blocking`` copies, streams) and the threads of a device's backward pass; cuDNN, compiled
and captured code; several GPUs. A gradient of the other device is noticed only where it is used. Autocast keeps no casts. Sums,
orders of ties and random numbers are the CPU's: a device's generator draws what a CPU's of the same seed would, so that results
can be compared. A module that moves keeps its parameters by ``torch.utils.swap_tensors``, which refuses tensors that have weak
references.

Once it has been used, PyTorch knows of the device until the process ends; outside of the block it counts none.
"""

from __future__ import annotations

import copy
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from tests import pretend_kernels
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode

NAME = pretend_kernels.NAME
SEEN = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten

CROSSING = {"_to_copy", "copy_", "copy", "_copy_from", "_foreach_copy_", "set_", "_has_compatible_shallow_copy_type"}
"""Operations that take tensors of both devices, whatever their number of dimensions."""
SCALARS_ALLOWED = (
    {"where", "masked_fill", "masked_fill_", "lerp", "lerp_", "fill", "fill_", "index_fill", "index_fill_"}
    | {"index_put", "index_put_", "_index_put_impl_"}
    | {f"_foreach_{name}{written}" for name in ("add", "sub", "mul", "div") for written in ("", "_")}
)
"""Elementwise operations that are not tagged as such: a CPU tensor of no dimensions may take part."""
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
}
"""Operations after which the CPU needs a number of the device's."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "addr", "addbmm"}
SAME_DEVICE = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; ``inside`` has its numbers, on the CPU."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> OnDevice:
        """Wrap the numbers of a CPU tensor, which are shared."""
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=torch.device(NAME, 0),
        )
        wrapped.inside = inside
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, after a look at the devices."""
        return compute(function, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that code under test sees."""
        return SEEN

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As of any tensor on a GPU."""
        return True

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The same numbers, outside of the graph."""
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, OnDevice):
            raise RuntimeError("the data of a pretended tensor cannot become that of another device")
        torch.Tensor.data.__set__(self, other)
        self.inside = other.inside

    def get_device(self) -> int:
        """Index of the only device."""
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, unless forced."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {SEEN} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        """Copy the numbers to the host, and list them."""
        return self.detach().cpu().tolist()

    def pin_memory(self, *args: Any) -> torch.Tensor:
        """Refused by CUDA too."""
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory of the numbers."""
        return self.inside.untyped_storage()

    def data_ptr(self) -> int:
        """Where the numbers begin."""
        return self.inside.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Copy as any tensor's copy, of leaves only; a parameter's copy is one too."""
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol")
        copied = OnDevice(self.inside.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        if self.grad is not None:
            copied.grad = copy.deepcopy(self.grad, memo)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the numbers, and that they were on the device."""
        return on_device_again, (self.inside.detach(), self.requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]
        """Numbers, and where they pretend to be."""
        return f"OnDevice({self.inside})"

    def __format__(self, how: str) -> str:
        """As of a number, if it is one."""
        return repr(self) if self.dim() else format(self.item(), how)


DEVICE_GENERATORS: WeakValueDictionary[int, DeviceGenerator] = WeakValueDictionary()


class DeviceGenerator(torch.Generator):
    """A generator of the pretended device, that draws what the CPU's would."""

    def __init__(self) -> None:
        DEVICE_GENERATORS[self._cdata] = self  # operations are given another Python object for the same generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that code under test sees."""
        return SEEN


class _GeneratorKind(type(torch.Generator)):  # type: ignore[misc]
    """So that ``isinstance(…, torch.Generator)`` holds of both kinds while ``torch.Generator`` makes both."""

    def __instancecheck__(cls, made: Any) -> bool:
        return isinstance(made, GENERATOR)

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return DeviceGenerator() if torch.device(device).type == "cuda" else GENERATOR(device)


GENERATOR = torch.Generator
EitherGenerator = _GeneratorKind("Generator", (), {})
LOADING: list[Any] = []
ACTIVE: list[Pretence] = []


def on_device_again(inside: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """Make a saved tensor of the device anew: there, or on the CPU if ``map_location`` says so."""
    place = LOADING[-1] if LOADING else None
    made = OnDevice(inside) if place is None or torch.device(place).type == "cuda" else inside
    return made.requires_grad_(requires_grad)


@dataclass(frozen=True)
class Facts:
    """What is known of an operation."""

    name: str
    random: bool
    scalars: bool
    views: bool
    composite: bool


@cache
def facts(function: Any) -> Facts:
    """Look up what is known of an operation."""
    name = function.overloadpacket.__name__
    return Facts(
        name,
        random=torch.Tag.nondeterministic_seeded in function.tags,
        scalars=torch.Tag.pointwise in function.tags or name in SCALARS_ALLOWED,
        views=any(made.alias_info is not None and not made.alias_info.is_write for made in function._schema.returns),
        composite=torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"),
    )


class _Operands:
    """The tensors and generators that an operation is given; calling it takes a value apart."""

    def __init__(self) -> None:
        self.there: list[OnDevice] = []
        self.strangers: list[torch.Tensor] = []
        self.generators: list[torch.Generator] = []

    def inside(self, value: Any) -> Any:
        """The same value with CPU tensors in place of those on the device."""
        if isinstance(value, torch.Tensor):
            if isinstance(value, OnDevice):
                self.there.append(value)
                return value.inside
            self.strangers.append(value)
        elif isinstance(value, list | tuple):
            return [self.inside(each) for each in value]
        elif isinstance(value, GENERATOR):
            self.generators.append(value)
        elif isinstance(value, torch.device) and on_device(value):
            return CPU
        return value


def compute(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU, and let its results be where CUDA would have them.

    Raises
    ------
    RuntimeError
        CUDA would refuse these tensors beside each other, or a generator of that device.
    """
    known = facts(function)
    if known.composite and torch.is_inference_mode_enabled() and known.name not in CROSSING:
        with ACTIVE[-1] if ACTIVE else nullcontext():
            return function.decompose(*args, **kwargs)  # which PyTorch leaves to us where nothing is to be differentiated
    operands = _Operands()
    plain = [operands.inside(value) for value in args]
    named = {name: operands.inside(value) for name, value in kwargs.items()}
    there = bool(operands.there)
    device = kwargs.get("device")
    result_there = there if device is None else on_device(device)
    if operands.generators:
        _check_generators(operands, result_there, function)
    if there:
        if operands.strangers:
            _check_devices(known, function, args, operands)
        if known.name in PRODUCTS and not (operands.there[0].is_floating_point() or operands.there[0].is_complex()):
            raise RuntimeError(f"\"{known.name}_cuda\" not implemented for '{operands.there[0].dtype}'")
        if ACTIVE:
            ACTIVE[-1].note(known.name, args, result_there)
    results = _computed(function, known, there, result_there, operands, plain, named)
    for tensor in operands.there:
        if tensor.inside.size() != tensor.size():  # resized, squeezed, … in place
            torch.Tensor.data.__set__(tensor, OnDevice(tensor.inside))
    if not result_there:
        return results
    wrappers = {id(tensor.inside): tensor for tensor in operands.there}
    if known.views and torch.is_inference_mode_enabled() and any(not tensor.is_inference() for tensor in operands.there):
        with torch.inference_mode(False):  # a view is of the kind of what it is a view of
            return _dressed(results, wrappers)
    return _dressed(results, wrappers)


def _computed(
    function: Any, known: Facts, there: bool, result_there: bool, operands: _Operands, plain: list[Any], named: dict[str, Any]
) -> Any:
    name = known.name
    if there:
        if name == "_fused_sdp_choice":
            return 0  # the formula, which needs no kernel of the device's own
        if name == "_copy_from":
            return plain[1].copy_(plain[0])
        function = pretend_kernels.CELLS.get(name, function)
    if name == "_efficientzerotensor" and result_there:
        function = aten.zeros.default  # one without memory would not be known as such inside
    if name in ("_pin_memory", "pin_memory"):
        return plain[0].clone()
    if name == "is_pinned":
        return False
    if named.get("pin_memory"):
        named["pin_memory"] = False
    if name == "_to_copy":
        named.pop("non_blocking", None)
    if known.random and result_there and not operands.generators and ACTIVE and ACTIVE[-1].own_stream:
        with ACTIVE[-1].default_stream():
            return function(*plain, **named)
    return function(*plain, **named)


def _dressed(value: Any, wrappers: dict[int, OnDevice]) -> Any:
    """Results as tensors on the device; what was written to is the tensor that it was."""
    if isinstance(value, torch.Tensor):
        return wrappers.get(id(value)) if id(value) in wrappers else value if isinstance(value, OnDevice) else OnDevice(value)
    if isinstance(value, list | tuple):
        return type(value)(_dressed(each, wrappers) for each in value)
    return value


def _check_generators(operands: _Operands, result_there: bool, function: Any) -> None:
    for generator in operands.generators:
        if (generator._cdata in DEVICE_GENERATORS) != result_there:
            needed, found = ("cuda", "cpu") if result_there else ("cpu", "cuda")
            raise RuntimeError(f"Expected a '{needed}' device type for generator but found '{found}' (in {function})")


def _check_devices(known: Facts, function: Any, args: Sequence[Any], operands: _Operands) -> None:
    name, strangers = known.name, operands.strangers
    if name in CROSSING:
        return
    if name in INDEXING:
        first, _, *rest = args
        if not isinstance(first, OnDevice):
            raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor (in {function})")
        strangers = [each for each in rest if isinstance(each, torch.Tensor) and not isinstance(each, OnDevice)]
    if name.startswith(("_foreach_", "_fused_", "_amp_foreach_")) and _pairs_agree(args):
        return
    written = _written(function, args)
    for tensor in strangers:
        if tensor.dim() or not known.scalars or any(tensor is each for each in written):
            raise RuntimeError(f"{SAME_DEVICE} (in {function})")


def _pairs_agree(args: Sequence[Any]) -> bool:
    """Whether lists of tensors have those of one device at each place; steps, without dimensions, may be on the CPU."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor)]
    return all(
        len({isinstance(each, OnDevice) for each in place if each.dim() or isinstance(each, OnDevice)}) < 2
        for place in zip(*lists, strict=False)
    )


def _written(function: Any, args: Sequence[Any]) -> list[torch.Tensor]:
    """Tensors that an operation writes to."""
    found: list[torch.Tensor] = []
    for value, argument in zip(args, function._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [value] if isinstance(value, torch.Tensor) else list(value)
    return found


class Pretence(TorchDispatchMode):
    """What catches operations that have no tensor of the device among their inputs, but make one.

    Attributes
    ----------
    waits : Counter
        ``file:line operation`` of the innermost place in ``watched`` to the number of times that it made the CPU wait.
    operations : int
        Operations on tensors of the device.
    own_stream : bool
        Whether the device's default generator is one of its own, as in CUDA, rather than the CPU's.
    """

    def __init__(self, own_stream: bool, watched: str) -> None:
        super().__init__()
        self.own_stream, self.watched = own_stream, watched
        self.waits: Counter[str] = Counter()
        self.operations = 0
        self.generator: torch.Generator = DeviceGenerator() if own_stream else torch.default_generator

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, after a look at the devices."""
        return compute(function, args, kwargs or {})

    def note(self, name: str, args: Sequence[Any], result_there: bool) -> None:
        """Count an operation, and remember where the CPU has to wait for its result."""
        self.operations += 1
        waits = name in WAITING
        if name == "_to_copy":
            waits = not result_there
        elif name == "copy_":
            waits = not isinstance(args[0], OnDevice)
        elif name in INDEXING:
            waits = any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        if waits:
            self.waits[f"{self._place()} {name}"] += 1

    def _place(self) -> str:
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None:
            if self.watched in frame.f_code.co_filename:
                return f"{frame.f_code.co_filename.rpartition(self.watched)[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"

    @contextmanager
    def default_stream(self) -> Iterator[None]:
        """Let the CPU's default generator go on as the device's would, for one operation."""
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
        yield
        self.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


@contextmanager
def pretending(own_stream: bool = False, watched: str = "/src/atlas/") -> Iterator[Pretence]:
    """Have a GPU, as far as Python can see, while the block runs.

    Parameters
    ----------
    own_stream : bool
        Whether draws without a generator come from one of the device's own, as in CUDA. By default they come from the CPU's, so
        that a training with dropout has the CPU's numbers.
    watched : str
        Part of the paths of files whose lines are named in :attr:`Pretence.waits`.
    """
    _register()
    pretence = Pretence(own_stream, watched)
    with ExitStack() as stack:
        for target, changes in _changes(pretence.generator, own_stream).items():
            for name, value in changes.items():
                stack.enter_context(patch.object(target, name, value))
        _foreach_supported_types.append(OnDevice)
        stack.callback(_foreach_supported_types.remove, OnDevice)
        ACTIVE.append(pretence)
        stack.callback(ACTIVE.pop)
        stack.enter_context(pretence)
        yield pretence


def _changes(stream: torch.Generator, own_stream: bool) -> dict[Any, dict[str, Any]]:
    """What a machine with a GPU would have in place of what this one has: object, attribute, value."""

    def state(device: Any = None) -> torch.Tensor:
        return stream.get_state()

    def set_state(new: torch.Tensor, device: Any = None) -> None:
        stream.set_state(new)

    def seed(value: int) -> None:
        if own_stream:
            stream.manual_seed(value)

    enabled, dtype_of = torch.is_autocast_enabled, torch.get_autocast_dtype
    return {
        torch: {
            "Generator": EitherGenerator,
            "tensor": _by_way_of_the_cpu(torch.tensor, copies=True),
            "as_tensor": _by_way_of_the_cpu(torch.as_tensor, copies=False),
            "asarray": _by_way_of_the_cpu(torch.asarray, copies=False),
            "load": _loading(torch.load),
            "is_autocast_enabled": lambda kind="cuda": enabled(own_name(kind)),
            "get_autocast_dtype": lambda kind: dtype_of(own_name(kind)),
        },
        torch.autograd: {"_engine_run_backward": _in_this_thread(torch.autograd._engine_run_backward)},
        torch.autocast: {"__init__": _with_own_names(torch.autocast.__init__)},
        torch.nn.Module: {"_apply": _keeping_identity(torch.nn.Module._apply)},
        torch.Tensor: {
            "cuda": lambda tensor, *args, **kwargs: tensor.to(SEEN),
            "to": _with_own_names(torch.Tensor.to),
            "new_tensor": _tensor_like,
        },
        torch.cuda: {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "_lazy_init": lambda: None,
            "_is_in_bad_fork": lambda: False,
            "_exchange_device": lambda index: 0,
            "_maybe_exchange_device": lambda index: 0,
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "get_device_name": lambda device=None: "a pretended GPU",
            "max_memory_allocated": lambda device=None: 0,
            "manual_seed": seed,
            "manual_seed_all": seed,
            "get_rng_state": state,
            "set_rng_state": set_state,
            "get_rng_state_all": lambda: [state()],
            "set_rng_state_all": lambda states: set_state(states[0]),
        },
        torch.backends.cudnn: {"is_acceptable": lambda tensor: False},
    }


def on_device(place: Any) -> bool:
    """Whether a device, or its name, is the pretended one."""
    return isinstance(place, str | torch.device) and str(place).partition(":")[0] in ("cuda", NAME)


def own_name(value: Any) -> Any:
    """The name by which PyTorch's own code knows the device, for the one by which code under test does; else the value."""
    if isinstance(value, torch.device):
        return torch.device(NAME, 0) if value.type == "cuda" else value
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return NAME
    return value


def _with_own_names(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arguments name the device as PyTorch's own code knows it."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*map(own_name, args), **{name: own_name(value) for name, value in kwargs.items()})

    return called


def _by_way_of_the_cpu(function: Callable[..., Any], copies: bool) -> Callable[..., Any]:
    """A function that makes a tensor of numbers, which PyTorch does out of a dispatch mode's sight."""

    @wraps(function)
    def called(data: Any, dtype: Any = None, device: Any = None, *, requires_grad: bool = False, **kwargs: Any) -> Any:
        if isinstance(data, OnDevice):
            made = data.detach().clone() if copies else data
            made = made.to(device=device or SEEN, dtype=dtype or data.dtype)
        else:
            made = function(data, dtype=dtype, **kwargs)
            made = made if device is None else made.to(device)
        return made.requires_grad_() if requires_grad else made

    return called


def _in_this_thread(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Threads for devices are started once in a process, at its first backward pass: perhaps before this device was known."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False):
            return backward(*args, **kwargs)

    return called


def _tensor_like(tensor: torch.Tensor, data: Any, **options: Any) -> torch.Tensor:
    """``Tensor.new_tensor``."""
    return torch.tensor(data, **{"dtype": tensor.dtype, "device": tensor.device, **options})


def _keeping_identity(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A module that moves keeps its parameters, with other numbers in them, as it does between the CPU and CUDA."""

    def applied(module: Any, function: Any, recurse: bool = True) -> Any:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, function, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return applied


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.load``, that brings what was saved on the device back to it unless ``map_location`` is another."""

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        LOADING.append(map_location)
        try:
            return load(*args, map_location="cpu" if on_device(map_location) else map_location, **kwargs)
        finally:
            LOADING.pop()

    return loaded


class _Backend(types.ModuleType):
    """What PyTorch asks of a backend's module; outside of a pretence there is no device."""

    @staticmethod
    def is_available() -> bool:
        return bool(ACTIVE)

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return len(ACTIVE[-1:])

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass  # torch.cuda's is called too

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return ACTIVE[-1].generator.get_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        ACTIVE[-1].generator.set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


REGISTERED: list[Any] = []


def _register() -> None:
    """Let this process's PyTorch know the device, once."""
    if REGISTERED:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend(NAME))
    torch.serialization.add_safe_globals([on_device_again])
    REGISTERED.extend(pretend_kernels.register(OnDevice, compute))
