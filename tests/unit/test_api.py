"""The model object: loaded from wherever it lies, sampled, measured, edited."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ddpm_core
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.bits_per_dim import measure_bound
from ddpm_core.interop.diffusers import write_diffusers
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json

CONFIG = ddpm_core.ModelConfig(
    image_size=8,
    channels=1,
    unet=UNetConfig(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
    ),
    schedule=ScheduleConfig(num_timesteps=5),
    reverse=ReverseConfig(variance="fixed_small"),
)


def weights(config: ddpm_core.ModelConfig = CONFIG) -> Weights:
    network = config.build_network()
    init_unet(network, 0)
    file = safetensors.torch.save({name: p.detach().contiguous() for name, p in network.named_parameters()})
    return Weights(
        uri="", step=3, sha256=sha256_of(file), config=to_json(config), dataset_digest="", dataset_uri="", file=file
    )


MODEL = ddpm_core.Model.from_weights(weights())
IMAGES = MODEL.sample(range(5))


def test_it_is_loaded_from_a_registered_version_and_from_diffusers(tmp_path: Path) -> None:
    wide = replace(
        CONFIG.unet, base_channels=128, channel_multipliers=(1,), attention_resolutions=()
    )  # as diffusers' norms ask
    config = replace(CONFIG, unet=wide, schedule=ScheduleConfig(num_timesteps=2))
    ours = weights(config)
    images = ddpm_core.Model.from_weights(ours).sample(range(5))
    write_diffusers(str(tmp_path / "diffusers"), ours)
    (tmp_path / "version/artifacts").mkdir(parents=True)
    (tmp_path / "version/artifacts/weights.safetensors").write_bytes(ours.file)
    training = {"checkpoint_uri": "/runs/a", "step": 3, "dataset_digest": "d", "dataset_uri": "/d"}
    (tmp_path / "version/artifacts/config.json").write_text(json.dumps({**ours.config, "training": training}))
    for folder in ("diffusers", "version"):
        model = ddpm_core.load(str(tmp_path / folder))
        assert model.config == config
        assert np.array_equal(model.sample(range(5)), images)
    assert model.weights is not None
    assert (model.weights.uri, model.weights.sha256) == ("/runs/a", ours.sha256)


def test_where_none_lies_one_line_says_what_may(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no model at .*; expected the folder of a run, a checkpoint, [^\n]*$"):
        ddpm_core.load(str(tmp_path))


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    assert IMAGES.shape == (5, 8, 8, 1)
    assert IMAGES.dtype == np.uint8
    assert np.array_equal(MODEL.sample([3, 1], batch_size=1), IMAGES[[3, 1]])
    assert not np.array_equal(IMAGES[0], IMAGES[1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"labels": [3]}, "trained without classes"),
        ({"sampler": "ddim", "num_steps": 6}, "6"),
        ({"sampler": "magic"}, "magic"),
    ],
)
def test_what_it_cannot_do_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MODEL.sample([0], **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: MODEL.sample([-1]), r"a seed is -1; expected 0 to"),
        (lambda: MODEL.sample([2**63]), r"a seed is 9223372036854775808; expected 0 to"),
        (lambda: MODEL.sample([]), r"no seed"),
        (lambda: MODEL.bits_per_dim(IMAGES[:, :4]), r"uint8 \[5, 4, 8, 1\]; expected"),
        (lambda: MODEL.bits_per_dim(IMAGES, labels=[1]), r"1 labels for 5 images"),
        (lambda: MODEL.interpolate(IMAGES[0], IMAGES[1], [0.5], 0), r"uint8 \[8, 8, 1\]; expected"),
        (
            lambda: MODEL.bits_per_dim(IMAGES, labels=[1] * 5),
            r"labels is \[1, 1, 1, 1, 1\] and the model was trained wit",
        ),
        (
            lambda: MODEL.inpaint(IMAGES[:1], np.ones((8, 7), dtype=bool), [1]),
            r"known has shape \[8, 7\]; expected \[8, 8",
        ),
        (lambda: MODEL.inpaint(IMAGES[:1], np.full((8, 8), "yes"), [1]), r"known is of type <U3; expected True or 1"),
        (lambda: MODEL.inpaint(IMAGES[:1], np.full((8, 8), 0.5), [1]), r"the mask has 0.5 among its values"),
        (
            lambda: MODEL.progressive([1], [4, 0], labels=[3]),
            r"labels is \[3\] and the model was trained without class",
        ),
        (lambda: MODEL.inpaint(IMAGES[:2], np.ones((1, 8, 8, 1), dtype=bool), [1]), r"1 seeds for 2 images"),
    ],
)
def test_a_strangers_input_is_refused_in_a_line(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_bits_per_dim_are_those_that_are_merged_for_a_report() -> None:
    bits = MODEL.bits_per_dim(IMAGES)
    whole = measure_bound(MODEL.reverse_process(torch.full((5,), -1)), torch.from_numpy(IMAGES).permute(0, 3, 1, 2), 0)
    assert bits.shape == (5,)
    assert bits.mean() == pytest.approx(whole.bits_per_dim)


def test_num_steps_are_taken_whatever_names_the_sampler() -> None:
    named, told = (MODEL.sample([3], sampler=way, num_steps=2) for way in ("ddim", SamplerConfig(name="ddim")))
    assert np.array_equal(named, told)
    with pytest.raises(ValueError, match="99 sampling steps"):
        MODEL.sample([3], sampler=SamplerConfig(name="ddim"), num_steps=99)
    with pytest.raises(ValueError, match="99 sampling steps"):
        MODEL.sample([3], num_steps=99)


def test_every_method_takes_a_sampler_by_name() -> None:
    for way in ("ddim", SamplerConfig(name="ddim", num_steps=2)):
        seen, images = MODEL.progressive([3, 4], [4, 0], sampler=way, num_steps=2)
        assert seen.shape == (2, 2, 8, 8, 1)
        drawn = MODEL.sample([3, 4], sampler="ddim", num_steps=2)
        assert np.array_equal(images, drawn)
        named = MODEL.interpolate(IMAGES[:1], IMAGES[1:2], [0.5], 3, sampler=way, num_steps=2)
        told = MODEL.interpolate(IMAGES[:1], IMAGES[1:2], [0.5], 3, sampler=SamplerConfig(name="ddim", num_steps=2))
        assert np.array_equal(named, told)
    with pytest.raises(ValueError, match="sampler is 'ddmi'; expected one of ancestral"):
        MODEL.interpolate(IMAGES[:1], IMAGES[:1], [0.5], 3, sampler="ddmi")


def test_a_way_between_images_begins_with_one_and_ends_with_the_other() -> None:
    way = MODEL.interpolate(IMAGES[:2], IMAGES[2:4], [0.0, 0.5, 1.0], step=0)
    back = MODEL.interpolate(IMAGES[2:4], IMAGES[:2], [1.0, 0.5, 0.0], step=0)
    assert way.shape == (2, 3, 8, 8, 1)
    assert np.array_equal(way, back)
    assert not np.array_equal(way[:, 0], way[:, 2])


def test_what_is_known_stays_and_the_rest_is_drawn_by_the_seed() -> None:
    known = np.zeros((1, 8, 8, 1), dtype=bool)
    known[:, :4] = True
    first, again, other = (MODEL.inpaint(IMAGES[:1], known, [seed], resamplings=2) for seed in (7, 7, 8))
    assert np.array_equal(first[:, :4], IMAGES[:1, :4])
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:, 4:], other[:, 4:])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 8, 8, 1), (2, 8, 8, 1)])
def test_a_mask_may_be_of_any_type_and_of_any_shape_that_means_one(shape: tuple[int, ...], kind: type) -> None:
    half = np.zeros((8, 8), dtype=bool)
    half[:, :3] = True
    known = np.broadcast_to(half.reshape((1,) * (len(shape) == 3) + (8, 8) + (1,) * (len(shape) == 4)), shape)
    plain, other = (
        MODEL.inpaint(IMAGES[:2], mask, [7, 8], resamplings=2) for mask in (half[None, :, :, None], known.astype(kind))
    )
    assert np.array_equal(plain, other)
    if kind is np.uint8:
        assert np.array_equal(plain, MODEL.inpaint(IMAGES[:2], 255 * known.astype(kind), [7, 8], resamplings=2))


def test_images_are_completed_in_fewer_steps() -> None:
    known = np.zeros((8, 8), dtype=bool)
    known[:4] = True
    few = MODEL.inpaint(IMAGES[:1], known, [7], num_steps=2, resamplings=2)
    assert np.array_equal(few[:, :4], IMAGES[:1, :4])
    assert not np.array_equal(few, MODEL.inpaint(IMAGES[:1], known, [7], resamplings=2))


def test_the_last_thing_seen_on_the_way_is_the_image() -> None:
    seen, images = MODEL.progressive(range(5), [4, 0], sampler=SamplerConfig())
    assert seen.shape == (5, 2, 8, 8, 1)
    assert np.array_equal(images, IMAGES)
    assert np.abs(seen[:, 1].astype(int) - images).max() <= 1


def test_the_public_names_are_there_and_no_others() -> None:
    assert all(getattr(ddpm_core, name) is not None for name in ddpm_core.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'Modell'; it has .*Model"):
        ddpm_core.Modell  # noqa: B018


def test_a_schedule_is_made_by_its_name_and_shown() -> None:
    schedule = ddpm_core.schedule("cosine", num_timesteps=10)
    wanted = make_schedule(ScheduleConfig(name="cosine", num_timesteps=10))
    assert all(torch.equal(value, getattr(wanted, name)) for name, value in vars(schedule).items() if name != "name")
    assert schedule.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"schedule.name is cosin; expected one of linear, .*, cosine, sigmoid"):
        ddpm_core.schedule("cosin")
    with pytest.raises(ValueError, match="a schedule has no T; expected beta_start, beta_end, num_timesteps, rescale"):
        ddpm_core.schedule("linear", T=10)
