"""Class labels: what a network without classes never notices, and what one with classes makes of them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_core.errors import InputError
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.random import Purpose, normals, uniforms
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import check_labels, labelled, labels_in_turn, labels_of_seeds
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import check_classes
from ddpm_core.training.state import new_state
from ddpm_core.training.step import draw
from pipelines.cli.checks import check_training
from pipelines.recipes.config import SampleStage
from pipelines.recipes.recipes import RECIPES, make
from pipelines.sample import SampleArgs, check, numbers_of

CONFIG = UNetConfig(
    base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
)
CLASSES = 3


def network(num_classes: int = CLASSES, num_outputs: int | None = None, *, lively: bool = True) -> UNet:
    model = UNet(replace(CONFIG, num_classes=num_classes), image_size=8, channels=1, num_outputs=num_outputs)
    init_unet(model, 0)
    if lively:  # the near-zero last layers would hide differences
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.requires_grad_(False)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(size) * 100


# --- the network


def count(config: UNetConfig, image_size: int, channels: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config, image_size=image_size, channels=channels).parameters())


def counted(config: UNetConfig, image_size: int, channels: int) -> int:
    """The same by the paper's description: blocks, attentions and resamplings, layer by layer."""

    def conv(i: int, o: int, size: int = 3) -> int:
        return i * o * size**2 + o

    def block(i: int, o: int) -> int:
        own = 2 * i + conv(i, o) + conv(time, o, 1) + 2 * o + conv(o, o)
        return own + (conv(i, o, 1) if i != o else 0)

    def attention(width: int) -> int:
        return 2 * width + 4 * conv(width, width, 1)

    base, time = config.base_channels, 4 * config.base_channels
    total = conv(base, time, 1) + conv(time, time, 1) + conv(channels, base) + 2 * base + conv(base, channels)
    total += (config.num_classes + 1) * time if config.num_classes else 0
    widths, kept, at = [base * m for m in config.channel_multipliers], [base], base
    for level, width in enumerate(widths):
        attends = image_size >> level in config.attention_resolutions
        for _ in range(config.num_res_blocks):
            total += block(at, width) + attends * attention(width)
            at = width
            kept.append(at)
        if level < len(widths) - 1:
            total += conv(width, width)
            kept.append(at)
    total += 2 * block(at, at) + attention(at)
    for level, width in reversed(list(enumerate(widths))):
        attends = image_size >> level in config.attention_resolutions
        for _ in range(config.num_res_blocks + 1):
            total += block(at + kept.pop(), width) + attends * attention(width)
            at = width
        total += conv(width, width) if level else 0
    assert not kept
    return total


def test_the_recipes_networks_have_the_sizes_known_of_them() -> None:
    unet = {name: recipe().unet for name, recipe in RECIPES.items()}
    assert count(unet["cifar10"], 32, 3) == counted(unet["cifar10"], 32, 3) == 35_746_307
    for name in ("celebahq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256"):
        assert count(unet[name], 256, 3) == counted(unet[name], 256, 3) == 113_673_219, name
    large = replace(unet["lsun_bedroom256"], base_channels=192)
    assert count(large, 256, 3) == counted(large, 256, 3) == 255_677_955
    digits = RECIPES["digits"]().unet
    assert count(digits, 8, 1) == counted(digits, 8, 1)


@pytest.mark.parametrize("num_classes", [1, 10])
def test_classes_add_a_row_each_and_one_for_none(num_classes: int) -> None:
    told = replace(UNetConfig(), num_classes=num_classes)
    assert count(told, 32, 3) == counted(told, 32, 3) == 35_746_307 + (num_classes + 1) * 512


def test_initial_weights_without_classes_are_the_same_as_with_them() -> None:
    """The label's weights are drawn under a number that no other layer has; what was trained before starts as before."""
    without, told = network(0, lively=False).state_dict(), network(lively=False).state_dict()
    assert told.keys() - without.keys() == {"label.weight"}
    assert all(torch.equal(told[name], tensor) for name, tensor in without.items())
    kernels = [name for name in without if name.endswith("weight") and "norm" not in name]
    numbers = {name: number for number, name in enumerate(kernels)}
    assert [kernels[n] for n in (0, 1, 2)] == ["time_1.weight", "time_2.weight", "conv_in.weight"]
    for name in ("conv_in.weight", "time_2.weight", "middle_attention.key.weight"):
        kernel = without[name]
        bound = math.sqrt(6 / ((kernel.shape[0] + kernel.shape[1]) * kernel[0, 0].numel()))
        u = uniforms(0, Purpose.WEIGHTS, torch.zeros(1, dtype=torch.int64), kernel.numel(), step=numbers[name])
        assert torch.equal(kernel, (bound * (2 * u - 1)).to(torch.float32).view_as(kernel)), name


def test_initial_labels_are_a_function_of_the_seed_and_the_class() -> None:
    first = network(CLASSES, lively=False).label
    torch.manual_seed(123)
    more = network(CLASSES + 2, lively=False).label
    assert first is not None
    assert more is not None
    assert torch.equal(more.weight[: CLASSES + 1], first.weight)
    numbered = sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in network().modules())
    assert torch.equal(first.weight, normals(0, Purpose.WEIGHTS, torch.arange(CLASSES + 1), (64,), step=numbered))
    other = UNet(replace(CONFIG, num_classes=CLASSES), image_size=8, channels=1)
    init_unet(other, 1)
    assert other.label is not None
    assert not torch.equal(other.label.weight, first.weight)


def test_minus_one_is_no_label() -> None:
    model, (x, t) = network(), batch(4)
    assert torch.equal(model(x, t, torch.full((4,), -1)), model(x, t))


def test_a_network_without_classes_ignores_labels() -> None:
    model, (x, t) = network(0), batch(4)
    assert torch.equal(model(x, t, torch.tensor([0, 5, 99, -1])), model(x, t))


def test_each_image_is_told_its_own_label() -> None:
    """In a batch of several classes an image comes out as in a batch of its class alone; the classes differ."""
    model, (x, t) = network(), batch(1)
    labels = torch.tensor([0, 1, 2, -1])
    mixed = model(x.expand(4, 1, 8, 8), t.expand(4), labels)
    for row, label in enumerate(labels):
        alone = model(x.expand(4, 1, 8, 8), t.expand(4), label.expand(4))
        assert torch.equal(mixed[row], alone[row])
        others = [other for other in range(4) if other != row]
        assert float((mixed[others] - mixed[row]).abs().flatten(1).amax(dim=1).min()) > 1e-2


def test_what_a_label_adds_is_its_row() -> None:
    """Swapping two rows of the table swaps two classes."""
    model, (x, t) = network(), batch(2)
    before = model(x, t, torch.tensor([0, 2]))
    assert model.label is not None
    model.label.weight.copy_(model.label.weight[[2, 1, 0, 3]])
    torch.testing.assert_close(model(x, t, torch.tensor([2, 0])), before, rtol=0, atol=0)


# --- training


def dropped_labels(positions: torch.Tensor, label_dropout: float, seed: int = 0) -> torch.Tensor:
    """Which positions are shown without the label 1 that all images have."""
    images = torch.zeros(len(positions), 1, 1, 1, dtype=torch.uint8)
    config = TrainConfig(label_dropout=label_dropout, seed=seed)
    state = new_state(torch.nn.Linear(1, 1), 1.0)
    labels = draw(state, images, torch.ones(len(positions), dtype=torch.int64), positions, config, 10).labels
    assert bool(((labels == 1) | (labels == -1)).all())
    return labels == -1


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_labels_are_dropped_at_their_rate(rate: float) -> None:
    num = 20_000
    share = float(dropped_labels(torch.arange(num), rate).double().mean())
    assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / num))


def test_labels_are_never_or_always_dropped_at_the_ends() -> None:
    assert not dropped_labels(torch.arange(2000), 0.0).any()
    assert bool(dropped_labels(torch.arange(2000), 1.0).all())


def test_which_labels_are_dropped_belongs_to_the_position() -> None:
    positions = torch.arange(5000, 5400)
    whole = dropped_labels(positions, 0.5)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:77]
    assert torch.equal(dropped_labels(positions[shuffled], 0.5), whole[shuffled])
    assert not torch.equal(dropped_labels(positions, 0.5, seed=1), whole)
    # more dropout drops those and more: a sweep over the rate compares like with like
    assert bool(dropped_labels(positions, 0.7)[whole].all())


def test_an_image_without_a_label_stays_without() -> None:
    state, images = new_state(torch.nn.Linear(1, 1), 1.0), torch.zeros(50, 1, 1, 1, dtype=torch.uint8)
    labels = torch.full((50,), -1)
    drawn = draw(state, images, labels, torch.arange(50), TrainConfig(label_dropout=0.3), 10).labels
    assert torch.equal(drawn, labels)


def test_a_dropped_label_trains_the_row_for_none_and_no_class() -> None:
    model, (x, t) = network().requires_grad_(True), batch(4)
    model(x, t, torch.tensor([-1, 2, -1, 2])).square().mean().backward()
    assert model.label is not None
    assert model.label.weight.grad is not None
    assert (model.label.weight.grad.abs().amax(dim=1) > 0).tolist() == [False, False, True, True]


def test_a_network_of_other_classes_than_the_datasets_is_refused(tmp_path: Path) -> None:
    check_classes(0, ())
    check_classes(0, ("cat", "dog"))
    check_classes(2, ("cat", "dog"))
    for wrong in (1, 3):
        with pytest.raises(ValueError, match=f"unet.num-classes is {wrong}, the dataset has 2 classes; expected"):
            check_classes(wrong, ("cat", "dog"))
    with pytest.raises(ValueError, match=r"unet.num-classes is 10, the dataset has 0 classes; expected as many, or 0"):
        check_classes(10, ())
    digits = replace(make("digits"), store=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"unet.num-classes is 7, the dataset has 10 classes"
    ):  # before anything starts
        check_training(replace(digits, unet=replace(digits.unet, num_classes=7)))
    with pytest.raises(ValueError, match=r"the global batch is 5000; expected 1 to 1455, the training images"):
        check_training(replace(digits, train=replace(digits.train, batch_size=5_000)))


# --- sampling


def test_seeds_take_the_labels_in_turn() -> None:
    seeds = torch.tensor([0, 1, 2, 3, 4, 5, 2**40 + 1, 17])
    given = labels_of_seeds(seeds, SampleConfig(labels=(2, 0)), CLASSES)
    assert given.tolist() == [2, 0, 2, 0, 2, 0, 0, 0]
    assert labels_of_seeds(seeds, SampleConfig(), CLASSES).tolist() == [int(seed) % 3 for seed in seeds]
    assert labels_of_seeds(seeds, SampleConfig(labels=(-1,)), CLASSES).tolist() == [-1] * 8
    assert labels_of_seeds(seeds, SampleConfig(), 0).tolist() == [-1] * 8
    # What names the images in a store: to ask for all classes is to ask for none in particular.
    assert labels_in_turn(SampleConfig(), CLASSES) == labels_in_turn(SampleConfig(labels=(0, 1, 2)), CLASSES)
    assert labels_in_turn(SampleConfig(), 0) == ()


@pytest.mark.parametrize(
    ("wanted", "num_classes", "said"),
    [
        (SampleConfig(labels=(3,)), 3, "sample.labels has 3; expected 0 to 2, or -1 for no label"),
        (SampleConfig(labels=(0, -2)), 3, "sample.labels has -2; expected 0 to 2"),
        (SampleConfig(labels=(0,)), 0, r"sample.labels is \[0\] and the model was trained without classes"),
        (SampleConfig(guidance=1.5), 0, "sample.guidance is 1.5 and the model was trained without classes"),
    ],
)
def test_labels_that_the_network_does_not_know_are_refused(wanted: SampleConfig, num_classes: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_labels(wanted, num_classes)


@pytest.mark.parametrize("label", ["three", 3.0, None])
def test_what_is_no_number_of_a_class_is_refused(label: object) -> None:
    config = SampleConfig()
    object.__setattr__(config, "labels", (label,))  # as without a type checker
    with pytest.raises(InputError, match=rf"^sample.labels has {label!r}; expected 0 to 4, or -1 for no label$"):
        check_labels(config, 5)


def test_labels_that_it_knows_are_taken() -> None:
    check_labels(SampleConfig(), 0)
    check_labels(SampleConfig(), 3)
    check_labels(SampleConfig(labels=(-1, 0, 2), guidance=2.0), 3)
    with pytest.raises(ValueError, match=r"sample.guidance is -1.0; expected 0 or more"):
        SampleConfig(guidance=-1.0)


def test_to_go_without_a_label_is_refused_where_training_never_did() -> None:
    check_labels(SampleConfig(labels=(0, 2)), 3, label_dropout=0.0)
    check_labels(SampleConfig(labels=(0, -1), guidance=1.0), 3, label_dropout=0.1)
    for asked, said in ((SampleConfig(guidance=1.5), "guidance is 1.5"), (SampleConfig(labels=(-1,)), "labels has -1")):
        with pytest.raises(ValueError, match=f"sample.{said} and the model was trained with train.label-dropout 0"):
            check_labels(asked, 3, label_dropout=0.0)


def test_without_guidance_it_is_the_conditional_network_asked_once() -> None:
    model, (x, t), labels = network(), batch(3), torch.tensor([2, 0, -1])
    expected, passes = model(x, t, labels), []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(labelled(model, labels, 0.0, channels=1)(x, t), expected)
    assert len(passes) == 1


@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_goes_from_the_unconditional_through_the_conditional(scale: float, num_outputs: int) -> None:
    """Eq. 6 of Ho and Salimans: (1 + w) eps(x, c) - w eps(x); what is said of the variance stays as with the label."""
    model, (x, t), labels = network(num_outputs=num_outputs), batch(3), torch.tensor([2, 0, 1])
    with_label, without = model(x, t, labels), model(x, t)
    out = labelled(model, labels, scale, channels=1)(x, t)
    torch.testing.assert_close(out[:, :1], (1 + scale) * with_label[:, :1] - scale * without[:, :1])
    assert torch.equal(out[:, 1:], with_label[:, 1:])
    assert float((out[:, :1] - with_label[:, :1]).abs().max()) > 1e-2


def test_guidance_does_nothing_to_an_image_without_a_label() -> None:
    model, (x, t) = network(), batch(2)
    out = labelled(model, torch.tensor([-1, -1]), 4.0, channels=1)(x, t)
    torch.testing.assert_close(out, model(x, t), rtol=1e-5, atol=1e-5)


def test_classes_are_drawn_by_the_names_that_the_dataset_has() -> None:
    known = ("eight", "five", "seven")
    assert numbers_of(("seven", "eight", "seven"), known) == (2, 0, 2)
    with pytest.raises(
        InputError, match=r"^classes has 'sevn'; expected some of eight, five, seven; did you mean seven\?$"
    ):
        numbers_of(("five", "sevn"), known)
    with pytest.raises(InputError, match="classes is five, and the model's dataset has no classes"):
        numbers_of(("five",), ())
    with pytest.raises(InputError, match=r"classes and sample\.labels both say which classes to draw"):
        check(SampleArgs(classes=("five",), sample=SampleStage(labels=(1,))))
