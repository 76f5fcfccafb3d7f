"""What the workers of a run do together. Each holds the same state; they part only in the samples that they read."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_core.model.blocks import DropoutKey
from ddpm_core.training.augmentation import NUM_PARAMETERS
from ddpm_core.types import Tensor


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Which of the workers this process is, and where it computes."""

    rank: int
    num_workers: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the artifacts."""
        return self.rank == 0


def in_parallel(network: nn.Module, worker: Worker, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network, such that a backward pass leaves the mean gradient over all workers.

    DDP deals the gradients to buckets anew after its first backward pass, in the order in which they came; three workers
    or more then add them up in another order. A resumed run would add up as an unbroken one did only at its very first
    step. So the first passes, here two, are done with a gradient of zero, before training.
    """
    if worker.num_workers == 1:
        return network
    devices = [worker.device.index] if worker.device.type == "cuda" else None
    parallel = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    one = torch.zeros(1, dtype=torch.int64, device=worker.device)
    for _ in range(2):
        nothing = torch.zeros(1, NUM_PARAMETERS, device=worker.device)
        out = parallel(torch.zeros(1, *image_shape, device=worker.device), one, one - 1, DropoutKey(0, one), nothing)
        (0 * out).sum().backward()
    parallel.zero_grad(set_to_none=True)
    return parallel


def summed_later(forward: nn.Module) -> AbstractContextManager[None]:
    """Around a backward pass whose gradient stays this worker's own: a later one sends it with its own to the others."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()


def check_agreement(step: int, worker: Worker) -> None:
    """Make sure that all workers begin at the same step.

    Raises:
        RuntimeError: if they do not: a checkpoint appeared while they looked for the newest one. The next attempt finds it.
    """
    if not dist.is_initialized():
        return
    ends = torch.tensor([step, -step], device=worker.device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise RuntimeError(f"worker {worker.rank} is at step {step}, others at {-int(ends[1])} to {int(ends[0])}")


def mean_over_workers(value: Tensor) -> Tensor:
    """The mean of a 0-d value over all workers; not finite if any is not."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gathered(rows: Tensor) -> Tensor:
    """The columns of all workers' rows side by side, [r, n]; a share that is shorter than another is padded with zeros."""
    if not dist.is_initialized():
        return rows
    length = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    rows = nn.functional.pad(rows, (0, int(length) - rows.shape[1]))
    shares = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, rows)
    return torch.cat(shares, dim=1)
