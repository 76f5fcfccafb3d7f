"""What ends a run before it goes astray: numbers that are none, and memory that does not suffice."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ddpm_core import storage
from ddpm_core.data.loader import Batch
from ddpm_core.errors import DivergedError, TooLargeError
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState
from ddpm_core.training.step import Backward, Draws


class FiniteWatch:
    """Lets only steps through whose loss and gradient are numbers; what it finds is the same on every worker.

    Args:
        rank: of this worker, whose share of the samples it lists.
        warned: told of each step that is skipped, in one line.
    """

    def __init__(self, run_uri: str, rank: int, config: TrainConfig, warned: Callable[[str], None]) -> None:
        self._run_uri, self._rank, self._config, self._warned = run_uri, rank, config, warned
        self._in_a_row = 0

    def allows(self, step: int, batch: Batch, draws: Draws, found: Backward) -> bool:
        """Whether the step may be taken; if not, its samples are written down for a person to look at.

        Raises:
            FloatingPointError: once more than `config.max_skipped` in a row may not.
        """
        if found.is_finite:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        listed = self._list(step, batch, draws, found)
        if self._in_a_row > self._config.max_skipped:
            raise DivergedError(
                f"loss or gradient was not finite in {self._in_a_row} steps in a row, the last of them step {step}; "
                f"expected at most {self._config.max_skipped} (train.max-skipped). The samples are listed in {listed}: "
                "look at them, lower --train.learning-rate, or train in float32"
            )
        self._warned(f"step {step} is skipped, its loss or gradient is not finite; its samples: {listed}")
        return False

    def _list(self, step: int, batch: Batch, draws: Draws, found: Backward) -> str:
        uri = storage.join(self._run_uri, "skipped", f"step-{step:08d}-worker-{self._rank}.json")
        real = batch.weights.bool().cpu()
        what = {
            "step": step,
            "loss": float(found.loss),
            "grad_norm": float(found.grad_norm),
            "positions": batch.positions.cpu()[real].tolist(),
            "t": draws.t.cpu()[real].tolist(),
            "losses": [float(loss) for loss in found.losses.cpu()[real]],
        }
        storage.write_bytes(uri, json.dumps(what, indent=2).encode())
        return uri


def batch_that_fits(
    local_batch: int, *, before_bytes: int, to_come_bytes: int, peak_bytes: int, asked_bytes: int, total_bytes: int
) -> int:
    """The images a worker that would fit into a device's memory, if what a step needs grows with them; 0: not even one.

    Args:
        local_batch: images a worker for which memory did not suffice.
        before_bytes: in use before the step: weights, averages, and moments if there are any yet.
        to_come_bytes: what a step adds to that, however few the images: gradients, and moments if there are none yet.
        peak_bytes: in use at most when it failed.
        asked_bytes: what the request that failed asked for on top of that.
        total_bytes: of the device.
    """
    needed = max(peak_bytes + asked_bytes - before_bytes, 1)  # at least: the step had not ended
    return max(0, min(local_batch - 1, int(local_batch * (total_bytes - before_bytes - to_come_bytes) / needed)))


def memory_for(state: TrainState, device: torch.device) -> Callable[[int], AbstractContextManager[None]]:
    """Around each part of a step, with the images of this worker: if they do not fit, one line says how many would.

    To be called before the first step, when the device holds nothing of one.

    Raises:
        TooLargeError: instead of torch's own, inside the context.
    """
    weights = sum(p.numel() * p.element_size() for p in state.weights.values())
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    to_come = weights if state.optimizer.state else 3 * weights

    @contextmanager
    def fits(local_batch: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise _out_of_memory(device, before, to_come, local_batch) from None

    return fits


def _out_of_memory(device: torch.device, before_bytes: int, to_come_bytes: int, local_batch: int) -> MemoryError:
    properties, peak = torch.cuda.get_device_properties(device), torch.cuda.max_memory_allocated(device)
    fits = batch_that_fits(
        local_batch,
        before_bytes=before_bytes,
        to_come_bytes=to_come_bytes,
        peak_bytes=peak,
        # What failed is not told in numbers; an image's share of the peak is a fair guess at it.
        asked_bytes=peak // max(local_batch, 1),
        total_bytes=properties.total_memory,
    )
    remedy = (
        f"about {fits} would: set --train.micro-batch-size {fits}, which is the same training, or take more workers"
        if fits
        else "not even one would: set --train.recompute, or take a smaller network"
    )
    memory = f"the {properties.total_memory / 2**30:.0f} GiB of {properties.name}"
    return TooLargeError(f"{local_batch} images a worker do not fit into {memory}; {remedy}")
