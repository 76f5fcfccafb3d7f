"""What holds on a CPU, asked of the device at hand: the same images and losses, whatever the batch, in parts, resumed, compiled.

Each law yields what was asked, what was found, and whether it holds. Losses are held against those that a CPU recorded
(recorded/losses.json, by `gpu.py --record` on one). All of it is done by a small network, in float32 unless it says so.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from sides import DEVICE

from ddpm_core.api.model import Model
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.form import UNetForm
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.precision import whole_float32
from ddpm_core.random import Purpose, normals
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import (
    TrainState,
    ema_tensors,
    load_tensors,
    network_tensors,
    new_state,
    optimizer_tensors,
)
from ddpm_core.training.step import Objective, advance, backward, draw
from ddpm_core.types import Tensor

RECORDED = Path(__file__).parent / "recorded" / "losses.json"
SMALL = ModelConfig(
    image_size=32,
    channels=3,
    unet=UNetConfig(
        base_channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(16,),
        form=UNetForm(norm_groups=4),  # a UNet2DModel has one number for all norms
    ),
    schedule=ScheduleConfig(),
    reverse=ReverseConfig(),
)
STEPS, BATCH = 20, 16
TRAIN = TrainConfig(batch_size=BATCH, warmup_steps=10, learning_rate=1e-3, precision="float32")
CPU = torch.device("cpu")
_ROUNDING = 1e-3
"""Relative, after some steps of training, each of which multiplies what rounding made differ."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """One of them."""

    what: str
    found: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of some steps."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """On the CPU."""

    def apart(self, other: "Trained") -> float:
        """The largest relative difference of a loss, or of all weights together."""
        losses = max(abs(a - b) / abs(b) for a, b in zip(self.losses, other.losses, strict=True))
        mine, theirs = (torch.cat([w.flatten() for w in each.weights.values()]) for each in (self, other))
        return max(losses, float((mine - theirs).norm() / theirs.norm()))


@whole_float32()
def trained(
    device: torch.device, config: TrainConfig = TRAIN, *, compiled: bool = False, goes_on_at: int | None = None
) -> Trained:
    """Some steps on made-up images, dropout and flips among what is drawn.

    Args:
        goes_on_at: a step after which all is saved to tensors, and a new state goes on from these.
    """
    state = _begin(device)
    objective = Objective(schedule=SMALL.build_schedule().to(device), reverse=SMALL.reverse, loss=LossConfig())
    forward = torch.compile(state.network, dynamic=False) if compiled else state.network
    labels, weights = torch.full((BATCH,), -1, device=device), torch.ones(BATCH, device=device)
    losses = []
    for step in range(STEPS):
        if step == goes_on_at:
            state = _from_tensors(state, device)
            forward = state.network
        positions = torch.arange(step * BATCH, (step + 1) * BATCH, device=device)
        draws = draw(state, _pictures(positions), labels, positions, config, objective.schedule.num_timesteps)
        rest = (positions, weights, objective, config)
        found = backward(state, forward, draws, *rest, num_workers=1, autocast=autocast_for(config, device))
        losses.append(float(found.loss))
        advance(state, config, update=found.is_finite)
    return Trained(losses=losses, weights=network_tensors(state))


def _begin(device: torch.device) -> TrainState:
    network = SMALL.build_network().train()
    init_unet(network, 0)
    return new_state(network.to(device), TRAIN.learning_rate)


def _from_tensors(state: TrainState, device: torch.device) -> TrainState:
    fresh = _begin(device)
    load_tensors(fresh, network_tensors(state), ema_tensors(state), optimizer_tensors(state), state.step)
    return fresh


def _pictures(positions: Tensor) -> Tensor:
    """Smooth ones, of integers alone: the same on every device."""
    across = torch.arange(32, device=positions.device)
    colour = (positions[:, None] * torch.tensor([37, 91, 151], device=positions.device)) % 251
    wave = (across[:, None] * (1 + positions[:, None, None] % 5) + across * (2 + positions[:, None, None] % 3)) % 64
    return ((colour[:, :, None, None] + 2 * wave[:, None]) % 256).to(torch.uint8)


def lively(device: torch.device) -> Model:
    """A model whose last layer is not zero, without dropout."""
    network = UNet(SMALL.unet, image_size=32, channels=3)
    init_unet(network, 0)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: p + 0.02 * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}
    return Model.from_tensors(SMALL, {name: tensor.detach() for name, tensor in tensors.items()}, device)


def laws() -> Iterator[Law]:
    """Images first, then training."""
    yield from _of_images()
    yield from _of_training()


def _of_images() -> Iterator[Law]:
    index = torch.arange(4096)
    here, there = (normals(7, Purpose.EPS, index.to(device), (3, 32, 32)).cpu() for device in (CPU, DEVICE))
    differ = int((here != there).sum())
    yield Law(
        what="noise of 4,096 seeds, and the CPU's",
        found=f"{differ:,} of {here.numel():,} values differ",
        holds=not differ,
    )
    on_cpu, model = lively(CPU), lively(DEVICE)
    x, t = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(0, 1000, 125)
    expected = on_cpu.network.double()(x.double(), t)
    on_cpu.network.float()
    with whole_float32():
        found = model.network(x.to(DEVICE), t.to(DEVICE)).cpu().double()
    relative = float((found - expected).norm() / expected.norm())
    yield Law(
        what="a forward pass, and the CPU's in float64", found=f"relative {relative:.1e} apart", holds=relative < 1e-5
    )
    seeds = torch.arange(24)
    for name in ("ancestral", "ddim", "heun", "dpm_solver"):
        request = SampleConfig(sampler=SamplerConfig(name=name, num_steps=25), batch_size=24)  # type: ignore[arg-type]
        images = model.generate(seeds, request)
        if DEVICE != CPU:
            yield _same_images(f"images of 24 seeds, {name}, and the CPU's", images, on_cpu.generate(seeds, request))
        few = model.generate(seeds, replace(request, batch_size=5))
        yield _same_images(f"images of 24 seeds, {name}, 24 and 5 at once", images, few)
        if name == "ddim":
            fast = model.compile(request).generate(seeds, request)
            yield _same_images("images of 24 seeds, ddim, compiled and as written", fast, images)


def _same_images(what: str, one: Tensor, other: Tensor) -> Law:
    levels = (one.cpu().int() - other.cpu().int()).abs()
    share = float((levels > 0).float().mean())
    found = f"{int(levels.max())} levels at the most, in {share:.1e} of all values"
    return Law(what=what, found=found, holds=int(levels.max()) <= 1 and share < 1e-3)


def _of_training() -> Iterator[Law]:
    whole = trained(DEVICE)
    if RECORDED.exists():
        recorded = Trained(losses=json.loads(RECORDED.read_text())["losses"], weights=whole.weights)
        yield _same_path(f"{STEPS} losses, and those that a CPU recorded", whole, recorded)
    again = trained(DEVICE)
    same = all(torch.equal(again.weights[name], weight) for name, weight in whole.weights.items())
    yield replace(
        _same_path("the same steps once more", again, whole),
        found=f"the same bits: {'yes' if same else 'no'}; relative {again.apart(whole):.1e}",
    )
    yield _same_path("gone on from what was saved at half of them", trained(DEVICE, goes_on_at=STEPS // 2), whole)
    for parts in (2, 4):
        config = replace(TRAIN, micro_batch_size=BATCH // parts)
        yield _same_path(f"a batch in {parts} parts", trained(DEVICE, config), whole)
    yield _same_path("compiled", trained(DEVICE, compiled=True), whole)
    rough = trained(DEVICE, replace(TRAIN, precision="bfloat16"))
    apart = max(abs(a - b) / b for a, b in zip(rough.losses, whole.losses, strict=True))
    yield Law(what="losses in bfloat16 and float32", found=f"relative {apart:.1e} apart", holds=apart < 0.05)


def _same_path(what: str, one: Trained, other: Trained) -> Law:
    apart = one.apart(other)
    return Law(what=what, found=f"relative {apart:.1e} apart", holds=apart < _ROUNDING)


def record() -> None:
    """Write down the losses of this machine."""
    RECORDED.write_text(json.dumps({"torch": torch.__version__, "losses": trained(CPU).losses}, indent=2) + "\n")
