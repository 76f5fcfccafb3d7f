"""What a training step needs of memory, found without taking it, and how many images at a time fit."""

import os
import weakref
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_core.errors import TooLargeError
from ddpm_core.model.blocks import DropoutKey
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import recompute_activations
from ddpm_core.types import Tensor, bytes_words

_COPIES = 5
"""Of the weights: themselves, gradients, the average, Adam's two moments."""
_SCRATCH = 1.4
"""What a step takes per byte of its tensors, convolutions' own memory included; 1.26 to 1.4 were measured (docs/performance.md)."""
_ON_GPU, _ON_CPU = 0.85, 0.7
"""Shares of the memory that a step may take: what is left is the libraries', the data's, and lost between allocations."""


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def step_bytes(model: ModelConfig, num_images: int, *, recompute: bool = False, bfloat16: bool = False) -> int:
    """The most that a training step on so many images holds at once: weights, average, moments, gradients, feature maps.

    Counted on tensors without numbers, so nothing is computed.

    Args:
        num_images: that go through the network at a time.
        recompute: whether feature maps are computed again in the backward pass.
    """
    with FakeTensorMode(), _Live() as live:
        network = model.build_network().train()
        if recompute:
            recompute_activations(network)
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        x_t, index = torch.zeros(num_images, *model.image_shape), torch.zeros(num_images, dtype=torch.int64)
        augment = torch.zeros(num_images, model.unet_augment) if model.unet_augment else None
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            out = network(x_t, index, index - 1, DropoutKey(0, index), augment)
        (out.float() - x_t.repeat(1, out.shape[1] // x_t.shape[1], 1, 1)).square().mean().backward()
        return _COPIES * weights + int(_SCRATCH * (live.peak - weights))


def images_at_once(
    model: ModelConfig, most: int, total_bytes: int, *, recompute: bool = False, bfloat16: bool = False
) -> int:
    """How many images at a time fit into memory: `most`, or the largest of its parts by 2, 3, 4 and so on that does.

    Raises:
        TooLargeError: if not even one fits.
    """

    def needed(num_images: int) -> int:
        return step_bytes(model, num_images, recompute=recompute, bfloat16=bfloat16)

    sizes = sorted({-(-most // parts) for parts in range(1, most + 1)})
    fitting = bisect_right(sizes, total_bytes, key=needed)
    if not fitting:
        raise TooLargeError(
            f"training needs {bytes_words(needed(1))} for one image, and may take {bytes_words(total_bytes)}; "
            "set --train.recompute, or take a smaller network"
        )
    return sizes[fitting - 1]


def memory_of_worker(device: torch.device, workers_here: int) -> int:
    """What a step may take of this worker's memory, bytes: of its GPU, or its share of the machine's or container's.

    It goes by what there is, not by what is free at the moment: the same command on the same machine trains in the same way.

    Args:
        workers_here: that share this machine's memory.
    """
    if device.type == "cuda":
        return int(_ON_GPU * torch.cuda.get_device_properties(device).total_memory)
    return int(_ON_CPU * _memory_here() / workers_here)


def _memory_here() -> int:
    """Of the machine, or of the container if that is less, bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.exists() else "max"
    return machine if words == "max" else min(machine, int(words))
