"""What a model refuses to sample."""

from ddpm_core.diffusion.sampler_config import check_sampler, check_spacing
from ddpm_core.model.config import ModelConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import check_labels


def check_request(config: ModelConfig, request: SampleConfig, *, label_dropout: float | None) -> None:
    """Refuse a request that such a model cannot fulfil.

    Args:
        label_dropout: of its training, where that is known.

    Raises:
        InputError: in one line.
    """
    unet = config.unet
    check_labels(request, unet.num_classes, label_dropout=label_dropout, null_label=unet.form.null_label)
    check_sampler(request.sampler, config.reverse.variance, config.schedule.num_timesteps)
    check_spacing(request.sampler, config.build_schedule())
