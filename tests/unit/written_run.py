"""A run with two checkpoints that nobody trained, of a network that diffusers can say, too; and commands typed about it."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Checkpoint, write_checkpoint
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNetConfig, UNetForm
from ddpm_core.serialization import to_json
from ddpm_core.types import Tensor

ROOT = Path(__file__).parents[2]
Typed = Callable[..., tuple[int, str, str]]
"""Words to exit code, stdout and stderr."""
SIZE, T = 8, 25
MODEL = ModelConfig(
    image_size=SIZE,
    channels=1,
    unet=UNetConfig(
        base_channels=16,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        form=UNetForm(norm_groups=4),
    ),
    schedule=ScheduleConfig(num_timesteps=T, rescale=True),
    reverse=ReverseConfig(),
)


def tensors(seed: int) -> dict[str, Tensor]:
    """Weights of some network, as they might have been trained."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in MODEL.build_network().named_parameters()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_run(store: str, name: str = "small", steps: tuple[int, ...] = (1, 2)) -> str:
    """A run whose averaged weights of a step are tensors(10 * step + 1), the others tensors(10 * step); returns its URI."""
    run = storage.join(store, "runs", name)
    for step in steps:
        checkpoint = Checkpoint(
            step=step,
            images_seen=4 * step,
            seed=0,
            dataset_digest="0123456789ab",
            dataset_uri=storage.join(store, "datasets/small-0123456789ab"),
            config=to_json(MODEL),
            versions={"recipe": "digits"},
            model=tensors(10 * step),
            ema=tensors(10 * step + 1),
            optimizer={},
            history=[
                {"step": step, "images_seen": 4 * step, "loss": 0.5 / step, "grad_norm": 1.0, "images_per_s": 9.0}
            ],
        )
        write_checkpoint(run, checkpoint)
    return run


def typing(script: str, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """A command as it is typed, in this process, on a store unless it names one."""

    def run(*words: str) -> tuple[int, str, str]:
        given = words if "--store" in words else (*words, "--store", store)
        monkeypatch.setattr(sys, "argv", [script, *given])
        code = 0
        try:
            runpy.run_path(str(ROOT / "pipelines" / script), run_name="__main__")
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
