"""diffusers folders: what is read is what was written, by either side, and what cannot be said is refused by name."""

import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from moto.server import ThreadedMotoServer

from ddpm_core import storage
from ddpm_core.api.loading import load
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Checkpoint, Weights, write_checkpoint
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, p_mean_variance
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.interop import __main__ as command
from ddpm_core.interop import scheduler_json, unet_json
from ddpm_core.interop.diffusers import imported_weights, is_diffusers, read_diffusers, write_diffusers
from ddpm_core.interop.names import (
    Name,
    from_diffusers,
    from_original,
    names_of,
    to_diffusers,
    to_original,
)
from ddpm_core.interop.original import PUBLISHED
from ddpm_core.interop.unet_json import Form
from ddpm_core.model.config import model_json
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.model.weights import load_network
from ddpm_core.serialization import to_json
from pipelines.datasets import dataset_of
from pipelines.recipes.config import SampleStage
from pipelines.recipes.recipes import make
from pipelines.sample import told_otherwise
from pipelines.stages.sample import describe_samples
from pipelines.tracking.resolve import find_weights

# diffusers has one number of groups for all norms, which our network has from 128 channels on.
SMALL = UNetConfig(channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(4,))
SIZE = 8
GOOGLE_UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""config.json of google/ddpm-cifar10-32."""
GOOGLE_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
"""scheduler_config.json beside it."""


def form(config: UNetConfig = SMALL, image_size: int = SIZE, channels: int = 3, num_outputs: int = 3) -> Form:
    return Form(unet=config, image_size=image_size, channels=channels, num_outputs=num_outputs)


def tensors_of(one: Form) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {name: p.shape for name, p in one.empty().named_parameters()}
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def weights_of(
    config: UNetConfig = SMALL,
    schedule: ScheduleConfig | None = None,
    reverse: ReverseConfig | None = None,
    channels: int = 3,
) -> Weights:
    """Weights as `read_weights` gives them."""
    schedule, reverse = schedule or ScheduleConfig(), reverse or ReverseConfig()
    one = form(config, SIZE, channels, reverse.num_outputs(channels))
    file = safetensors.torch.save(tensors_of(one))
    plain = {"unet": to_json(config), "schedule": to_json(schedule), "reverse": to_json(reverse)}
    return Weights(
        uri="/run/checkpoints/step-00000010",
        step=10,
        sha256=hashlib.sha256(file).hexdigest(),
        config={"image_size": SIZE, "channels": channels, **plain, "train": {"seed": 0}},
        dataset_digest="d" * 64,
        dataset_uri="/data",
        file=file,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody may change."""
    folder = tmp_path_factory.mktemp("exported")
    write_diffusers(str(folder), weights_of())
    return folder


def edit(folder: Path, file: str, changes: Mapping[str, Any]) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy(exported: Path, folder: Path) -> Path:
    for path in exported.rglob("*.*"):
        target = folder / path.relative_to(exported)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def pipeline(folder: Path) -> DDPMPipeline:
    loaded = DDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


# The table of names.

FORMS = [
    form(UNetConfig(), 32),
    form(UNetConfig(channel_multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)), 256),
    form(UNetConfig(base_channels=192, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)), 256),
    form(UNetConfig(channel_multipliers=(1, 2, 3), num_res_blocks=1, attention_resolutions=(32, 8)), 32, 1, 2),
    form(UNetConfig(channel_multipliers=(1,), num_res_blocks=3, attention_resolutions=()), 5),
]
TABLE = pytest.mark.parametrize("one", FORMS, ids=["cifar10", "256", "large 256", "three levels", "one level"])


@TABLE
def test_every_weight_has_one_name_in_each_of_the_three(one: Form) -> None:
    network = one.empty()
    names = names_of(network)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    with torch.device("meta"):
        theirs = UNet2DModel(**unet_json.unet_json(one))
    of_diffusers = {name: tuple(p.shape) for name, p in theirs.state_dict().items()}
    for attribute in ("ours", "diffusers", "original"):
        assert len({getattr(name, attribute) for name in names}) == len(names)
    assert {name.ours for name in names} == set(shapes)
    meta = {name: torch.empty(shapes[name.ours], device="meta") for name in names}
    assert {n.diffusers: tuple(to_diffusers(n, tensor).shape) for n, tensor in meta.items()} == of_diffusers
    assert {n.original: tuple(to_original(n, tensor).shape) for n, tensor in meta.items()} == dict(originals(one))


def originals(one: Form) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The variables that the published TensorFlow code makes, with their shapes, by following its `model` function."""
    config = one.unet
    ch, widths, last = config.base_channels, config.channel_multipliers, len(config.channel_multipliers) - 1

    def conv(scope: str, i: int, o: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{scope}/W", (3, 3, i, o)), (f"{scope}/b", (o,)))

    def dense(scope: str, i: int, o: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{scope}/W", (i, o)), (f"{scope}/b", (o,)))

    def norm(scope: str, c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{scope}/gamma", (c,)), (f"{scope}/beta", (c,)))

    def resnet(scope: str, i: int, o: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{scope}/norm1", i)
        yield from conv(f"{scope}/conv1", i, o)
        yield from dense(f"{scope}/temb_proj", 4 * ch, o)
        yield from norm(f"{scope}/norm2", o)
        yield from conv(f"{scope}/conv2", o, o)
        if i != o:
            yield from dense(f"{scope}/nin_shortcut", i, o)

    def attention(scope: str, c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{scope}/norm", c)
        for layer in ("q", "k", "v", "proj_out"):
            yield from dense(f"{scope}/{layer}", c, c)

    yield from dense("temb/dense0", ch, 4 * ch)
    yield from dense("temb/dense1", 4 * ch, 4 * ch)
    yield from conv("conv_in", one.channels, ch)
    hs, size = [ch], one.image_size
    for level in range(last + 1):
        for i in range(config.num_res_blocks):
            yield from resnet(f"down_{level}/block_{i}", hs[-1], ch * widths[level])
            hs.append(ch * widths[level])
            if size in config.attention_resolutions:
                yield from attention(f"down_{level}/attn_{i}", hs[-1])
        if level != last:
            yield from conv(f"down_{level}/downsample/conv", hs[-1], hs[-1])
            hs.append(hs[-1])
            size //= 2
    h = hs[-1]
    yield from resnet("mid/block_1", h, h)
    yield from attention("mid/attn_1", h)
    yield from resnet("mid/block_2", h, h)
    for level in reversed(range(last + 1)):
        for i in range(config.num_res_blocks + 1):
            yield from resnet(f"up_{level}/block_{i}", h + hs.pop(), ch * widths[level])
            h = ch * widths[level]
            if size in config.attention_resolutions:
                yield from attention(f"up_{level}/attn_{i}", h)
        if level != 0:
            yield from conv(f"up_{level}/upsample/conv", h, h)
            size *= 2
    assert not hs
    yield from norm("norm_out", h)
    yield from conv("conv_out", h, one.num_outputs)


def test_the_original_counts_the_way_up_by_resolution() -> None:
    names = {name.ours: name for name in names_of(form(UNetConfig(), 32).empty())}
    found = [
        (names[ours].diffusers, names[ours].original) for ours in ("up.0.grow.conv.weight", "up.3.blocks.2.time.bias")
    ]
    assert found == [
        ("up_blocks.0.upsamplers.0.conv.weight", "up_3/upsample/conv/W"),
        ("up_blocks.3.resnets.2.time_emb_proj.bias", "up_0/block_2/temb_proj/b"),
    ]


@pytest.mark.parametrize(
    ("there", "back"), [(to_diffusers, from_diffusers), (to_original, from_original)], ids=["diffusers", "original"]
)
def test_there_and_back_no_bit_changes(
    there: Callable[[Name, torch.Tensor], torch.Tensor], back: Callable[[Name, torch.Tensor], torch.Tensor]
) -> None:
    ours = tensors_of(form())
    for name in names_of(form().empty()):
        again = back(name, there(name, ours[name.ours]))
        assert torch.equal(again, ours[name.ours])
        assert again.is_contiguous()


def test_the_originals_axes_are_turned() -> None:
    name = next(name for name in names_of(form().empty()) if name.ours == "conv_in.weight")
    kernel = torch.randn(5, 3, 3, 3)
    assert float(to_original(name, kernel)[0, 2, 1, 4]) == float(kernel[4, 1, 0, 2])
    projection = next(name for name in names_of(form().empty()) if name.ours == "middle_attention.query.weight")
    matrix = torch.randn(5, 7, 1, 1)
    assert float(to_original(projection, matrix)[6, 4]) == float(matrix[4, 6, 0, 0])
    assert float(to_diffusers(projection, matrix)[4, 6]) == float(matrix[4, 6, 0, 0])


# Folders.


@pytest.mark.parametrize(
    ("mine", "theirs"), [(unet_json.DEFAULTS, UNet2DModel), (scheduler_json.DEFAULTS, DDPMScheduler)]
)
def test_what_a_config_leaves_out_is_what_diffusers_takes(mine: dict[str, Any], theirs: type) -> None:
    parameters = inspect.signature(theirs.__init__).parameters
    assert mine == {name: p.default for name, p in parameters.items() if name != "self"}


@pytest.mark.parametrize(
    ("config", "schedule", "reverse", "channels"),
    [
        (SMALL, ScheduleConfig(), ReverseConfig(), 3),
        (replace(SMALL, dropout=0.0), ScheduleConfig(name="cosine"), ReverseConfig(prediction="v"), 1),
        (
            replace(SMALL, attention_resolutions=(8,)),
            ScheduleConfig(name="quadratic", num_timesteps=50),
            ReverseConfig(prediction="x_0", variance="fixed_small"),
            3,
        ),
        (
            replace(SMALL, attention_resolutions=()),
            ScheduleConfig(name="sigmoid", beta_end=0.01),
            ReverseConfig(variance="learned_range"),
            3,
        ),
    ],
)
def test_what_is_written_is_read(
    config: UNetConfig, schedule: ScheduleConfig, reverse: ReverseConfig, channels: int, tmp_path: Path
) -> None:
    written = weights_of(config, schedule, reverse, channels)
    write_diffusers(str(tmp_path), written)
    read, again = read_diffusers(str(tmp_path)), imported_weights(str(tmp_path))
    assert (read.config.unet, read.config.schedule, read.config.reverse) == (config, schedule, reverse)
    assert (read.config.image_size, read.config.channels) == (SIZE, channels)
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())
    assert again.sha256 == written.sha256
    sampler = to_json(SamplerConfig(spacing="leading"))  # DDPMScheduler's own ways
    assert {**written.config, **again.config} == {**written.config, "sampler": sampler}
    assert (again.step, again.dataset_uri, again.dataset_digest) == (0, "", "")


def test_images_that_are_no_squares_are_the_same_there(tmp_path: Path) -> None:
    square = weights_of(channels=4)
    written = replace(square, config={**square.config, "image_size": [8, 12]})
    write_diffusers(str(tmp_path), written)
    theirs, ours = pipeline(tmp_path), Model.from_weights(imported_weights(str(tmp_path)))
    assert ours.config == Model.from_weights(written).config
    x_t, t = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    torch.testing.assert_close(ours.network(x_t, t), theirs.unet(x_t, t).sample, rtol=1e-4, atol=1e-5)
    assert theirs(num_inference_steps=2, output_type="np").images.shape == (1, 8, 12, 4)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "sigmoid"])
@pytest.mark.parametrize(("num_timesteps", "rescale"), [(1000, False), (200, True)])
def test_the_schedulers_noise_is_ours(name: str, num_timesteps: int, rescale: bool) -> None:
    config = ScheduleConfig(name=name, num_timesteps=num_timesteps, rescale=rescale and name != "cosine")  # type: ignore[arg-type]
    theirs = DDPMScheduler(**scheduler_json.scheduler_json(config, ReverseConfig())[1])
    ours = make_schedule(config).alpha_bar
    assert float((theirs.alphas_cumprod.double() / ours - 1).abs().max()) < 1e-4
    assert float((theirs.alphas_cumprod.double() - ours).abs().max()) < 1e-6


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_reverse_step_of_the_scheduler_is_ours(variance: str, prediction: str) -> None:
    reverse = ReverseConfig(prediction=prediction, variance=variance)  # type: ignore[arg-type]
    theirs = DDPMScheduler(**scheduler_json.scheduler_json(ScheduleConfig(), reverse)[1])
    torch.manual_seed(0)
    x_t, output = torch.randn(1, 3, 4, 4), torch.randn(1, reverse.num_outputs(3), 4, 4)
    p = ReverseProcess(denoiser=lambda x, t: output, schedule=make_schedule(ScheduleConfig()), config=reverse)
    for t in (0, 1, 500, 999):
        ours = p_mean_variance(p, x_t, torch.tensor([t]))
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t))
        expected = ours.mean + (0 if t == 0 else ours.variance.sqrt() * noise)
        found = theirs.step(output, t, x_t, generator=torch.Generator().manual_seed(t))
        torch.testing.assert_close(found.prev_sample, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.pred_original_sample, ours.x_0_hat, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_diffusers_pipeline_loads_what_is_written(exported: Path) -> None:
    loaded, weights = pipeline(exported), weights_of()
    x, t = torch.randn(2, 3, SIZE, SIZE), torch.tensor([3, 700])
    torch.testing.assert_close(
        loaded.unet(x, t).sample, Model.from_weights(weights).network(x, t), rtol=1e-4, atol=1e-5
    )
    assert isinstance(loaded.scheduler, DDPMScheduler)
    assert loaded.scheduler.config.variance_type == "fixed_large"
    assert loaded.unet.config.dropout == SMALL.dropout
    image = loaded(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert image.shape == (1, SIZE, SIZE, 3)


def test_what_diffusers_writes_is_read(tmp_path: Path, exported: Path) -> None:
    pipeline(exported).save_pretrained(tmp_path)
    read, expected = read_diffusers(str(tmp_path)), weights_of()
    assert read.config.unet == SMALL
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_done_twice_it_changes_nothing(exported: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in exported.rglob("*.*")}

    before = state()
    assert len(before) == 4
    write_diffusers(str(exported), weights_of())
    assert state() == before


def test_another_model_is_not_written_over(exported: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*.*")}
    with pytest.raises(ValueError, match=r"scheduler_config\.json is there and is another model's; expected a folder"):
        write_diffusers(str(exported), weights_of(schedule=ScheduleConfig(num_timesteps=10)))
    assert {path: path.read_bytes() for path in exported.rglob("*.*")} == before


def test_the_weights_go_first_and_the_index_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: written.append(uri.rpartition("/")[2]))
    write_diffusers(str(tmp_path), weights_of())
    assert written == [
        "diffusion_pytorch_model.safetensors",
        "config.json",
        "scheduler_config.json",
        "model_index.json",
    ]


PLAIN: dict[str, Any] = {
    "sample_size": SIZE,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
"""A small UNet2DModel; all else as it is by default."""
PAPERS: dict[str, Any] = {
    **PLAIN,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "layers_per_block": 1,
}
"""But for its groups a network of the paper."""
DIFFUSERS_OWN = UNetForm(
    head_channels=8, symmetric_padding=True, norm_groups=32, norm_epsilon=1e-5, time_cos_first=True, time_freq_shift=0
)
OF_8 = UNetForm(norm_groups=8)
VARIATIONS: list[tuple[dict[str, Any], UNetForm]] = [
    (PLAIN, DIFFUSERS_OWN),
    ({**PLAIN, "norm_num_groups": 8, "act_fn": "swish"}, replace(DIFFUSERS_OWN, norm_groups=8)),
    (
        {**PLAIN, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
        replace(DIFFUSERS_OWN, scale_shift=True),
    ),
    ({**PLAIN, "num_class_embeds": 5}, replace(DIFFUSERS_OWN, null_label=False)),
    (PAPERS, OF_8),
    ({**PAPERS, "freq_shift": 0}, replace(OF_8, time_freq_shift=0)),
    ({**PAPERS, "freq_shift": 3}, replace(OF_8, time_freq_shift=3)),
    ({**PAPERS, "flip_sin_to_cos": True}, replace(OF_8, time_cos_first=True)),
    ({**PAPERS, "downsample_padding": 1}, replace(OF_8, symmetric_padding=True)),
    ({**PAPERS, "norm_eps": 1e-3}, replace(OF_8, norm_epsilon=1e-3)),
    ({**PAPERS, "norm_num_groups": 16, "attn_norm_num_groups": 16}, UNetForm(norm_groups=16)),
    ({**PAPERS, "attention_head_dim": 16}, replace(OF_8, head_channels=16)),
    ({**PAPERS, "attention_head_dim": 64}, OF_8),
    (
        {**PAPERS, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
        replace(OF_8, scale_shift=True),
    ),
    ({**PAPERS, "num_class_embeds": 1}, replace(OF_8, null_label=False)),
    (
        {
            **PAPERS,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            "attention_head_dim": 32,
        },
        replace(OF_8, head_channels=32),
    ),
]


def saved_by_diffusers(folder: Path, settings: dict[str, Any]) -> UNet2DModel:
    """A network with random weights, norms and biases too, and what it left in a folder."""
    torch.manual_seed(0)
    theirs = UNet2DModel(**settings).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5)
    theirs.save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return theirs


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def outputs(theirs: UNet2DModel, ours: UNet, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(t), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    num_classes = theirs.config.num_class_embeds
    labels = None if num_classes is None else torch.arange(len(t)) % num_classes
    return ours(x, t, labels), theirs(x, t, class_labels=labels).sample


@pytest.mark.parametrize(("settings", "form"), VARIATIONS)
@torch.no_grad()
def test_a_network_of_diffusers_is_the_same_here_and_comes_back(
    settings: dict[str, Any], form: UNetForm, tmp_path: Path
) -> None:
    theirs = saved_by_diffusers(tmp_path / "theirs", settings)
    weights = imported_weights(str(tmp_path / "theirs"))
    model = Model.from_weights(weights)
    assert model.config.unet.form == form
    assert model.config.num_classes == (settings.get("num_class_embeds") or 0)
    # Later steps see where the two round the frequencies of the time embedding.
    assert apart(*outputs(theirs, model.network, torch.tensor([0, 1, 9]))) < 1e-5
    assert apart(*outputs(theirs, model.network, torch.tensor([371, 999]))) < 1e-4
    write_diffusers(str(tmp_path / "ours"), weights)
    again = UNet2DModel.from_pretrained(tmp_path / "ours/unet", low_cpu_mem_usage=False)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())
    found, expected = outputs(again, model.network, torch.tensor([0, 1, 9]))
    assert apart(found, expected) < 1e-5
    assert read_diffusers(str(tmp_path / "ours")).config == model.config


@torch.no_grad()
def test_a_network_of_ours_with_classes_comes_back_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its row for no label is diffusers' last class."""
    written = weights_of(replace(SMALL, num_classes=10))
    write_diffusers(str(tmp_path / "ours"), written)
    read = read_diffusers(str(tmp_path / "ours"))
    assert read.config.unet == replace(SMALL, num_classes=10)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())
    loaded = pipeline(tmp_path / "ours")
    assert "null_label" not in caplog.text + "".join(capfd.readouterr())
    x, t = torch.randn(2, 3, SIZE, SIZE), torch.tensor([3, 9])
    ours = Model.from_weights(written).network(x, t, torch.tensor([4, -1]))
    assert apart(loaded.unet(x, t, class_labels=torch.tensor([4, 10])).sample, ours) < 1e-5
    loaded.save_pretrained(tmp_path / "theirs")  # which keeps what it does not know of
    assert read_diffusers(str(tmp_path / "theirs")).config == read.config


def test_heads_by_number_are_exported_by_their_channels(tmp_path: Path) -> None:
    write_diffusers(str(tmp_path), weights_of(replace(SMALL, form=UNetForm(num_heads=4))))
    assert read_diffusers(str(tmp_path)).config.unet.form == UNetForm(head_channels=32)


def test_an_export_of_the_papers_network_is_the_file_that_it_was() -> None:
    written = json.dumps(unet_json.unet_json(form(UNetConfig(), 32)))
    assert (
        hashlib.sha256(written.encode()).hexdigest()
        == "92b02686ae84d0d1ca518adfdc3057fe58f0d66f7fba9328443911e2b3b7a5fa"
    )


def published(folder: Path) -> dict[str, torch.Tensor]:
    """A folder as google/ddpm-cifar10-32 is, with weights under the names of its time; small."""
    ours = tensors_of(form())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    theirs: dict[str, torch.Tensor] = {}
    for name in names_of(form().empty()):
        key = name.diffusers
        for new, before in old.items():
            key = key.replace(f".{new}.", f".{before}.")
        theirs[key] = to_diffusers(name, ours[name.ours])
    assert any(".query." in key for key in theirs)
    small = {
        "block_out_channels": [128, 128],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "sample_size": SIZE,
    }
    (folder / "config.json").write_text(json.dumps({**GOOGLE_UNET, **small}))
    (folder / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER))
    safetensors.torch.save_file(theirs, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return ours


def test_the_form_of_the_first_published_models_is_read(tmp_path: Path) -> None:
    expected = published(tmp_path)
    read = read_diffusers(str(tmp_path))
    assert read.config.unet == replace(SMALL, dropout=0.0)
    assert (read.config.schedule, read.config.reverse) == (ScheduleConfig(), ReverseConfig())
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in expected.items())
    x, t = torch.randn(1, 3, SIZE, SIZE), torch.tensor([9])
    theirs = UNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    with torch.no_grad():
        found = Model.from_weights(imported_weights(str(tmp_path))).network(x, t)
        torch.testing.assert_close(found, theirs(x, t).sample, rtol=1e-4, atol=1e-5)


def test_the_published_cifar10_model_is_the_papers() -> None:
    read = unet_json.read_unet(GOOGLE_UNET, "config.json")
    assert read == Form(unet=UNetConfig(dropout=0.0), image_size=32, channels=3, num_outputs=3)
    assert sum(p.numel() for p in read.empty().parameters()) == 35_746_307
    schedule, reverse = scheduler_json.read_scheduler(GOOGLE_SCHEDULER, "")
    assert (schedule, reverse) == (ScheduleConfig(), ReverseConfig())
    assert scheduler_json.read_sampler(GOOGLE_SCHEDULER, schedule, reverse, "") == SamplerConfig(spacing="leading")


def test_half_precision_is_widened(tmp_path: Path, exported: Path) -> None:
    path = copy(exported, tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halves, path)
    read = read_diffusers(str(tmp_path)).tensors["conv_in.weight"]
    assert torch.equal(read, tensors_of(form())["conv_in.weight"].half().float())


# The weights' files.


def in_shards(folder: Path, infix: str = "") -> tuple[Path, Path, Path]:
    """The weights of an exported folder as two shards with an index, in the form that diffusers writes; index and shards."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    whole = safetensors.torch.load_file(path)
    path.unlink()
    shards = [path.with_name(f"diffusion_pytorch_model{infix}-0000{i}-of-00002.safetensors") for i in (1, 2)]
    halves = dict(sorted(whole.items())[:20]), dict(sorted(whole.items())[20:])
    for shard, tensors in zip(shards, halves, strict=True):
        safetensors.torch.save_file(tensors, shard)
    files = {name: shard.name for shard, some in zip(shards, halves, strict=True) for name in some}
    index = path.with_name(f"diffusion_pytorch_model.safetensors.index{infix}.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index, *shards


@pytest.mark.parametrize("infix", ["", ".fp16"])
def test_weights_in_shards_are_read(infix: str, tmp_path: Path, exported: Path) -> None:
    in_shards(copy(exported, tmp_path), infix)
    assert imported_weights(str(tmp_path)).sha256 == weights_of().sha256


def test_shards_as_diffusers_writes_them_are_read(tmp_path: Path, exported: Path) -> None:
    copy(exported, tmp_path)
    unet = pipeline(exported).unet
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 2
    assert imported_weights(str(tmp_path)).sha256 == weights_of().sha256


def test_half_precision_is_read_where_it_is_alone(tmp_path: Path, exported: Path) -> None:
    full = copy(exported, tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half() for name, tensor in safetensors.torch.load_file(full).items()}
    safetensors.torch.save_file(halves, full.with_name("diffusion_pytorch_model.fp16.safetensors"))
    ours = tensors_of(form())
    assert torch.equal(read_diffusers(str(tmp_path)).tensors["conv_in.weight"], ours["conv_in.weight"])
    full.unlink()
    assert torch.equal(read_diffusers(str(tmp_path)).tensors["conv_in.weight"], ours["conv_in.weight"].half().float())


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "1MB"}], ids=["one file", "shards"])
def test_half_precision_as_diffusers_writes_it_is_read(shards: dict[str, str], tmp_path: Path, exported: Path) -> None:
    copy(exported, tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    pipeline(exported).unet.half().save_pretrained(tmp_path / "unet", variant="fp16", **shards)
    read, ours = read_diffusers(str(tmp_path)).tensors, tensors_of(form())
    assert all(torch.equal(read[name], tensor.half().float()) for name, tensor in ours.items())


def test_shards_that_are_no_whole_are_refused(tmp_path: Path, exported: Path) -> None:
    index, first, second = in_shards(copy(exported, tmp_path))
    said = json.loads(index.read_text())
    files, name = said["weight_map"], "conv_in.bias"
    assert files[name] == first.name
    for changed, message in (
        (
            {**files, name: "../unet/" + first.name},
            "names the file '../unet/diffusion_pytorch_model-00001-of-00002.saf",
        ),
        ({**files, name: str(first)}, f"names the file '{str(first)[:40]}"),
        (
            {**files, name: "weights.bin"},
            "names the file 'weights.bin'; expected a .safetensors file in the same folder",
        ),
        ({**files, name: "..safetensors"}, "..safetensors, which "),
        ({**files, name: second.name}, f"{first} has {name} and its index does not say so; expected both of one model"),
        ({**files, "conv_in.scale": first.name}, f"{first} has no conv_in.scale and its index says that it has"),
        ({}, "weight_map is {}; expected an object"),
        (None, "weight_map is None; expected an object"),
    ):
        index.write_text(json.dumps({**said, "weight_map": changed}))
        assert message in refused(tmp_path)
    # a weight in no shard
    whole = safetensors.torch.load_file(first)
    index.write_text(json.dumps({**said, "weight_map": {key: file for key, file in files.items() if key != name}}))
    safetensors.torch.save_file({key: tensor for key, tensor in whole.items() if key != name}, first)
    assert f"{name} has shape None; expected (128,)" in refused(tmp_path)
    safetensors.torch.save_file(whole, first)
    index.write_text(json.dumps(said))
    second.unlink()
    assert f"no {second}, which {index} names; expected the folder with all its files" in refused(tmp_path)


def test_one_weight_by_its_old_and_its_new_name_is_refused(tmp_path: Path, exported: Path) -> None:
    path = copy(exported, tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    new = "mid_block.attentions.0.to_q.bias"
    old = new.replace("to_q", "query")
    safetensors.torch.save_file({**tensors, old: tensors[new].clone()}, path)
    assert f"{old} and {new} are one weight by two names" in refused(tmp_path)


# How a folder samples.


def sampled(changes: Mapping[str, Any], folder: Path) -> SamplerConfig:
    edit(folder, "scheduler/scheduler_config.json", changes)
    return read_diffusers(str(folder)).sampler


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, SamplerConfig(spacing="leading")),
        ({"clip_sample": False}, SamplerConfig(spacing="leading", clip="none")),
        ({"timestep_spacing": "linspace"}, SamplerConfig()),
        ({"timestep_spacing": "trailing", "steps_offset": 1}, SamplerConfig(spacing="trailing")),
        ({"_class_name": "DDIMScheduler"}, SamplerConfig(name="ddim", spacing="leading")),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.5, "clip_sample": False},
            SamplerConfig(spacing="leading", clip="static"),
        ),
        ({"thresholding": True, "sample_max_value": 1e9}, SamplerConfig(spacing="leading", clip="dynamic")),
    ],
)
def test_a_folder_says_how_it_is_sampled(
    changes: dict[str, Any], expected: SamplerConfig, tmp_path: Path, exported: Path
) -> None:
    assert sampled(changes, copy(exported, tmp_path)) == expected
    weights = imported_weights(str(tmp_path))
    model = Model.from_weights(weights)
    assert model.default_sampler == expected
    asked = replace(expected, num_steps=8)
    assert (model.sample([5], num_steps=8) == model.sample([5], sampler=asked)).all()
    other = replace(asked, clip="none" if expected.clip == "static" else "static")
    assert (model.sample([5], num_steps=8) != model.sample([5], sampler=other)).any()
    # what was read is written again
    write_diffusers(str(tmp_path / "again"), weights)
    again = read_diffusers(str(tmp_path / "again"))
    assert (again.sampler, again.config) == (expected, read_diffusers(str(tmp_path)).config)


def test_a_model_of_ours_leaves_sampling_to_the_request(exported: Path) -> None:
    assert Model.from_weights(weights_of()).default_sampler == SamplerConfig()
    with pytest.raises(
        ValueError, match=r"the model's sampler is SamplerConfig\(name='heun'.*expected ancestral or ddim"
    ):
        scheduler_json.scheduler_json(ScheduleConfig(), ReverseConfig(), SamplerConfig(name="heun"))


def test_editing_clips_as_the_folder_says() -> None:
    weights = weights_of(schedule=ScheduleConfig(num_timesteps=3))
    own = SamplerConfig(clip="none")
    model = Model.from_weights(weights)
    other = Model.from_weights(replace(weights, config={**weights.config, "sampler": to_json(own)}))
    image, known = model.sample([1]), np.zeros((1, 1, 1, 1), dtype=bool)
    for edit_ in (
        lambda model: model.progressive([5], [1])[1],
        lambda model: model.interpolate(image, image, [0.5], 2),
        lambda model: model.inpaint(image, known, [5], resamplings=1),
    ):
        assert (edit_(model) != edit_(other)).any()
    assert (other.progressive([5], [1])[1] == other.progressive([5], [1], sampler=own)[1]).all()


def test_the_command_says_where_it_samples_otherwise(tmp_path: Path, exported: Path) -> None:
    weights = imported_weights(str(exported))
    said = SamplerConfig(spacing="leading")
    assert told_otherwise(weights_of(), SamplerConfig(name="ddim")) == ""
    assert told_otherwise(weights, replace(said, num_steps=7)) == ""
    assert told_otherwise(weights, SamplerConfig()) == ""  # all steps, however spaced
    assert told_otherwise(weights, SamplerConfig(name="ddim", num_steps=50, clip="none")) == (
        f"sample: {exported} says sampler.name ancestral, sampler.spacing leading, sampler.clip static; "
        "taken, as asked for: ddim, linspace, none"
    )


def test_the_folders_sampler_names_no_set_of_images(exported: Path) -> None:
    """It is what is asked for that decides an image."""
    weights = imported_weights(str(exported))
    without = replace(weights, config={key: value for key, value in weights.config.items() if key != "sampler"})
    one, other = (describe_samples(each, SampleStage(), "/store").identity for each in (weights, without))
    assert one == other


# Refusals.


def refused(folder: Path) -> str:
    """The one line that reading a folder gives."""
    with pytest.raises(ValueError, match=r".") as error:
        read_diffusers(str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'; expected UNet2DModel"),
        ({"center_input_sample": True}, "center_input_sample is True; expected False"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'; expected 'positional'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64; expected 512, four times the first"),
        ({"down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"]}, "expected 2 of DownBlock2D and AttnDownBl"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types is ['DownBlock2D']; expected 2 of"),
        (
            {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
            "expected ['AttnUpBlock2D', 'UpBlock2D'], attention on the way",
        ),
        ({"mid_block_type": None}, "mid_block_type is None; expected 'UNetMidBlock2D'"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor is 2; expected 1"),
        ({"block_out_channels": [128, 192]}, "block_out_channels is [128, 192]; expected multiples of the first, 128"),
        ({"block_out_channels": "many"}, "block_out_channels is 'many'; expected a list of int"),
        ({"layers_per_block": 0}, "layers_per_block is 0; expected a whole number, 1 or more"),
        ({"freq_shift": -1}, "freq_shift is -1; expected a whole number, 0 or more"),
        ({"freq_shift": 64}, "time-freq-shift is 64; expected less than the 64 frequencies"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos is 1; expected False or True"),
        ({"downsample_padding": 2}, "downsample_padding is 2; expected 0 or 1"),
        ({"downsample_type": "resnet"}, "downsample_type is 'resnet'; expected 'conv'"),
        ({"upsample_type": "resnet"}, "upsample_type is 'resnet'; expected 'conv'"),
        ({"dropout": "some"}, "dropout is 'some'; expected a number"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; expected 'silu'"),
        ({"attention_head_dim": 48}, "attention_head_dim is 48; expected None or a divisor of 128 channels"),
        ({"attention_head_dim": 256}, "attention_head_dim is 256; expected None or a divisor of 128 channels"),
        ({"norm_num_groups": 48}, "norm_num_groups is 48; expected a divisor of the first of block_out_channels, 128"),
        ({"norm_num_groups": None}, "norm_num_groups is None; expected a whole number, 1 or more"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups is 8; expected None or 32"),
        ({"norm_eps": 0.0}, "norm-epsilon is 0.0; expected a number more than 0"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'; expected 'default' or 'scale_"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is None; expected 32, that of the other"),
        ({"add_attention": False}, "add_attention is False; expected True"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; expected None"),
        ({"class_embed_type": "identity", "num_class_embeds": 10}, "class_embed_type is 'identity'; expected None"),
        ({"num_class_embeds": 0}, "num_class_embeds is 0; expected a whole number, 1 or more"),
        ({"num_class_embeds": 1, "_null_label": True}, "num_class_embeds is 1; expected a whole number, 2 or more"),
        ({"num_class_embeds": 10}, "class_embedding.weight has shape None; expected (10, 512) for the network"),
        ({"sample_size": [8, 8, 3]}, "sample_size is [8, 8, 3]; expected one number of pixels, or height and width"),
        ({"sample_size": [8, 0]}, "sample_size is [8, 0]; expected one number of pixels, or height and width"),
        ({"sample_size": [8, 9]}, "the image size is 8 9; expected a multiple of 2"),
        ({"sample_size": None}, "sample_size is None; expected one number of pixels"),
        ({"sample_size": 9}, "the image size is 9; expected a multiple of 2"),
        (
            {"out_channels": 6},
            "out_channels is 6; expected 3 for images of 3 channels and a variance_type that is fixed",
        ),
        ({"encoder_hid_dim": 4}, "encoder_hid_dim is 4; expected no such key"),
    ],
)
def test_a_network_that_is_not_ours_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path, exported: Path
) -> None:
    edit(copy(exported, tmp_path), "unet/config.json", changes)
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("freq_shift", UNetForm(time_freq_shift=0)),
        ("flip_sin_to_cos", UNetForm(time_cos_first=True)),
        ("downsample_padding", UNetForm(symmetric_padding=True)),
        ("norm_eps", UNetForm(norm_epsilon=1e-5)),
        ("attention_head_dim", UNetForm(head_channels=8)),
    ],
)
def test_what_is_left_out_means_what_diffusers_takes_which_is_not_the_papers(
    key: str, form: UNetForm, tmp_path: Path, exported: Path
) -> None:
    path = copy(exported, tmp_path) / "unet/config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    assert read_diffusers(str(tmp_path)).config.unet == replace(SMALL, form=form)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name is 'PNDMScheduler'; expected DDPMScheduler or DDIMScheduler"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'; expected one of linear, scaled_linear, squaredcos"),
        ({"trained_betas": [0.1] * 10}, "expected 1000 numbers and not 10"),
        ({"trained_betas": []}, "trained_betas is []; expected 1000 numbers and not 0"),
        ({"trained_betas": "0.1"}, "trained_betas is '0.1'; expected a list of numbers"),
        ({"trained_betas": [True] * 1000}, "; expected a list of numbers"),
        (
            {"trained_betas": [0.0001, 2.0], "num_train_timesteps": 2},
            "betas has 2.0 at t = 1; expected more than 0 and",
        ),
        (
            {"trained_betas": [0.0001, math.nan], "num_train_timesteps": 2},
            "betas has nan at t = 1; expected more than 0",
        ),
        (
            {"trained_betas": [0.5, 1.0], "num_train_timesteps": 2},
            "prediction is eps and the schedule ends at alpha_bar",
        ),
        ({"rescale_betas_zero_snr": True}, "prediction is eps and the schedule ends at alpha_bar = 0"),
        ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr is 1; expected true or false"),
        ({"rescale_betas_zero_snr": True, "num_train_timesteps": 1}, "the schedule has 1 betas; expected 2 or more"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'; expected one of epsilon, sample, v_prediction"),
        ({"predict_epsilon": False}, "predict_epsilon is False; expected True"),
        ({"clip_sample": None}, "clip_sample is None; expected true or false"),
        ({"thresholding": "yes"}, "thresholding is 'yes'; expected true or false"),
        (
            {"thresholding": True, "sample_max_value": 1.5},
            "sample_max_value is 1.5; expected 1 (static clipping), or 1.57e+05",
        ),
        ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value is 0.5; expected 1 (static"),
        ({"thresholding": True, "sample_max_value": None}, "sample_max_value is None; expected a number"),
        (
            {"thresholding": True, "sample_max_value": 1e9, "dynamic_thresholding_ratio": 0.9},
            "dynamic_thresholding_ratio is 0.9; expected 0.995",
        ),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'; expected one of linspace, leading, trailing"),
        ({"steps_offset": 1}, "steps_offset is 1; expected 0"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "set_alpha_to_one is False; expected True"),
        ({"timestep_values": [3, 1]}, "timestep_values is [3, 1]; expected None"),
        ({"tensor_format": "jax"}, "tensor_format is 'jax'; expected pt or np"),
        ({"clip_sample_range": 2.0}, "clip_sample_range is 2.0; expected 1.0"),
        (
            {"variance_type": "learned"},
            "variance_type is 'learned'; expected one of fixed_small, fixed_large, learned_r",
        ),
        ({"variance_type": "fixed_large_log"}, "variance_type is 'fixed_large_log'; expected one of"),
        ({"variance_type": "learned_range"}, "out_channels is 3; expected 6 for images of 3 channels"),
        ({"num_train_timesteps": 0.5}, "num_train_timesteps is 0.5; expected a whole number"),
        ({"beta_end": None}, "beta_end is None; expected a number"),
        ({"beta_end": 2.0}, "beta-end is 2.0; expected more than 0 and less than 1"),
        ({"solver_order": 2}, "solver_order is 2; expected no such key"),
    ],
)
def test_a_scheduler_that_is_not_ours_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path, exported: Path
) -> None:
    edit(copy(exported, tmp_path), "scheduler/scheduler_config.json", changes)
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"variance_type": "fixed_small_log"},
        {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "variance_type": "fixed_small"},
        {"variance_type": "fixed_small", "timestep_spacing": "trailing", "clip_sample": False, "clip_sample_range": 9},
        {"variance_type": "fixed_small", "timestep_spacing": "linspace", "steps_offset": 1},
        {
            "variance_type": "fixed_small",
            "dynamic_thresholding_ratio": 0.9,
            "sample_max_value": 1.5,
            "tensor_format": "np",
        },
        {"variance_type": "fixed_small", "set_alpha_to_one": False},
    ],
)
def test_what_means_the_same_or_is_not_read_there_is_read(
    changes: dict[str, Any], tmp_path: Path, exported: Path
) -> None:
    edit(copy(exported, tmp_path), "scheduler/scheduler_config.json", changes)
    assert read_diffusers(str(tmp_path)).config.reverse == ReverseConfig(variance="fixed_small")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            lambda: weights_of(replace(SMALL, form=UNetForm(time_scale=0.25))),
            "unet.form.time-scale is 0.25; UNet2DModel can only say 1",
        ),
        (
            lambda: weights_of(
                replace(SMALL, channel_multipliers=(1, 2), attention_resolutions=(8,), form=UNetForm(num_heads=4))
            ),
            "unet.form.num-heads is 4, of heads of 32 and 64 channels; UNet2DModel has one number for all",
        ),
        (lambda: weights_of(replace(SMALL, channel_multipliers=(2, 2))), "unet.channel-multipliers begins with 2;"),
        (
            lambda: weights_of(replace(SMALL, base_channels=32)),
            "the network's norms have 8 and 16 groups; UNet2DModel has",
        ),
        (lambda: weights_of(reverse=ReverseConfig(prediction="mean")), "reverse.prediction is mean, which diffusers'"),
        (
            lambda: weights_of(reverse=ReverseConfig(variance="learned")),
            "reverse.variance is learned, which diffusers'",
        ),
    ],
)
def test_what_diffusers_cannot_say_is_not_exported(
    weights: Callable[[], Weights], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        write_diffusers(str(tmp_path), weights())
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_pickle_is_not_read_and_the_line_says_how_to_convert_it(tmp_path: Path, exported: Path) -> None:
    path = copy(exported, tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(path), path.with_suffix(".bin"))
    path.unlink()
    message = refused(tmp_path)
    assert f"{path.with_suffix('.bin')} is a pickle, which may run any code and is not read" in message
    converter = message[message.index('"from diffusers') + 1 : message.rindex('"')]
    exec(converter)
    read = read_diffusers(str(tmp_path))
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors_of(form()).items())


def test_weights_of_another_network_are_refused(tmp_path: Path, exported: Path) -> None:
    path = copy(exported, tmp_path) / "unet/diffusion_pytorch_model.safetensors"
    whole = safetensors.torch.load_file(path)
    for changes, message in (
        (
            {"conv_in.bias": torch.zeros(5)},
            "conv_in.bias has shape (5,); expected (128,) for the network in config.json",
        ),
        ({"conv_in.bias": None}, "conv_in.bias has shape None; expected (128,)"),
        ({"conv_in.scale": torch.zeros(1)}, "conv_in.scale of shape (1,) is no weight of the network in config.json"),
        (
            {"conv_in.bias": torch.zeros(128, dtype=torch.int64)},
            "conv_in.bias is of type torch.int64; expected float32",
        ),
    ):
        changed = {name: tensor for name, tensor in {**whole, **changes}.items() if tensor is not None}
        safetensors.torch.save_file(changed, path)
        assert message in refused(tmp_path)
    path.write_bytes(b"no weights")
    assert "is not a safetensors file (" in refused(tmp_path)


def test_files_that_are_missing_or_no_json_are_named(tmp_path: Path, exported: Path) -> None:
    assert refused(tmp_path) == f"no {tmp_path}/config.json; expected a diffusers folder with it"
    copy(exported, tmp_path)
    scheduler = tmp_path / "scheduler/scheduler_config.json"
    scheduler.write_text("[1]")
    assert "holds list; expected an object" in refused(tmp_path)
    scheduler.write_bytes(b"\xff{")
    assert "scheduler_config.json is not JSON (" in refused(tmp_path)
    scheduler.unlink()
    assert "scheduler_config.json; expected a diffusers folder with it" in refused(tmp_path)
    copy(exported, tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "diffusion_pytorch_model.safetensors; expected a diffusers folder with it" in refused(tmp_path)


# The commands.


def checkpoint(config: Mapping[str, Any], tensors: dict[str, torch.Tensor], step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        images_seen=step,
        seed=0,
        dataset_digest="d" * 64,
        dataset_uri="/data",
        config=dict(config),
        versions={},
        model={name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
        ema=tensors,
        optimizer={},
        history=[],
    )


def test_the_doors_find_a_diffusers_folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.parent)
    weights = find_weights(exported.name, tracker=None, store="/nowhere")  # type: ignore[arg-type]
    assert weights.uri == str(exported)
    network = UNet(SMALL, image_size=SIZE, channels=3)
    load_network(network, weights.tensors)
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        dataset_of(weights, "/nowhere")
    assert not is_diffusers(str(tmp_path))
    with pytest.raises(
        ValueError, match="expected models:/NAME@champion, or the URI of a checkpoint, a run or a diffus"
    ):
        find_weights(str(tmp_path), tracker=None, store="/nowhere")  # type: ignore[arg-type]


def test_a_runs_newest_checkpoint_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = weights_of()
    run, folder = str(tmp_path / "run"), str(tmp_path / "folder")
    write_checkpoint(run, checkpoint(weights.config, {"a": torch.zeros(1)}, step=1))
    newest = write_checkpoint(run, checkpoint(weights.config, weights.tensors, step=2))
    command.main([run, folder])
    assert capsys.readouterr().out == f"exported  {newest}\nto        {folder}\n"
    assert imported_weights(folder).sha256 == weights.sha256
    command.main([newest, folder])
    command.main(["export", newest, folder])


def test_what_the_papers_models_are_is_what_their_recipes_are() -> None:
    for name, config in PUBLISHED.items():
        recipe = make(name)
        assert (config.unet, config.schedule, config.reverse) == (recipe.unet, recipe.schedule, recipe.reverse)
        assert (config.image_size, config.channels) == (recipe.data.image_size, recipe.data.channels)


def test_published_weights_are_imported_and_go_on_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's variables to a folder; that one loads here, and goes to diffusers' form."""
    tensors, config = tensors_of(form()), json.loads(json.dumps(weights_of().config))
    theirs = {
        f"model/{name.original}/ExponentialMovingAverage": to_original(name, tensors[name.ours]).numpy()
        for name in names_of(form().empty())
    }
    np.savez(tmp_path / "model.npz", **theirs)
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in model_json(config)}))
    monkeypatch.chdir(tmp_path)
    command.main(["import", "model.npz", "ours", "--config", "config.json"])
    assert capsys.readouterr().out == f"imported  model.npz\nto        {tmp_path}/ours\n"
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load("ours").weights.tensors.items())  # type: ignore[union-attr]
    command.main(["export", "ours", "theirs"])
    assert imported_weights(str(tmp_path / "theirs")).sha256 == load("ours").weights.sha256  # type: ignore[union-attr]


def test_each_command_writes_its_form(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a diffusers folder, too; what is written is held elsewhere."""
    written: list[tuple[str, str]] = []
    for name in list(command._WRITERS):
        monkeypatch.setitem(command._WRITERS, name, lambda uri, weights, name=name: written.append((name, uri)))
        command.main([name, str(exported), str(tmp_path / "made")])
        assert capsys.readouterr().out == f"exported  {exported}\nto        {tmp_path}/made\n"
    assert written == [("export", f"{tmp_path}/made"), ("onnx", f"{tmp_path}/made")]
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert "onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: MODEL_URI, FOLDER_URI (--help shows the usage)"),
        (["nowhere", "there"], "no checkpoint at nowhere; expected the URI of a checkpoint or a run"),
        (["onnx", "nowhere", "there"], "no checkpoint at nowhere; expected the URI of a checkpoint or a run"),
        (["onnx", "nowhere"], "the following arguments are required: FILE_URI (--help shows the usage)"),
        (
            ["import", "model.npz", "there"],
            "{tmp}/model.npz holds variables of the paper's own code, which do not say wh",
        ),
        (["import", "model.npz", "there", "--config", "nowhere"], "no nowhere; expected one of cifar10, celebahq256,"),
        (
            ["import", "my.pt", "there"],
            "my.pt is no published model of improved-diffusion; expected the flags that it w",
        ),
        (["onnx", "nowhere", "there", "--opset", "9"], "unrecognized arguments: --opset 9 (--help shows the usage)"),
        (["models:/ddpm@champion", "there"], "models:/ddpm@champion is no store that is known here; expected"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message.replace('{tmp}', str(tmp_path))}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_on_s3_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="interop")
        write_diffusers("s3://interop/models/one", weights_of())
        write_diffusers("s3://interop/models/one", weights_of())
        found = find_weights("s3://interop/models/one/", tracker=None, store="/nowhere")  # type: ignore[arg-type]
        assert found.sha256 == weights_of().sha256
    finally:
        server.stop()
