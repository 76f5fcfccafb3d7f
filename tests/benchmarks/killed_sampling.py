"""Sampling with a compiled network, killed again and again, beside one that was left alone: are the blocks the same, bit for bit?

python tests/benchmarks/killed_sampling.py CHECKPOINT --kills 10
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKS_A_KILL = 5


def start(checkpoint: str, store: Path, num_images: int) -> subprocess.Popen[str]:
    asked = ["--num-images", str(num_images), "--sample.sampler.num-steps", "50", "--sample.compile", "on"]
    command = [sys.executable, "pipelines/sample.py", "digits", "--model", checkpoint, *asked, "--store", str(store)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def blocks(store: Path) -> dict[str, str]:
    """The digest of each block that stands."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("samples/*/block-*.tar")}


def to_the_end(checkpoint: str, store: Path, num_images: int) -> dict[str, str]:
    process = start(checkpoint, store, num_images)
    said = process.communicate()[1]
    if process.returncode:
        sys.exit(said)
    return blocks(store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    num_images = 64 * BLOCKS_A_KILL * (args.kills + 6)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder, "alone"), Path(folder, "killed")
        expected = to_the_end(args.checkpoint, alone, num_images)
        for kill in range(1, args.kills + 1):
            before, process = len(blocks(killed)), start(args.checkpoint, killed, num_images)
            while len(blocks(killed)) < before + BLOCKS_A_KILL:
                if process.poll() is not None:
                    sys.exit(f"it ended by itself, with {process.returncode}")
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"kill {kill}: {len(blocks(killed))} of {len(expected)} blocks", flush=True)
        found = to_the_end(args.checkpoint, killed, num_images)
    differing = sum(found.get(name) != digest for name, digest in expected.items())
    print(f"{args.kills} kills: {len(found)} blocks, {differing} of them differ")
    sys.exit(differing > 0 or len(found) != len(expected))


if __name__ == "__main__":
    main()
