"""What the commands make, as digests: equal before and after a change that is to change nothing.

    python tests/benchmarks/golden_run.py before.json
    python tests/benchmarks/golden_run.py after.json --against before.json

A pipeline, a run of other settings, each sampler and a sweep, on the digits, in a new store. Of every file that a command
leaves there, what counts: a tensor's bytes, a picture's, a tar's, a report's figures; never its name, nor
times. Exit code 1 and the differing lines if it is not what stands in the other file. Four minutes of two cores.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
SMALL = "--train.steps 60 --train.batch-size 32 --train.log-every 10 --sample.num-images 64 --evaluate.num-images 64"
CASES = {
    "pipeline": f"workflow.py digits {SMALL} --evaluate.bits-per-dim-images 16",
    "other settings": (
        "train.py digits --name other --train.steps 40 --train.num-workers 1 --train.checkpoint-every 20 --unet.num-classes 10"
        " --schedule.name cosine --reverse.prediction v --reverse.variance learned_range --loss.objective hybrid"
    ),
    **{
        name: f"sample.py digits --model {{store}}/runs/other --num-images 24 --sample.sampler.name {name}"
        " --sample.sampler.num-steps 12 --sample.labels 3 7 --sample.guidance 1.5"
        for name in ("ancestral", "ddim", "dpm_solver", "heun")
    },
    "sweep": "sweep.py digits --train.steps 30 --sweep.num-trials 2 --sample.num-images 64 --evaluate.num-images 64",
}
TIMED = ("_s", "_per_s", "seconds")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def untimed(told: Any) -> Any:
    """Numbers alone, without those of the clock."""
    if isinstance(told, dict):
        return {name: untimed(each) for name, each in sorted(told.items()) if not name.endswith(TIMED)}
    if isinstance(told, list):
        return [untimed(each) for each in told]
    return told if isinstance(told, int | float) else None


def written(path: Path) -> str:
    """Its name, without that of whoever wrote it."""
    return re.sub(r"-[0-9a-f]{12}(?=\.)", "", path.name)


def contents(path: Path) -> str | None:
    """What counts of a file, or None if nothing does."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return digest(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors)))
    if path.name.startswith("history"):
        return json.dumps(untimed(pq.read_table(path).to_pydict()))
    if path.suffix in (".tar", ".png"):
        return digest(path.read_bytes())
    if path.name == "report.json":
        return json.dumps(untimed(json.loads(path.read_text())["figures"]))
    return None


def run(store: Path) -> dict[str, list[str]]:
    """For each case, a line for each file that it left."""
    found: dict[str, list[str]] = {}
    seen: set[Path] = set()
    for name, command in CASES.items():
        script, *flags = command.format(store=store).split()
        subprocess.run(
            [sys.executable, ROOT / "pipelines" / script, *flags, "--store", str(store)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        new = {
            path for path in store.rglob("*") if path.is_file() and path.relative_to(store).parts[0] != "mlflow"
        } - seen
        seen |= new
        found[name] = sorted(f"{written(path)}: {told}" for path in new if (told := contents(path)) is not None)
        print(f"{name}: {len(found[name])} files", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="what an earlier run of this wrote")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        found = run(Path(folder))
    args.out.write_text(json.dumps(found, indent=1))
    if args.against is None:
        return 0
    before = json.loads(args.against.read_text())
    differing = [(name, set(before.get(name, [])) ^ set(lines)) for name, lines in found.items()]
    for name, lines in differing:
        print(f"{name}: {'the same' if not lines else 'NOT the same'}", *sorted(lines), sep="\n    ")
    return int(any(lines for _, lines in differing))


if __name__ == "__main__":
    sys.exit(main())
