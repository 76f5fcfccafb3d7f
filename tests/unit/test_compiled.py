"""A compiled network makes the same images; where none can be compiled, that is said; and what a pass costs is counted right."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_core.api.model import Model
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.compiled import CompileError
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import forward_flops, forward_flops_at_most
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.config import SampleConfig
from pipelines.recipes.config import SampleStage
from pipelines.stages.sample import compiles

UNET = UNetConfig(
    base_channels=16, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(16,), num_classes=3
)
CONFIG = ModelConfig(
    image_size=16, channels=3, unet=UNET, schedule=ScheduleConfig(num_timesteps=20), reverse=ReverseConfig()
)
REQUEST = SampleConfig(sampler=SamplerConfig(num_steps=10), batch_size=16)


def lively() -> Model:
    """A model whose images are neither black nor white."""
    network, generator = CONFIG.build_network(), torch.Generator().manual_seed(0)
    init_unet(network, 0)
    noise = {name: 0.02 * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}
    return Model.from_tensors(CONFIG, {name: p.detach() + noise[name] for name, p in network.named_parameters()})


def elsewhere(work: Callable[[int, Path], None], folder: Path) -> None:
    """In a process of its own: here shapes are checked at every call, which torch.compile cannot see through."""
    torch.multiprocessing.spawn(work, (folder,), nprocs=1)


def _both(rank: int, folder: Path) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    model = lively()
    fast, seeds, told = model.compile(REQUEST), torch.arange(40), list[int]()
    found = fast.generate(seeds, REQUEST, on_step=lambda t, x_t, x_0_hat: told.append(len(x_t)))
    torch.save([found, model.generate(seeds, REQUEST), torch.tensor(told)], folder / "made.pt")


def test_the_same_images_compiled_and_not_whatever_the_batch(tmp_path: Path) -> None:
    elsewhere(_both, tmp_path)
    found, expected, told = torch.load(tmp_path / "made.pt", weights_only=True)
    assert told.tolist() == [16] * 20 + [8] * 10  # the last batch is filled up, and nobody hears of it
    assert 30 < float(expected.float().std()) < 110
    apart = (found.int() - expected.int()).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 1e-4


def _without_a_compiler(rank: int, folder: Path) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["PATH"] = str(folder / "cache"), str(folder)
    try:
        lively().compile(REQUEST)
    except CompileError as error:
        (folder / "said.txt").write_text(str(error))


def test_without_a_compiler_it_is_said_in_one_line(tmp_path: Path) -> None:
    elsewhere(_without_a_compiler, tmp_path)
    said = (tmp_path / "said.txt").read_text()
    assert "No working C++ compiler" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (SampleStage(num_images=64), False),
        (SampleStage(num_images=64, compile="on"), True),
        (SampleStage(num_images=10**7, compile="off"), False),
        (SampleStage(num_images=10**7), True),
        (SampleStage(num_images=10**7, num_workers=10**4), True),
        (SampleStage(num_images=10**7, use_gpu=True), False),
    ],
)
def test_what_is_asked_for_decides(asked: SampleStage, expected: bool) -> None:
    assert compiles(CONFIG, asked) is expected


@pytest.mark.parametrize("image_size", [16, (16, 24)])
def test_operations_are_counted_by_hand(image_size: int | tuple[int, int]) -> None:
    config = replace(CONFIG, image_size=image_size)
    network, counted = config.build_network(), list[int]()

    def count(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):  # a product and a sum for each weight, at each pixel
            counted.append(2 * module.weight.numel() * out[0, 0].numel())
        elif isinstance(module, nn.Linear):
            counted.append(2 * module.weight.numel())

    def count_attention(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        channels, pixels = out.shape[1], out[0, 0].numel()
        counted.append(2 * 2 * pixels**2 * channels)  # queries by keys, then by values

    for module in network.modules():
        module.register_forward_hook(count_attention if type(module).__name__ == "Attention" else count)
    network(torch.zeros(1, *config.image_shape), torch.zeros(1, dtype=torch.int64))
    assert sum(counted) == forward_flops(config) <= forward_flops_at_most(config)
