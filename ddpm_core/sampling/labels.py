"""Which class each seed draws, and the network told of it."""

import operator

import torch

from ddpm_core.diffusion.reverse import guided
from ddpm_core.errors import InputError
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.types import Denoiser, Int, Network, Tensor


def check_labels(
    config: SampleConfig, num_classes: int, *, label_dropout: float | None = None, null_label: bool = True
) -> None:
    """Refuse labels that the network does not know, and to go without where it always had one.

    Args:
        num_classes: of the network; 0 for one without labels.
        label_dropout: of its training, where that is known.
        null_label: of the network's form.

    Raises:
        InputError: if so.
    """
    if num_classes == 0 and (config.labels or config.guidance != 0):
        what = f"labels is {list(config.labels)}" if config.labels else f"guidance is {config.guidance:g}"
        raise InputError(f"sample.{what} and the model was trained without classes; expected neither")
    for label in config.labels:
        if not _is_whole(label) or not -1 <= label < num_classes:
            raise InputError(f"sample.labels has {label!r}; expected 0 to {num_classes - 1}, or -1 for no label")
    if config.guidance == 0 and -1 not in config.labels:
        return
    what = "labels has -1" if -1 in config.labels else f"guidance is {config.guidance:g}"
    why = None
    if not null_label:
        why = "the network knows no image without a label (unet.form.null-label is False)"
    elif label_dropout == 0:
        why = "the model was trained with train.label-dropout 0: without a label it draws noise"
    if why:
        raise InputError(f"sample.{what} and {why}; expected guidance 0 and labels of classes")


def _is_whole(label: object) -> bool:
    """Also of numpy and torch."""
    try:
        operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def labels_in_turn(config: SampleConfig, num_classes: int) -> tuple[int, ...]:
    """The labels that the seeds take in turn: those of the config, all classes by default; empty for a network without."""
    return config.labels or tuple(range(num_classes))


def labels_of_seeds(seeds: Int[Tensor, " b"], config: SampleConfig, num_classes: int) -> Int[Tensor, " b"]:
    """The label of each seed; -1 for none."""
    choice = torch.tensor(labels_in_turn(config, num_classes) or (-1,), device=seeds.device)
    return choice[seeds % len(choice)]


def labelled(network: Network, labels: Int[Tensor, " b"], guidance: float, channels: int) -> Denoiser:
    """The network as a Denoiser of images of these classes.

    Args:
        labels: of the batch that will be denoised; -1 for none.
        guidance: the scale of classifier-free guidance; 0 for none.
        channels: of an image.
    """

    def conditional(x_t: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x_t, t, labels)
        return out

    def unconditional(x_t: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x_t, t)
        return out

    return guided(conditional, unconditional, guidance, channels) if guidance != 0 else conditional
