"""The train stage: a TorchTrainer whose workers run ddpm_core's loop, and a board on which the first one posts its progress."""

import threading
import uuid
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import (
    Checkpoint,
    HistoryRow,
    Weights,
    list_checkpoints,
    newest_checkpoint,
    read_history,
)
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.loader import ImageReader, TrainingStream
from ddpm_core.data.order import lanes_of_worker, local_batch_size
from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.samplers import SamplerConfig
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.evaluation.figures import image_grid
from ddpm_core.model.unet import init_unet, recompute_activations
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.generate import generate
from ddpm_core.training.loop import Events, Run, Worker, restore, stream_config, train
from ddpm_core.training.state import TrainState, ema_tensors, load_network, new_state
from ddpm_core.types import Tensor
from pipelines.cluster import cpus_per_worker, shard_cache, versions
from pipelines.models import (
    build_network,
    build_objective,
    code_version,
    digest,
    from_json,
    image_shape,
    run_folder,
    seeded_process,
    to_json,
    trajectory,
)
from pipelines.progress import progress
from pipelines.recipes import Recipe, TrainStage
from pipelines.tracking import RunHandle

_POLL_S = 0.5
_PREVIEW_IMAGES, _PREVIEW_STEPS = 64, 25


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run has come to."""

    name: str
    run_uri: str
    checkpoint_uri: str
    step: int
    images_per_s: float


def run_name(recipe: Recipe, index: DatasetIndex, init_from: Weights | None) -> str:
    """The run's name: as given, else the recipe's name and a digest of all that decides its weights."""
    if recipe.name:
        return recipe.name
    decides = {**trajectory(recipe, index, _origin(init_from)), "dataset": index.digest}
    return f"{recipe.recipe}-{digest(decides)}"


def _origin(init_from: Weights | None) -> str | None:
    return init_from.sha256 if init_from else None


def check_run(recipe: Recipe, index: DatasetIndex, init_from: Weights | None) -> Checkpoint | None:
    """The checkpoint that the run goes on from, once it is certain that it can.

    Raises:
        ValueError: if the run of that name was trained otherwise, or on another dataset, or batch and dataset do not fit.
    """
    check_objective(recipe.loss, recipe.reverse)
    check_prediction(recipe.reverse, make_schedule(recipe.schedule))
    check_classes(recipe.unet.num_classes, index)
    lanes = recipe.train.lanes
    local_batch_size(recipe.train.batch_size, index.num_samples("train"), lanes, lanes_of_worker(lanes, 0, 1))
    build_network(trajectory(recipe, index, None))
    name = run_name(recipe, index, init_from)
    checkpoint = newest_checkpoint(run_folder(recipe.store, name))
    if checkpoint is None:
        return None
    if checkpoint.dataset_digest != index.digest:
        raise ValueError(
            f"run {name} was trained on dataset {checkpoint.dataset_digest[:12]}, this one is {index.digest[:12]}; "
            "give the run another --name"
        )
    wanted = _flat(trajectory(recipe, index, _origin(init_from)))
    found = _flat(checkpoint.config)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"run {name} was started with {key} = {found.get(key)}, now it is {wanted.get(key)}; "
                "give the run another --name, or go on with the value it has"
            )
    return checkpoint


def check_classes(num_classes: int, index: DatasetIndex) -> None:
    """Refuse a network that is told of other classes than the dataset has.

    Raises:
        ValueError: with both numbers.
    """
    if num_classes not in (0, len(index.class_names)):
        raise ValueError(
            f"unet.num-classes is {num_classes}, the dataset has {len(index.class_names)} classes; "
            "expected as many, or 0 to train without labels"
        )


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def run_train(recipe: Recipe, index: DatasetIndex, run: RunHandle, init_from: Weights | None = None) -> Trained:
    """Train the recipe on a dataset, from its newest checkpoint on, and track it.

    Raises:
        ValueError: as `check_run`.
        RuntimeError: if training failed more often than it is retried.
    """
    name = run_name(recipe, index, init_from)
    run_uri = run_folder(recipe.store, name)
    checkpoint = check_run(recipe, index, init_from)
    if checkpoint is not None:
        run.log_metrics(_points(checkpoint.history))
    done = checkpoint.step if checkpoint else -1
    if done < recipe.train.steps:
        _fit(recipe, index, run, run_uri, init_from, max(done, 0))
    final = list_checkpoints(run_uri)[-1]
    history = read_history(final)
    rates = sorted(row["images_per_s"] for row in history)
    return Trained(
        name=name,
        run_uri=run_uri,
        checkpoint_uri=final,
        step=max(done, recipe.train.steps),
        images_per_s=rates[len(rates) // 2] if rates else 0.0,
    )


def _fit(
    recipe: Recipe, index: DatasetIndex, run: RunHandle, run_uri: str, init_from: Weights | None, done: int
) -> None:
    board = ray.remote(_Board).options(num_cpus=0).remote()
    told = {**instructions(recipe, index, run_uri, init_from), "board": board}
    count, gpu = recipe.train.num_workers, recipe.train.use_gpu
    resources = {"CPU": cpus_per_worker(count), "GPU": int(gpu)}
    # Ray resumes a run of the same name from its own records; ours lie in the checkpoints, so each attempt has a new name.
    records = storage.join(run_uri, "ray")
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config=told,
        scaling_config=ray.train.ScalingConfig(num_workers=count, use_gpu=gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=records,
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    _run(trainer, board, recipe, run, done)
    for uri, _ in storage.list_files(records):
        storage.delete(uri)


def instructions(recipe: Recipe, index: DatasetIndex, run_uri: str, init_from: Weights | None) -> dict[str, Any]:
    """What a worker must be told to walk a recipe's trajectory."""
    return {
        "train": to_json(recipe.train),
        "config": trajectory(recipe, index, _origin(init_from)),
        "index": index,
        "run_uri": run_uri,
        "init": ray.put(init_from.tensors) if init_from else None,
    }


def _points(history: list[HistoryRow]) -> list[HistoryRow]:
    """The history as metrics: without the count that follows from the step."""
    return [{key: value for key, value in row.items() if key != "images_seen"} for row in history]


class _Board:
    """Where the first worker posts and the driver reads."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    def post(self, kind: str, what: Any) -> None:
        self._events.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        events, self._events = self._events, []
        return events


def _run(trainer: Any, board: Any, recipe: Recipe, run: RunHandle, done: int) -> None:
    """Run the trainer in a thread, and meanwhile show progress and log metrics and pictures.

    In the main thread Ray would take Ctrl-C for itself, and end the process without a word.
    """
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:  # raised in the main thread
            result.set_exception(error)

    threading.Thread(target=fit, name="trainer", daemon=True).start()
    with progress("train", recipe.train.steps, "step", initial=done) as shown:
        while not result.done():
            wait([result], timeout=_POLL_S)
            _tell(ray.get(board.take.remote()), run, shown)
    result.result()


def _tell(events: list[tuple[str, Any]], run: RunHandle, shown: Any) -> None:
    rows = [what for kind, what in events if kind == "logged"]
    if rows:
        latest = rows[-1]
        shown.set(
            int(latest["step"]),
            loss=f"{latest['loss']:.4f}",
            grad=f"{latest['grad_norm']:.2f}",
            speed=f"{latest['images_per_s']:.0f} images/s",
        )
        run.log_metrics(_points(rows))
    for kind, what in events:
        if kind == "preview":
            run.log_picture(storage.read_bytes(what["uri"]), "samples/ema", step=what["step"])


def _train_on_worker(told: dict[str, Any]) -> None:
    """What each worker does: build, restore, train."""
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(), num_workers=context.get_world_size(), device=ray.train.torch.get_device()
    )
    torch.set_num_threads(cpus_per_worker(worker.num_workers))
    walk(told, worker, _events(told))


def walk(told: dict[str, Any], worker: Worker, events: Events) -> None:
    """Train from wherever the run is to its last step, as one of its workers."""
    config = from_json(TrainStage, told["train"])
    index: DatasetIndex = told["index"]
    run = Run(
        uri=told["run_uri"],
        config=told["config"],
        dataset_uri=index.uri,
        dataset_digest=index.digest,
        versions={**versions(), "code": code_version()},
    )
    network = build_network(told["config"])
    init_unet(network, config.seed)
    if told["init"] is not None:
        load_network(network, ray.get(told["init"]))
    if config.recompute:
        recompute_activations(network)
    objective = build_objective(told["config"])
    loss_aware = objective.schedule.num_timesteps if config.timesteps == "loss_aware" else None
    state = new_state(network.to(worker.device), config.learning_rate, loss_aware=loss_aware)
    checkpoint = newest_checkpoint(run.uri)
    if checkpoint is not None:
        restore(state, checkpoint, run)
    reader = ImageReader(index, "train", shard_cache())
    stream = TrainingStream(reader, stream_config(config), worker=worker.rank, num_workers=worker.num_workers)
    train(state, stream, objective, config, worker, run, events)


def preview_images(state: TrainState, config: dict[str, Any], seeds: range) -> Tensor:
    """Images of the averaged weights as they are now, uint8 [n, c, h, w]; a few DDIM steps each."""
    network = build_network(config).eval().requires_grad_(False)
    load_network(network, ema_tensors(state))
    device = next(state.network.parameters()).device
    wanted = torch.tensor(seeds, device=device)
    p = seeded_process(network.to(device), config, wanted, SampleConfig())
    sampler = SamplerConfig(name="ddim", num_steps=min(_PREVIEW_STEPS, p.schedule.num_timesteps))
    return generate(p, sampler, wanted, image_shape(config)).cpu()


def _events(told: dict[str, Any]) -> Events:
    post = told["board"].post.remote

    def preview(state: TrainState) -> None:
        images = preview_images(state, told["config"], range(_PREVIEW_IMAGES))
        uri = storage.join(told["run_uri"], "samples", f"step-{state.step:08d}.png")
        storage.write_bytes(uri, image_grid(images, columns=8))
        post("preview", {"uri": uri, "step": state.step})

    return Events(logged=lambda row: post("logged", row), saved=lambda uri: post("saved", uri), preview=preview)
