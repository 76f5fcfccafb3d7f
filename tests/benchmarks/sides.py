"""What is timed: a training step, a forward pass and a DDIM chain, ours and diffusers', by networks of the same weights' shapes.

`train` is a whole step on images in memory: ours as `train.py` does it (keyed draws, dropout, loss, backward, clipping, Adam,
averaged weights), diffusers' as its training example does it (its scheduler's add_noise, squared error, backward, clipping, AdamW,
EMAModel). `forward` is the network alone without gradients; `sample` a whole DDIM chain, ours by `generate`, theirs
DDIMPipeline's. Nothing of pipelines is needed, and diffusers only where it is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ddpm_core.api.model import Model
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.interop.unet_json import Form, unet_json
from ddpm_core.model.compiled import Passes, compile_network
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective, advance, backward, draw

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OURS, OURS_COMPILED, EAGER, COMPILED = "ours", "ours, compiled", "diffusers", "diffusers, compiled"
Work = Callable[[], object]
"""One batch of it."""
Make = Callable[[], Work]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network, and how it is trained."""

    model: ModelConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def built(self) -> UNet:
        """With the weights that a training begins with."""
        network = self.model.build_network()
        init_unet(network, 0)
        return network.to(DEVICE)

    def diffusers(self) -> Any:
        """diffusers' UNet2DModel of the same weights' shapes."""
        from diffusers import UNet2DModel

        model = self.model
        size, channels = model.image_size, model.channels
        form = Form(unet=model.unet, image_size=size, channels=channels, num_outputs=channels)
        network = UNet2DModel(**unet_json(form)).to(DEVICE)
        # As whoever looks for speed on a GPU lays it; on a CPU it is slower so, by a little.
        return network.to(memory_format=torch.channels_last) if DEVICE.type == "cuda" else network


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16")


def _sides(ours: dict[str, Make], theirs: Callable[..., Work]) -> dict[str, Make]:
    """With diffusers' two, where it is installed."""
    if not find_spec("diffusers"):
        return ours
    return {**ours, EAGER: lambda: theirs(compiled=False), COMPILED: lambda: theirs(compiled=True)}


def forward(net: Net, batch: int, steps: int, precision: Precision) -> dict[str, Make]:
    x_t, t = torch.randn(batch, *net.model.image_shape, device=DEVICE), torch.arange(batch, device=DEVICE)

    def quietly(work: Work) -> Work:
        return torch.no_grad()(_autocast(precision)(work))

    def ours() -> Work:
        network = net.built().eval()
        return quietly(lambda: network(x_t, t))

    def ours_compiled() -> Work:
        network = net.built().eval().requires_grad_(False)
        fast = compile_network(network, Passes(config=net.model, batch_size=batch, precision=precision)).network
        return quietly(lambda: fast(x_t, t))

    def theirs(*, compiled: bool) -> Work:
        network = net.diffusers().eval()
        call = torch.compile(network) if compiled else network
        return quietly(lambda: call(x_t, t).sample)

    return _sides({OURS: ours, OURS_COMPILED: ours_compiled}, theirs)


def train(net: Net, batch: int, steps: int, precision: Precision) -> dict[str, Make]:
    """Ours compiled, too, on a GPU alone: so far no command trains like that."""
    pictures = torch.randint(0, 256, (1024, *net.model.image_shape), dtype=torch.uint8, device=DEVICE)
    net = replace(net, train=replace(net.train, precision=precision, batch_size=batch))
    ours: dict[str, Make] = {OURS: lambda: _our_step(net, batch, pictures, compiled=False)}
    if DEVICE.type == "cuda":
        ours[OURS_COMPILED] = lambda: _our_step(net, batch, pictures, compiled=True)
    return _sides(ours, lambda *, compiled: _their_step(net, batch, pictures, compiled=compiled))


def _our_step(net: Net, batch: int, pictures: torch.Tensor, *, compiled: bool) -> Work:
    state, config = new_state(net.built().train(), net.train.learning_rate), net.train
    objective = Objective(schedule=net.model.build_schedule().to(DEVICE), reverse=net.model.reverse, loss=net.loss)
    labels, weights = torch.full((batch,), -1, device=DEVICE), torch.ones(batch, device=DEVICE)
    network = torch.compile(state.network, dynamic=False) if compiled else state.network
    precision = autocast_for(config, DEVICE)

    def step() -> None:
        positions = torch.arange(state.step * batch, (state.step + 1) * batch, device=DEVICE)
        draws = draw(
            state, pictures[positions % len(pictures)], labels, positions, config, len(objective.schedule.betas)
        )
        rest = (positions, weights, objective, config)
        found = backward(state, network, draws, *rest, num_workers=1, autocast=precision)
        advance(state, config, update=found.is_finite)

    return step


def _their_step(net: Net, batch: int, pictures: torch.Tensor, *, compiled: bool) -> Work:
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = net.diffusers().train()
    network_or_compiled = torch.compile(network) if compiled else network
    optimizer, ema = (
        torch.optim.AdamW(network.parameters(), lr=net.train.learning_rate),
        EMAModel(network.parameters()),
    )
    scheduler, images = DDPMScheduler(), pictures.float() / 127.5 - 1

    def step() -> None:
        x_0 = images[torch.randint(len(images), (batch,), device=DEVICE)]
        eps, t = torch.randn_like(x_0), torch.randint(0, 1000, (batch,), device=DEVICE)
        with autocast_for(net.train, DEVICE):
            predicted = network_or_compiled(scheduler.add_noise(x_0, eps, t), t).sample
        loss = F.mse_loss(predicted.float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        loss.item()

    return step


def sample(net: Net, batch: int, steps: int, precision: Precision) -> dict[str, Make]:
    sampler = SamplerConfig(name="ddim", num_steps=steps)
    request = SampleConfig(sampler=sampler, batch_size=batch, precision=precision)
    seeds = torch.arange(batch, device=DEVICE)

    def ours(*, compiled: bool) -> Work:
        model = Model(config=net.model, network=net.built().eval().requires_grad_(False))
        ready = model.compile(request) if compiled else model
        return lambda: ready.generate(seeds, request)

    def chain(*, compiled: bool) -> Work:
        from diffusers import DDIMPipeline, DDIMScheduler

        theirs = net.diffusers().eval()
        pipeline = DDIMPipeline(torch.compile(theirs) if compiled else theirs, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return _autocast(precision)(lambda: pipeline(batch_size=batch, num_inference_steps=steps, output_type="np"))

    return _sides({OURS: lambda: ours(compiled=False), OURS_COMPILED: lambda: ours(compiled=True)}, chain)


PASSES = {"forward": forward, "train": train, "sample": sample}


def finish() -> None:
    """Wait for what the device was told to do."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
