"""One object for a trained model: what it is, its network, and where its weights come from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.api.arrays import Images, to_images, to_keys, to_mask, to_tensor
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.data.pixels import to_unit
from ddpm_core.diffusion import editing
from ddpm_core.diffusion.reverse import Clip, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig, SamplerName
from ddpm_core.diffusion.samplers import OnStep
from ddpm_core.errors import InputError
from ddpm_core.evaluation.bits_per_dim import GROUP, bits_per_image
from ddpm_core.model.compiled import Compiled, Passes, compile_network
from ddpm_core.model.config import ModelConfig, read_model_config, read_sampler_config
from ddpm_core.model.unet import UNet, check_all_labelled
from ddpm_core.model.weights import load_network
from ddpm_core.sampling.checks import check_request
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.generate import frames_of, generate, seeded_noise
from ddpm_core.sampling.labels import labelled, labels_of_seeds
from ddpm_core.types import Int, Network, Tensor, UInt8


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready to sample."""

    config: ModelConfig
    network: UNet
    """In eval mode, without gradients."""
    weights: Weights | None = None
    """Where they come from; None for a network that is still being trained."""
    compiled: Compiled | None = None
    """What `generate` calls instead of the network; see `compile`."""

    def __getstate__(self) -> dict[str, object]:
        """What is compiled stays in its process; another one compiles, or finds what was kept."""
        return {**vars(self), "compiled": None}

    @classmethod
    def from_weights(cls, weights: Weights, device: torch.device | str = "cpu") -> "Model":
        """The model with averaged weights, on a device.

        Raises:
            InputError: if they are of another network than their config says, or one holds NaN or infinity.
        """
        model = cls.from_tensors(read_model_config(weights.config), weights.tensors, device)
        return replace(model, weights=weights)

    @classmethod
    def from_tensors(
        cls, config: ModelConfig, tensors: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> "Model":
        """A model with these weights by name, on a device.

        Raises:
            InputError: if they are of another network, or one holds NaN or infinity.
        """
        network = config.build_network()
        load_network(network, tensors)
        return cls(config=config, network=network.eval().requires_grad_(False).to(device))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def default_sampler(self) -> SamplerConfig:
        """How `sample` makes images unless it is told: as the folder of a model from diffusers says, else ancestral."""
        own = read_sampler_config(self.weights.config) if self.weights else None
        return own or SamplerConfig()

    def reverse_process(self, labels: Int[Tensor, " b"], guidance: float = 0.0) -> ReverseProcess:
        """p_theta for a batch of images of these classes; -1 for none.

        Raises:
            InputError: if one is -1, and the network knows no image without a label.
        """
        return self._reverse_process(self.network, labels, guidance)

    def _reverse_process(self, network: Network, labels: Int[Tensor, " b"], guidance: float) -> ReverseProcess:
        unet = self.config.unet
        if unet.num_classes and not unet.knows_no_label:
            check_all_labelled(labels.cpu())
        return ReverseProcess(
            denoiser=labelled(network, labels, guidance, self.config.channels),
            schedule=self.config.build_schedule(),
            config=self.config.reverse,
        )

    def compile(self, request: SampleConfig, folder: Path | None = None) -> "Model":
        """The model for many images: the same images by a compiled network, which takes up to a minute and is faster then.

        An image differs from what `generate` makes without it as it does from batch to batch: by one 8-bit level in rare pixels.

        Args:
            request: batch size and precision are those of the images to come.
            folder: keeps what is compiled for a CPU, for the next time. What lies there is run: nobody else may write to it.

        Raises:
            CompileError: if this machine cannot compile: there is no compiler, or it failed.
        """
        passes = Passes(config=self.config, batch_size=request.batch_size, precision=request.precision)
        return replace(self, compiled=compile_network(self.network, passes, folder))

    def generate(
        self,
        seeds: Int[Tensor, " n"],
        request: SampleConfig,
        *,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "n c h w"]:
        """One image a seed, in batches, as the request says; on the model's device. The seeds that it names are not read.

        Args:
            on_step: told t, x_t and x_0_hat at every step of the sampler, batch by batch.

        Raises:
            InputError: if a value of an image is not finite, naming its seed.
        """
        fits = self.compiled is not None and self.compiled.passes.precision == request.precision and len(seeds) > 0
        compiled = self.compiled if fits else None
        size = compiled.passes.batch_size if compiled else request.batch_size
        made = []
        for some in torch.split(seeds.to(self.device), size):
            # A compiled network knows one size of batch: what is missing is made, and thrown away.
            whole = torch.cat((some, some[-1:].expand(size - len(some)))) if compiled else some
            p = self._reverse_process(
                compiled.network if compiled else self.network,
                labels_of_seeds(whole, request, self.config.num_classes),
                request.guidance,
            )
            told = on_step and _for_the_first(len(some), on_step)
            with self._precision(request):
                images = generate(p, request.sampler, whole, self.config.image_shape, on_step=told)
            made.append(images[: len(some)])
        return torch.cat(made)

    def _precision(self, request: SampleConfig) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=request.precision == "bfloat16")

    def denoising_strip(
        self, seeds: Int[Tensor, " n"], request: SampleConfig, num_frames: int
    ) -> tuple[UInt8[Tensor, "n f c h w"], list[int]]:
        """x_t on its way from x_T to x_0, evenly spaced over the sampler's steps, of at most a batch of seeds.

        Returns:
            The frames, the last of them x_0, and the t of each (0 for x_0; T for x_T).
        """
        assert len(seeds) <= request.batch_size
        return frames_of(lambda on_step: self.generate(seeds, request, on_step=on_step), num_frames)

    def sample(
        self,
        seeds: Sequence[int],
        *,
        sampler: str | SamplerConfig | None = None,
        num_steps: int | None = None,
        labels: Sequence[int] = (),
        guidance: float = 0.0,
        batch_size: int = 64,
    ) -> Images:
        """One image a seed: the image that sample.py makes of it.

        Args:
            seeds: each in [0, 2^63).
            sampler: ancestral, ddim, dpm_solver or heun; or all that a sampler can be told; None for `default_sampler`.
            num_steps: the sampler's steps; None for as many as it says, or else all T.
            labels: of a model with classes: which to draw, in turn by seed (-1: without one). None given: all of them.
            guidance: the scale of classifier-free guidance.

        Returns:
            uint8 [n, height, width, channels].

        Raises:
            InputError: if the model cannot do what is asked for, or a value of an image is not finite.
        """
        way = self._way(sampler, num_steps)
        request = SampleConfig(sampler=way, labels=tuple(labels), guidance=guidance, batch_size=batch_size)
        self.check(request)
        images = self.generate(to_keys(seeds), request)
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def progressive(
        self,
        seeds: Sequence[int],
        timesteps: Sequence[int],
        *,
        sampler: str | SamplerConfig | None = None,
        num_steps: int | None = None,
        labels: Sequence[int] = (),
        guidance: float = 0.0,
        on_step: OnStep | None = None,
    ) -> tuple[NDArray[np.uint8], Images]:
        """What the network expects to see on the way: x_0_hat at some of the sampler's steps (Fig. 6), and the images.

        Args:
            timesteps: in [0, T-1], each one that the sampler takes.
            sampler, num_steps: as in `sample`.
            labels: of a model with classes: one an image (-1: without one). None given: without.
            guidance: the scale of classifier-free guidance.
            on_step: as in `generate`.

        Returns:
            uint8 [n, steps, height, width, channels], and the images: those of `sample` with the same labels.
        """
        way = self._way(sampler, num_steps)
        self.check(SampleConfig(sampler=way))
        keys, p = self._edited(seeds, labels, guidance)
        noise = seeded_noise(keys, self.config.image_shape)
        x_T = noise(p.schedule.num_timesteps)
        seen, x_0 = editing.progressive(p, way, x_T, noise, timesteps, on_step)
        return to_images(seen), to_images(x_0)

    def interpolate(
        self,
        images: Images,
        others: Images,
        shares: Sequence[float],
        step: int,
        *,
        seed: int = 0,
        sampler: str | SamplerConfig | None = None,
        num_steps: int | None = None,
        labels: Sequence[int] = (),
        guidance: float = 0.0,
    ) -> NDArray[np.uint8]:
        """Ways from images to others: mixed where both are diffused to a step, and denoised from there (Fig. 8).

        Args:
            shares: of the other image, each from 0 to 1.
            step: in [0, T-1]; the larger, the coarser is what the images share.
            seed: of the noise, the same for all.
            sampler, num_steps: as in `sample`.
            labels, guidance: as in `progressive`.

        Returns:
            uint8 [n, shares, height, width, channels].
        """
        x_0, x_0_other = (to_unit(self._on_device(some)) for some in (images, others))
        keys, p = self._edited([seed] * len(x_0), labels, guidance)
        noise = seeded_noise(keys, self.config.image_shape)
        eps, way = noise(p.schedule.num_timesteps), self._way(sampler, num_steps)
        ways = [editing.interpolate(p, way, x_0, x_0_other, share, step, eps, noise) for share in shares]
        return to_images(torch.stack(ways, dim=1))

    def inpaint(
        self,
        images: Images,
        known: NDArray[Any],
        seeds: Sequence[int],
        *,
        num_steps: int | None = None,
        resamplings: int = 10,
        labels: Sequence[int] = (),
        guidance: float = 0.0,
    ) -> Images:
        """Images completed where they are not known (RePaint).

        Args:
            known: True, 1 or 255 where an image is to be kept, False or 0 elsewhere; [height, width], [n, height, width]
                or [n or 1, height or 1, width or 1, channels or 1].
            seeds: one an image.
            num_steps: steps; None for all T.
            resamplings: how often each step is done.
            labels, guidance: as in `progressive`.
        """
        x_0 = to_unit(self._on_device(images))
        mask = to_mask(known, len(x_0), self.config.image_shape)
        keys, p = self._edited(seeds, labels, guidance)
        if len(keys) != len(x_0):
            raise InputError(f"there are {len(keys)} seeds for {len(x_0)} images; expected one an image")
        noise, T, draws = seeded_noise(keys, self.config.image_shape), p.schedule.num_timesteps, 3 * resamplings

        def drawn(t: int, number: int) -> Tensor:
            return noise(T + 1 + t * draws + number)  # none of them a step of `sample`

        clip = self.default_sampler.clip
        made = editing.inpaint(p, x_0, mask, noise(T), drawn, num_steps=num_steps, resamplings=resamplings, clip=clip)
        return to_images(made)

    def bits_per_dim(
        self,
        images: Images,
        *,
        labels: Sequence[int] | None = None,
        num_steps: int | None = None,
        clip: Clip = "static",
    ) -> NDArray[np.float64]:
        """The variational bound of each image, bits/dim: what its lossless code would cost at most (Eq. 5).

        Args:
            labels: of a model with classes: one an image (-1: without one). None given: without.
            num_steps: network passes an image: of an unbiased choice of steps; None for all T.
            clip: what is done to the predicted image: static, original, dynamic or none.
        """
        pixels = self._on_device(images)
        given, found = self._labels(labels or (), len(pixels)), []
        for first in range(0, len(pixels), GROUP):
            some = pixels[first : first + GROUP]
            p = self.reverse_process(given[first : first + GROUP])
            found.append(bits_per_image(p, some, first, num_steps, clip).cpu())
        return torch.cat(found).double().numpy()

    def _way(self, sampler: str | SamplerConfig | None, num_steps: int | None) -> SamplerConfig:
        """The sampler that is meant.

        Raises:
            InputError: if there is none of this name.
        """
        if isinstance(sampler, str):
            if sampler not in get_args(SamplerName):
                raise InputError(f"sampler is {sampler!r}; expected one of {', '.join(get_args(SamplerName))}")
            sampler = SamplerConfig(name=sampler)  # type: ignore[arg-type]
        way = sampler or self.default_sampler
        return way if num_steps is None else replace(way, num_steps=num_steps)

    def _on_device(self, images: Images) -> UInt8[Tensor, "n c h w"]:
        return to_tensor(images, self.config.image_shape).to(self.device)

    def _edited(
        self, seeds: Sequence[int], labels: Sequence[int], guidance: float
    ) -> tuple[Int[Tensor, " n"], ReverseProcess]:
        """The noise's keys, and p_theta of images of these classes."""
        keys = to_keys(seeds).to(self.device)
        p = self.reverse_process(self._labels(labels, len(keys), guidance), guidance)
        return keys, replace(p, schedule=p.schedule.to(self.device))

    def _labels(self, labels: Sequence[int], count: int, guidance: float = 0.0) -> Int[Tensor, " n"]:
        """A label an image; -1 everywhere if none are given.

        Raises:
            InputError: if the model does not know them, or there are others than one an image.
        """
        if len(labels) not in (0, count):
            raise InputError(f"there are {len(labels)} labels for {count} images; expected one an image")
        without = [-1] * count if self.config.num_classes else []
        self.check(SampleConfig(labels=tuple(labels or without), guidance=guidance))
        return torch.tensor(list(labels) or [-1] * count, device=self.device)

    def check(self, request: SampleConfig) -> None:
        """Refuse a request that the model cannot fulfil.

        Raises:
            InputError: in one line.
        """
        dropout = self.weights.config.get("train", {}).get("label_dropout") if self.weights else None
        check_request(self.config, request, label_dropout=dropout)


def _for_the_first(count: int, on_step: OnStep) -> OnStep:
    """`on_step`, told of the first images of a batch alone."""
    return lambda t, x_t, x_0_hat: on_step(t, x_t[:count], x_0_hat[:count])
