"""`store.py gc` is killed again and again while it works: what is to stay is whole after each kill, in the end the rest is gone.

    .venv/bin/python pipelines/workflow.py digits --store STORE
    .venv/bin/python tests/distributed/gc_kills.py STORE --kills 10

In a copy of the store: what is to stay is all that workflow.py made, which the registry names; what is to go are two hundred copies
of each of its items, 40 days old, which nothing names. kill -9 comes at a random moment after the first removal. After each one
`store.py verify` must end with 0, and every file that is to stay be as it was. Exit code 1 if not, or if anything is left, or if
nothing was killed.
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIES = 200
OLD_S = 40 * 24 * 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pick = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="gc-") as name:
        store = Path(name, "store")
        shutil.copytree(args.store, store)
        kept = sums(store)
        rubbish = grow(store)
        kills = 0
        for _ in range(args.kills):
            took = gc(store, pick.uniform(0.0, 1.0))
            left = len(remaining(rubbish))
            said = f"killed {took:.2f} s after the first removal" if took else "had done all"
            print(f"{said}, {left} of {len(rubbish)} left", flush=True)
            kills += took > 0
            if wrong := problems(store, kept):
                print("\n".join(wrong))
                return 1
        gc(store, None)
        wrong = [*problems(store, kept), *(f"{path} is left" for path in remaining(rubbish))]
    print("\n".join(wrong) or f"{kills} kills: what was to stay is whole, and all else is gone")
    return 1 if wrong or not kills else 0


def remaining(items: list[Path]) -> list[Path]:
    """Those with a file; killed at the very end of an item, an empty folder may be left."""
    return [item for item in items if any(path.is_file() for path in item.rglob("*"))]


def sums(store: Path) -> dict[str, str]:
    """Of all files of items and records of commands; MLflow's change when they are opened."""
    folders = ("datasets", "runs", "samples", "reports", "tracking/runs")
    paths = [path for folder in folders for path in (store / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def grow(store: Path) -> list[Path]:
    """Copies of each item under names that nothing knows."""
    made = []
    for kind in ("datasets", "runs", "samples", "reports"):
        item = next(path for path in (store / kind).iterdir() if path.name != "sources")
        for number in range(COPIES):
            unique = hashlib.sha256(f"{kind}{number}".encode()).hexdigest()
            copy = store / kind / (f"{unique[:16]}-64" if kind == "samples" else f"old-{unique[:12]}")
            shutil.copytree(item, copy, copy_function=os.link)
            made.append(copy)
    for path in store.rglob("*"):  # links: what is to stay is as old, and named by the registry
        if path.is_file() and path.relative_to(store).parts[0] in (
            "datasets",
            "runs",
            "samples",
            "reports",
            "tracking",
        ):
            os.utime(path, (time.time() - OLD_S,) * 2)
    return made


def gc(store: Path, kill_after_s: float | None) -> float:
    """Seconds after the first removal at which it was killed; 0 if it ended before that."""
    command = [sys.executable, "pipelines/store.py", "gc", "--store", str(store)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    try:
        process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        assert kill_after_s
        return kill_after_s
    assert process.returncode == 0
    return 0.0


def problems(store: Path, kept: dict[str, str]) -> list[str]:
    """What is not as it should be."""
    now = sums(store)
    changed = [name for name, digest in kept.items() if now.get(name) != digest]
    command = [sys.executable, "pipelines/store.py", "verify", "--store", str(store)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [*changed, *([ended.stdout + ended.stderr] if ended.returncode else [])]


if __name__ == "__main__":
    sys.exit(main())
