"""Augmentation: closed forms of what is done, how often, by what it is keyed, and that the network's being told does not leak."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

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
    AugmentKind,
    augment,
    check_augment,
    draw_augmentation,
)
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import run_config
from ddpm_core.training.state import network_tensors, new_state
from ddpm_core.training.step import Draws, Objective, advance, backward, draw

KINDS = get_args(AugmentKind)
COLUMNS: dict[str, tuple[int, ...]] = {
    "x_flip": (0,),
    "y_flip": (1,),
    "scale": (2,),
    "rotation": (3, 4),
    "stretch": (5, 6),
    "translation": (7, 8),
    "shift": (7, 8),
}
SMALL = UNetConfig(
    base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
)
MODEL = ModelConfig(image_size=8, channels=1, unet=SMALL, schedule=ScheduleConfig(), reverse=ReverseConfig())


def noise(height: int, width: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8, generator=generator)


def smooth(height: int, width: int) -> torch.Tensor:
    """A broad blob off the centre, of other widths along x and y: what interpolation can follow."""
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    blob = torch.exp(-((x - 2) ** 2 / 18 + (y + 1) ** 2 / 8 + (x - 2) * (y + 1) / 20))
    return (230 * blob).round().to(torch.uint8)[None, None]


def told(count: int = 1, **kinds: Any) -> torch.Tensor:
    """The same nine numbers for each image."""
    numbers = torch.zeros(count, NUM_PARAMETERS)
    for kind, values in kinds.items():
        numbers[:, list(COLUMNS[kind])] = torch.tensor(values, dtype=torch.float32).view(-1)
    return numbers


def turn(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)) - 1, math.sin(math.radians(degrees))


def shift_of(x: float, y: float, image: torch.Tensor) -> tuple[float, float]:
    """Numbers for a translation by so many pixels."""
    return 8 * x / image.shape[-1], 8 * y / image.shape[-2]


def drawn(count: int = 20_000, probability: float = 0.12, kinds: tuple[Any, ...] = KINDS, **more: Any) -> torch.Tensor:
    size = {"height": 16, "width": 24} | more
    return draw_augmentation(5, torch.arange(count), probability, kinds, **size)


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


SHAPES = [(8, 8), (12, 20), (20, 12), (1, 1), (2, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_leaves_each_image_as_it_is_beside_others_that_are_moved(shape: tuple[int, int]) -> None:
    images = noise(*shape)
    assert torch.equal(augment(images, told(3)), images)
    mixed = told(3, scale=1.0, rotation=turn(50))
    mixed[1] = 0
    assert torch.equal(augment(images, mixed)[1], images[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_are_exact_and_undo_themselves(shape: tuple[int, int]) -> None:
    images = noise(*shape)
    assert torch.equal(augment(images, told(3, x_flip=1)), images.flip(-1))
    assert torch.equal(augment(images, told(3, y_flip=1)), images.flip(-2))
    both = told(3, x_flip=1, y_flip=1)
    assert torch.equal(augment(augment(images, both), both), images)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, -2), (-3, 2), (9, -13), (40, 31)])
def test_a_shift_by_whole_pixels_is_numpys_padding_by_reflection(x: int, y: int) -> None:
    images = noise(11, 19)  # an eighth of which is no whole number
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (64, 64), (64, 64)), mode="reflect")
    expected = padded[:, :, 64 - y : 64 - y + 11, 64 - x : 64 - x + 19]
    assert np.array_equal(augment(images, told(3, translation=shift_of(x, y, images))).numpy(), expected)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (-2, 1)])
def test_the_warp_reflects_as_the_shift_does(x: int, y: int) -> None:
    """A hair beside whole pixels it is interpolated, and all but the same."""
    images = noise(12, 16)
    exact = augment(images, told(3, translation=shift_of(x, y, images)))
    beside = augment(images, told(3, translation=shift_of(x + 5e-4, y, images)))
    assert difference(exact, beside) <= 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_rot90(quarters: int) -> None:
    images = noise(10, 10)
    turned = augment(images, told(3, rotation=turn(90 * quarters)))
    assert difference(turned, torch.rot90(images, quarters, (-2, -1))) <= 1


def test_half_a_turn_of_an_image_that_is_not_square_is_both_flips() -> None:
    images = noise(8, 20)
    assert difference(augment(images, told(3, rotation=turn(180))), images.flip(-1, -2)) <= 1


def test_a_quarter_turn_is_in_pixels_where_width_and_height_differ() -> None:
    """The square in the middle turns as it would alone; in coordinates from -1 to 1 it would be drawn out."""
    image = smooth(16, 32)
    turned = augment(image, told(rotation=turn(90)))
    expected = torch.rot90(image[..., 8:24], 1, (-2, -1))
    assert difference(turned[..., 8:24], expected) <= 1
    assert int(expected.max()) > 100


def ramp(height: int, width: int) -> torch.Tensor:
    """0 in the middle, 3 a pixel to the right, 5 a pixel down."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return 3 * x + 5 * y


@pytest.mark.parametrize("power", [-2.0, -1.0, 1.5])
def test_a_scaled_ramp_is_a_ramp(power: float) -> None:
    """Twice as large, half as steep; where it is made smaller, too, where each pixel is a mean of several."""
    before = ramp(24, 32) + 127
    scaled = augment(before.round().to(torch.uint8)[None, None], told(scale=power / 0.2))[0, 0]
    expected = ramp(24, 32) / 2**power + 127
    inside = (slice(10, 14), slice(13, 19)) if power < 0 else (slice(2, -2), slice(2, -2))
    assert float((scaled - expected)[inside].abs().max()) <= 1.5


@pytest.mark.parametrize(("angle", "row", "column"), [(0, 1, 2), (90, 2, 1)])
def test_a_stretch_along_an_axis_makes_wider_and_lower(angle: float, row: float, column: float) -> None:
    """By 2^(0.2 z) along it, by the inverse across; twice the angle in the numbers, so 180 degrees are along y."""
    z = 1 / 0.2
    numbers = (z * math.cos(math.radians(2 * angle)), z * math.sin(math.radians(2 * angle)))
    before = (ramp(24, 24) + 127).round().to(torch.uint8)[None, None]
    after = augment(before, told(stretch=numbers))[0, 0].float()
    inside = after[9:15, 9:15]
    expected_x, expected_y = (3 / 2, 5 * 2) if angle == 0 else (3 * 2, 5 / 2)
    assert float(inside.diff(dim=1).mean()) == pytest.approx(expected_x, abs=0.2)
    assert float(inside.diff(dim=0).mean()) == pytest.approx(expected_y, abs=0.2)


def test_a_slanted_stretch_is_one_along_x_between_two_turns() -> None:
    image, z = smooth(24, 24), 1.3
    slanted = augment(image, told(stretch=(z * math.cos(math.radians(60)), z * math.sin(math.radians(60)))))
    # Along 30 degrees, in coordinates whose y points down.
    parts = image
    for numbers in (told(rotation=turn(30)), told(stretch=(z, 0.0)), told(rotation=turn(-30))):
        parts = augment(parts, numbers)
    assert difference(slanted, parts) <= 6
    assert difference(slanted, augment(image, told(stretch=(z, 0.0)))) > 40


def test_the_order_is_flip_scale_rotation_stretch_translation() -> None:
    image = smooth(48, 48)
    steps: list[dict[str, Any]] = [
        {"x_flip": 1.0},
        {"scale": 1.0},
        {"rotation": turn(70)},
        {"stretch": (0.8, 0.9)},
        {"translation": (0.4, -0.7)},
    ]
    together = augment(image, told(**{kind: value for step in steps for kind, value in step.items()}))
    parts = image
    for step in steps:
        parts = augment(parts, told(**step))
    backwards = image
    for step in reversed(steps):
        backwards = augment(backwards, told(**step))
    assert difference(together, parts) <= 12
    assert difference(together, backwards) > 60


def test_what_is_made_smaller_is_not_aliased() -> None:
    """Stripes of one pixel, at half the size: grey, where single samples would see black or white."""
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    halved = augment(stripes, told(scale=-1 / 0.2))[..., 12:20, 12:20].float()
    assert float((halved - 127.5).abs().max()) < 30


def test_how_often_each_is_done() -> None:
    """At 0.12; but an x flip to half of all, a y flip to half of the chosen. Of scale 1 and no turn there is none."""
    count = 20_000
    shares = {kind: float((drawn(count, kinds=(kind,)) != 0).any(1).float().mean()) for kind in KINDS}
    expected = dict.fromkeys(KINDS, 0.12) | {"x_flip": 0.5, "y_flip": 0.06}
    # A shift of at most 2 by 3 pixels is none in 1/4 x 1/6 of the cases.
    expected["shift"] = 0.12 * (1 - 1 / 24)
    for kind, share in shares.items():
        assert abs(share - expected[kind]) < 4 * math.sqrt(expected[kind] / count), kind
    assert not drawn(probability=0.0, kinds=KINDS[1:]).any()


def test_what_is_drawn_has_its_distribution() -> None:
    numbers = drawn(probability=1.0, kinds=EDM_KINDS).double()
    for column in (2, 7, 8):
        assert abs(float(numbers[:, column].mean())) < 0.03
        assert abs(float(numbers[:, column].std()) - 1) < 0.03
    angles = torch.atan2(numbers[:, 4], numbers[:, 3] + 1)
    counts = torch.histc(angles, 8, -math.pi, math.pi)
    assert float(((counts - 2500) ** 2 / 2500).sum()) < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001
    assert 0.48 < float((numbers[:, 6] == 0).double().mean()) < 0.52  # along the axes
    assert abs(float(torch.hypot(numbers[:, 5], numbers[:, 6]).square().mean()) - 1) < 0.04
    slanted = numbers[:, 6] != 0
    axes = torch.atan2(numbers[:, 6], numbers[:, 5])  # but for half a turn, as z may be negative
    assert abs(complex(torch.exp(2j * (axes - angles))[slanted].mean())) < 0.04
    pairs = torch.corrcoef(numbers.T[[0, 1, 2, 4, 6, 7, 8]]).triu(1).abs()
    assert float(pairs.max()) < 0.03
    shifts = drawn(probability=1.0, kinds=("shift",))[:, 7:] * torch.tensor([3.0, 2.0])
    assert set(shifts[:, 0].tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    assert set(shifts[:, 1].tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_a_kind_draws_the_same_whichever_others_are_done() -> None:
    everything = drawn()
    for kind in KINDS[:5]:
        columns = list(COLUMNS[kind])
        assert torch.equal(drawn(kinds=(kind,))[:, columns], everything[:, columns])


def test_draws_and_images_belong_to_positions_not_to_the_batch() -> None:
    positions, images = torch.arange(2**33, 2**33 + 40), noise(12, 10, count=40)
    rest: dict[str, Any] = {"probability": 0.5, "kinds": KINDS, "height": 12, "width": 10}
    whole = draw_augmentation(3, positions, **rest)
    moved = augment(images, whole)
    assert int((whole != 0).any(1).sum()) > 30
    for chosen in ([4], [39, 0], list(range(7, 30))):
        part = draw_augmentation(3, positions[chosen], **rest)
        assert torch.equal(part, whole[chosen])
        assert torch.equal(augment(images[chosen], part), moved[chosen])
    assert not torch.equal(draw_augmentation(4, positions, **rest), whole)


def test_the_numbers_are_zero_exactly_where_nothing_was_done() -> None:
    images, numbers = noise(16, 24, count=400), drawn(400)
    same = (augment(images, numbers) == images).flatten(1).all(1)
    assert torch.equal(same, (numbers == 0).all(1))
    assert 0 < int(same.sum()) < 400


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
        assert not torch.allclose(network(x_t, t, augment=told(2, x_flip=1)), expected, atol=1e-4)
        again = replace(MODEL, unet_augment=NUM_PARAMETERS).build_network()
        again.load_state_dict(weights_to_begin_with(again, kept))
        assert torch.equal(again(x_t, t, augment=told(2, x_flip=1)), expected)


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
    tensors = {name: p.detach() for name, p in lively(model.build_network()).named_parameters()}
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
