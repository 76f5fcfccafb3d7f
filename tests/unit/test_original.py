"""Variables of the original TensorFlow code, by their names: with its scope and without, averaged or not."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

import ddpm_core
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.interop.model_folder import write_model
from ddpm_core.interop.names import names_of, to_original
from ddpm_core.interop.original import CONVERT, read_original
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNetConfig
from pipelines.recipes.recipes import make

CONFIG = ddpm_core.ModelConfig(
    image_size=8,
    channels=3,
    unet=UNetConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,)),
    schedule=ScheduleConfig(num_timesteps=4),
    reverse=ReverseConfig(),
)
Variables = dict[str, torch.Tensor]


def ours() -> Variables:
    torch.manual_seed(0)
    return {name: 0.3 * torch.randn(p.shape) for name, p in CONFIG.build_network().named_parameters()}


def variables() -> Variables:
    tensors = ours()
    return {str(n.original): to_original(n, tensors[n.ours]) for n in names_of(CONFIG.build_network())}


def saved(folder: Path, found: Variables) -> str:
    np.savez(folder / "model.npz", **{name: tensor.numpy() for name, tensor in found.items()})
    return str(folder / "model.npz")


def scoped(found: Variables, tail: str = "") -> Variables:
    return {f"model/{name}{tail}": tensor for name, tensor in found.items()}


def whole_checkpoint(found: Variables) -> Variables:
    """The averages beside weights that are others, and what the optimizer keeps."""
    others = scoped({name: tensor + 1 for name, tensor in found.items()})
    slots = {f"model/{name}/{slot}": tensor for name, tensor in found.items() for slot in ("Adam", "Adam_1")}
    averages = scoped(found, "/ExponentialMovingAverage")
    return {**others, **slots, **averages, "global_step": torch.tensor(790_000), "beta1_power": torch.tensor(0.0)}


@pytest.mark.parametrize(
    "written",
    [dict, scoped, lambda found: scoped(found, ":0"), whole_checkpoint],
    ids=["bare", "scope", ":0", "averages"],
)
def test_they_are_read_to_the_bit(written: Callable[[Variables], Variables], tmp_path: Path) -> None:
    read = read_original(saved(tmp_path, written(variables())), CONFIG)
    expected = ours()
    assert read.config == CONFIG
    assert read.tensors.keys() == expected.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in expected.items())


def test_a_safetensors_file_too_and_it_is_written_as_a_model(tmp_path: Path) -> None:
    safetensors.torch.save_file(scoped(variables()), tmp_path / "model.safetensors")
    read = read_original(str(tmp_path / "model.safetensors"), CONFIG)
    write_model(str(tmp_path / "model"), read.config, read.tensors)
    assert ddpm_core.load(str(tmp_path / "model")).sample([0]).shape == (1, 8, 8, 3)


def test_some_of_its_variables_by_name_and_shape(tmp_path: Path) -> None:
    """The paper's network for CIFAR-10, as its code names and lays out what it learns."""
    recipe = make("cifar10")
    config = replace(CONFIG, image_size=32, unet=recipe.unet)
    with pytest.raises(ValueError, match=r"model\.npz: there is no temb/dense0/W; expected one of shape \(128, 512\)"):
        read_original(saved(tmp_path, {"model/conv_in/W": torch.zeros(3, 3, 3, 128)}), config)
    with torch.device("meta"):
        network = config.build_network()
    shapes = {name: p.shape for name, p in network.named_parameters()}
    found = {
        n.original: tuple(to_original(n, torch.empty(shapes[n.ours], device="meta")).shape) for n in names_of(network)
    }
    assert found["down_1/attn_0/q/W"] == (256, 256)
    assert found["up_0/block_0/nin_shortcut/W"] == (384, 128)
    assert found["mid/block_1/temb_proj/W"] == (512, 256)
    assert found["conv_out/W"] == (3, 3, 128, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_in/W": None}, "there is no conv_in/W; expected one of shape (3, 3, 3, 8)"),
        ({"conv_in/W": torch.zeros(3, 3, 3, 9)}, "conv_in/W has shape (3, 3, 3, 9); expected (3, 3, 3, 8)"),
        ({"conv_in/b": torch.zeros(8, dtype=torch.int32)}, "conv_in/b is of type torch.int32; expected floating point"),
        ({"conv_in/c": torch.zeros(8)}, "conv_in/c of shape (8,) is no weight of the network"),
    ],
)
def test_other_variables_are_refused_by_name(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    found = {name: tensor for name, tensor in {**variables(), **changes}.items() if tensor is not None}
    with pytest.raises(ValueError, match=r".") as error:
        read_original(saved(tmp_path, scoped(found)), CONFIG)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_average_that_is_missing_is_not_made_up_for_by_the_weight(tmp_path: Path) -> None:
    found = whole_checkpoint(variables())
    del found["model/conv_in/b/ExponentialMovingAverage"]
    with pytest.raises(ValueError, match="there is no conv_in/b; expected one of shape"):
        read_original(saved(tmp_path, found), CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "unet.num-classes is 3, which no network of the original code is; expected a recipe"),
        ({"form": UNetForm(norm_groups=4)}, "unet.form is not the paper's, which no network of the original code is"),
    ],
)
def test_a_network_that_it_does_not_have_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_original(saved(tmp_path, variables()), replace(CONFIG, unet=replace(CONFIG.unet, **changes)))  # type: ignore[arg-type]


def test_a_checkpoint_of_tensorflow_is_told_how_to_be_converted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no \.npz or \.safetensors file; expected") as error:
        read_original(str(tmp_path / "model.ckpt-790000"), CONFIG)
    said = str(error.value)
    assert "\n" not in said
    compile(said[said.index('"') + 1 : said.rindex('"')], "CONVERT", "exec")
    assert said.endswith("model.ckpt-790000 model.npz")


def test_the_converter_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for TensorFlow's reader, which has these three functions."""
    stored = {**whole_checkpoint(variables()), "_CHECKPOINTABLE_OBJECT_GRAPH": b"no tensor"}

    class Reader:
        def get_variable_to_dtype_map(self) -> dict[str, object]:
            return {name: getattr(value, "dtype", bytes) for name, value in stored.items()}

        def get_tensor(self, name: str) -> object:
            return stored[name].numpy()  # type: ignore[union-attr]

    tensorflow = SimpleNamespace(train=SimpleNamespace(load_checkpoint=lambda path: Reader()), float32=torch.float32)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["-c", "model.ckpt-790000", str(tmp_path / "model.npz")])
    exec(CONVERT, {})
    read = read_original(str(tmp_path / "model.npz"), CONFIG).tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in ours().items())
