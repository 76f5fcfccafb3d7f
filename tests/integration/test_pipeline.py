"""The pipeline on a real Ray: small, but every stage the real one."""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_recipe import recipe

import ddpm_core
from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_checkpoint, read_weights
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.report import read_report
from ddpm_core.artifacts.run_record import hold
from ddpm_core.artifacts.sample_set import read_images, read_sample_set
from ddpm_core.data.images import decode_png, encode_png
from ddpm_core.data.sources import source_uri
from ddpm_core.errors import InputError
from pipelines import evaluate, show, workflow
from pipelines import store as store_command
from pipelines.cli.subcommands import run_subcommand
from pipelines.datasets import dataset_of, find_dataset, source_key
from pipelines.housekeeping.inventory import KINDS, inventory
from pipelines.housekeeping.removal import remove
from pipelines.pipeline import open_pipeline
from pipelines.recipes.config import Recipe
from pipelines.stages.sample import run_sample
from pipelines.stages.shard import run_shard
from pipelines.tracking import resolve_model
from pipelines.tracking.store import _PLACES

pytestmark = pytest.mark.usefixtures("ray_session")


def whole(wanted: Recipe, seeds: int = 1) -> workflow.WorkflowArgs:
    """What the workflow's command line would say."""
    return workflow.WorkflowArgs(**{f.name: getattr(wanted, f.name) for f in fields(Recipe)}, seeds=seeds)


@pytest.fixture(scope="module")
def made(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, dict[str, str], dict[str, object]]:
    """The pipeline, run once."""
    wanted = recipe(tmp_path_factory.mktemp("store"))
    outcome = workflow.run(whole(wanted))
    return wanted, outcome.made, outcome.metrics


def test_the_pipeline_ends_with_a_report_and_a_champion(made: tuple[Recipe, dict[str, str], dict[str, float]]) -> None:
    wanted, where, metrics = made
    report = read_report(where["report"].rsplit("/", 1)[0])
    figures = {figure["name"]: figure for figure in report.figures}
    assert report.figures[0]["name"] == "fd_random_conv"
    assert figures["fd_random_conv"]["value"] == metrics["fd_random_conv"] > metrics["floor"] > 0
    assert figures["bits_per_dim"]["low"] < metrics["bits_per_dim"] < figures["bits_per_dim"]["high"]
    assert {f"{name}_random_conv" for name in ("kid", "precision", "recall", "density", "coverage")} < metrics.keys()
    assert "data:image/png;base64," in report.html
    assert metrics["bits_per_dim"] == pytest.approx(metrics["rate"] + metrics["distortion"])
    assert "://" not in report.html.replace(wanted.store, "").split("<body")[0]
    with open_pipeline(wanted) as pipeline:
        champion = resolve_model(pipeline.tracker, "models:/ddpm-digits@champion")
    (newest,) = CheckpointStore(champion.checkpoint_uri.split("/checkpoints/")[0]).uris()[-1:]
    assert champion.weights_sha256 == read_weights(newest).sha256


def test_a_loaded_model_draws_what_the_sample_stage_drew(made: tuple[Recipe, dict[str, str], dict[str, float]]) -> None:
    wanted, where, _ = made
    samples = read_sample_set(where["grid"].replace("-grid.png", ".json"))
    drawn = [decode_png(png) for _, png in read_images(samples)]
    model = ddpm_core.load(samples.facts["checkpoint"].rpartition("/checkpoints/")[0])
    images = model.sample(range(24), sampler="ddim", num_steps=4, batch_size=wanted.sample.batch_size)
    assert np.array_equal(images, np.stack(drawn))


@pytest.mark.parametrize("name", ["library", "editing"])
def test_a_notebook_runs_on_any_run(
    name: str, made: tuple[Recipe, dict[str, str], dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = {path.parents[1] for path in (Path(made[0].store) / "runs").glob("*/checkpoints/*")}
    monkeypatch.setenv("DDPM_RUN", str(run))
    cells = json.loads((Path(__file__).parents[2] / f"examples/{name}.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["run"] == str(run)


def test_a_second_run_computes_nothing_and_finds_the_same(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
) -> None:
    wanted, where, metrics = made
    before = {path: path.stat().st_mtime_ns for path in Path(wanted.store).rglob("*") if _is_artifact(path)}
    again = workflow.run(whole(wanted))
    assert again.made == where
    assert again.metrics["fd_random_conv"] == metrics["fd_random_conv"]
    assert {path: path.stat().st_mtime_ns for path in Path(wanted.store).rglob("*") if _is_artifact(path)} == before


def _is_artifact(path: Path) -> bool:
    return path.is_file() and not any(part in path.as_posix() for part in ("mlflow", "/tracking/", "/ray/"))


def _of_store(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a word of store.py."""
    code = 0
    try:
        run_subcommand("store.py", "", store_command.COMMANDS, list(words))
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_lies_in_a_store_is_listed_verified_copied_and_removed(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = made[0].store, str(tmp_path / "new")
    items = {item.kind: item for item in inventory(old).values() if item.kind in KINDS}
    assert items.keys() == {"datasets", "runs", "samples", "reports"}
    dataset, run, samples, report = (items[kind].name for kind in KINDS[:4])
    lines = {line.split()[1]: line for line in _of_store(capsys, "list", "--store", old)[1].splitlines()[1:-1]}
    assert "models:/ddpm-digits/1" in lines[run]
    assert report in lines[samples]
    for name, *said in (
        (dataset, "8x8, grey: train 1,455, validation 162, test 180", "0, 1, 2, 3", run, "models:/ddpm-digits/1 ("),
        (
            run,
            "6, after 96 images",
            "digits: unet.base_channels 8",
            "fd_random_conv ",
            "models:/ddpm-digits/1 (",
            samples,
        ),
        (samples, "24 of seed 0 on, by ddim in 4 steps", "digits: unet.base_channels 8", report),
        (report, "24 generated images against", "digits: unet.base_channels 8", "models:/ddpm-digits/1 ("),
        ("models:/ddpm-digits@candidate", "6, after 96 images", "digits: unet.base_channels 8", "report.html"),
    ):
        show.run(show.ShowArgs(thing=name, store=old))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 12
        assert [each for each in said if not any(each in line for line in lines)] == []

    # With what it needs; twice, as after a kill.
    for _ in range(2):
        code, out, _ = _of_store(capsys, "copy", report, new, "--store", old)
        assert (code, sorted(line.split()[1].rstrip(",") for line in out.splitlines()[:4])) == (
            0,
            sorted([dataset, run, samples, report]),
        )
    code, out, _ = _of_store(capsys, "verify", "--store", new)
    assert (code, out.count("as it was written")) == (0, 4)

    for name, file, said in (
        (dataset, "shard-000000.tar", "shard-000000.tar is not what was written"),
        (run, "step-00000006/ema-*.safetensors", "step-00000006 is damaged"),
        (samples, "block-000000000000.tar", "1 blocks are missing, the first is that of seed 0"),
        (report, "report.html", "report.html"),
    ):
        path = next(Path(new, name).rglob(file))
        content = path.read_bytes()
        path.unlink()  # the copy is another name of the same file
        if name != samples:
            path.write_bytes(content[:-1] + b"?")
        code, out, _ = _of_store(capsys, "verify", name, "--store", new)
        assert code == 1
        assert said in out
        path.write_bytes(b"nothing of the kind")
        assert _of_store(capsys, "verify", name, "--store", new)[0] == 1
        path.write_bytes(content)

    code, out, _ = _of_store(capsys, "gc", "--store", new, "--dry-run")
    assert (code, "0 B would go; 4 items stay" in out) == (0, True)
    for path in Path(new).rglob("*"):
        os.utime(path, (0, 0))
    code, out, _ = _of_store(capsys, "gc", "--store", new, "--dry-run")
    assert re.search(f"{report} .*\n{samples} .*\n{run} .*\n{dataset} .*\n.* would go; 0 items stay", out)
    code, out, _ = _of_store(capsys, "gc", "--store", old)
    assert (code, "removed  0 items, 0 B" in out) == (0, True)
    code, _, err = _of_store(capsys, "rm", dataset, "--store", new)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"error: {dataset} is what {report}" in err or f"error: {dataset} is what {run}" in err
    code, _, err = _of_store(capsys, "rm", run[:-1], "--store", new)
    assert (code, "did you mean" in err) == (2, True)
    told = json.loads(_of_store(capsys, "list", "--json", "--store", new)[1].splitlines()[-1])
    assert told["items"][dataset]["referred_by"]
    alone = str(tmp_path / "alone")  # the dataset, and a training that has not come to its first checkpoint
    _of_store(capsys, "copy", dataset, alone, "--store", old)
    with hold(f"{alone}/runs/begun", say=print):
        code, _, err = _of_store(capsys, "rm", dataset, "--store", alone)
        assert (code, "a job is at work in runs/begun" in err) == (2, True)
    assert _of_store(capsys, "rm", dataset, "--store", alone)[0] == 0
    for name in (report, samples, run, dataset):
        for deletions in (1, 3, None):  # killed twice, then done
            with monkeypatch.context() as patch:
                left = iter(range(deletions or 10**6))
                delete = storage.delete

                def killed(uri: str, left: Iterator[int] = left, delete: Callable[[str], None] = delete) -> None:
                    if next(left, None) is None:
                        raise KeyboardInterrupt
                    delete(uri)

                patch.setattr("pipelines.housekeeping.removal.storage.delete", killed)
                items = inventory(new)
                if deletions is None:
                    remove(new, items, items[name])
                else:
                    with pytest.raises(KeyboardInterrupt):
                        remove(new, items, items[name])
            assert _of_store(capsys, "verify", "--store", new)[0] == 0
        assert name not in inventory(new)
    assert _of_store(capsys, "verify", "--store", old)[0] == 0


def test_a_store_that_was_moved_goes_on(made: tuple[Recipe, dict[str, str], dict[str, float]]) -> None:
    """Nothing in it is looked for, or written, where it was made."""
    wanted, _, _ = made
    old = Path(wanted.store)
    new, hidden = old.with_name("moved"), old.with_name("hidden")
    shutil.copytree(old, new)
    old.rename(hidden)
    moved = replace(wanted, store=str(new), train=replace(wanted.train, steps=8, num_workers=1))
    try:
        where = workflow.run(whole(moved)).made
        assert Path(where["report"]).is_relative_to(new)
        for alias in ("champion", "candidate"):
            with open_pipeline(moved) as pipeline:
                weights = pipeline.find_weights(f"models:/ddpm-digits@{alias}")
            assert Path(weights.uri).is_relative_to(new)
            assert Path(dataset_of(weights, str(new)).uri).is_relative_to(new)
        assert not old.exists()
        with closing(sqlite3.connect(new / "mlflow.db")) as database:
            assert str(old) in "".join(database.iterdump())  # in tags, as it was told then
            places = [database.execute(f"SELECT {column} FROM {table}").fetchall() for table, column in _PLACES]
        said = [place for rows in places for (place,) in rows if place and "mlruns" not in place]
        assert said
        assert [place for place in said if not place.startswith(f"{new.as_uri()}/mlflow")] == []
    finally:
        hidden.rename(old)


def test_a_dataset_is_named_by_its_content_and_serves_without_its_source(
    made: tuple[Recipe, dict[str, str], dict[str, float]], tmp_path: Path
) -> None:
    """Files that were touched are other files by their times, but not other images."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / f"photos/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)))
    store, data = str(tmp_path / "store"), replace(made[0].data, source=str(tmp_path / "photos"))
    index = run_shard(data, store, name="photos")
    assert Path(index.uri).name == f"photos-{index.digest[:12]}"
    for path in (tmp_path / "photos").rglob("*.png"):
        os.utime(path, (1, 1))
    before = {path: path.stat().st_mtime_ns for path in Path(index.uri).iterdir()}
    assert run_shard(data, store, name="photos") == index
    assert {path: path.stat().st_mtime_ns for path in Path(index.uri).iterdir()} == before
    left = [path for path in (tmp_path / "store/datasets/sources").rglob("*") if path.is_file()]
    assert sorted(path.name for path in left if path.suffix != ".json" or path.name == "run.json") == ["run.json"] * 2
    assert len(left) == 4  # what each source had become, and which job wrote it
    shards = [Path(index.uri, shard.name) for shard in index.shards]
    whole = [path.read_bytes() for path in shards]
    shards[0].unlink()
    shards[-1].write_bytes(whole[-1][:100])
    assert run_shard(data, store, name="photos") == index  # what is missing or was cut is made again
    assert [path.read_bytes() for path in shards] == whole
    for number in (12, 13):
        (tmp_path / f"photos/cat/{number}.png").write_bytes(encode_png(np.full((8, 8, 1), number, np.uint8)))
    more = replace(data, grows=Path(index.uri).name)
    grown = run_shard(more, store, name="photos")
    assert (set(index.shards) < set(grown.shards), sum(grown.counts.values())) == (True, 14)
    assert all(Path(index.uri, shard.name).samefile(Path(grown.uri, shard.name)) for shard in index.shards)
    assert run_shard(more, store, name="photos") == grown

    # Another job that writes the same images is waited for: two would move each other's shards away.
    other = str(tmp_path / "other")
    job = f"{other}/datasets/sources/{source_key(replace(data, source=source_uri(data.source)))}.job"
    with ThreadPoolExecutor(1) as pool:
        with hold(job, say=print):
            waiting = pool.submit(run_shard, data, other, name="photos")
            assert not wait([waiting], timeout=3).done
            assert not list(Path(other).rglob("*.tar"))
        assert sum(waiting.result(60).counts.values()) == 14
    shutil.rmtree(tmp_path / "photos")
    named = replace(made[0], store=store, data=data, dataset=Path(index.uri).name)
    with open_pipeline(named) as pipeline:
        assert pipeline.shard() == index
    with pytest.raises(InputError, match=r"no dataset at .*/photos-x or .*/datasets/photos-x; expected a folder with"):
        find_dataset("photos-x", store)


def test_a_run_that_has_more_steps_than_are_asked_for_says_so(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
) -> None:
    wanted, _, _ = made
    with (
        open_pipeline(replace(wanted, train=replace(wanted.train, steps=4))) as pipeline,
        pytest.raises(
            ValueError, match=r"has 6 steps already, train.steps is 4; expected 6 or more, or another --name"
        ),
    ):
        pipeline.train(pipeline.shard())


def test_an_interrupted_run_ends_where_an_unbroken_one_does(
    made: tuple[Recipe, dict[str, str], dict[str, float]], tmp_path: Path
) -> None:
    """Two steps, then four more by the same command, on one worker instead of two: the same weights but for rounding."""
    wanted, _, _ = made
    broken = replace(wanted, store=str(tmp_path), train=replace(wanted.train, num_workers=1))
    for steps in (2, 6):
        with open_pipeline(replace(broken, train=replace(broken.train, steps=steps))) as pipeline:
            trained = pipeline.train(pipeline.shard())
    ours = read_checkpoint(trained.checkpoint_uri)
    (folder,) = (Path(wanted.store) / "runs").iterdir()
    theirs = read_checkpoint(CheckpointStore(str(folder)).uris()[-1])
    assert folder.name == trained.name
    assert (ours.step, ours.images_seen) == (theirs.step, theirs.images_seen) == (6, 96)
    assert [row["step"] for row in ours.history] == [row["step"] for row in theirs.history] == [2, 4, 6]
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, tensor in ours.ema.items():
        assert torch.allclose(tensor, theirs.ema[name], atol=1e-3), name


def test_images_do_not_depend_on_batch_workers_or_who_asked(
    made: tuple[Recipe, dict[str, str], dict[str, float]], tmp_path: Path
) -> None:
    """The first law: at most one level apart, in fewer than one pixel in 10,000."""
    from ddpm_core.data.images import decode_png

    wanted, where, _ = made
    set_uri = where["grid"].replace("-grid.png", ".json")
    weights = read_weights(read_sample_set(set_uri).facts["checkpoint"])
    other = replace(wanted.sample, batch_size=3, num_workers=1, first_seed=5, num_images=9)
    ours = dict(read_images(run_sample(weights, other, str(tmp_path)).samples))
    theirs = dict(read_images(read_sample_set(set_uri)))
    assert sorted(ours) == list(range(5, 14))
    apart = torch.stack(
        [
            torch.from_numpy(decode_png(png).astype(int) - decode_png(theirs[seed]).astype(int))
            for seed, png in ours.items()
        ]
    )
    assert int(apart.abs().max()) <= 1
    assert float((apart != 0).float().mean()) < 1e-4


def test_overlapping_requests_share_blocks(made: tuple[Recipe, dict[str, str], dict[str, float]]) -> None:
    wanted, where, _ = made
    weights = read_weights(read_sample_set(where["grid"].replace("-grid.png", ".json")).facts["checkpoint"])
    sampled = run_sample(weights, replace(wanted.sample, num_images=32), wanted.store)
    assert sampled.num_new == 8


def test_fine_tuning_starts_from_the_given_weights(made: tuple[Recipe, dict[str, str], dict[str, float]]) -> None:
    wanted, _, _ = made
    tuned = replace(wanted, name="tuned", train=replace(wanted.train, steps=0, num_workers=1))
    with open_pipeline(tuned) as pipeline:
        weights = pipeline.find_weights("models:/ddpm-digits@champion")
        trained = pipeline.train(pipeline.shard(), weights)
    started = read_checkpoint(trained.checkpoint_uri)
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in started.model.items())


def test_a_run_of_that_name_that_was_trained_otherwise_is_refused(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
) -> None:
    wanted, _, _ = made
    named = replace(wanted, name="tuned", train=replace(wanted.train, learning_rate=1.0))
    with (
        open_pipeline(named) as pipeline,
        pytest.raises(ValueError, match=r"run tuned: the run was started with .* give the run another --name"),
    ):
        pipeline.train(pipeline.shard())


def test_images_of_others_have_the_figures_of_the_sample_set(
    made: tuple[Recipe, dict[str, str], dict[str, float]], tmp_path: Path
) -> None:
    """The same images as an .npz, without a model; as a folder their order is another one, and most figures the same."""
    wanted, where, metrics = made
    samples = read_sample_set(where["grid"].replace("-grid.png", ".json"))
    pngs = [png for _, png in read_images(samples)]
    np.savez(tmp_path / "theirs.npz", np.stack([decode_png(png)[..., 0] for png in pngs]))
    folder = tmp_path / "folder"
    for number, png in enumerate(pngs):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.png").write_bytes(png)
    (dataset,) = (Path(wanted.store) / "datasets").glob("digits-*")
    args = evaluate.EvaluateArgs(
        store=wanted.store,
        recipe="digits",
        images=str(tmp_path / "theirs.npz"),
        dataset=str(dataset),
        evaluate=wanted.evaluate,
    )
    evaluate.check(args)
    theirs = evaluate.run(args)
    assert theirs.metrics == pytest.approx({name: metrics[name] for name in theirs.metrics}, rel=1e-9)
    assert set(metrics) - set(theirs.metrics) >= {"bits_per_dim", "rate", "distortion"}
    assert "images that others made" in Path(theirs.made["report"]).read_text()
    files = evaluate.run(replace(args, images=str(folder))).metrics
    assert {name: files[name] for name in ("fd_random_conv", "floor", "kid_random_conv", "recall_random_conv")} == (
        pytest.approx(
            {name: metrics[name] for name in ("fd_random_conv", "floor", "kid_random_conv", "recall_random_conv")}
        )
    )


def test_images_of_others_that_do_not_fit_are_refused(
    made: tuple[Recipe, dict[str, str], dict[str, float]], tmp_path: Path
) -> None:
    wanted, _, _ = made
    (dataset,) = (Path(wanted.store) / "datasets").glob("digits-*")
    np.savez(tmp_path / "large.npz", np.zeros((30, 9, 9), np.uint8))
    np.savez(tmp_path / "colour.npz", np.zeros((30, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "few.npz", np.zeros((23, 8, 8), np.uint8))
    (tmp_path / "empty").mkdir()

    def refused(message: str, **changes: object) -> None:
        args = evaluate.EvaluateArgs(
            store=wanted.store, recipe="digits", dataset=str(dataset), evaluate=wanted.evaluate
        )
        with pytest.raises(InputError, match=message) as error:
            evaluate.check(replace(args, **changes))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    refused("9x9 pixels; expected 8x8", images=str(tmp_path / "large.npz"))
    refused("colour; expected grey", images=str(tmp_path / "colour.npz"))
    refused("holds 23 images, evaluate.num-images is 24; lower it to 23", images=str(tmp_path / "few.npz"))
    refused("empty is empty; expected images", images=str(tmp_path / "empty"))
    refused("expected images or models", images=str(tmp_path / "few.npz"), model="models:/ddpm-digits@champion")
    refused("without a dataset to hold them against", images=str(tmp_path / "few.npz"), dataset=None)


def test_seeds_are_trained_apart_and_the_median_is_promoted(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
) -> None:
    """The first of them stands already; both are registered, and the figures told are those of the lower one of two."""
    wanted, _, metrics = made
    alone = replace(wanted, train=replace(wanted.train, num_workers=1))
    outcome = workflow.run(whole(alone, seeds=2))
    trainings, mean = outcome.metrics["trainings"], outcome.metrics["mean"]
    assert len(set(trainings)) == 2
    assert trainings[0] == metrics["fd_random_conv"]
    assert outcome.metrics["fd_random_conv"] == min(trainings)
    assert mean == pytest.approx(np.mean(trainings))
    assert outcome.metrics["low"] < mean < outcome.metrics["high"]
    assert "over 2 trainings (95%" in outcome.made["figure"]
    with open_pipeline(wanted) as pipeline:
        client = pipeline.tracker.client
        versions = client.search_model_versions("name = 'ddpm-digits'")
        candidate = client.get_registered_model("ddpm-digits").aliases["candidate"]
    assert len(versions) == 2
    assert outcome.made["model"] == f"models:/ddpm-digits/{candidate}"


def test_labels_that_the_model_does_not_know_are_refused(
    made: tuple[Recipe, dict[str, str], dict[str, float]],
) -> None:
    wanted, _, _ = made
    asked = replace(wanted, sample=replace(wanted.sample, labels=(3,)))
    with open_pipeline(asked) as pipeline, pytest.raises(ValueError, match="the model was trained without classes"):
        pipeline.sample(pipeline.find_weights("models:/ddpm-digits@champion"))
