"""A rank in a group of processes, by torch.distributed: NCCL between GPUs, gloo between CPUs.

Two groups of communication exist: one for gradients and other tensors on the device, one on the CPU for what ranks agree on, so
that no step waits for a GPU in order to learn whether somebody was told to stop.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from atlas.nn.ranks import Agreed, Ranks, Share, here, joined, mirrored

START_SECONDS = 1800.0
"""How long ranks wait for each other to start: a node may be slow to load what it needs."""


class Group(Ranks):
    """One of several ranks; made by :func:`group`.

    Attributes
    ----------
    data : ProcessGroup
        For gradients and other tensors on the device.
    """

    def __init__(self, local: int, device: torch.device, timeout: timedelta) -> None:
        self.rank, self.size, self.local = dist.get_rank(), dist.get_world_size(), local
        self._device = device
        dist.barrier()  # all are there: from now on nobody may take longer to answer than the time that is set
        # every rank is a member of its own groups, so none of them is torch's sign for "not a member"
        self.data: Any = dist.new_group(timeout=timeout)
        self._control: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._asked: tuple[Tensor, Any] | None = None

    def device(self) -> torch.device:
        """The device that was given to this rank."""
        return self._device

    def share(self, total: int, group: int | None = None) -> Share:
        """Pairs of images and their mirrors; see :func:`.ranks.mirrored`."""
        places = mirrored(total, min(group or total, total), self.rank, self.size)
        return Share(torch.tensor(places, dtype=torch.long), total)

    def rows(self, total: int) -> Share:
        """Return the positions of the examples in a row, of ``total``, that this rank works on."""
        return Share(torch.arange(total)[self.slice(total)], total)

    def slice(self, total: int) -> slice:
        """Return which of ``total`` examples in a row this rank works on."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def parallel(self, model: nn.Module, *, whole_batch: bool = True) -> DistributedDataParallel:
        """Wrap a model: gradients are averaged over ranks while backward still runs; see :meth:`.Ranks.parallel`."""
        if whole_batch:
            synchronise_statistics(model)
        ids = [self._device.index] if self._device.type == "cuda" else None
        # ranks compute the same buffers; newer releases of torch have another name for not sending them at every pass
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        option: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        return DistributedDataParallel(model, device_ids=ids, process_group=self.data, gradient_as_bucket_view=True, **option)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor of any shape (…) over ranks; not differentiable."""
        return self.total(value) / self.size

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor of any shape (…) over ranks; not differentiable."""
        value = value.detach().clone().contiguous()
        dist.all_reduce(value, group=self.data if value.device.type == self._device.type else self._control)
        return value

    def joined(self, rows: Tensor) -> Tensor:
        """Rows (n, …) of all ranks; they may differ in number, and a rank without any need not know their width."""
        rows = rows.detach().cpu().contiguous()
        shapes: list[Any] = [None] * self.size
        dist.all_gather_object(shapes, (tuple(rows.shape), rows.dtype), group=self._control)
        (shape, dtype) = max(shapes, key=lambda gathered: (gathered[0][0], len(gathered[0])))
        padded = torch.zeros((shape[0], *shape[1:]), dtype=dtype)
        if len(rows):
            padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self._control)
        return torch.cat([each[: own[0][0]] for each, own in zip(gathered, shapes, strict=True)])

    def gathered(self, values: list[Any]) -> list[Any]:
        """All ranks' plain values, one rank's after the other's, on the first rank; none on the others."""
        lists: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(values, lists, group=self._control)
        return [value for each in lists or [] for value in each]

    def agree(self, stop: int, save: bool) -> Agreed:
        """What was agreed on at the step before; this step's wishes travel while the next one computes."""
        before = self._answer()
        wishes = torch.tensor([stop, int(save and self.first)])
        self._asked = wishes, dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._control, async_op=True)
        return before

    def settle(self) -> None:
        """Hear the last wishes, before anything else is said in this group."""
        self._answer()

    def _answer(self) -> Agreed:
        if self._asked is None:
            return Agreed(0, False)
        wishes, work = self._asked
        self._asked = None
        work.wait()
        return Agreed(int(wishes[0]), bool(wishes[1]))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self._control)

    def same(self, value: int, what: str) -> None:
        """Raise a RuntimeError that names ``what`` if a number differs between ranks."""
        bounds = torch.tensor([value, -value])
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group=self._control)
        if int(bounds[0]) != -int(bounds[1]):
            raise RuntimeError(f"{what} differs between ranks: from {-int(bounds[1])} to {int(bounds[0])}")


@contextmanager
def group(local: int, device: torch.device, timeout_seconds: float) -> Iterator[Group]:
    """Join the group that the environment names (as ``torchrun`` sets it), and be one of its ranks while the block runs."""
    timeout = timedelta(seconds=timeout_seconds)
    cuda = device.type == "cuda"
    start = timedelta(seconds=max(timeout_seconds, START_SECONDS))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=start, device_id=device if cuda else None)
    ranks = Group(local, device, timeout)
    with joined(ranks):
        yield ranks
        ranks.barrier()
    dist.destroy_process_group()  # after a failure the process ends, and does not wait for the others


class _Total(torch.autograd.Function):
    """Sum over ranks; the loss is the sum of the ranks' losses, so gradients are summed on the way back as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, data: dist.ProcessGroup) -> Tensor:
        ctx.data = data
        value = value.contiguous().clone()
        dist.all_reduce(value, group=data)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.data)
        return gradient, None


def synchronise_statistics(model: nn.Module) -> None:
    """Let every batch normalisation of a model use the statistics of the whole batch, in place.

    The mean comes first and the variance about it second, as one process computes them; torch's own SyncBatchNorm runs on CUDA
    alone. With statistics of its own share, a rank would train another network than the protocol says: a batch of 128 on 8 ranks
    would be normalised in sixteens, and the results would depend on the number of ranks.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not hasattr(module, "whole_batch"):
            own: Any = module
            own.whole_batch, own.forward = True, _Normalised(module)


class _Normalised:
    """The forward pass of a batch normalisation with the statistics of all ranks' images."""

    def __init__(self, module: _BatchNorm) -> None:
        self.module: Any = module

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        if not module.training and module.track_running_stats:
            return type(module).forward(module, x)  # type: ignore[no-any-return]
        ranks = here()
        assert isinstance(ranks, Group)
        data = ranks.data
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x if x.dtype.itemsize >= 4 else x.float()
        own = values.sum(dims)
        totals = _Total.apply(torch.cat([own, own.new_tensor([x.numel() / x.shape[1] if len(x) else 0.0])]), data)
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = values - mean.view(shape)
        variance = _Total.apply(centred.square().sum(dims), data) / count
        if module.training and module.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + module.eps).rsqrt().view(shape)
        if module.affine:
            normal = normal * module.weight.view(shape) + module.bias.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        module = self.module
        module.num_batches_tracked.add_(1)
        share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.mul_(1 - share).add_(mean.to(module.running_mean), alpha=share)
        module.running_var.mul_(1 - share).add_(unbiased.to(module.running_var), alpha=share)
