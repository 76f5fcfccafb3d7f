"""DINOv2 against a network, a resize and an interpolation that are written out plainly here, and what is refused of its files."""

import math
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features import dinov2
from ddpm_core.evaluation.features.dinov2 import Dims, Dinov2
from ddpm_core.evaluation.features.networks import FEATURES, Features
from ddpm_core.evaluation.features.weights import read_network
from pipelines.feature_weights import find_features

TINY = Dims(width=48, depth=2, heads=3)
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="needs transformers: pip install -e '.[dinov2]'"
)


def published(dims: Dims, device: str = "cpu") -> dict[str, Tensor]:
    """Random tensors of the published file, through which a signal comes to the end."""
    wide, four = dims.width, 4 * dims.width
    shapes = {"cls_token": (1, 1, wide), "pos_embed": (1, 1370, wide), "mask_token": (1, wide)}
    shapes |= {"patch_embed.proj.weight": (wide, 3, 14, 14), "patch_embed.proj.bias": (wide,)}
    for block in (f"blocks.{number}" for number in range(dims.depth)):
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {f"{block}.{name}.weight": (out * wide, into * wide), f"{block}.{name}.bias": (out * wide,)}
        shapes |= {f"{block}.{norm}.{part}": (wide,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{block}.ls1.gamma": (wide,), f"{block}.ls2.gamma": (wide,)}
    shapes |= {"norm.weight": (wide,), "norm.bias": (wide,)}
    assert four == shapes["blocks.0.mlp.fc1.bias"][0]
    if device == "meta":
        return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            tensor.mul_(0.2).add_(0 if name.endswith("bias") else 1)
        elif name.endswith("weight"):
            tensor.div_(math.sqrt(tensor[0].numel()))
    return tensors


def hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of Hugging Face's files."""
    found = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            number, _, rest = rest.partition(".")
            layer = f"encoder.layer.{number}."
            if rest.startswith("attn.qkv"):
                parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
                part_of = rest.rpartition(".")[2]
                found |= {f"{layer}attention.attention.{part}.{part_of}": each.clone() for part, each in parts}
                continue
            rest = rest.replace("attn.proj", "attention.output.dense")
            found[
                layer + rest.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
            ] = tensor
        elif first == "norm":
            found[f"layernorm.{rest}"] = tensor
        else:
            known = {
                "pos_embed": "position_embeddings",
                "patch_embed.proj.weight": "patch_embeddings.projection.weight",
            }
            known["patch_embed.proj.bias"] = "patch_embeddings.projection.bias"
            found[f"embeddings.{known.get(name, name)}"] = tensor
    return found


def plain(tensors: dict[str, Tensor], dims: Dims, x: Tensor) -> Tensor:
    """The vision transformer, written out in float64 (Dosovitskiy et al. 2021; LayerScale: Touvron et al. 2021)."""
    of = {name: tensor.double() for name, tensor in tensors.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * of[f"{name}.weight"]
            + of[f"{name}.bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ of[f"{name}.weight"].T + of[f"{name}.bias"]

    patches = functional.unfold(x.double(), 14, stride=14).mT
    x = patches @ of["patch_embed.proj.weight"].flatten(1).T + of["patch_embed.proj.bias"]
    x = torch.cat([of["cls_token"].expand(len(x), -1, -1), x], 1) + torch.from_numpy(bicubic(of["pos_embed"].numpy()))
    for block in (f"blocks.{number}" for number in range(dims.depth)):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, dims.heads, -1)).unbind(2)
        attention = (torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(dims.width / dims.heads)).softmax(-1)
        x = x + of[f"{block}.ls1.gamma"] * linear(
            torch.einsum("bhij,bjhd->bihd", attention, v).flatten(2), f"{block}.attn.proj"
        )
        hidden = functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + of[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def bicubic(embeddings: np.ndarray) -> np.ndarray:
    """Keys' kernel, a = -3/4, at (i + 1/2) * 37 / 16.1 - 1/2 of each axis, the edge repeated; float64."""
    place = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    matrix = np.zeros((16, 37))
    for row, at in enumerate(place):
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            d = abs(at - tap)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(tap, 0), 36)] += near if d <= 1 else far
    grid = embeddings[0, 1:].reshape(37, 37, -1)
    resized = np.einsum("ai,bj,ijd->abd", matrix, matrix, grid).reshape(1, 256, -1)
    return np.concatenate([embeddings[:, :1], resized], 1)


def images(size: tuple[int, int], channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(256, (2, channels, *size), dtype=torch.uint8, generator=generator)


def test_positions_are_sampled_as_published() -> None:
    given = torch.randn(1, 1370, 5, generator=torch.Generator().manual_seed(0))
    found = dinov2.resize_positions(given)
    assert found[:, 0].equal(given[:, 0])
    expected = torch.from_numpy(bicubic(given.double().numpy()))
    assert (found - expected).abs().max() < 1e-4  # a place near 37 in float32, times the slope there


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (28, 33), (224, 224), (301, 173)])
def test_images_come_as_to_dgm_eval(size: tuple[int, int]) -> None:
    """A PIL image in colour, resized; bytes over 255; ImageNet's mean and deviation."""
    given = images(size)
    for image, found in zip(given, dinov2.prepare(given), strict=True):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        expected = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1e-5
    grey = given[:, :1]
    assert dinov2.prepare(grey).equal(dinov2.prepare(grey.repeat(1, 3, 1, 1)))


@needs_transformers
@pytest.mark.parametrize("layout", [dict, hugging_face])
def test_network_is_the_plain_one(layout: object) -> None:
    tensors, before = published(TINY), torch.get_rng_state()
    network = Dinov2(TINY, layout(tensors)).eval()
    assert torch.get_rng_state().equal(before)
    x = dinov2.prepare(images((32, 32)))
    with torch.no_grad():
        (found,) = network(x)
    expected = plain(tensors, TINY, x)
    assert (expected[0] - expected[1]).abs().max() > 0.01 * expected.abs().max()  # it depends on the image
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_transformers
def test_names_of_the_other_layout_are_those_that_transformers_writes(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=TINY.width, num_hidden_layers=TINY.depth, num_attention_heads=TINY.heads, image_size=518
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    expected = hugging_face(published(TINY))
    assert {name: each.shape for name, each in written.items()} == {name: each.shape for name, each in expected.items()}
    Dinov2(TINY, written)


@needs_transformers
@pytest.mark.parametrize(
    ("network", "dims", "millions"),
    [
        ("dinov2_vits14", dinov2.SMALL, 22.06),
        ("dinov2_vitb14", dinov2.BASE, 86.58),
        ("dinov2_vitl14", dinov2.LARGE, 304.37),
    ],
)
def test_sizes_are_the_published_ones(network: str, dims: Dims, millions: float) -> None:
    """By the published count of parameters, of which the positions that are not used, and the mask token, are not loaded."""
    found = sum(p.numel() for p in FEATURES[network].weights.build(published(dims, "meta")).parameters())
    assert (found + (37**2 - 16**2 + 1) * dims.width) / 1e6 == pytest.approx(millions, abs=0.005)
    assert Features(network=network).dimensions(32, 3) == dims.width


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the small network."""
    entry = FEATURES["dinov2_vits14"]
    weights = replace(entry.weights, build=partial(Dinov2, TINY))
    monkeypatch.setitem(FEATURES, "dinov2_vits14", replace(entry, num_features=TINY.width, weights=weights))
    read_network.cache_clear()


def asked(weights: object = None) -> EvaluateConfig:
    return EvaluateConfig(features="dinov2_vits14", weights=None if weights is None else str(weights))


@needs_transformers
@pytest.mark.usefixtures("tiny")
def test_features_by_a_file_of_either_layout(tmp_path: Path) -> None:
    tensors = published(TINY)
    torch.save(tensors, tmp_path / "published.pth")
    save_file(hugging_face(tensors), tmp_path / "model.safetensors")
    given = images((8, 8), channels=1)
    expected = plain(tensors, TINY, dinov2.prepare(given))
    for name in ("published.pth", "model.safetensors"):
        found = find_features(asked(tmp_path / name), str(tmp_path / "store"))
        assert found.sha256[:16] in found.weights
        features = found.extract(given)
        assert features.dtype == torch.float32
        assert features.shape == (2, found.dimensions(8, 1))
        assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
        assert found.figure(50_000) == f"fd_dinov2_vits14_{found.sha256[:8]}"


@needs_transformers
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"norm.bias": None}, "Missing key.*layernorm.bias"),
        ({"register_tokens": torch.zeros(1, 4, 48)}, "Unexpected key.*register_tokens"),
        ({"norm.bias": torch.zeros(4)}, "size mismatch for layernorm.bias"),
        ({"pos_embed": torch.zeros(1, 257, 48)}, "shape"),
        ({"norm.bias": [1.0]}, "attribute"),
    ],
)
def test_refuses_the_weights_of_another_network(tmp_path: Path, changed: dict, why: str) -> None:
    tensors = {name: tensor for name, tensor in (published(TINY) | changed).items() if tensor is not None}
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"does not hold the weights of DINOv2's vits14; .*{why}") as refused:
        find_features(asked(tmp_path / "other.pth"), str(tmp_path / "store"))
    assert "\n" not in str(refused.value)


@needs_transformers
def test_weights_are_to_be_named(tmp_path: Path) -> None:
    why = r"expected --evaluate\.weights .* dinov2_vits14_pretrain\.pth, or of .* facebook/dinov2-small"
    with pytest.raises(InputError, match=why.replace(" dinov2_vits14", " https://.*/dinov2_vits14")):
        find_features(asked(), str(tmp_path))


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read or fetched."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError) as refused:
        find_features(asked("http://127.0.0.1:1/x.pth"), str(tmp_path))
    assert str(refused.value) == "DINOv2 needs transformers; expected it installed: pip install -e '.[dinov2]'"
