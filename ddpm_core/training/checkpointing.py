"""Checkpoints of a state that trains on: copied between two steps, written in the background; or at once, in an emergency."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.finite import find_not_finite
from ddpm_core.errors import DivergedError
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState, ema_tensors, network_tensors, optimizer_tensors

_FAILURES = 3
"""Saves in a row that an S3 server may fail to take before training stops."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that a checkpoint belongs to."""

    uri: str
    config: dict[str, Any]
    dataset_uri: str
    dataset_digest: str
    versions: dict[str, str]


class Checkpointer:
    """Writes the checkpoints of one worker's state.

    Args:
        store: of the run, held by the job that this worker belongs to.
        saved: told the URI of each checkpoint that now stands, in whichever thread wrote it.
        warned: told of a save that failed, when training goes on nevertheless.
        best: the step of the checkpoint that was judged best so far, which stays; None if none was.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        run: Run,
        store: CheckpointStore,
        *,
        saved: Callable[[str], None],
        warned: Callable[[str], None],
        best: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._state, self._config, self._run, self._store = state, config, run, store
        self._saved, self._warned, self._best = saved, warned, best
        self._pool = ThreadPoolExecutor(1, "checkpointer")
        self._writing: Future[None] | None = None
        self._failures = 0

    def save(self) -> None:
        """Save the state as it is now, while training goes on; waits for the save before, so that there is one copy at most.

        Raises:
            StorageError: if the save before failed, and the store is a local disk, or an S3 server that failed thrice.
            HeldError: if another job holds the run by now.
            DivergedError: if the state of the save before held NaN or infinity; it was not written.
        """
        self.finish()
        self._writing = self._pool.submit(self._write, self._checkpoint(copy=True))

    def finish(self, *, last: bool = False) -> None:
        """Wait until the last save stands; its error is raised here.

        Args:
            last: nothing comes after it that could make up for it.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
            self._failures = 0
        except storage.StorageError as error:
            self._failures += 1
            if last or self._failures == _FAILURES or not storage.is_s3(self._run.uri):
                raise
            self._warned(f"a checkpoint could not be saved, the next one will be tried: {error}")

    def save_emergency(self) -> int | None:
        """Save the last completed step, from any thread, without waiting for the step under way; it is never completed.

        Returns:
            the step; its checkpoint stands. None if there is none to save: an update failed half-way.
        """
        # Never released: what training would do from here on would be lost. So nothing moves, and no copy is needed.
        self._state.lock.acquire()
        if not self._state.is_whole:
            return None
        self._write(self._checkpoint(copy=False))
        return self._state.step

    def _checkpoint(self, *, copy: bool) -> Checkpoint:
        state, run = self._state, self._run
        return Checkpoint(
            step=state.step,
            images_seen=state.step * self._config.batch_size,
            skipped=state.skipped,
            seed=self._config.seed,
            dataset_digest=run.dataset_digest,
            dataset_uri=run.dataset_uri,
            config=run.config,
            versions=run.versions,
            model=network_tensors(state, copy=copy),
            ema=ema_tensors(state, copy=copy),
            optimizer=optimizer_tensors(state, copy=copy),
            history=list(state.history),
        )

    def _write(self, checkpoint: Checkpoint) -> None:
        for part in (checkpoint.model, checkpoint.ema, checkpoint.optimizer):
            if found := find_not_finite(part):  # steps like that are skipped: memory or code is at fault
                raise DivergedError(
                    f"step {checkpoint.step:,} is not saved: {found}; expected finite ones: the same command goes on from the "
                    "newest checkpoint; if that comes again, lower --train.learning-rate or look at the machine"
                )
        self._saved(self._store.commit(checkpoint))
        every, best = self._config.keep_every, self._best()
        self._store.prune(
            self._config.keep_checkpoints,
            keep=lambda step: step == best or (every > 0 and step % every == 0),
        )
