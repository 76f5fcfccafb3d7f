"""A project: its file, what is found of its images, and which settings these get."""

import json
import math
import re
import shlex
import shutil
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Checkpoint, write_checkpoint
from ddpm_core.artifacts.manifest import ROW_SCHEMA, DatasetIndex, ShardEntry, index_uri, make_index, write_index
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sources import open_source
from ddpm_core.errors import InputError, MissingError
from ddpm_core.interop.unet_json import Form, unet_json
from ddpm_core.model.unet import check_image_size
from pipelines import datasets, new
from pipelines.cli.checks import check_data
from pipelines.cli.command import as_recipe, changed_flags, named_source, run_command
from pipelines.cli.parsing import parse
from pipelines.naming import trajectory
from pipelines.recipes import survey as surveying
from pipelines.recipes.choosing import (
    FEW,
    FEWEST_IMAGES,
    LEAST_STEPS,
    LOOKS,
    Like,
    Machine,
    choose,
    likeness,
    num_steps,
)
from pipelines.recipes.config import Recipe, as_named
from pipelines.recipes.files import check_project, find_recipe, read_recipe, recipe_file
from pipelines.recipes.recipes import RECIPES, make
from pipelines.recipes.survey import Survey, survey
from pipelines.report_facts import command
from pipelines.sample import SampleArgs
from pipelines.scheduling.resolve import check_command, recipe_of
from pipelines.sweeping.setting import apply
from pipelines.train import TrainArgs
from pipelines.training.run import fewer_than_said, keep_recipe, run_name, why_anew

CPUS, GPU = Machine(cpus=2, gpu=False), Machine(cpus=16, gpu=True)
HERE = 'project = "flowers"\n[data]\nsource = "photos"\n'


def found(side: int = 200, num_images: int = 300, *, grey: bool = False, **more: Any) -> Survey:
    facts: dict[str, Any] = {
        "num_images": num_images,
        "num_looked_at": 10,
        "num_unread": 0,
        "num_lost": 0,
        "formats": {"PNG": 10},
        "sizes": ((side, side + 50),) * 10,
        "num_coloured": 0 if grey else 10,
        "num_transparent": 0,
        "num_duplicates": 0,
        "num_near": 0,
        "class_counts": {},
    }
    return Survey(**{**facts, **more})


def written(folder: Path, text: str = HERE, name: str = "flowers.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# The file.


def test_a_project_is_named_in_all_that_is_made_of_it(tmp_path: Path) -> None:
    """Nothing of two projects meets in a store; their names are those of datasets, runs, experiments and models."""
    one, other = (
        read_recipe(written(tmp_path, HERE.replace("flowers", name), f"{name}.toml")) for name in ("roses", "tulips")
    )
    index = make_index("/data", image_size=8, channels=1, class_names=(), shards=(), num_rejected=0)
    assert replace(one, recipe="") == replace(other, recipe="")
    assert [run_name(each, index, None).rpartition("-")[0] for each in (one, other)] == ["roses", "tulips"]
    assert {one.recipe, other.recipe}.isdisjoint(RECIPES)


def test_a_project_has_its_own_dataset_where_recipes_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same images; else who removes one project's would remove the other's."""
    monkeypatch.setattr(datasets, "read_index", lambda uri: uri.rpartition("/")[2])

    def record(name: str) -> datasets.SourceRecord:
        return datasets.SourceRecord(config=DataConfig(), grows=None, name=name, datasets=str(tmp_path), key="key")

    def there(dataset: str) -> None:
        storage.write_bytes(index_uri(f"{tmp_path}/{dataset}"), b"")
        record("roses").write(dataset, "0123456789abcdef")

    def known(name: str) -> Any:
        return record(name).read()

    there("roses-0123456789ab")
    assert [known(name) for name in ("roses", "tulips", "mnist")] == ["roses-0123456789ab", None, None]
    there("mnist-0123456789ab")
    assert [known(name) for name in ("cifar10", "tulips")] == ["mnist-0123456789ab", None]
    assert known("roses") == "roses-0123456789ab"  # though the last to be written was another's


def test_what_a_project_does_not_say_is_as_in_the_paper_or_in_the_recipe_that_it_names(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path)).unet == Recipe().unet
    small = read_recipe(written(tmp_path, 'recipe = "cifar10_small"\n' + HERE))
    assert (small.recipe, small.unet) == ("flowers", make("cifar10_small").unet)


def test_paths_are_meant_from_where_the_file_lies(tmp_path: Path) -> None:
    labelled = HERE + 'labels = "labels.csv"\n'
    recipe = read_recipe(written(tmp_path, labelled))
    assert (recipe.data.source, recipe.data.labels) == (str(tmp_path / "photos"), str(tmp_path / "labels.csv"))
    for source in ("digits", "s3://raw/photos", "/photos"):
        assert read_recipe(written(tmp_path, HERE.replace("photos", source))).data.source == source
    none = read_recipe(written(tmp_path, HERE + 'labels = "none"\nclass_level = "none"\n'))
    assert (none.data.labels, none.data.class_level) == ("none", None)  # a word, and TOML's missing null


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values |= flat(value, f"{prefix}{field.name}.") if is_dataclass(value) else {f"{prefix}{field.name}": value}
    return values


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "data.image_size": st.sampled_from([8, 32, (24, 40)]),
        "data.channels": st.sampled_from([1, 2, 3, 4]),
        "data.class_names": st.lists(st.text(min_size=1), unique=True).map(tuple),
        "data.labels": st.sampled_from(["", "none", "/labels.csv"]),
        "unet.channel_multipliers": st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
        "unet.form.head_channels": st.sampled_from([None, 4]),
        "train.learning_rate": st.floats(1e-300, 1e300),
        "train.ema_decay": st.sampled_from([None, 0.5, 0.9999]),
        "train.micro_batch_size": st.sampled_from([None, "auto", 4]),
        "train.flip": st.booleans(),
        "train.node_labels": st.sampled_from([(), ("a=b",), ("a=b", "c=d")]),
        "sample.sampler.num_steps": st.sampled_from([None, 7]),
    },
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["flowers", "digits", "cifar10"]), changes=SETTINGS)
def test_what_is_written_is_read_as_the_same(name: str, changes: dict[str, Any], tmp_path_factory: Any) -> None:
    begun = make(name) if name in RECIPES else replace(Recipe(), recipe=name)
    steps = begun.train.steps
    recipe = apply(replace(begun, data=replace(begun.data, source="/photos")), changes)
    recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    reasons = {path: f"about {path}" for path in flat(recipe) if path.startswith("sample.")}
    for said in ({}, reasons):
        text = recipe_file(recipe, "Of a test.", said)
        read = read_recipe(written(tmp_path_factory.mktemp("it"), text))
        assert replace(read, store=recipe.store) == recipe
        assert recipe_file(read, "Of a test.", said) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello", "is no TOML"),
        ('project = "digits"\n', "project is 'digits', the name of a recipe"),
        ('project = "a/b"\n', "project is 'a/b'; expected up to 100"),
        ("project = 3\n", "project = 3; expected a name in quotes"),
        ('project = "flowers"\n', "has no data.source; expected the project's own images"),
        ('project = "flowers"\ndata = 3\n', "has no data.source"),
        ('project = "flowers"\nrecipe = "mnits"\n', "did you mean mnist?"),
        (HERE + "[train]\nstep = 3\n", "has train.step, which is no field of a recipe; did you mean train.steps?"),
        (HERE + "[tran]\nsteps = 3\n", "did you mean train.steps?"),
        (HERE + "[train]\nsteps = '3'\n", "has train.steps = '3'; expected a whole number"),
        (HERE + "[train]\nsteps = 3.5\n", "expected a whole number"),
        (HERE + "[train]\nsteps = true\n", "expected a whole number"),
        (HERE + "[train]\nflip = 'no'\n", "expected true or false"),
        (HERE + "[train]\nlearning_rate = '1e-3'\n", "expected a number"),
        (HERE + "[train]\nema_decay = 'None'\n", 'expected a number or "none"'),
        (HERE + "[train.steps]\nx = 1\n", "has train.steps.x, which is no field"),
        (HERE + "[train]\nsteps = -1\n", "train.steps is -1"),
        (HERE + "[unet]\nchannel_multipliers = 2\n", "expected a list of a whole number each"),
        (HERE + "image_size = [1, 2, 3]\n", "expected a whole number or a list of a whole number, of two"),
        (HERE + "[sample.sampler]\nname = 'ddmi'\n", "did you mean ddim?"),
        (HERE.replace('"photos"', "1979-05-27"), "expected words in quotes"),
    ],
)
def test_a_mistake_is_one_line(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_command(TrainArgs, "", check=fail, plan=fail, run=fail, argv=[written(tmp_path, text)])
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert told in said


def fail(*_: object) -> Any:
    raise AssertionError("it went on")


def test_a_source_that_is_not_there_is_one_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train import check

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_command(TrainArgs, "", check=check, plan=fail, run=fail, argv=[written(tmp_path)])
    assert ended.value.code == 2
    assert f"error: there is no source at {tmp_path / 'photos'}" in capsys.readouterr().err


# On a command line.


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, HERE + "[train]\nsteps = 30\nbatch_size = 4\n[sample]\nnum_images = 7\n")
    args = parse(TrainArgs, [file, "--train.steps", "5000"], "train.py", "")
    assert (args.recipe, args.file, args.train.steps, args.train.batch_size) == ("flowers", file, 5000, 4)
    sampled = parse(SampleArgs, [file, "--sample.first-seed", "3"], "sample.py", "")
    assert (sampled.recipe, sampled.sample.num_images, as_recipe(sampled).train.steps) == ("flowers", 7, 30)
    assert changed_flags("sample", sampled.sample, find_recipe(as_named(sampled)).sample) == [
        "--sample.first-seed",
        "3",
    ]
    assert named_source(args) == []


def test_a_file_is_named_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, name="my flowers.toml")
    recipe = find_recipe("my flowers.toml")
    assert as_named(recipe) == "my flowers.toml"
    index = DatasetIndex.__new__(DatasetIndex)
    object.__setattr__(index, "uri", "/data")
    subject, features = (
        type("S", (), {"model": None, "where": "/x", "by_steps": ()})(),
        type("F", (), {"network": "random_conv"})(),
    )
    # A report is read elsewhere than where it was asked for.
    assert str(tmp_path / "my flowers.toml") in shlex.split(command(subject, index, recipe, features))
    assert (as_named(make("digits")), recipe.data.source) == ("digits", str(tmp_path / "photos"))


def test_a_name_without_its_suffix_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    with pytest.raises(InputError, match=r"unknown recipe 'flowers'; .* did you mean flowers\.toml\?$"):
        find_recipe("flowers")


def test_a_run_gives_its_projects_file_back(tmp_path: Path) -> None:
    """With the flags that it was trained by; and its samples are made as that says, whatever is typed before --model."""
    args = parse(TrainArgs, [written(tmp_path), "--data.image-size", "32", "--sample.num-images", "7"], "train.py", "")
    run = tmp_path / "store/runs/flowers-0"
    run.mkdir(parents=True)
    keep_recipe(args, str(run))
    kept = find_recipe(str(run / "recipe.toml"))
    assert flat(replace(kept, store=args.store, file=args.file)) == {
        k: v for k, v in flat(args).items() if k != "init_from"
    }
    tensors = {"x": torch.zeros(1)}
    trained = Checkpoint(
        step=1,
        images_seen=1,
        seed=0,
        dataset_digest="",
        dataset_uri="",
        config={},
        versions={"recipe": "flowers"},
        model=tensors,
        ema=tensors,
        optimizer={},
        history=[],
    )
    uri = write_checkpoint(str(run), trained)
    for model in (uri, str(run)):
        sampled = parse(SampleArgs, ["--model", model], "sample.py", "")
        assert (sampled.recipe, sampled.sample.num_images) == ("flowers", 7)
    assert parse(SampleArgs, [written(tmp_path), "--model", uri], "sample.py", "").file == str(
        tmp_path / "flowers.toml"
    )
    keep_recipe(make("digits"), str(tmp_path))
    assert not (tmp_path / "recipe.toml").exists()


def test_fewer_steps_than_the_file_says_are_no_end(tmp_path: Path) -> None:
    file = written(tmp_path, HERE + "[train]\nsteps = 1_880\n")
    recipe = find_recipe(file)
    assert fewer_than_said(recipe) == ""
    fewer = replace(recipe, train=replace(recipe.train, steps=340))
    said = f"340 steps, of the 1,880 that {file} says: without --train.steps, the same command goes on"
    assert fewer_than_said(fewer) == said
    assert fewer_than_said(replace(make("digits"), train=fewer.train)) == ""


def test_a_run_that_begins_anew_says_what_keeps_the_last_one_from_going_on(tmp_path: Path) -> None:
    """Images were added, or the file changed: without a word, it would look as if the training had been lost."""
    recipe = replace(read_recipe(written(tmp_path)), store=str(tmp_path / "store"))

    def dataset(num_images: int) -> Any:
        shard = ShardEntry(
            name="train-0.tar", split="train", num_samples=num_images, size_bytes=1, sha256=f"{num_images:064}"
        )
        uri = f"{recipe.store}/datasets/flowers-{num_images}"
        index = make_index(uri, image_size=8, channels=1, class_names=(), shards=(shard,), num_rejected=0)
        write_index(index, [pa.Table.from_pylist([{}] * num_images, schema=ROW_SCHEMA)])
        return index

    def train(recipe: Recipe, index: Any, step: int) -> str:
        name, tensors = run_name(recipe, index, None), {"x": torch.zeros(1)}
        trained = Checkpoint(
            step=step,
            images_seen=step,
            seed=0,
            dataset_digest=index.digest,
            dataset_uri=index.uri,
            config=trajectory(recipe, index, None),
            versions={"recipe": recipe.recipe},
            model=tensors,
            ema=tensors,
            optimizer={},
            history=[],
        )
        write_checkpoint(f"{recipe.store}/runs/{name}", trained)
        return name

    few, more = dataset(300), dataset(350)
    assert why_anew(recipe, few, None) == ""
    begun = train(recipe, few, 1_200)
    assert why_anew(recipe, few, None) == ""  # it goes on
    assert why_anew(replace(recipe, name="mine"), more, None) == ""
    assert why_anew(replace(recipe, recipe="tulips"), more, None) == ""
    new = f"a new run: {begun} (step 1,200) was trained "
    now = f"; now they are 350 in flowers-350 (--init-from {begun} would begin with its weights)"
    assert why_anew(recipe, more, None) == f"{new}on other images, 300 in flowers-300{now}"
    seeded = replace(recipe, train=replace(recipe.train, seed=7))
    assert why_anew(seeded, few, None) == f"{new}with train.seed = 0, now it is 7"
    state = Path(f"{recipe.store}/runs/{begun}/checkpoints/step-00001200/state.json")
    said = state.read_text()
    state.write_text("{")
    assert why_anew(recipe, more, None).startswith(f"a new run, not held against {begun}: ")  # its damage stops nobody
    state.write_text(said)
    shutil.rmtree(few.uri)
    assert why_anew(recipe, more, None) == f"{new}on other images, in flowers-300{now}"


def test_a_schedule_finds_the_file_from_anywhere_and_its_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    kept = check_command(["ddpm", "sample", "flowers.toml", "--num-images", "4"])
    monkeypatch.chdir("/")
    assert (kept[2], recipe_of(kept)) == (str(tmp_path / "flowers.toml"), "flowers")


# What is found of images.


def pictures(folder: Path) -> str:
    """Seven images in two classes: five photographs (two with the same pixels, one of them again, smaller), grey, transparent."""
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    x, y = np.meshgrid(np.arange(96), np.arange(80))
    rng = np.random.default_rng(0)
    for number in range(3):
        waves = [np.sin(x / rng.uniform(4, 30) + y / rng.uniform(4, 30) + rng.uniform(0, 6)) for _ in range(3)]
        Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)).save(folder / f"a/{number}.png")
    (folder / "a/copy.png").write_bytes((folder / "a/0.png").read_bytes())
    with Image.open(folder / "a/1.png") as image:
        image.resize((144, 120)).save(folder / "a/larger.jpg", quality=60)
    Image.new("RGB", (100, 70), (90, 90, 90)).save(folder / "b/grey.jpg")
    Image.new("RGBA", (16, 12), (9, 9, 9, 0)).save(folder / "b/clear.png")
    (folder / "b/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return str(folder)


def test_images_are_counted_by_what_they_are(tmp_path: Path) -> None:
    told: list[int] = []
    seen = survey(open_source(pictures(tmp_path / "photos")), DataConfig(), told.append)
    assert seen is not None
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (seen.num_images, seen.num_looked_at, seen.num_unread) == (8, 8, 1)
    assert (seen.formats, seen.class_counts) == ({"PNG": 5, "JPEG": 2}, {"a": 5, "b": 3})
    assert (seen.num_coloured, seen.num_transparent, seen.num_duplicates, seen.num_near) == (5, 1, 1, 1)
    assert sorted(seen.sizes)[0] == (12, 16)
    assert (seen.side, seen.is_grey, seen.unread_share) == (80, False, 1 / 8)
    (broken,) = seen.unread
    assert broken.startswith("b/broken.png: cannot be decoded")
    assert seen.lines()[:2] == ["8 images: PNG 5, JPEG 2; 7 were read, 1 cannot be", f"cannot be read: {broken}"]


def test_of_many_some_are_looked_at_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "MOST_LOOKED_AT", 10)
    seen = survey(open_source("digits"), DataConfig())
    assert seen is not None
    assert (seen.num_images, seen.num_looked_at, seen.side, seen.is_grey) == (1_797, 10, 8, True)
    assert seen.lines()[0].startswith("1,797 images, of which 10 were looked at: pixels 10;")


@given(num_images=st.integers(1, 3_000))
def test_those_that_are_looked_at_lie_at_even_distances(num_images: int) -> None:
    places = surveying._evenly(num_images)
    assert len(places) == min(num_images, surveying.MOST_LOOKED_AT)
    assert places[0] == 0
    assert set(np.diff([*places, num_images])) <= {num_images // len(places), math.ceil(num_images / len(places))}


def test_where_none_can_be_read_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert survey(open_source(str(tmp_path)), DataConfig()) is None


# Which settings they get.


@pytest.mark.parametrize(
    ("side", "grey", "gpu", "like", "size"),
    [
        (3, True, False, "digits", 4),
        (8, True, False, "digits", 8),
        (10, True, True, "digits", 10),
        (11, True, False, "mnist", 12),
        (28, True, False, "mnist", 28),
        (32, True, True, "mnist", 32),
        (33, True, False, "cifar10_small", 32),
        (33, True, True, "cifar10", 32),
        (8, False, False, "cifar10_small", 8),
        (29, False, False, "cifar10_small", 28),
        (30, False, False, "cifar10_small", 32),
        (3000, False, False, "cifar10_small", 32),
        (32, False, True, "cifar10", 32),
        (50, False, True, "cifar10", 48),
        (3000, False, True, "cifar10", 64),
    ],
)
def test_size_and_colour_choose_the_recipe(side: int, grey: bool, gpu: bool, like: Like, size: int) -> None:
    images = found(side, grey=grey)
    assert likeness(images, gpu=gpu) == like
    recipe = choose("flowers", "/photos", images, GPU if gpu else CPUS).recipe
    assert (recipe.data.image_size, recipe.data.channels) == (size, 1 if grey else 3)
    assert (recipe.train.use_gpu, recipe.sample.use_gpu, recipe.train.num_workers) == (gpu, gpu, 1 if gpu else 2)
    assert recipe.train.flip == (like not in ("digits", "mnist"))
    assert recipe.schedule == make(like).schedule
    shape = {"image_size": recipe.data.image_size, "channels": recipe.data.channels}
    assert unet_json(Form(unet=recipe.unet, num_outputs=shape["channels"], **shape))  # it can go to diffusers
    check_image_size(recipe.unet, recipe.data.image_size)


def test_few_images_are_augmented_and_a_gpu_trains_a_narrower_network_on_them() -> None:
    fewest = math.ceil(FEW / 0.81)
    for count, augment in ((fewest - 1, 0.12), (fewest, 0.0)):
        assert choose("x", "/x", found(num_images=count), CPUS).recipe.train.augment == augment
    widths = [choose("x", "/x", found(num_images=count), GPU).recipe.unet.base_channels for count in (300, 20_000)]
    assert widths == [64, 128]


def test_how_long_follows_from_how_many() -> None:
    assert num_steps("digits", 1_455, 32)[0] == make("digits").train.steps
    assert num_steps("mnist", 48_600, 16)[0] == make("mnist").train.steps
    assert num_steps("cifar10_small", 100_000, 64)[0] == 5 * make("cifar10_small").train.steps
    assert num_steps("cifar10", 50_000, 128)[0] == make("cifar10").train.steps // 40
    enough = 320_000 // LOOKS
    steps, why = num_steps("cifar10_small", enough, 64)
    assert (steps, "judgement" in why) == (5_000, True)
    steps, why = num_steps("cifar10_small", enough - 40, 64)
    assert (steps, "overfitted" in why) == (4_680, True)
    for few in (1, 64 * LEAST_STEPS // LOOKS):
        assert num_steps("cifar10_small", few, 64)[0] == LEAST_STEPS
    assert num_steps("digits", 1, 32)[0] == make("digits").train.steps  # which are fewer


def test_a_batch_is_no_larger_than_the_images_and_too_few_are_refused() -> None:
    assert choose("x", "/x", found(num_images=FEWEST_IMAGES), CPUS).recipe.train.batch_size == 16
    with pytest.raises(InputError, match=r"^/x holds 19 images; expected 20 or more"):
        choose("x", "/x", found(num_images=FEWEST_IMAGES - 1), CPUS)


def test_what_an_owner_should_know_stands_beside_the_field() -> None:
    images = found(num_unread=1, num_transparent=2, class_counts={"cat": 150, "dog": 150})
    chosen = choose("x", "/x", images, CPUS)
    assert "10.0% of them cannot be read" in chosen.reasons["data.max_rejected_fraction"]
    assert "with 4 it is kept" in chosen.reasons["data.channels"]
    assert chosen.reasons["unet.num_classes"].startswith("Not told of the classes, as in the paper. 2, before")
    assert "data.max_rejected_fraction" not in choose("x", "/x", found(), CPUS).reasons
    assert found(num_images=90, num_lost=10).unread_share == 0.1


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(1, 5_000),
    num_images=st.integers(FEWEST_IMAGES, 10**7),
    grey=st.booleans(),
    machine=st.builds(Machine, cpus=st.integers(1, 64), gpu=st.booleans()),
)
def test_whatever_is_chosen_can_be_trained_and_says_why(
    side: int, num_images: int, grey: bool, machine: Machine, tmp_path_factory: Any
) -> None:
    """Each line of the file has its reason above it, and the file is read as what was chosen."""
    chosen = choose("flowers", "/photos", found(side, num_images, grey=grey), machine)
    recipe = chosen.recipe
    check_image_size(recipe.unet, recipe.data.image_size)
    assert recipe.train.batch_size <= int(0.8 * num_images)
    assert recipe.train.steps % recipe.train.checkpoint_every == 0
    text = recipe_file(recipe, "Of a test.", chosen.reasons)
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if re.match(r"\w+ = ", line):
            assert lines[place - 1].startswith("# "), line
    assert replace(read_recipe(written(tmp_path_factory.mktemp("it"), text)), store=recipe.store) == recipe


# The command.


def typed(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["new.py"])
    monkeypatch.setattr(new, "costs_here", lambda recipe: ["training's time: about 3 hours; 1.0e+13 operations in all"])
    try:
        run_command(
            new.NewArgs,
            new.__doc__ or "",
            check=new.check,
            plan=new.plan,
            run=new.run,
            read=new.read,
            argv=argv,
            store="leaves",
        )
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def images_of(folder: Path) -> str:
    """Twenty-four of colour."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def test_a_file_is_written_that_every_command_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images_of(tmp_path / "photos")
    argv = ["flowers", "--data.source", "photos/", "--no-use-gpu"]
    assert typed([*argv, "--dry-run"], monkeypatch) == 0
    assert "image_size = 32" in capsys.readouterr().out
    assert not (tmp_path / "flowers.toml").exists()
    assert typed([*argv, "--json"], monkeypatch) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["project"], told["like"], told["images"]) == ("flowers.toml", "cifar10_small", 24)
    text = (tmp_path / "flowers.toml").read_text()
    assert "# Here: training's time: about 3 hours;" in text
    assert tomllib.loads(text)["data"]["source"] == "photos"
    recipe = find_recipe("flowers.toml")
    assert (recipe.recipe, recipe.data.source) == ("flowers", str(tmp_path / "photos"))
    assert typed(argv, monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: there is a file flowers.toml already, which stays as it is; expected another name\n"
    )
    assert (tmp_path / "flowers.toml").read_text() == text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "the project has no name"),
        (["digits", "--data.source", "digits"], "the name of a recipe"),
        (["flowers.toml", "--data.source", "digits"], "expected a name, of which the file is made: 'flowers'"),
        (["a b", "--data.source", "digits"], "expected up to 100"),
        (["flowers"], "data.source is empty"),
        (["flowers", "--data.source", "nowhere"], "there is no source at"),
        (["flowers", "--data.sourc", "x"], "did you mean --data.source?"),
    ],
)
def test_a_mistake_of_new_is_one_line(
    argv: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(argv, monkeypatch) == 2
    said = capsys.readouterr().err
    assert (told in said, said.count("\n")) == (True, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_name_by_which_the_store_has_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their models would be compared as if they were of one project."""
    monkeypatch.chdir(tmp_path)
    argv = ["flowers", "--data.source", images_of(tmp_path / "roses"), "--store", str(tmp_path / "store"), "--dry-run"]
    for name, source in (("flowers-red-0123456789ab", "lilies"), ("flowers-0123456789ab", "roses")):
        census = tmp_path / "store/datasets" / name / "census.json"
        census.parent.mkdir(parents=True)
        census.write_text(json.dumps({"source": str(tmp_path / source)}))
    assert typed(argv, monkeypatch) == 0
    capsys.readouterr()
    census.write_text(json.dumps({"source": str(tmp_path / "tulips")}))
    assert typed(argv, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"project is 'flowers', a name by which {tmp_path}/store has images of {tmp_path}/tulips" in said


def test_of_images_that_are_gone_the_dataset_is_named(tmp_path: Path) -> None:
    recipe = replace(make("mnist"), store=str(tmp_path / "store"))
    gone = replace(recipe, data=replace(recipe.data, source=str(tmp_path / "roses")))
    with pytest.raises(InputError, match=r"there is no source at \S+roses; [^\n]*\(--data\.source\)$"):
        check_data(gone)
    for name, source in (("flowers-0123456789ab", "roses"), ("flowers-ba9876543210", "tulips")):
        census = tmp_path / "store/datasets" / name / "census.json"
        census.parent.mkdir(parents=True)
        census.write_text(json.dumps({"source": str(tmp_path / source)}))
    with pytest.raises(InputError, match=r"; the store has what was made of it: --dataset flowers-0123456789ab$"):
        check_data(gone)


def test_a_recipes_name_is_no_projects() -> None:
    for name in RECIPES:
        with pytest.raises(InputError, match="the name of a recipe"):
            check_project(name)
    check_project("flowers-2.1_b")


def test_a_file_that_is_not_there_has_its_nearest_neighbour_named(tmp_path: Path) -> None:
    (tmp_path / "flowers.toml").write_text('project = "flowers"\n')
    with pytest.raises(MissingError, match=r"^no recipe file at .*/flower.toml; did you mean flowers.toml\?$"):
        find_recipe(str(tmp_path / "flower.toml"))
