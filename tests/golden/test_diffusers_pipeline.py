"""Whole images against diffusers 0.42.1: from one folder and one noise its pipelines draw what `sample` draws.

The folders are ours, read there, or say what a folder of theirs may say, read here.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDIMPipeline, DDPMPipeline
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm

from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.interop.diffusers import imported_weights, write_diffusers
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNetConfig, UNetForm
from ddpm_core.serialization import to_json
from ddpm_core.types import Tensor
from pipelines.recipes.recipes import RECIPES, make

# They hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

TOLERANCE = 1e-4
"""Of images in [-1, 1]. Their tables are float32, ours float64."""
SIZE, T = 4, 25
SMALL = UNetConfig(
    base_channels=16,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(2,),
    dropout=0.1,
    form=UNetForm(norm_groups=4),
)
SHORT = ScheduleConfig(num_timesteps=T, rescale=True)

DISTINCT = {
    (recipe.data.channels, recipe.schedule, recipe.reverse): name
    for name, recipe in ((name, make(name)) for name in reversed(RECIPES))
}
"""Recipes that differ in what a scheduler is told, by it: of those alike the first."""


def noise_of(channels: int) -> Callable[[int], Tensor]:
    return lambda t: torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(t))


def weights_of(schedule: ScheduleConfig, reverse: ReverseConfig, channels: int = 3) -> Weights:
    """Of a network that is clipped, but so tame that float32 is good to 1e-6 of its images: ours is as near to float64."""
    config = ModelConfig(unet=SMALL, image_size=SIZE, channels=channels, schedule=schedule, reverse=reverse)
    generator = torch.Generator().manual_seed(0)
    network = config.build_network()
    tensors = {
        name: 1 + 0.1 * torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("weight")
        else torch.randn(p.shape, generator=generator) * (0.5 / max(1, p[0].numel()) ** 0.5)
        for name, p in network.named_parameters()
    }
    file = safetensors.torch.save(tensors)
    return Weights(
        uri="", step=1, sha256=sha256_of(file), config=to_json(config), dataset_digest="", dataset_uri="", file=file
    )


def theirs(folder: Path, channels: int, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Of the pipeline that the folder's scheduler asks for, in [-1, 1]."""
    ddim = json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"
    kind = DDIMPipeline if ddim else DDPMPipeline
    loaded = kind.from_pretrained(folder, low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    loaded.scheduler.set_timesteps(num_steps)
    noise, drawn = (
        noise_of(channels),
        iter([loaded.scheduler.config.num_train_timesteps, *loaded.scheduler.timesteps.tolist()]),
    )
    for module in (pipeline_ddpm, pipeline_ddim, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise(next(drawn)))
    # x_T is moved by the eps of the clipped x_0, as in the code of Glide: in ours always
    more = {"use_clipped_model_output": True} if ddim else {}
    images: Tensor = loaded(batch_size=2, num_inference_steps=num_steps, output_type="pt", **more).images
    return 2 * images - 1


def ours(weights: Weights, sampler: SamplerConfig) -> Tensor:
    model = Model.from_weights(weights)
    noise, schedule = noise_of(model.config.channels), model.config.schedule
    x_T = noise(schedule.num_timesteps)
    return sample(model.reverse_process(torch.tensor([-1, -1])), sampler, x_T, noise).clamp(-1, 1)


def assert_same_images(found: Tensor, expected: Tensor) -> None:
    assert float(expected.std()) > 0.1  # of something
    difference = float((found - expected).abs().max())
    print(f"difference {difference:.2g}")
    assert difference < TOLERANCE


def assert_exported_alike(
    weights: Weights, folder: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int | None = None
) -> None:
    write_diffusers(str(folder), weights)
    whole = weights.config["schedule"]["num_timesteps"]
    expected = theirs(folder, weights.config["channels"], num_steps or whole, monkeypatch)
    # a folder of ours says leading, as DDPMScheduler does unless told
    assert_same_images(ours(weights, SamplerConfig(num_steps=num_steps, spacing="leading")), expected)


@pytest.mark.parametrize(("short", "num_steps"), [(True, None), (False, 8)], ids=["all steps", "8 of its own"])
@pytest.mark.parametrize("name", DISTINCT.values())
def test_each_recipe(
    name: str, short: bool, num_steps: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(name)
    schedule = (
        replace(recipe.schedule, num_timesteps=T, rescale=recipe.schedule.name != "cosine")
        if short
        else recipe.schedule
    )
    weights = weights_of(schedule, recipe.reverse, recipe.data.channels)
    assert_exported_alike(weights, tmp_path, monkeypatch, num_steps)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_each_prediction_and_variance(
    prediction: Any, variance: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(SHORT, ReverseConfig(prediction=prediction, variance=variance))
    assert_exported_alike(weights, tmp_path, monkeypatch)


GIVEN = ScheduleConfig(name="given", betas=tuple(0.01 + 0.3 * ((7 * t) % T) / T for t in range(T)), num_timesteps=T)
SCHEDULES = {
    name: ScheduleConfig(name=name, num_timesteps=T, rescale=name != "cosine")  # type: ignore[arg-type]
    for name in ("quadratic", "constant", "warmup10", "warmup50", "cosine", "sigmoid")
}


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), GIVEN], ids=[*SCHEDULES, "given"])
def test_each_schedule(schedule: ScheduleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_exported_alike(weights_of(schedule, ReverseConfig()), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["jsd", "given"])
@pytest.mark.parametrize("prediction", ["x_0", "v"])
def test_schedules_that_end_in_noise(
    name: str, prediction: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {
        "jsd": ScheduleConfig(name="jsd", num_timesteps=T),
        "given": replace(GIVEN, betas=(*GIVEN.betas[:-1], 1.0)),
    }[name]
    assert_exported_alike(weights_of(schedule, ReverseConfig(prediction=prediction)), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["constant", "warmup10", "warmup50", "jsd"])
def test_schedules_without_a_name_there_at_1000_steps(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reverse = ReverseConfig(prediction="v")
    assert_exported_alike(weights_of(ScheduleConfig(name=name), reverse), tmp_path, monkeypatch, num_steps=8)


@pytest.mark.parametrize("class_name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(
    ("prediction", "changes"),
    [
        ("v", {"rescale_betas_zero_snr": True}),
        ("x_0", {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"}),
        ("eps", {"trained_betas": [0.01 * (t + 1) for t in range(T)]}),
        ("v", {"trained_betas": [0.01 * (t + 1) for t in range(T)], "rescale_betas_zero_snr": True}),
        ("v", {"clip_sample": False}),
        ("v", {"timestep_spacing": "trailing"}),
        ("v", {"timestep_spacing": "linspace", "steps_offset": 1}),
        ("eps", {"thresholding": True}),
        ("eps", {"thresholding": True, "sample_max_value": 1e9}),
        ("eps", {"thresholding": True, "sample_max_value": 1.0, "dynamic_thresholding_ratio": 0.6}),
    ],
)
def test_a_folder_is_sampled_as_it_says(
    class_name: str, prediction: Any, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_diffusers(str(tmp_path), weights_of(SHORT, ReverseConfig(prediction=prediction)))
    path = tmp_path / "scheduler/scheduler_config.json"
    plain = {**json.loads(path.read_text()), **changes, "_class_name": class_name}
    if class_name == "DDIMScheduler":
        del plain["variance_type"]
        index = tmp_path / "model_index.json"
        index.write_text(index.read_text().replace("DDPMScheduler", class_name).replace("DDPMPipe", "DDIMPipe"))
    path.write_text(json.dumps(plain))
    weights = imported_weights(str(tmp_path))
    expected = theirs(tmp_path, 3, T, monkeypatch)
    assert_same_images(ours(weights, Model.from_weights(weights).default_sampler), expected)
