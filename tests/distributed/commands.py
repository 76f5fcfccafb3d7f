"""Types each command that README and the docs print, in order, as a newcomer would: in a fresh clone, one shell a page.

    .venv/bin/python tests/distributed/commands.py [PAGE ...] [--whole]

What a page leaves to its reader (RUN, /data/mnist, s3://bucket/ddpm) is put in its place: see PLACES. Commands of many minutes
are given flags that shorten them, in SHORTER, unless --whole. A page's own measurements (tests/...) are only parsed, by
tests/architecture/test_printed_commands.py. Prints a line a command; exit code 1 if any of them ended otherwise than it should.

Ray's own ports are taken, as printed, so no other Ray may run here; the clone's `make demo` needs a network, once.
"""

import argparse
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

from ddpm_core.data.images import encode_png

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/first-hour.md", "docs/training.md", "docs/paper.md", "docs/cluster.md")
TYPED = re.compile(
    r"^    (?=make demo|\. |\(umask|export |ray |torchrun |python (?:pipelines/|-m ddpm_core))(.*)$", flags=re.M
)
SHORTER = {
    "pipelines/train.py mnist": "--train.steps 30 --unet.base-channels 16",
    "pipelines/workflow.py mnist": "--train.steps 30 --unet.base-channels 16 --sample.num-images 64 --evaluate.num-images 64",
    "pipelines/evaluate.py mnist": "--sample.num-images 64 --evaluate.num-images 64 --evaluate.bits-per-dim-images 8",
    "pipelines/sample.py mnist": "--num-images 64",
    "pipelines/train.py cifar10": "--train.steps 1 --train.batch-size 4 --train.no-use-gpu --schedule.num-timesteps 10",
    "pipelines/sample.py cifar10": "--num-images 2 --sample.sampler.name ddim --sample.sampler.num-steps 4",
    "pipelines/workflow.py digits": "--train.steps 40 --sample.num-images 64 --evaluate.num-images 64",
    "pipelines/sweep.py digits": "--sweep.num-trials 2",
}
INSTALL, ACTIVATE = "make install", ". .venv/bin/activate"
FIRST = {
    "docs/first-hour.md": ["make demo"],
    "docs/training.md": [INSTALL, ACTIVATE, "python pipelines/train.py digits --name told --train.steps 20"],
    "docs/paper.md": [INSTALL, ACTIVATE, "python pipelines/train.py cifar10 --data.source cifar-10-python.tar.gz"],
    "docs/cluster.md": [INSTALL],
}
"""What a reader has done before he comes to a page."""
STOPPED = {"pipelines/schedule.py run": 40.0}
"""Seconds after which a command that never ends is stopped as by Ctrl-C."""
MARK = "__ended__"


class Shell:
    """A bash that is typed to; what it says goes to a log."""

    def __init__(self, folder: Path, env: dict[str, str], log: Path) -> None:
        self.log = log
        self._out = open(log, "a+b")  # noqa: SIM115 -- for the shell's whole life
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._out,
        )

    def type(self, command: str, timeout_s: float = 3600) -> tuple[int, str]:
        """Exit code and what was said."""
        began, start = time.monotonic(), self.log.stat().st_size
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\necho {MARK} $?\n".encode())
        self._bash.stdin.flush()
        while time.monotonic() - began < timeout_s and self._bash.poll() is None:
            with open(self.log, "rb") as said:
                said.seek(start)
                text = said.read().decode(errors="replace")
            if found := re.search(rf"{MARK} (\d+)\n", text):
                return int(found[1]), text[: found.start()]
            time.sleep(0.1)
        raise RuntimeError(f"{command}: not ended after {timeout_s:.0f} s; see {self.log}")

    def close(self) -> None:
        self._bash.kill()
        self._bash.wait()
        self._out.close()


def commands(page: str) -> list[str]:
    return TYPED.findall((ROOT / page).read_text())


def as_typed(command: str, places: dict[str, Callable[[], str]], shorter: bool) -> str:
    """With each place put in, and with what shortens it."""
    for name, value in places.items():
        if re.search(rf"(?<![\w/]){re.escape(name)}(?![\w])", command):
            command = re.sub(rf"(?<![\w/]){re.escape(name)}(?![\w])", value(), command)
    command = command.partition("   #")[0].strip()
    for script, flags in SHORTER.items():
        if shorter and script in command:
            command += f" {flags}"
    for script, seconds in STOPPED.items():
        if script in command:
            command = f"timeout --preserve-status --signal=INT {seconds:.0f} {command}"
    return command


class Reader:
    """What a page's reader has: a home, a clone, images, a bucket; and where things are in his store."""

    def __init__(self, folder: Path, s3: dict[str, str]) -> None:
        self.folder, self.clone = folder, folder / "clone"
        self.store = folder / "home/.local/share/ddpm"
        (folder / "home").mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, self.clone], check=True)
        passed = ("PIP_", "SSL_", "REQUESTS_")
        kept = {name: value for name, value in os.environ.items() if name.startswith(passed)}
        self.env = {**kept, **s3, "PATH": os.environ["PATH"], "HOME": str(folder / "home"), "LANG": "C.UTF-8"}
        mnist, photos = self.draw("mnist.tar.gz", 28, 1, 300), self.draw("photos.tar.gz", 80, 3, 120)
        cifar = self.draw("cifar.tar.gz", 32, 3, 120)
        self.places: dict[str, Callable[[], str]] = {
            "/data/mnist": lambda: mnist,
            "photos.tar.gz": lambda: photos,
            "cifar-10-python.tar.gz": lambda: cifar,
            "FOLDER": lambda: str(folder / "from-a-run"),
            "RUN": lambda: str(self.run(num_classes=10)),
            "JOB": self.job,
            "STORE/datasets/NAME": lambda: str(self.dataset()),
            "STORE/runs/NAME": lambda: str(self.run()),
        }

    def newest(self, num_classes: int | None = None) -> Path:
        """The newest checkpoint's folder, of a run with so many classes."""
        states = sorted(self.store.glob("runs/*/checkpoints/*/state.json"), key=lambda state: state.stat().st_mtime)
        told = [(state, json.loads(state.read_text())) for state in states]
        found = [s for s, each in told if num_classes is None or each["config"]["unet"]["num_classes"] == num_classes]
        return found[-1].parent

    def run(self, num_classes: int | None = None) -> Path:
        return self.newest(num_classes).parents[1]

    def dataset(self) -> Path:
        uri: str = json.loads((self.newest() / "state.json").read_text())["dataset_uri"]
        return Path(uri)

    def job(self) -> str:
        said = (self.folder / "cluster.md.log").read_text()
        return re.findall(r"raysubmit_\w+", said)[-1]

    def draw(self, name: str, size: int, channels: int, count: int) -> str:
        """An archive of images, half of them flat, the others noise."""
        rng, path = np.random.default_rng(0), self.folder / name
        with tarfile.open(path, "w:gz") as tar:
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size, channels), dtype=np.uint8)
                data = encode_png(pixels if i % 2 else np.full_like(pixels, i % 256))
                entry = tarfile.TarInfo(f"{'even' if i % 4 else 'odd'}/{i:05d}.png")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return str(path)


def type_page(page: str, reader: Reader, whole: bool) -> bool:
    """All of a page's commands, in one shell; whether each ended as it should."""
    shell = Shell(reader.clone, reader.env, reader.folder / f"{Path(page).name}.log")
    good = True
    try:
        for command in [*FIRST.get(page, []), *commands(page)]:
            typed, began = as_typed(command, reader.places, not whole), time.monotonic()
            code, said = shell.type(typed)
            print(f"| {page} | `{typed}` | {time.monotonic() - began:.0f} s | {code} |", flush=True)
            if code:
                good = False
                print("\n".join(f"    {line}" for line in said.splitlines()[-12:]), flush=True)
    finally:
        shell.type("ray stop --force > /dev/null 2>&1")
        shell.close()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(PAGES))
    parser.add_argument("--whole", action="store_true", help="nothing shortened: hours")
    args = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    s3 = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ |= s3
    boto3.client("s3").create_bucket(Bucket="bucket")
    folder = Path(tempfile.mkdtemp(prefix="typed-"))
    print(f"in {folder}\n| page | typed | took | exit code |\n|---|---|---|---|", flush=True)
    reader = Reader(folder, s3)
    ended_well = [type_page(page, reader, args.whole) for page in args.pages or PAGES]
    if all(ended_well):
        shutil.rmtree(folder)
    return int(not all(ended_well))


if __name__ == "__main__":
    sys.exit(main())
