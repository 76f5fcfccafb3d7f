"""Training with augmentation: what a step draws and tells, the network that is told, and that none of it shows in samples."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.artifacts.manifest import make_index
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.errors import InputError
from ddpm_core.interop.diffusers import read_diffusers, write_diffusers
from ddpm_core.model.config import ModelConfig, read_model_config
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.model.weights import check_weights, weights_to_begin_with
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training import parallel
from ddpm_core.training.augmentation import (
    EDM_KINDS,
    NUM_PARAMETERS,
    augment,
    check_augment,
    draw_augmentation,
)
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import run_config
from ddpm_core.training.state import network_tensors, new_state
from ddpm_core.training.step import Draws, Objective, advance, backward, draw

SMALL = UNetConfig(
    base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
)
MODEL = ModelConfig(image_size=8, channels=1, unet=SMALL, schedule=ScheduleConfig(), reverse=ReverseConfig())


def noise(height: int, width: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8, generator=generator)


FLIPPED = torch.eye(NUM_PARAMETERS)[:1].repeat(2, 1)


def config(**changes: Any) -> TrainConfig:
    return replace(
        TrainConfig(steps=10, batch_size=6, learning_rate=1e-3, warmup_steps=0, ema_decay=0.9, flip=False), **changes
    )


def draws(given: TrainConfig, count: int = 200) -> tuple[torch.Tensor, Draws]:
    images = noise(8, 8, count=count)[:, :1]
    labels = torch.full((count,), -1)
    return images, draw(new_state(torch.nn.Linear(1, 1), 1.0), images, labels, torch.arange(count), given, 1000)


def test_a_step_trains_on_what_it_tells() -> None:
    given = config(augment=0.3, seed=7)
    images, found = draws(given)
    done = draw_augmentation(7, torch.arange(200), 0.3, EDM_KINDS, height=8, width=8)
    assert torch.equal(found.augment, done)
    assert torch.equal(found.x_0, augment(images, done).float() / 127.5 - 1)


def test_other_draws_are_the_same_with_it_and_without() -> None:
    (images, plain), (_, with_it) = draws(config()), draws(config(augment=0.3))
    assert torch.equal(plain.x_0, images.float() / 127.5 - 1)
    assert not plain.augment.any()
    assert torch.equal(plain.t, with_it.t)
    assert torch.equal(plain.eps, with_it.eps)


def test_an_x_flip_that_is_told_replaces_the_one_that_is_not() -> None:
    told_alone, both = draws(config(augment=0.12)), draws(config(augment=0.12, flip=True))
    assert torch.equal(told_alone[1].x_0, both[1].x_0)
    others: dict[str, Any] = {"augment": 0.12, "augment_kinds": ("scale",)}
    without, images = draws(config(**others))[1].x_0, draws(config(**others, flip=True))[1].x_0
    mirrored = (images != without).flatten(1).any(1)
    assert torch.equal(images[mirrored], without[mirrored].flip(-1))
    assert 70 < int(mirrored.sum()) < 130


def lively(network: UNet) -> UNet:
    init_unet(network, 0)
    with torch.no_grad():  # the near-zero last layers would hide differences
        for name, p in network.named_parameters():
            if name != "augment.weight":
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return network


def test_a_network_that_is_told_begins_as_one_that_is_not() -> None:
    plain, told_network = MODEL.build_network(), replace(MODEL, unet_augment=NUM_PARAMETERS).build_network()
    init_unet(plain, 3)
    init_unet(told_network, 3)
    ours, theirs = dict(told_network.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() - theirs.keys() == {"augment.weight"}
    for name, p in theirs.items():
        assert torch.equal(p, ours[name]), name
    assert ours["augment.weight"].shape == (16, NUM_PARAMETERS)
    assert 0.5 < float(ours["augment.weight"].detach().std() / math.sqrt(2 / (16 + NUM_PARAMETERS))) < 1.5


def test_told_nothing_a_network_is_the_one_without_that_layer() -> None:
    """To the bit; zeros are nothing; other numbers are not. So leaving the layer out of an export changes nothing."""
    network = lively(replace(MODEL, unet_augment=NUM_PARAMETERS).build_network())
    plain = MODEL.build_network()
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    kept = weights_to_begin_with(plain, tensors)
    check_weights(plain, kept)
    plain.load_state_dict(kept)
    x_t, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        expected = plain(x_t, t)
        assert torch.equal(network(x_t, t), expected)
        assert torch.equal(network(x_t, t, augment=torch.zeros(2, NUM_PARAMETERS)), expected)
        assert not torch.allclose(network(x_t, t, augment=FLIPPED), expected, atol=1e-4)
        again = replace(MODEL, unet_augment=NUM_PARAMETERS).build_network()
        again.load_state_dict(weights_to_begin_with(again, kept))
        assert torch.equal(again(x_t, t, augment=FLIPPED), expected)


def test_training_moves_what_tells() -> None:
    """And does so in the same way with all of the batch on one worker or dealt to two."""
    given = config(augment=0.5)
    objective = Objective(schedule=make_schedule(ScheduleConfig()), reverse=ReverseConfig(), loss=LossConfig())
    _, found = draws(given, count=6)
    positions, off = torch.arange(6), torch.autocast("cpu", enabled=False)

    def gradient(rows: slice, num_workers: int) -> torch.Tensor:
        state = new_state(lively(replace(MODEL, unet_augment=NUM_PARAMETERS).build_network()), 1e-3)
        part = Draws(*(each[rows] for each in found))
        rest = (positions[rows], torch.ones(len(part.t)), objective, replace(given, grad_clip=1e9))
        backward(state, state.network, part, *rest, num_workers=num_workers, autocast=off)
        assert isinstance(state.network, UNet)
        assert state.network.augment is not None
        grad = state.network.augment.weight.grad
        assert grad is not None
        before = network_tensors(state)["augment.weight"]
        advance(state, given, update=True)
        assert not torch.equal(before, network_tensors(state)["augment.weight"])
        return grad.clone()

    whole = gradient(slice(0, 6), 1)
    halves = (gradient(slice(0, 2), 2) + gradient(slice(2, 6), 2)) / 2
    assert torch.allclose(whole, halves, rtol=1e-4, atol=1e-7)
    assert whole.any()


def test_ddp_hears_of_every_weight_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that its first passes leave out would be one that it waits for in vain."""
    network = lively(replace(MODEL, unet_augment=NUM_PARAMETERS).build_network())
    seen = []
    for name, p in network.named_parameters():
        p.register_hook(lambda gradient, name=name: seen.append(name))
    monkeypatch.setattr(parallel, "DistributedDataParallel", lambda network, **more: network)
    worker = parallel.Worker(rank=0, num_workers=2, device=torch.device("cpu"))
    parallel.in_parallel(network, worker, MODEL.image_shape)
    assert sorted(seen) == sorted(2 * [name for name, _ in network.named_parameters()])


def weights(model: ModelConfig) -> Weights:
    tensors = {name: p.detach().contiguous() for name, p in lively(model.build_network()).named_parameters()}
    file = safetensors.torch.save(tensors)
    return Weights(
        uri="", step=1, sha256=sha256_of(file), config=to_json(model), dataset_digest="", dataset_uri="", file=file
    )


def test_images_and_bounds_are_those_of_the_network_without_that_layer(tmp_path: Path) -> None:
    """Sampled, measured, and exported to diffusers, which has no such layer: it is left out there."""
    model = replace(MODEL, unet=replace(SMALL, base_channels=32, form=replace(SMALL.form, norm_groups=8)))
    one = Model.from_weights(weights(replace(model, unet_augment=NUM_PARAMETERS)))
    write_diffusers(str(tmp_path / "exported"), one.weights or weights(model))
    plain = read_diffusers(str(tmp_path / "exported"))
    other = Model.from_tensors(plain.config, plain.tensors)
    assert one.network.augment is not None
    assert other.network.augment is None
    ours, theirs = (each.sample([3, 4], sampler="ddim", num_steps=4) for each in (one, other))
    assert np.array_equal(ours, theirs)
    assert np.array_equal(one.bits_per_dim(ours, num_steps=4), other.bits_per_dim(ours, num_steps=4))


INDEX = make_index("/data", image_size=8, channels=1, class_names=(), shards=(), num_rejected=0)


def run(train: TrainConfig) -> dict[str, Any]:
    parts: dict[str, Any] = {"unet": SMALL, "schedule": MODEL.schedule, "reverse": MODEL.reverse, "loss": LossConfig()}
    made = run_config(INDEX, train=replace(train, precision="float32"), init_from=None, **parts)
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def test_the_network_follows_from_the_recipe_and_json_says_nothing_of_what_is_off() -> None:
    off, on = run(config()), run(config(augment=0.12, augment_kinds=("scale", "x_flip")))
    assert not [key for key in (*off, *off["train"]) if "augment" in key]
    assert read_model_config(off) == MODEL
    assert read_model_config(on) == replace(MODEL, unet_augment=NUM_PARAMETERS)
    assert to_json(read_model_config(on))["unet_augment"] == NUM_PARAMETERS
    assert on["train"]["augment_kinds"] == ["scale", "x_flip"]
    back = from_json(TrainConfig, {**to_json(config()), "augment": 0.12, "augment_kinds": ["scale", "x_flip"]})
    assert back == config(augment=0.12, augment_kinds=("scale", "x_flip"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"augment": 1.5}, r"train.augment is 1.5; expected a probability in \[0, 1\]"),
        ({"augment": -0.1}, r"train.augment is -0.1; expected a probability"),
        ({"augment": math.nan}, r"train.augment is nan; expected a probability"),
        ({"augment": 0.1, "augment_kinds": ()}, "train.augment-kinds is empty; expected one or more names, each once"),
        ({"augment": 0.1, "augment_kinds": ("scale", "scale")}, "train.augment-kinds is scale scale; expected one"),
        ({"augment_kinds": ("scale",)}, "train.augment-kinds is scale and train.augment is 0.* --train.augment 0.12$"),
    ],
)
def test_nonsense_is_refused_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        config(**fields)
    assert "\n" not in str(error.value)


def test_a_name_that_is_unknown_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        InputError, match=r"^train.augment-kinds is rotate; expected one of x_flip, .*, rotation, .*, shift$"
    ):
        check_augment(0.1, ("scale", "rotate"))
