"""A training run: its name, what each of its workers is given, and whether it may go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Checkpoint, Weights, run_of
from ddpm_core.artifacts.checkpoint_files import read_state
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import DatasetIndex, index_uri, read_index
from ddpm_core.artifacts.run_record import check_free
from ddpm_core.data.order import lanes_of_worker, largest_share
from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError, UserError
from ddpm_core.model.config import read_model_config
from ddpm_core.model.form import UNetForm
from ddpm_core.model.weights import check_weights, weights_to_begin_with
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.identity import check_classes, check_continues, check_same, check_steps, difference
from ddpm_core.training.worker import WorkerSpec
from pipelines.cluster.session import versions
from pipelines.datasets import find_dataset, source_record
from pipelines.naming import code_version, digest, recipe_named_in, run_folder, trajectory
from pipelines.progress import say
from pipelines.recipes.config import Recipe
from pipelines.recipes.files import KEPT, find_recipe, recipe_file
from pipelines.recipes.recipes import RECIPES


def run_name(recipe: Recipe, index: DatasetIndex, init_from: Weights | None) -> str:
    """The run's name: as given, else the recipe's name and a digest of all that decides its weights."""
    if recipe.name:
        return recipe.name
    decides = {**trajectory(recipe, index, origin(init_from)), "dataset": index.digest}
    return f"{recipe.recipe}-{digest(decides)}"


def fewer_than_said(recipe: Recipe) -> str:
    """That a project's file says more steps than were asked for, in a line; empty if it does not."""
    said = find_recipe(recipe.file).train.steps if recipe.file else 0
    if said <= recipe.train.steps:
        return ""
    return f"{recipe.train.steps:,} steps, of the {said:,} that {recipe.file} says: without --train.steps, the same command goes on"


def why_anew(recipe: Recipe, index: DatasetIndex, init_from: Weights | None) -> str:
    """What keeps a run that begins from going on where the newest other one of its recipe stopped, in a line.

    Empty if there is no other one, or if the run was given its name.
    """
    name, runs = run_name(recipe, index, init_from), storage.join(recipe.store, "runs")
    others = [
        entry
        for entry in storage.walk(runs)
        if entry.name.endswith("/state.json") and _is_another(entry.name.partition("/")[0], name, recipe.recipe)
    ]
    if recipe.name or not others:
        return ""
    newest = storage.below(runs, max(others, key=lambda entry: entry.changed_s).name).rpartition("/")[0]
    run = run_of(newest).rpartition("/")[2]
    try:
        state = read_state(newest)
        begins = f"a new run: {run} (step {state['step']:,}) was trained"
        if state["dataset_digest"] != index.digest:
            now = f"now they are {_images(index.uri)} (--init-from {run} would begin with its weights)"
            return f"{begins} on other images, {_images(state['dataset_uri'])}; {now}"
    except UserError as error:  # another run's damage is no reason not to train this one
        return f"a new run, not held against {run}: {error}"
    different = difference(state["config"], trajectory(recipe, index, origin(init_from)))
    return "{} with {} = {}, now it is {}".format(begins, *different) if different else ""


def _is_another(run: str, name: str, recipe: str) -> bool:
    return run != name and recipe_named_in(run) == recipe


def _images(dataset: str) -> str:
    """How many a dataset has, if it is still there, and its name."""
    there, name = storage.exists(index_uri(dataset)), dataset.rpartition("/")[2]
    return f"{sum(read_index(dataset).counts.values()):,} in {name}" if there else f"in {name}"


def keep_recipe(recipe: Recipe, run_uri: str) -> None:
    """A project's settings as they were trained, flags and all, beside the run: a file that every command takes.

    A recipe's are in the code, and its runs need none.
    """
    if recipe.recipe not in RECIPES:
        text = recipe_file(recipe, f"As the run {run_uri.rpartition('/')[2]} was trained, flags included.")
        storage.write_bytes(storage.join(run_uri, KEPT), text.encode())


def origin(init_from: Weights | None) -> str | None:
    """The sha256 of the weights that a run begins with, if not with the seed's."""
    return init_from.sha256 if init_from else None


def check_run(
    recipe: Recipe, index: DatasetIndex, init_from: Weights | None, store: CheckpointStore
) -> Checkpoint | None:
    """The checkpoint that the run goes on from, once it is certain that it can.

    Raises:
        InputError: if the run of that name was trained otherwise, further, or on another dataset, or batch and dataset do not
            fit.
    """
    check_objective(recipe.loss, recipe.reverse)
    check_prediction(recipe.reverse, make_schedule(recipe.schedule))
    check_classes(recipe.unet.num_classes, index.class_names)
    lanes = recipe.train.lanes
    largest_share(recipe.train.batch_size, index.num_samples("train"), lanes, lanes_of_worker(lanes, 0, 1))
    network = read_model_config(trajectory(recipe, index, None)).build_network()
    if init_from is not None:
        check_form(recipe.unet.form, read_model_config(init_from.config).unet.form)
        check_weights(network, weights_to_begin_with(network, init_from.tensors))
    checkpoint = store.newest()
    if checkpoint is not None:
        with _named(run_name(recipe, index, init_from)):
            check_continues(checkpoint, trajectory(recipe, index, origin(init_from)), index.digest)
            check_steps(checkpoint.step, recipe.train.steps)
    return checkpoint


def check_standing_run(recipe: Recipe) -> None:
    """Refuse now what a run that stands would refuse once Ray is up, as far as it is seen at once.

    Raises:
        InputError: if the run was trained otherwise, further, or on another dataset.
        HeldError: if a process of this machine is at it, which is seen within ten seconds.
    """
    is_far = recipe.dataset is None and storage.is_s3(recipe.data.source)  # to list it once more may take minutes
    if is_far or not any(storage.walk(storage.join(recipe.store, "runs"))):
        return
    found = find_dataset(recipe.dataset, recipe.store) if recipe.dataset else None
    index = found or source_record(recipe.data, recipe.store, recipe.recipe).read()
    if index is None:
        return
    name = run_name(recipe, index, None)
    run_uri = run_folder(recipe.store, name)
    for newest in CheckpointStore(run_uri).uris()[-1:]:
        try:
            state = read_state(newest)
        except UserError:  # for a damaged one the run takes the one before, and says so
            return
        with _named(name):
            check_same(state["config"], state["dataset_digest"], trajectory(recipe, index, None), index.digest)
            check_steps(state["step"], recipe.train.steps)
        if state["step"] == recipe.train.steps:
            return
    check_free(run_uri, say)


@contextmanager
def _named(run: str) -> Iterator[None]:
    """Say of which run a refusal is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"run {run}: {error}") from None


def check_form(wanted: UNetForm, found: UNetForm) -> None:
    """Refuse to begin with the weights of a network that computes otherwise, which their shapes would not tell.

    Raises:
        InputError: naming the first difference, with both values.
    """
    for field in fields(UNetForm):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if ours != theirs:
            raise InputError(
                f"unet.form.{field.name.replace('_', '-')} is {ours}, that of the network whose weights it begins with is "
                f"{theirs}; expected the same"
            )


def worker_spec(recipe: Recipe, index: DatasetIndex, run_uri: str, init_from: Weights | None) -> WorkerSpec:
    """What each worker of a recipe's run is given."""
    run = Run(
        uri=run_uri,
        config=trajectory(recipe, index, origin(init_from)),
        dataset_uri=index.uri,
        dataset_digest=index.digest,
        versions={**versions(), "code": code_version(), "threads": str(recipe.train.threads), "recipe": recipe.recipe},
    )
    return WorkerSpec(train=recipe.train, run=run, index=index, init=init_from.tensors if init_from else None)
