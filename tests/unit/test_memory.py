"""What a training step needs of memory, against what autograd keeps; and how many images at a time fit."""

from dataclasses import replace

import pytest
import torch

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.blocks import DropoutKey
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.training.memory import images_at_once, memory_of_worker, step_bytes

MODEL = ModelConfig(
    image_size=16,
    channels=3,
    unet=UNetConfig(
        base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), dropout=0.1
    ),
    schedule=ScheduleConfig(),
    reverse=ReverseConfig(),
)


def kept_by_autograd(num_images: int) -> int:
    """Bytes of what a forward pass keeps for the backward pass, the weights' apart."""
    network = MODEL.build_network().train()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_t, index = torch.zeros(num_images, 3, 16, 16), torch.zeros(num_images, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x_t, index, index - 1, DropoutKey(0, index))
    del out
    return sum(kept.values())


def test_a_step_needs_what_autograd_keeps_and_little_more() -> None:
    weights = sum(p.numel() * p.element_size() for p in MODEL.build_network().parameters())
    for num_images in (4, 8):
        needed, kept = step_bytes(MODEL, num_images) - 5 * weights, kept_by_autograd(num_images)
        assert kept < needed < 2 * kept


def test_more_images_need_as_much_more_each_and_weights_nothing() -> None:
    nine, ten, twenty = (step_bytes(MODEL, number) for number in (9, 10, 20))
    assert twenty - ten == pytest.approx(10 * (ten - nine), rel=0.02)
    assert step_bytes(MODEL, 9, recompute=True) < nine
    assert step_bytes(MODEL, 9, bfloat16=True) < nine


def test_the_parts_of_a_batch_are_the_largest_that_fit() -> None:
    sizes = {number: step_bytes(MODEL, number) for number in (1, 3, 4, 5)}
    assert images_at_once(MODEL, 12, sizes[3]) == 3
    assert images_at_once(MODEL, 12, sizes[4] - 1) == 3
    assert images_at_once(MODEL, 12, sizes[5]) == 4  # three parts of 4, not two of 5 and one of 2
    assert images_at_once(MODEL, 12, 2**40) == 12
    with pytest.raises(MemoryError, match=r"^training needs \d+\.\d MB for one image, .*set --train\.recompute"):
        images_at_once(MODEL, 12, sizes[1] - 1)


def test_workers_of_one_machine_share_its_memory() -> None:
    alone = memory_of_worker(torch.device("cpu"), 1)
    assert 0 < alone < 2**50
    assert memory_of_worker(torch.device("cpu"), 4) == pytest.approx(alone / 4, abs=4)


def test_a_network_that_is_told_of_augmentation_has_a_size_too() -> None:
    assert step_bytes(replace(MODEL, unet_augment=9), 2) > step_bytes(MODEL, 2)
