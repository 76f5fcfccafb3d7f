"""What improved-diffusion's flags say of a model that it trained: most of it is in no weight's shape."""

from dataclasses import dataclass, fields
from typing import Any

from ddpm_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What that code's flags say of a model, by their names there; what none of them says is as its defaults have it.

    Raises:
        InputError: if a value has no counterpart here.
    """

    image_size: int | None = None
    """Of this and those below that may be None, the weights' shapes tell: what is given is compared."""
    num_channels: int | None = None
    num_res_blocks: int | None = None
    attention_resolutions: str | None = None
    """Sizes in pixels, as "16,8"; one that no level has means nothing."""
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    use_scale_shift_norm: bool | None = None
    num_heads: int = 4
    num_heads_upsample: int = -1
    """-1: as many as on the way down; another number has no counterpart."""
    dropout: float = 0.0
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    sigma_small: bool = False
    rescale_timesteps: bool = True

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_heads_upsample not in (-1, self.num_heads):
            raise InputError(
                f"num_heads is {self.num_heads} and num_heads_upsample {self.num_heads_upsample}; expected 1 or more, and "
                "as many on the way up, or -1"
            )
        if self.diffusion_steps < 1:
            raise InputError(f"diffusion_steps is {self.diffusion_steps}; expected 1 or more")
        if self.noise_schedule not in ("linear", "cosine"):
            raise InputError(f"noise_schedule is {self.noise_schedule}; expected linear or cosine")


# Flags of training and sampling, of which the model does not depend: told, they are passed over.
_OTHERS = {
    *("rescale_learned_sigmas", "use_kl", "use_checkpoint", "timestep_respacing", "use_fp16"),
    *("lr", "batch_size", "microbatch", "schedule_sampler", "weight_decay", "ema_rate", "lr_anneal_steps"),
}
_COSINE = "--diffusion_steps 4000 --noise_schedule cosine"
_UNSCALED = "--rescale_learned_sigmas False --rescale_timesteps False"
_LSUN = f"--num_heads 1 --diffusion_steps 1000 --noise_schedule linear {_UNSCALED}"
PUBLISHED = {
    "imagenet64_uncond_100M_1500K.pt": f"--image_size 64 {_COSINE}",
    "imagenet64_uncond_vlb_100M_1500K.pt": f"--image_size 64 {_COSINE}",
    "imagenet64_cond_270M_250K.pt": f"--image_size 64 --class_cond True {_COSINE} {_UNSCALED}",
    "cifar10_uncond_50M_500K.pt": f"--image_size 32 --dropout 0.3 {_COSINE}",
    "cifar10_uncond_vlb_50M_500K.pt": f"--image_size 32 --dropout 0.3 {_COSINE}",
    "lsun_uncond_100M_1200K_bs128.pt": f"--image_size 256 {_LSUN}",
    "lsun_uncond_100M_2400K_bs64.pt": f"--image_size 256 {_LSUN}",
}
"""The published models by their files' names: the flags that shapes do not tell (that code's README, "Models and
Hyperparameters"). The upsampling model has another input, and no counterpart here."""


def read_flags(words: str) -> Flags:
    """Flags as that code takes them: --name value pairs.

    Raises:
        InputError: for a flag that is not known, or a value that is none.
    """
    given = words.replace("=", " ").split()
    pairs = dict(zip(given[::2], given[1::2], strict=False))
    if len(given) % 2 or not all(name.startswith("--") for name in pairs):
        raise InputError(f"the flags are {words!r}; expected pairs, as --image_size 32 --learn_sigma True")
    kinds = {field.name: getattr(field.type, "__name__", str(field.type)).split(" ")[0] for field in fields(Flags)}
    values: dict[str, Any] = {}
    for flag, word in pairs.items():
        name = flag.removeprefix("--")
        if name in _OTHERS:
            continue
        if name not in kinds:
            raise InputError(f"{flag} is {word}; expected one of {', '.join(f'--{known}' for known in kinds)}")
        values[name] = _value(flag, word, kinds[name])
    return Flags(**values)


def _value(flag: str, word: str, kind: str) -> Any:
    try:
        match kind:
            case "bool":
                return {"true": True, "false": False}[word.lower()]
            case "int":
                return int(word)
            case "float":
                return float(word)
            case _:
                return word
    except (ValueError, KeyError):
        raise InputError(
            f"{flag} is {word}; expected {'True or False' if kind == 'bool' else f'a value of type {kind}'}"
        ) from None
