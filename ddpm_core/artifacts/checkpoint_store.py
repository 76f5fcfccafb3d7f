"""A run's checkpoints: found by anyone, written by the one job that holds the run.

A checkpoint counts once the run's record lists its step. What a job that lost the run may still write there does not. A job
that takes the run lists those that stand whole; in a run without a record, of older code, each of them counts.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import (
    Checkpoint,
    checkpoint_uri,
    clear_checkpoint,
    delete_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from ddpm_core.artifacts.checkpoint_files import NewerFormatError
from ddpm_core.artifacts.run_record import Hold, RunRecord, Say, hold, read_record
from ddpm_core.errors import InputError, MissingError

_FOLDER = "checkpoints"
_STEP = re.compile(rf"/{_FOLDER}/step-(\d{{8,}})$")
logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        run_uri: the run's folder.
        hold: of the job that writes there; without it they can only be read.
    """

    def __init__(self, run_uri: str, hold: Hold | None = None) -> None:
        self.run_uri = run_uri
        self._hold = hold

    def steps(self) -> list[int]:
        """Steps of the checkpoints that count and stand, in order."""
        standing = _standing(self.run_uri)
        record = read_record(self.run_uri) if standing else None
        return [step for step in standing if record is None or step in record.checkpoints]

    def uris(self) -> list[str]:
        """Their URIs, oldest first."""
        return [checkpoint_uri(self.run_uri, step) for step in self.steps()]

    def newest(self) -> Checkpoint | None:
        """The newest whose files are all sound; None if there is none.

        A damaged one is named in a warning and the one before taken. For the job that writes it does not count any more: its
        step comes again, and replaces it.

        Raises:
            NewerFormatError: if a later version of this code wrote it.
        """
        found, damaged = None, []
        for step in reversed(self.steps()):
            try:
                found = read_checkpoint(checkpoint_uri(self.run_uri, step))
                break
            except NewerFormatError:
                raise
            except (InputError, MissingError) as error:
                logger.warning("skipping a damaged checkpoint: %s", error)
                damaged.append(step)
        if damaged and self._hold:
            self._list(lambda steps: steps - set(damaged))
        return found

    def commit(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, from when on it counts; returns its URI.

        Raises:
            HeldError: if another job holds the run by now.
        """
        uri = write_checkpoint(self.run_uri, checkpoint)
        self._list(lambda steps: steps | {checkpoint.step})
        clear_checkpoint(uri)
        return uri

    def prune(self, keep_last: int, keep: Callable[[int], bool] = lambda step: False) -> None:
        """Delete all but the newest few, and those whose step is to be kept."""
        old = {step for step in self.steps()[:-keep_last] if not keep(step)}
        if old:
            self._list(lambda steps: steps - old)
            for step in sorted(old):
                delete_checkpoint(checkpoint_uri(self.run_uri, step))

    def _list(self, how: Callable[[set[int]], set[int]]) -> None:
        def listed(record: RunRecord) -> RunRecord:
            return replace(record, checkpoints=tuple(sorted(how(set(record.checkpoints)))))

        if self._hold is None:
            raise RuntimeError(f"{self.run_uri} is written without being held")
        self._hold.change(listed)


@contextmanager
def hold_run(run_uri: str, *, say: Say, until_free: bool = False) -> Iterator[Hold]:
    """Hold a run as long as the block runs; what killed saves left there is deleted. Arguments and errors as `run_record.hold`."""
    with hold(run_uri, say=say, standing=lambda: tuple(_standing(run_uri)), until_free=until_free) as held:
        storage.delete_unfinished(storage.join(run_uri, _FOLDER))
        for uri in {file.rpartition("/")[0] for file, _ in storage.list_files(storage.join(run_uri, _FOLDER))}:
            if _STEP.search(uri) and not storage.exists(storage.join(uri, "state.json")):
                clear_checkpoint(uri)
        yield held


def find_checkpoint(uri: str) -> str | None:
    """The URI of the checkpoint that lies at a URI, or of the newest one of the run that lies there; None if none does."""
    complete = [uri] if storage.exists(storage.join(uri, "state.json")) else CheckpointStore(uri).uris()
    return complete[-1] if complete else None


def _standing(run_uri: str) -> list[int]:
    files = (file for file, _ in storage.list_files(storage.join(run_uri, _FOLDER)))
    folders = (folder for folder, _, name in (file.rpartition("/") for file in files) if name == "state.json")
    return sorted(int(match[1]) for match in map(_STEP.search, folders) if match)
