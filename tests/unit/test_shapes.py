"""Images that are no squares, and those with alpha: from pictures to a dataset, a network, samples, figures and diffusers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ddpm_core
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex, make_index, read_index
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import encode_png, to_pixels
from ddpm_core.data.pixels import on_white
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources import open_source
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.evaluation.copies import search_copies
from ddpm_core.evaluation.features import random_conv
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.neighbours import nearest
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.interop.diffusers import write_diffusers
from ddpm_core.model.blocks import Attention
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNet, UNetConfig, check_image_size
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training.__main__ import read_spec
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.worker import run_worker
from ddpm_core.types import ImageSize, Tensor
from pipelines import shard
from pipelines.cli.command import named_source
from pipelines.cli.parsing import parse
from pipelines.measuring.copies import _comparable
from pipelines.recipes.config import Recipe
from pipelines.recipes.fitting import fitted
from pipelines.recipes.recipes import make

# The norms of one number of groups are what diffusers can say.
UNET = UNetConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.0,
    form=UNetForm(norm_groups=2),
)
NUM_IMAGES = 40


def pictures(folder: Path, height: int, width: int, channels: int) -> list[NDArray[np.uint8]]:
    """Discs whose place and colour are drawn; with alpha, they alone are opaque."""
    folder.mkdir()
    rng, made = np.random.default_rng(0), []
    y, x = np.mgrid[:height, :width]
    for number in range(NUM_IMAGES):
        disc = (y - rng.integers(height)) ** 2 + (x - rng.integers(width)) ** 2 < (height / 3) ** 2
        pixels = np.where(disc[..., None], rng.integers(0, 256, channels), rng.integers(0, 256, channels))
        if channels in (2, 4):
            pixels[..., -1] = np.where(disc, 255, 0)
        made.append(pixels.astype(np.uint8))
        (folder / f"{number:03}.png").write_bytes(encode_png(made[-1]))
    return made


def sharded(source: Path, data: DataConfig, folder: Path) -> DatasetIndex:
    images = open_source(str(source))
    plans = plan_dataset(images.num_images, data)
    commit_dataset(str(folder), [write_shard(plan, images, data, str(folder)) for plan in plans], data, images)
    return read_index(str(folder))


def trained(index: DatasetIndex, run: Path, unet: UNetConfig) -> ddpm_core.Model:
    parts: dict[str, Any] = {
        "unet": unet,
        "schedule": ScheduleConfig(num_timesteps=20),
        "reverse": ReverseConfig(prediction="v"),
        "loss": LossConfig(),
        "train": TrainConfig(steps=50, batch_size=8, checkpoint_every=50, learning_rate=3e-3, warmup_steps=5),
    }
    config = json.loads(json.dumps({name: to_json(part) for name, part in parts.items()}))
    spec = read_spec(index.uri, str(run), config, torch.device("cpu"))
    worker = Worker(rank=0, num_workers=1, device=torch.device("cpu"))
    events = Events(logged=lambda row: None, look=lambda state: None, warned=lambda line: None)
    with hold_run(spec.run.uri, say=print) as hold:
        store = CheckpointStore(spec.run.uri, hold)

        def checkpointer(state: Any) -> Checkpointer:
            return Checkpointer(state, spec.train, spec.run, store, saved=lambda uri: None, warned=print)

        run_worker(spec, worker, events, run.parent / "cache", store, checkpointer)
    return ddpm_core.load(str(run))


def test_a_dataset_has_the_random_crops_of_its_seed_and_positions(tmp_path: Path) -> None:
    made = pictures(tmp_path / "pictures", 8, 20, 1)
    data = DataConfig(image_size=(8, 12), fit="random_crop", seed=5, test_fraction=0.0, validation_fraction=0.0)
    index = sharded(tmp_path / "pictures", data, tmp_path / "dataset")
    expected = [
        to_pixels(pixels, (8, 12), 1, fit="random_crop", seed=5, position=number) for number, pixels in enumerate(made)
    ]
    (images,) = ImageReader(index, "train", tmp_path).in_order(64)
    found = [image.tobytes() for image in images.permute(0, 2, 3, 1).contiguous().numpy()]
    assert sorted(found) == sorted(image.tobytes() for image in expected)


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("size", "channels"), [((8, 12), 4), ((8, 12), 2), ((24, 40), 3)])
def test_from_pictures_to_diffusers_and_back(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    made = pictures(tmp_path / "pictures", *size, channels)
    data = DataConfig(image_size=size, channels=channels, samples_per_shard=16, test_fraction=0.2)
    index = sharded(tmp_path / "pictures", data, tmp_path / "dataset")
    assert (index.image_size, index.channels) == (size, channels)
    held = {split: ImageReader(index, split, tmp_path) for split in ("train", "test")}
    train, test = (torch.cat(list(reader.in_order(64))) for reader in held.values())
    assert {image.tobytes() for image in train.permute(0, 2, 3, 1).contiguous().numpy()} < {
        pixels.tobytes() for pixels in made
    }

    unet = fitted(UNET, size)
    model = trained(index, tmp_path / "run", unet)
    assert model.config.image_size == size
    samples = model.sample(range(6), num_steps=5)
    assert samples.shape == (6, *size, channels)
    assert np.array_equal(model.sample([4], num_steps=5)[0], samples[4])

    bits = model.bits_per_dim(test.permute(0, 2, 3, 1).numpy(), num_steps=5)
    assert np.isfinite(bits).all()
    for features in (Features(), Features(network="pixels")):
        real, generated = features.extract(train), features.extract(as_tensor(samples))
        assert real.shape[1] == features.dimensions(index.image_size, channels)
        stats = FeatureStats.from_features(real), FeatureStats.from_features(generated)
        assert np.isfinite(frechet_distance(*stats))

    assert model.weights is not None
    write_diffusers(str(tmp_path / "diffusers"), model.weights)
    written = json.loads((tmp_path / "diffusers/unet/config.json").read_text())
    assert written["sample_size"] == list(size)
    again = ddpm_core.load(str(tmp_path / "diffusers"))
    assert again.config == model.config
    np.testing.assert_array_equal(again.sample(range(6), sampler="ancestral", num_steps=5), samples)


def test_alpha_is_no_part_of_what_is_compared_or_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 4, 8, 12), generator=generator, dtype=torch.uint8)
    seen = on_white(images)
    for network in ("random_conv", "pixels"):
        features = Features(network=network)  # type: ignore[arg-type]
        assert torch.equal(features.extract(images), features.extract(seen))
    assert torch.equal(random_conv.extract(images), random_conv.extract(seen))
    assert torch.equal(nearest(images[:2], images, 3).squared, nearest(seen[:2], seen, 3).squared)
    assert nearest(images[:2], images, 3).images.shape == (2, 3, 4, 8, 12)
    found, expected = search_copies(images, images, k=2), search_copies(seen, seen, k=2)
    assert (found.shape, found.plain.squared.tolist()) == ((3, 8, 12), expected.plain.squared.tolist())
    assert image_grid(images) == image_grid(seen)
    large = torch.randint(256, (2, 2, 40, 160), generator=generator, dtype=torch.uint8)
    assert _comparable(large).shape == (2, 1, 16, 64)
    assert torch.equal(_comparable(seen), seen)


def test_a_square_is_saved_as_one_number_and_another_as_two() -> None:
    def index(size: ImageSize) -> DatasetIndex:
        return make_index("/data", image_size=size, channels=3, class_names=(), shards=(), num_rejected=0)

    assert index(32).digest == "bf87029e7ab7b24415a2baf652aefc9ffa99fd61b755262733d8e28bd5a7198b"  # since version 2
    assert index((32, 32)) == index(32)
    assert index((32, 24)).digest != index((24, 32)).digest
    config = to_json(
        ddpm_core.ModelConfig(
            image_size=(24, 24), channels=1, unet=UNET, schedule=ScheduleConfig(), reverse=ReverseConfig()
        )
    )
    assert config["image_size"] == 24
    for said, size in ((24, 24), ([24, 24], 24), ([24, 40], (24, 40))):
        assert from_json(ddpm_core.ModelConfig, {**config, "image_size": said}).image_size == size
    for said in ("24", 24.0, True, None, [24], [24, 40, 1], [24, "40"]):
        with pytest.raises(InputError, match=r"expected int \| tuple\[int, int\] @ \$\.image_size"):
            from_json(ddpm_core.ModelConfig, {**config, "image_size": said})


def test_attention_is_placed_by_the_shorter_side() -> None:
    def attended(size: ImageSize, at: tuple[int, ...]) -> list[int]:
        config = UNetConfig(base_channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1, attention_resolutions=at)
        network, found = UNet(config, image_size=size, channels=2), []
        for down in network.down:
            down.attentions[0].register_forward_hook(lambda module, inputs, out: found.append((module, out.shape[-2:])))
        images = torch.zeros(1, 2, *(size if isinstance(size, tuple) else (size, size)))
        assert network(images, torch.zeros(1, dtype=torch.int64)).shape == images.shape
        return [tuple(shape) for module, shape in found if isinstance(module, Attention)]  # type: ignore[misc]

    assert attended((24, 40), (12,)) == [(12, 20)]
    assert attended((40, 24), (12, 6)) == [(20, 12), (10, 6)]
    with pytest.raises(InputError, match="has 20; expected sizes that the levels have: 24, 12, 6"):
        attended((24, 40), (20,))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((30, 41), "the image size is 30 41; expected a multiple of 4, for the 3 levels .*; nearest: 28 40 or 32 44"),
        ((24, 41), "the image size is 24 41; .*; nearest: 24 40 or 24 44"),
        (30, "the image size is 30; .*; nearest: 28 or 32"),
        ((2, 8), "the image size is 2 8; .*; nearest: 4 8$"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused_with_the_nearest(size: ImageSize, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_image_size(UNetConfig(channel_multipliers=(1, 2, 4), attention_resolutions=()), size)


@pytest.mark.parametrize(
    ("recipe", "size", "expected"),
    [
        ("cifar10_small", 32, (8,)),
        ("cifar10_small", 64, (16,)),
        ("mnist", 64, (16,)),
        ("mnist", (28, 56), (7,)),
        ("digits", (8, 12), (4,)),
        ("cifar10", 64, (16,)),
        ("cifar10", (24, 40), (12,)),
        ("celebahq256", 128, (16,)),
        ("digits", 7, (4,)),  # refused as it is
    ],
)
def test_a_recipes_attention_follows_the_size(recipe: str, size: ImageSize, expected: tuple[int, ...]) -> None:
    assert fitted(make(recipe).unet, size).attention_resolutions == expected


def test_the_nearest_is_nearest_by_ratio() -> None:
    two_levels = UNetConfig(channel_multipliers=(1, 1), attention_resolutions=(17,))
    assert fitted(two_levels, 24).attention_resolutions == (24,)  # 24 / 17 < 17 / 12


def test_what_is_typed_follows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sized = ["cifar10_small", "--data.image-size", "64"]
    assert parse(Recipe, [*sized], "train.py", "").unet.attention_resolutions == (16,)
    assert "attention at 16: the recipe's 8 is no level's size" in capsys.readouterr().err
    for flag in ("--unet.attention-resolutions", "--unet.attention_resolutions"):
        assert parse(Recipe, [*sized, flag, "8"], "train.py", "").unet.attention_resolutions == (8,)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / f"pictures/{number}.png").write_bytes(encode_png(np.full((24, 40, 3), number, dtype=np.uint8)))
    data = DataConfig(image_size=(24, 40), channels=3, test_fraction=0.0, validation_fraction=0.0)
    index = sharded(tmp_path / "pictures", data, tmp_path / "dataset")
    parsed = parse(Recipe, ["cifar10_small", "--dataset", index.uri], "train.py", "")
    assert parsed.unet.attention_resolutions == (6,)


def test_images_that_the_recipe_cannot_train_on_are_not_sharded_for_it() -> None:
    with pytest.raises(InputError, match=r"the image size is 8 11; .* nearest: 8 10 or 8 12"):
        shard.check(parse(Recipe, ["--data.image-size", "8", "11"], "shard.py", ""))
    fine = parse(Recipe, ["--data.image-size", "8", "12", "--data.channels", "4", "--data.fit", "pad"], "shard.py", "")
    shard.check(fine)
    assert fine.data.image_size == (8, 12)
    typed = ["--data.image-size", "8", "12", "--data.channels", "4", "--data.fit", "pad"]
    assert named_source(fine) == typed  # what comes next is of the same images
    assert parse(Recipe, ["--data.image-size", "9", "9"], "shard.py", "").data.image_size == 9


@pytest.mark.parametrize("words", [["8", "a"], ["8", "9", "10"], ["8.5"]])
def test_what_is_no_size_is_one_line(words: list[str]) -> None:
    with pytest.raises(InputError, match=rf"^--data.image-size is {' '.join(words)}; expected INT\|{{INT INT}} \(all"):
        parse(Recipe, ["--data.image-size", *words], "train.py", "")
