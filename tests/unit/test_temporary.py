"""Where no temporary file can be written, that is told in a line and before anything starts."""

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ddpm_core import storage
from ddpm_core.errors import InputError


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even root finds no folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])


def test_no_folder_for_temporary_files_is_told(nowhere: None) -> None:
    with pytest.raises(InputError, match=r"temporary files cannot be written: No usable .*; set TMPDIR") as error:
        storage.check_temporary()
    assert "\n" not in str(error.value)


def test_a_folder_that_goes_away_later_is_told_too(nowhere: None) -> None:
    with (
        pytest.raises(storage.StorageError, match=r"temporary files cannot be written: .*; set TMPDIR"),
        storage.temporary_folder(),
    ):
        pass


def _fill(folders: list[Path]) -> None:
    with storage.temporary_folder() as folder:
        folders.append(folder)
        (folder / "file").write_bytes(b"1")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_what_was_written_is_removed() -> None:
    folders: list[Path] = []
    with pytest.raises(storage.StorageError, match=r"No space left on device; set TMPDIR"):
        _fill(folders)
    assert not folders[0].exists()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), storage.temporary_folder() as folder:
        (folder / "none").read_bytes()


def test_a_command_ends_in_a_line(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']; "
        "from pipelines import shard; from pipelines.cli.command import run_command; from pipelines.recipes.config import Recipe; "
        f"run_command(Recipe, '', check=lambda a: None, plan=shard.plan, run=shard.run, argv=['--store', '{tmp_path}'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: temporary files cannot be written: ")
    assert ended.stderr.count("\n") == 1
