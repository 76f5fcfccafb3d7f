"""Are ailments named, and the healthy left alone: trainings of digits and of drawn colour pictures, with settings drawn at random.

    python tests/benchmarks/ailments.py --healthy 100 --planted 10

Trains so many healthy runs, and so many of each of six ailments, in two processes, looks at each as pipelines/train.py does, and
prints of each kind how many were named, and what was said of the others. What is not planted is drawn as for the healthy ones.

    python tests/benchmarks/ailments.py --folder FOLDER --longer 12

Of those healthy ones that were accused of too few steps, and of so many others: what as many steps again take off the loss on
validation's fixed images, and who of them had come to an end.
"""

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from ddpm_core.artifacts.checkpoint import checkpoint_uri
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources import open_source
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import DivergedError
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.training.__main__ import read_spec
from ddpm_core.training.ailments import judge
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.course import course_of
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import run_worker
from pipelines.training.looker import Looker

_ENDED = 0.1
"""Of its loss: who loses less by as many steps again has come to its end."""

Change = Callable[[Generator, dict[str, Any]], dict[str, Any]]


def healthy(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {}


def few_steps(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    steps = int(rng.integers(20, 120))
    return {"steps": steps, "warmup_steps": steps // 10, "log_every": 2}


def lagging(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {"ema_warmup": 0.0, "ema_half_life": int(drawn["steps"] * drawn["batch_size"] * rng.uniform(0.5, 3))}


def wild(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {"learning_rate": 10 ** float(rng.uniform(-1.3, 0.3)), "warmup_steps": 0}


def idle(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {"learning_rate": 10 ** float(rng.uniform(-8, -6.3))}


def starved(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"grad_clip": 10 ** float(rng.uniform(-4, -2))}
    return {"batch_size": 1, "steps": 1000, "grad_clip": 0.1}


def memorising(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {"data": "few", "batch_size": 16, "steps": 1500, "warmup_steps": 100, "log_every": 30}


def constant(rng: Generator, drawn: dict[str, Any]) -> dict[str, Any]:
    return {"data": str(rng.choice(["black", "same", "plain"])), "steps": 100, "warmup_steps": 10, "log_every": 5}


KINDS: dict[str, Change] = {
    "": healthy,
    "too few steps": few_steps,
    "average that lags": lagging,
    "learning rate too high": wild,
    "learning rate too low": idle,
    "starved steps": starved,
    "memorising": memorising,
    "constant images": constant,
}
"""By the ailment that is planted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--healthy", type=int, default=100)
    parser.add_argument("--planted", type=int, default=10, help="of each ailment")
    parser.add_argument("--first-seed", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="of datasets and runs; a temporary one by default")
    parser.add_argument("--longer", type=int, help="of the healthy ones in FOLDER that were not accused, so many")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="ddpm-ailments-"))
    if args.longer is not None:
        tell_gains(folder, args.longer)
        return
    datasets(folder)
    jobs = [("", args.first_seed + number) for number in range(args.healthy)]
    jobs += [(kind, args.first_seed + number) for kind in KINDS if kind for number in range(args.planted)]
    with ProcessPoolExecutor(2) as pool:
        said = list(pool.map(partial(run, folder), jobs))
    for kind in KINDS:
        found = [each for (planted, _), each in zip(jobs, said, strict=True) if planted == kind]
        if not found:
            continue
        others = Counter(name for each in found for name in each["ailments"] if name != kind)
        named = sum(kind in each["ailments"] for each in found)
        what = f"{kind}: named in {named} of {len(found)}" if kind else f"healthy: {len(found)} trainings"
        accused = sum(bool(set(each["ailments"]) - {kind}) for each in found)
        more = ", ".join(f"{name} {count}" for name, count in others.most_common())
        print(f"{what}; accused of something else: {accused}{f' ({more})' if more else ''}")


def tell_gains(folder: Path, num_others: int) -> None:
    """Of the accused, and of others, what twice the steps are good for; a line each, and the medians."""
    kept = [json.loads(said.read_text()) for said in sorted((folder / "runs").glob("healthy-*.json"))]
    accused = [each for each in kept if "too few steps" in each["ailments"]]
    cleared = [each for each in kept if not each["ailments"]]
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(cleared))[:num_others]
    asked = [*accused, *(cleared[int(place)] for place in chosen)]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(partial(gain, folder), asked))
    for each, share in zip(asked, found, strict=True):
        what = "accused" if each["ailments"] else "cleared"
        print(f"{what} {each['seed']}, {each['settings']['prediction']}: {share:.1%}; {each['course']}")
    print(
        f"median of the accused {np.median(found[: len(accused)]):.1%}, of others {np.median(found[len(accused) :]):.1%}"
    )
    for what, ended in (("under", True), ("over", False)):
        those = [each for each, share in zip(asked, found, strict=True) if (share < _ENDED) == ended]
        named = sum("too few steps" in each["ailments"] for each in those)
        print(f"{len(those)} lose {what} {_ENDED:.0%} by as many steps again, {named} of them accused of too few steps")


def gain(folder: Path, told: dict[str, Any]) -> float:
    """The share of its loss on validation's fixed images that a run loses by as many steps again."""
    run_uri, settings = folder / "runs" / f"healthy-{told['seed']}", told["settings"]
    longer, steps = folder / "longer" / run_uri.name, settings["steps"]
    if not longer.exists():
        shutil.copytree(run_uri, longer)
    if CheckpointStore(str(longer)).steps()[-1:] != [2 * steps]:  # it is not done again
        train(folder, str(longer), settings | {"steps": 2 * steps})
    losses = {
        look.step: float(np.mean(look.judged)) for look in course_of(checkpoint_uri(str(longer), 2 * steps)).looks
    }
    return 1 - losses[2 * steps] / losses[steps]


def datasets(folder: Path) -> None:
    """Those that there are not yet."""
    rng = np.random.Generator(np.random.PCG64(0))
    y, x = np.mgrid[:8, :8]
    discs = [disc(rng, y, x) for _ in range(2_000)]
    grey = np.stack(discs)[..., :1]
    kinds = {
        "drawn": np.stack(discs),
        "few": grey[:40],
        "black": rng.integers(0, 2, (600, 8, 8, 1), dtype=np.uint8),
        "same": np.clip(grey[:1] + rng.integers(0, 2, (600, 8, 8, 1)), 0, 255).astype(np.uint8),
        "plain": np.broadcast_to(rng.integers(0, 256, (600, 1, 1, 1)), (600, 8, 8, 1)).astype(np.uint8),
    }
    sources = {"digits": open_source("digits"), **{name: source_of(name, images) for name, images in kinds.items()}}
    for name, source in sources.items():
        uri = folder / "datasets" / name
        if not uri.exists():
            part = 0.5 if name == "few" else 0.1
            data = DataConfig(
                source=name,
                image_size=8,
                channels=3 if name == "drawn" else 1,
                samples_per_shard=256,
                test_fraction=0.0,
                validation_fraction=part,
                max_rejected_fraction=1.0,
            )
            results = [write_shard(plan, source, data, str(uri)) for plan in plan_dataset(source.num_images, data)]
            commit_dataset(str(uri), results, data, source)


def disc(rng: Generator, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A disc of one colour on another."""
    inside = (y - rng.uniform(1, 6)) ** 2 + (x - rng.uniform(1, 6)) ** 2 < rng.uniform(3, 12)
    return np.where(inside[..., None], rng.integers(0, 256, 3), rng.integers(0, 256, 3)).astype(np.uint8)


def source_of(name: str, images: NDArray[np.uint8]) -> ArraySource:
    return ArraySource(images=images, labels=np.full(len(images), -1), class_names=(), stem=name)


def drawn(seed: int) -> dict[str, Any]:
    """The settings of a run that ought to go well: it sees about as many images as the recipe digits trains on, 30,720."""
    rng = np.random.Generator(np.random.PCG64(seed))
    batch = int(rng.choice([16, 32, 64]))
    steps = int(rng.uniform(23_000, 38_000)) // batch
    return {
        "data": str(rng.choice(["digits", "drawn"])),
        "schedule": str(rng.choice(["linear", "quadratic", "cosine", "sigmoid"])),
        "prediction": str(rng.choice(["eps", "v", "x_0"])),
        "objective": str(rng.choice(["simple", "min_snr"])),
        "base_channels": int(rng.choice([12, 16])),
        "dropout": float(rng.choice([0.0, 0.1])),
        "learning_rate": float(np.exp(rng.uniform(np.log(5e-4), np.log(3e-3)))),
        "batch_size": batch,
        "steps": steps,
        "warmup_steps": steps // 10,
        "log_every": max(1, steps // 48),
        "seed": seed,
    }


def run(folder: Path, job: tuple[str, int]) -> dict[str, Any]:
    """One training, and what is said of it; kept beside it, so that it is not done again."""
    kind, seed = job
    said = folder / "runs" / f"{kind.replace(' ', '-') or 'healthy'}-{seed}.json"
    if said.exists():
        kept: dict[str, Any] = json.loads(said.read_text())
        uri = Path(str(said.with_suffix("")))
        if not kept["diverged"]:
            kept |= judged(str(uri), kept["settings"]["steps"])
        return kept
    settings = drawn(seed)
    settings |= KINDS[kind](np.random.Generator(np.random.PCG64([seed, 1])), settings)
    diverged = ""
    try:
        train(folder, str(said.with_suffix("")), settings)
    except DivergedError as error:
        diverged = str(error)
    found = {"ailments": ["learning rate too high"], "course": diverged}
    if not diverged:
        found = judged(str(said.with_suffix("")), settings["steps"])
    told = {"kind": kind, "seed": seed, "settings": settings, "diverged": diverged, **found}
    said.write_text(json.dumps(told, indent=2))
    print(f"{kind or 'healthy'} {seed}: {', '.join(told['ailments']) or 'no ailment'}; {told['course']}", flush=True)
    return told


def judged(run_uri: str, steps: int) -> dict[str, Any]:
    verdict = judge(course_of(checkpoint_uri(run_uri, steps)))
    return {"ailments": [each.name for each in verdict.ailments], "course": verdict.words}


def train(folder: Path, run_uri: str, settings: dict[str, Any]) -> None:
    """By the loop itself, in this process, with what pipelines/train.py sees of it."""
    torch.set_num_threads(1)
    index: DatasetIndex = read_index(str(folder / "datasets" / settings["data"]))
    own = {name: settings[name] for name in settings.keys() & TrainConfig.__dataclass_fields__.keys()}
    rare = {"checkpoint_every": settings["steps"], "preview_every": settings["steps"], "flip": False}
    unet = UNetConfig(
        base_channels=settings["base_channels"],
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=settings["dropout"],
    )
    parts: dict[str, Any] = {
        "unet": unet,
        "schedule": ScheduleConfig(name=settings["schedule"]),
        "reverse": ReverseConfig(prediction=settings["prediction"]),
        "loss": LossConfig(objective=settings["objective"]),
        "train": TrainConfig(precision="float32", **own, **rare),
    }
    config = json.loads(json.dumps({name: to_json(part) for name, part in parts.items()}))
    device = torch.device("cpu")
    spec = read_spec(index.uri, run_uri, config, device)
    looker = Looker(spec.run, index, spec.train)

    def ignored(what: object) -> None:
        pass

    events = Events(logged=ignored, look=lambda state: ignored(looker.look(state)), warned=ignored)
    with hold_run(run_uri, say=ignored) as hold:
        store = CheckpointStore(run_uri, hold)

        def checkpointer(state: TrainState) -> Checkpointer:
            return Checkpointer(state, spec.train, spec.run, store, saved=ignored, warned=ignored)

        alone = Worker(rank=0, num_workers=1, device=device)
        run_worker(spec, alone, events, folder / "cache", store, checkpointer)


if __name__ == "__main__":
    main()
