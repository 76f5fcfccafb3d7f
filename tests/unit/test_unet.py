"""The network: each detail of the published code that has a closed form."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddpm_core.model import blocks, unet
from ddpm_core.model.blocks import Attention, Downsample, KeyedDropout, ResBlock, Upsample, group_norm, time_embedding
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import DropoutKey, UNet, UNetConfig, recompute_activations

SMALL = UNetConfig(base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))


def small(seed: int = 0, **changes) -> UNet:
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | changes
    model = UNet(UNetConfig(**fields), image_size=8, channels=3)
    init_unet(model, seed)
    return model


def lively(model: UNet) -> UNet:
    """Weights of ordinary size everywhere, so that nothing hides behind a near-zero layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 / math.sqrt(p[0].numel())))
    return model


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(size) * 300


def test_time_embedding_is_all_sines_then_all_cosines() -> None:
    t = np.array([0, 1, 10, 999])
    frequencies = np.exp(-np.log(10_000) / 63 * np.arange(64))
    expected = np.concatenate([np.sin(t[:, None] * frequencies), np.cos(t[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(time_embedding(torch.from_numpy(t), 128).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (192, 32), (384, 32), (64, 16), (96, 8), (32, 8), (16, 4), (48, 4), (12, 1)]
)
def test_group_norm_has_32_groups_or_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    norm = group_norm(channels)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


def test_downsampling_pads_at_the_bottom_and_right_only() -> None:
    layer = Downsample(1)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        layer.conv.bias.zero_()
        out = layer(x)
    padded = np.zeros((5, 5))
    padded[:4, :4] = x[0, 0].numpy()
    expected = [[padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].sum() for j in range(2)] for i in range(2)]
    assert out[0, 0].tolist() == expected


def test_upsampling_repeats_pixels_and_convolves() -> None:
    layer = Upsample(1)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 1, 1] = 1.0
        layer.conv.bias.zero_()
        out = layer(x)
    assert out[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_attention_is_softmax_of_the_scaled_products() -> None:
    torch.manual_seed(0)
    layer, x = Attention(8).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    h = F.group_norm(x, 2, eps=1e-6).flatten(2).numpy()

    def project(conv: torch.nn.Conv2d, h: np.ndarray) -> np.ndarray:
        return (
            np.einsum("oc,bcp->bop", conv.weight.detach()[:, :, 0, 0].numpy(), h) + conv.bias.detach().numpy()[:, None]
        )

    scores = np.einsum("bcp,bcq->bpq", project(layer.query, h), project(layer.key, h)) / math.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    attended = np.einsum("bpq,bcq->bcp", weights, project(layer.value, h))
    expected = x.numpy() + project(layer.out, attended).reshape(x.shape)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9)


def test_a_residual_block_is_what_the_published_code_says() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 8, 16, KeyedDropout(0.0, 0)).double()
    x, time = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    h = F.conv2d(swish(F.group_norm(x, 1, eps=1e-6)), block.conv_1.weight, block.conv_1.bias, padding=1)
    h = h + (swish(time) @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.conv2d(swish(F.group_norm(h, 2, eps=1e-6)), block.conv_2.weight, block.conv_2.bias, padding=1)
    expected = F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + h
    torch.testing.assert_close(block(x, time, None), expected)


def test_attention_stands_at_the_sizes_asked_for_and_in_the_middle() -> None:
    with torch.device("meta"):
        model = UNet(UNetConfig(), image_size=32, channels=3)
    found = [name for name, module in model.named_modules() if isinstance(module, Attention)]
    down, up = [f"down.1.attentions.{i}" for i in range(2)], [f"up.2.attentions.{i}" for i in range(3)]
    assert sorted(found) == sorted([*down, "middle_attention", *up])


@pytest.mark.parametrize(
    ("config", "image_size", "channels"),
    [
        (UNetConfig(base_channels=16, channel_multipliers=(1, 2, 2), attention_resolutions=(7,)), 28, 1),
        (UNetConfig(base_channels=16, channel_multipliers=(1, 2, 2), attention_resolutions=(14, 28)), 28, 1),
        (UNetConfig(base_channels=32, channel_multipliers=(1, 2), attention_resolutions=()), 8, 3),
        (UNetConfig(base_channels=4, channel_multipliers=(3,), num_res_blocks=1, attention_resolutions=()), 5, 1),
    ],
)
def test_the_output_has_the_inputs_shape(config: UNetConfig, image_size: int, channels: int) -> None:
    model = UNet(config, image_size=image_size, channels=channels)
    x = torch.zeros(2, channels, image_size, image_size)
    assert model(x, torch.tensor([0, 5])).shape == x.shape


def test_the_number_of_outputs_can_be_chosen() -> None:
    model = UNet(SMALL, image_size=8, channels=3, num_outputs=6)
    assert model(*batch()).shape == (3, 6, 8, 8)


def test_gradients_reach_every_weight() -> None:
    model = lively(small())
    model(*batch()).square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize("base_channels", [4, 16, 32])
@torch.no_grad()
def test_the_output_depends_on_x_t_and_t(base_channels: int) -> None:
    model, (x, t) = lively(small(base_channels=base_channels)), batch()
    out = model(x, t)
    assert float((model(x, t + 1) - out).abs().max()) > 1e-4
    assert float((model(x + 0.1, t) - out).abs().max()) > 1e-4


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first = small(0).state_dict()
    torch.manual_seed(123)
    again, other = small(0).state_dict(), small(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])
    assert not torch.equal(first["middle_attention.query.weight"], first["middle_attention.key.weight"])


def test_init_forgets_the_weights_before() -> None:
    expected, model = small(0).state_dict(), lively(small(0))
    init_unet(model, 0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_initial_weights_are_fan_avg_uniform_and_near_zero_at_the_ends() -> None:
    model = small()
    for name, p in model.state_dict().items():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert bool((p == 1).all()), name
        else:
            area = p[0, 0].numel()
            bound = math.sqrt(3 * 2 / ((p.shape[0] + p.shape[1]) * area))
            if "conv_2" in name or name.endswith("out.weight"):
                bound *= 1e-5
            assert float(p.abs().max()) <= bound * (1 + 1e-6), name
            error = 4 * bound**2 * math.sqrt(4 / 45 / p.numel())
            assert float(p.square().mean()) == pytest.approx(bound**2 / 3, abs=error), name
            assert float(p.mean()) == pytest.approx(0, abs=4 * bound / math.sqrt(3 * p.numel())), name


def test_without_a_key_or_probability_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("noise was drawn")

    monkeypatch.setattr(blocks, "dropout_mask", refuse)
    model, key = lively(small()), DropoutKey(0, torch.arange(3))
    assert torch.equal(model.train()(*batch()), model.eval()(*batch()))
    lively(small(dropout=0.0))(*batch(), dropout=key)
    with pytest.raises(AssertionError, match="noise was drawn"):
        model(*batch(), dropout=key)


def test_dropout_keeps_the_mean_and_zeroes_at_its_rate() -> None:
    h = torch.ones(4, 8, 50, 50)
    out = KeyedDropout(0.1, 0)(h, DropoutKey(0, torch.arange(4)))
    assert float((out == 0).double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / h.numel()))
    assert out[out != 0].unique().tolist() == [pytest.approx(1 / 0.9, rel=1e-4)]


def test_every_dropout_layer_has_its_own_noise() -> None:
    layers = [module.layer for module in small().modules() if isinstance(module, KeyedDropout)]
    assert sorted(layers) == list(range(8))
    h, key = torch.ones(1, 4, 8, 8), DropoutKey(0, torch.arange(1))
    assert not torch.equal(KeyedDropout(0.5, 0)(h, key), KeyedDropout(0.5, 1)(h, key))


@torch.no_grad()
def test_dropout_depends_on_seed_and_position_not_on_the_batch() -> None:
    model, (x, t) = lively(small(dropout=0.5)), batch()
    index = torch.tensor([7, 2**35, 3])
    out = model(x, t, dropout=DropoutKey(0, index))
    shuffled = torch.tensor([2, 0, 1])
    again = model(x[shuffled], t[shuffled], dropout=DropoutKey(0, index[shuffled]))
    torch.testing.assert_close(again, out[shuffled], rtol=1e-4, atol=1e-5)
    alone = model(x[1:2], t[1:2], dropout=DropoutKey(0, index[1:2]))
    torch.testing.assert_close(alone, out[1:2], rtol=1e-4, atol=1e-5)
    for other in (DropoutKey(1, index), DropoutKey(0, index + 1)):
        assert float((model(x, t, dropout=other) - out).abs().max()) > 1e-2


def gradients(model: UNet, precision: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Of a step with dropout: the loss, the gradients, and the bytes that the forward pass keeps for the backward pass."""
    (x, t), key, kept = batch(8), DropoutKey(0, torch.arange(8)), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too: its address is not used again
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32),
    ):
        loss = model(x, t, dropout=key).float().square().mean()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found, sum(size for size, _ in kept.values())


@pytest.mark.parametrize("size", [4, 32])
def test_a_norm_of_bfloat16_is_that_of_the_same_numbers(size: int) -> None:
    """Both ways, whatever it is computed in; with and without a gradient the same bits."""
    norm = group_norm(16)
    generator = torch.Generator().manual_seed(0)
    x, g = ((3 + torch.randn(4, 16, size, size, generator=generator)).bfloat16() for _ in range(2))
    x, g = (each.contiguous(memory_format=torch.channels_last) for each in (x, g))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
        norm.bias.copy_(torch.linspace(-1.0, 1.0, 16))
    found = []
    for dtype, of in ((torch.bfloat16, norm), (torch.float64, copy.deepcopy(norm).double())):
        given = x.to(dtype, copy=True).requires_grad_()
        out = of(given)
        found.append([out, *torch.autograd.grad(out, [given, *of.parameters()], g.to(dtype))])
    for ours, expected in zip(*found, strict=True):
        assert (ours.double() - expected).norm() < 2**-8 * expected.norm()
    assert found[0][0].dtype == torch.bfloat16
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(norm(x), found[0][0])


@pytest.mark.parametrize(("pixels", "heads"), [(9, 2), (1024, 1), (1156, 1)])
def test_attention_in_bfloat16_is_that_of_the_same_numbers(pixels: int, heads: int) -> None:
    """Both ways, whichever way it is computed."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, heads, pixels, 8, generator=generator).bfloat16() for _ in range(4)]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        query, key, value, g = (each.to(dtype, copy=True).requires_grad_() for each in given)
        out = blocks.attended(query, key, value)
        found.append([out, *torch.autograd.grad(out, (query, key, value), g)])
    for ours, expected in zip(*found, strict=True):
        assert (ours.double() - expected).norm() < 2**-6 * expected.norm()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputing_gives_the_same_bits_and_keeps_less(precision: torch.dtype) -> None:
    wide = {"attention_resolutions": (8, 4), "dropout": 0.5, "num_res_blocks": 2}
    plain, thrifty = lively(small(**wide)), lively(small(**wide))
    recompute_activations(thrifty)
    loss, expected, much = gradients(plain, precision)
    again, found, little = gradients(thrifty, precision)
    assert torch.equal(again, loss)
    assert found.keys() == expected.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert little < 0.4 * much


def test_recomputing_computes_nothing_twice_where_there_is_no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(small())
    recompute_activations(model)
    monkeypatch.setattr(unet, "checkpoint", None)
    with torch.no_grad():
        out = model(*batch())
    assert torch.equal(out, lively(small())(*batch()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_channels": 0}, "base-channels is 0; expected a multiple of 4, 4 or more"),
        ({"base_channels": 34}, "base-channels is 34; expected a multiple of 4"),
        ({"channel_multipliers": ()}, r"channel-multipliers is \(\); expected one or more"),
        ({"channel_multipliers": (1, 0)}, r"channel-multipliers is \(1, 0\); expected"),
        ({"num_res_blocks": 0}, "num-res-blocks is 0; expected 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a probability"),
        ({"num_classes": -1}, "num-classes is -1; expected 0 or more"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="image size is 28; expected a multiple of 8, for the 4 levels"):
        UNet(UNetConfig(attention_resolutions=(7,)), image_size=28, channels=1)


def test_attention_at_a_size_that_never_occurs_is_refused() -> None:
    with pytest.raises(ValueError, match="attention-resolutions has 16; expected sizes that the levels have: 8, 4"):
        UNet(UNetConfig(channel_multipliers=(1, 2)), image_size=8, channels=3)
