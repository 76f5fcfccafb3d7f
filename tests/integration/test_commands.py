"""The commands as a person types them: a mistake is one line, exit code 2, and nothing is started or written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pipelines.cli.invocation import typed
from pipelines.recipes.config import default_store

ROOT = Path(__file__).parents[2]


def command(name: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command from another working directory."""
    command = [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *args]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=120, check=False)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


MISTAKES = {
    "unknown recipe": (["digts"], "unknown recipe 'digts'; expected one of .* did you mean digits"),
    "misspelt flag": (["digits", "--train.batch-sise", "8"], "--train.batch-sise.*did you mean --train.batch-size"),
    "value of a wrong type": (["digits", "--train.steps", "many"], "--train.steps.*'many'.*expected --train.steps INT"),
    "a name that is a path": (["digits", "--name", "../../x"], r"name is '\.\./\.\./x'; expected up to 100 letters"),
    "missing path": (["mnist", "--data.source", "/no/such/path"], "/no/such/path"),
    "empty folder": (["mnist", "--data.source", "{tmp}/empty"], "empty"),
    "no image set": (["mnist", "--data.source", "{tmp}/text"], "text"),
    "batch size of zero": (["digits", "--train.batch-size", "0"], "train.batch-size is 0; expected 1 or more"),
    "more workers than lanes": (
        ["digits", "--train.num-workers", "9"],
        "train.num-workers is 9 for 8 lanes; expected at most one worker a lane",
    ),
    "more workers than CPUs": (
        ["digits", "--train.num-workers", "999", "--train.lanes", "999"],
        r"train.num-workers is 999; there are \d+ CPUs",
    ),
    "more workers than GPUs": (
        ["digits", "--train.use-gpu", "--train.num-workers", "99", "--train.lanes", "99"],
        r"train.num-workers is 99; there are \d+ GPUs",
    ),
    "a store that is a file": (["digits", "--store", "{tmp}/text/file.txt"], "file.txt"),
    "keys in the store's URI": (
        ["digits", "--store", "s3://AKIA:hush@bucket/x"],
        "a part before @.* credentials from the environment",
    ),
    "a network that cannot be": (["digits", "--unet.attention-resolutions", "5"], "5"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_starts(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "file.txt").write_text("no image")
    args, said = MISTAKES[mistake]
    given = [arg.format(tmp=tmp_path) for arg in args]
    store = [] if "--store" in given else ["--store", str(tmp_path / "store")]
    done = command("workflow", *given, *store)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line), line
    assert "hush" not in line
    assert not list((tmp_path / "store").rglob("*"))


def test_a_bucket_that_does_not_exist(s3: dict[str, str]) -> None:
    done = command("train", "--store", "s3://no-such-bucket/ddpm", env=s3)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "no-such-bucket" in line


def test_no_credentials_at_all(s3: dict[str, str], tmp_path: Path) -> None:
    bare = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    done = command("train", "--store", "s3://bucket/ddpm", env={**s3, **bare})
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "credentials" in line


def test_dry_run_prints_the_plan_or_every_setting_and_touches_nothing(tmp_path: Path) -> None:
    typed = ("workflow", "digits", "--store", str(tmp_path / "store"), "--dry-run")
    done, settings = command(*typed), command(*typed, "--json")
    assert (done.returncode, settings.returncode) == (0, 0), done.stderr
    assert "train: 960 steps of 32 images on 2 workers" in done.stdout
    assert "{" not in done.stdout
    assert json.loads(settings.stdout)["unet"]["base_channels"] == 24
    assert not (tmp_path / "store").exists()


def test_a_python_without_the_project_s_libraries_is_named(tmp_path: Path) -> None:
    """As in a job on a cluster that was started from another environment."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    for name in ("shard", "train", "sweep", "sample", "evaluate", "workflow", "schedule"):
        command = [str(bare / "bin/python"), str(ROOT / f"pipelines/{name}.py"), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith(f"error: {bare}/bin/python has no torch, ray, mlflow")
        assert "activate" in line


def test_a_python_in_which_the_library_alone_is_installed_is_told_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    (tmp_path / "installed/pipelines").mkdir(parents=True)
    shutil.copy(ROOT / "pipelines/__init__.py", tmp_path / "installed/pipelines")
    command = [str(bare / "bin/python"), "-c", "import pipelines"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "installed", check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.endswith(
        f"{bare}/bin/python -m pip install 'ddpm-pipeline[pipelines]' brings all that the commands need"
    )


@pytest.mark.parametrize("activated", [True, False])
def test_a_command_that_is_printed_runs_in_the_same_shell(
    activated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = str(Path(sys.executable).parent)
    elsewhere = [part for part in os.environ["PATH"].split(os.pathsep) if part != ours]
    monkeypatch.setenv("PATH", os.pathsep.join([ours, *elsewhere] if activated else elsewhere))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(typed("sample.py", "digits", "--name", "a b", store=str(tmp_path / "my store")))
    assert words[0] == ("python" if activated else sys.executable)
    assert words[1:] == [
        str(ROOT / "pipelines/sample.py"),
        "digits",
        "--name",
        "a b",
        "--store",
        str(tmp_path / "my store"),
    ]
    monkeypatch.chdir(ROOT)
    assert typed("sample.py", "digits", store=default_store()).endswith("python pipelines/sample.py digits")
    printed = typed("workflow.py", "--dry-run", "--json", store=str(tmp_path))
    assert subprocess.run(printed, shell=True, capture_output=True, check=False).returncode == 0
