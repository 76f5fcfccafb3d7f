"""The network's form: what other published U-Nets compute, in closed form; and that the paper's goes on under its old names."""

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

import ddpm_core
from ddpm_core.artifacts.checkpoint import Checkpoint, Weights
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import DatasetIndex, ShardEntry, make_index
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.blocks import Attention, Downsample, KeyedDropout, ResBlock, group_norm, time_embedding
from ddpm_core.model.form import UNetForm
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import check_labels
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training.identity import check_continues
from pipelines.cli.checks import check_evaluation
from pipelines.cli.parsing import parse
from pipelines.naming import trajectory
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make
from pipelines.train import TrainArgs
from pipelines.training.run import check_form, check_run

SMALL = UNetConfig(base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
OTHER = UNetForm(
    num_heads=4,
    scale_shift=True,
    symmetric_padding=True,
    norm_groups=16,
    norm_epsilon=1e-5,
    time_cos_first=True,
    time_freq_shift=0,
    time_scale=0.25,
)


def index(recipe: Recipe) -> DatasetIndex:
    size, channels = recipe.data.image_size, recipe.data.channels
    return make_index("/data", image_size=size, channels=channels, class_names=(), shards=(), num_rejected=0)


def identity(recipe: Recipe) -> dict[str, Any]:
    return trajectory(recipe, index(recipe), None)


def with_form(recipe: Recipe, form: UNetForm, **changes: Any) -> Recipe:
    return replace(recipe, unet=replace(recipe.unet, form=form, **changes))


# What it is saved as.


def test_a_config_of_before_is_read_and_one_with_a_form_too() -> None:
    assert "form" not in to_json(SMALL)
    assert from_json(UNetConfig, to_json(SMALL)) == SMALL
    other = replace(SMALL, form=OTHER)
    assert to_json(other)["form"]["num_heads"] == 4
    assert from_json(UNetConfig, to_json(other)) == other
    with pytest.raises(ValueError, match="not a UNetConfig"):
        from_json(UNetConfig, {**to_json(SMALL), "form": {"num_eyes": 2}})


def test_a_run_goes_on_with_its_form_alone() -> None:
    def started(recipe: Recipe) -> Checkpoint:
        return Checkpoint(
            step=1,
            images_seen=1,
            seed=0,
            dataset_digest="d",
            dataset_uri="",
            config=identity(recipe),
            versions={},
            model={},
            ema={},
            optimizer={},
            history=[],
        )

    paper, other = make("digits"), with_form(make("digits"), UNetForm(norm_groups=8))
    check_continues(started(paper), identity(with_form(paper, UNetForm())), "d")
    check_continues(started(other), identity(other), "d")
    with pytest.raises(ValueError, match=r"the run was started with unet\.form\.norm_groups = 8, now it is 4"):
        check_continues(started(other), identity(with_form(paper, UNetForm(norm_groups=4))), "d")
    for was, now in ((paper, other), (other, paper)):
        with pytest.raises(ValueError, match=r"the run was started with unet\.form\.\w+ = "):
            check_continues(started(was), identity(now), "d")


def test_weights_of_another_form_are_not_begun_with() -> None:
    check_form(OTHER, replace(OTHER))
    with pytest.raises(
        ValueError, match=r"^unet\.form\.time-scale is 1\.0, that of the network whose weights .* is 0\.25"
    ):
        check_form(replace(OTHER, time_scale=1.0), OTHER)


def test_a_run_that_would_begin_with_them_is_refused_before_it_trains(tmp_path: Path) -> None:
    """Their shapes are those of the recipe's network: nothing else would tell."""
    recipe = make("digits")
    shard = ShardEntry(name="a.tar", split="train", num_samples=512, size_bytes=1, sha256="")
    data = make_index("/data", image_size=8, channels=1, class_names=(), shards=(shard,), num_rejected=0)

    def weights(unet: UNetConfig) -> Weights:
        model = ddpm_core.ModelConfig(
            image_size=8, channels=1, unet=unet, schedule=recipe.schedule, reverse=recipe.reverse
        )
        file = safetensors.torch.save(
            {name: p.detach().contiguous() for name, p in model.build_network().named_parameters()}
        )
        return Weights(uri="", step=1, sha256="", config=to_json(model), dataset_digest="", dataset_uri="", file=file)

    store = CheckpointStore(str(tmp_path))
    assert check_run(recipe, data, weights(recipe.unet), store) is None
    with pytest.raises(
        ValueError, match=r"unet\.form\.symmetric-padding is False, that of the network .* is True; expected"
    ):
        check_run(recipe, data, weights(replace(recipe.unet, form=UNetForm(symmetric_padding=True))), store)
    three = replace(data, class_names=("cat", "dog", "owl"))
    told, fewer = (replace(recipe, unet=replace(recipe.unet, num_classes=number)) for number in (3, 2))
    assert check_run(recipe, three, weights(recipe.unet), store) is None  # that is told of no classes
    assert check_run(told, three, weights(told.unet), store) is None
    with pytest.raises(
        ValueError, match=r"the weights are of another architecture: .* has shape \(3, .* expects \(4, "
    ):
        check_run(told, three, weights(fewer.unet), store)


def test_its_flags_are_taken_but_not_shown() -> None:
    typed = ["digits", "--unet.form.scale-shift", "--unet.form.norm-groups", "8", "--unet.form.time-scale", "0.5"]
    assert parse(TrainArgs, typed, "train.py", "").unet.form == UNetForm(
        scale_shift=True, norm_groups=8, time_scale=0.5
    )
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parse(TrainArgs, ["digits", "--help"], "train.py", "")
    assert "--unet.num-classes" in shown.getvalue()
    assert "form." not in shown.getvalue()


# What it computes.


def lively(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * (0.5 / math.sqrt(p[0].numel())))
    return model


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_time_embedding(shift: int, scale: float) -> None:
    t = np.array([0, 1, 10, 999])
    angles = scale * t[:, None] * 10_000 ** (-np.arange(16) / (16 - shift))
    form = UNetForm(time_freq_shift=shift, time_scale=scale)
    sines, cosines = np.sin(angles), np.cos(angles)
    for first, expected in ((False, [sines, cosines]), (True, [cosines, sines])):
        found = time_embedding(torch.from_numpy(t), 32, replace(form, time_cos_first=first)).numpy()
        np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-4)


def test_norms_have_the_groups_and_the_epsilon_that_are_asked_for() -> None:
    norm = group_norm(48, UNetForm(norm_groups=16, norm_epsilon=1e-3))
    assert (norm.num_groups, norm.eps) == (16, 1e-3)
    model = UNet(replace(SMALL, form=OTHER), image_size=8, channels=3)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(16, 1e-5)}


def test_a_residual_block_is_scaled_and_shifted_by_the_time() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 8, 6, KeyedDropout(0.0, 0), UNetForm(scale_shift=True)).double()
    x, time = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    silu = lambda h: h * torch.sigmoid(h)  # noqa: E731
    h = F.conv2d(silu(F.group_norm(x, 1, eps=1e-6)), block.conv_1.weight, block.conv_1.bias, padding=1)
    told = silu(time) @ block.time.weight.T + block.time.bias
    h = F.group_norm(h, 2, eps=1e-6) * (1 + told[:, :8, None, None]) + told[:, 8:, None, None]
    h = F.conv2d(silu(h), block.conv_2.weight, block.conv_2.bias, padding=1)
    torch.testing.assert_close(block(x, time, None), F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + h)


@pytest.mark.parametrize(("form", "size"), [(UNetForm(num_heads=4), 2), (UNetForm(head_channels=4), 4)])
def test_each_head_has_its_part_of_the_channels(form: UNetForm, size: int) -> None:
    torch.manual_seed(0)
    layer, x = Attention(8, form).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    h = F.group_norm(x, 2, eps=1e-6).flatten(2)
    query, key, value = (
        torch.einsum("oc,bcn->bon", p.weight[:, :, 0, 0], h) + p.bias[:, None]
        for p in (layer.query, layer.key, layer.value)
    )
    heads = []
    for first in range(0, 8, size):
        part = slice(first, first + size)
        scores = torch.einsum("bcn,bcm->bnm", query[:, part], key[:, part]) / math.sqrt(size)
        heads.append(torch.einsum("bnm,bcm->bcn", scores.softmax(dim=2), value[:, part]))
    out = torch.einsum("oc,bcn->bon", layer.out.weight[:, :, 0, 0], torch.cat(heads, dim=1)) + layer.out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out.view_as(x))


def test_symmetric_padding_is_on_all_sides() -> None:
    layer, x = Downsample(1, UNetForm(symmetric_padding=True)), torch.arange(16.0).reshape(1, 1, 4, 4)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
        out = layer(x)
    padded = np.pad(x[0, 0].numpy(), 1)
    assert out[0, 0].tolist() == [
        [padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].sum() for j in range(2)] for i in range(2)
    ]


@pytest.mark.parametrize(
    "field", [name for name in UNetForm.__dataclass_fields__ if name not in ("null_label", "head_channels")]
)
@torch.no_grad()
def test_every_field_reaches_the_network(field: str) -> None:
    """With the same numbers as weights, where their shapes allow it."""
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 300])
    paper = lively(UNet(SMALL, image_size=8, channels=3))
    form = UNetForm(**{field: getattr(OTHER, field)})
    other = lively(UNet(replace(SMALL, form=form), image_size=8, channels=3))
    assert float((other(x, t) - paper(x, t)).abs().max()) > 1e-6


def test_a_network_of_another_form_trains() -> None:
    model = UNet(replace(SMALL, form=OTHER, num_classes=2), image_size=8, channels=3)
    init_unet(model, 0)
    lively(model)
    model(torch.randn(2, 3, 8, 8), torch.tensor([7, 300]), torch.tensor([0, -1])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.ndim > 1)


# Without a row for images without a label.

UNLABELLED = UNetForm(null_label=False)


def classes(form: UNetForm = UNLABELLED) -> ddpm_core.Model:
    config = ddpm_core.ModelConfig(
        image_size=8,
        channels=1,
        unet=replace(SMALL, num_classes=3, form=form),
        schedule=ScheduleConfig(num_timesteps=4),
        reverse=ReverseConfig(),
    )
    network = lively(config.build_network())
    return ddpm_core.Model.from_tensors(config, {name: p.detach() for name, p in network.named_parameters()})


def test_a_foreign_network_has_a_row_for_each_class_and_no_other() -> None:
    model = classes()
    assert model.network.label is not None
    assert model.network.label.num_embeddings == 3
    assert classes(UNetForm()).network.label.num_embeddings == 4  # type: ignore[union-attr]
    images = model.sample(range(3), labels=[2, 0])
    assert images.shape == (3, 8, 8, 1)
    assert model.bits_per_dim(images, labels=[0, 1, 2]).shape == (3,)


def test_then_an_image_without_a_label_is_refused_in_one_line() -> None:
    model, images = classes(), np.zeros((2, 8, 8, 1), dtype=np.uint8)
    line = r"knows no image without a label \(unet\.form\.null-label is False\); expected"
    for asked in (
        lambda: model.sample([0], labels=[-1]),
        lambda: model.sample([0], guidance=1.0),
        lambda: model.bits_per_dim(images),
        lambda: model.bits_per_dim(images, labels=[0, -1]),
        lambda: model.progressive([0], [0]),
        lambda: model.reverse_process(torch.tensor([0, -1])),
        lambda: model.interpolate(images, images, [0.5], 1),
        lambda: model.network(torch.zeros(1, 1, 8, 8), torch.tensor([0])),
        lambda: model.network(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([-1])),
        lambda: check_labels(SampleConfig(labels=(-1,)), 3, null_label=False),
        lambda: check_evaluation(
            replace(
                with_form(make("digits"), UNLABELLED, num_classes=3),
                sample=replace(make("digits").sample, guidance=1.0),
            )
        ),
    ):
        with pytest.raises(ValueError, match=line) as error:
            asked()
        assert "\n" not in str(error.value)
    check_labels(SampleConfig(labels=(0, 2)), 3, null_label=False)


def test_it_is_not_trained_with_labels_left_out() -> None:
    recipe = with_form(make("digits"), UNLABELLED, num_classes=10)
    with pytest.raises(
        ValueError, match=r"train\.label-dropout is 0\.1 and unet\.form\.null-label is False: .* expected"
    ):
        identity(recipe)
    assert identity(replace(recipe, train=replace(recipe.train, label_dropout=0.0)))["unet"]["num_classes"] == 10


# What is out of range.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 0}, "unet.form.num-heads is 0; expected 1 or more"),
        ({"head_channels": 0}, "unet.form.head-channels is 0; expected 1 or more"),
        (
            {"head_channels": 8, "num_heads": 2},
            "unet.form.head-channels is 8 and unet.form.num-heads is 2; expected one",
        ),
        ({"norm_groups": 0}, "unet.form.norm-groups is 0; expected 1 or more"),
        ({"norm_epsilon": 0.0}, "unet.form.norm-epsilon is 0.0; expected a number more than 0"),
        ({"time_freq_shift": -1}, "unet.form.time-freq-shift is -1; expected 0 or more"),
        ({"time_scale": float("nan")}, "unet.form.time-scale is nan; expected a number more than 0"),
        ({"norm_groups": 5}, "unet.form.norm-groups is 5; expected a divisor of unet.base-channels, 16"),
        ({"time_freq_shift": 8}, "unet.form.time-freq-shift is 8; expected less than the 8 frequencies"),
        ({"num_heads": 5}, "unet.form.num-heads is 5; expected a divisor of the attention's 32 channels"),
        ({"head_channels": 64}, "unet.form.head-channels is 64; expected a divisor of the attention's 32 channels"),
    ],
)
def test_a_form_out_of_range_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(SMALL, form=UNetForm(**fields)), image_size=8, channels=3)
