"""The denoiser as an ONNX file: onnxruntime gives what our network gives."""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import onnxscript  # noqa: F401 -- it imports onnx, which a test takes away
import pytest
import safetensors.torch
import torch

from ddpm_core import optional
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.interop import onnx as interop
from ddpm_core.interop.onnx import write_onnx
from ddpm_core.model.config import ModelConfig, model_json
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.model.weights import load_network
from ddpm_core.serialization import to_json

SIZE = 8


def weights_of(num_classes: int = 0, seed: int = 0) -> Weights:
    """Of a network like that of the digits, attention in it, with a second output."""
    unet = UNetConfig(
        base_channels=24,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.2,
        num_classes=num_classes,
    )
    config = ModelConfig(
        unet=unet,
        image_size=SIZE,
        channels=1,
        schedule=ScheduleConfig(),
        reverse=ReverseConfig(variance="learned_range"),
    )
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in config.build_network().named_parameters()}
    file = safetensors.torch.save({name: 0.2 * torch.randn(s, generator=generator) for name, s in shapes.items()})
    return Weights(
        uri="", step=7, sha256=sha256_of(file), config=to_json(config), dataset_digest="", dataset_uri="", file=file
    )


def network_of(weights: Weights, num_classes: int) -> UNet:
    unet = UNetConfig(
        base_channels=24,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_classes=num_classes,
    )
    network = UNet(unet, image_size=SIZE, channels=1, num_outputs=2)
    load_network(network, weights.tensors)
    return network.eval()


@pytest.fixture(scope="module", params=[0, 10], ids=["without classes", "10 classes"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A file that nobody may change."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(str(path), weights_of(request.param))
    return path, request.param


@torch.no_grad()
def assert_same(path: Path, num_classes: int, batch: int) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(batch)
    x_t = 2 * torch.randn(batch, 1, SIZE, SIZE, generator=generator)
    t, labels = torch.tensor([999, 0, 421])[:batch], torch.tensor([-1, 9, 0])[:batch]
    feeds = {"x_t": x_t.numpy(), "t": t.numpy(), **({"labels": labels.numpy()} if num_classes else {})}
    assert [each.name for each in session.get_inputs()] == list(feeds)
    (found,) = session.run(["output"], feeds)
    expected = network_of(weights_of(num_classes), num_classes)(x_t, t, labels)
    assert float(expected.std()) > 0.1
    difference = float((torch.from_numpy(found) - expected).abs().max())
    print(f"difference {difference:.2g} of {float(expected.abs().max()):.2g}")
    assert difference < 1e-4


@pytest.mark.parametrize("batch", [1, 3])
def test_onnxruntime_gives_what_our_network_gives(written: tuple[Path, int], batch: int) -> None:
    assert_same(*written, batch)


def test_the_file_says_what_it_holds(written: tuple[Path, int]) -> None:
    path, num_classes = written
    weights, model = weights_of(num_classes), onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert said.keys() == {"sha256", "step", "config"}
    assert (said["sha256"], said["step"]) == (weights.sha256, "7")
    assert json.loads(said["config"]) == model_json(weights.config)
    assert [tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.output] == [
        ("batch", 2, SIZE, SIZE)
    ]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no path of this machine
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_done_twice_it_changes_nothing_and_another_model_is_not_written_over(written: tuple[Path, int]) -> None:
    path, num_classes = written
    before = path.stat().st_mtime_ns
    write_onnx(str(path), weights_of(num_classes))
    other = weights_of(num_classes, seed=1)
    with pytest.raises(
        ValueError, match=r"model.onnx is there and is another model's or none; expected a file that does"
    ):
        write_onnx(str(path), other)
    assert path.stat().st_mtime_ns == before


def test_a_file_that_is_no_onnx_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"model.onnx is there and is another model's or none"):
        write_onnx(str(path), weights_of())
    assert path.read_bytes() == b"no model at all"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_what_it_needs_is_asked_for_in_a_line(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ValueError, match=rf"^an ONNX file needs {missing}; expected it .*: pip install -e '\.\[onnx\]'$"
    ):
        write_onnx(str(tmp_path / "model.onnx"), weights_of())
    assert not list(tmp_path.iterdir())


def test_a_wheel_is_told_what_a_wheel_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "_CHECKOUT", tmp_path / "pyproject.toml")
    with pytest.raises(ValueError, match=r": pip install 'ddpm-pipeline\[onnx\]'$"):
        _ = optional.late("not_there", "onnx", "an ONNX file", extra="onnx").anything


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interop, "_WHOLE_BYTES", 1)
    weights = weights_of()
    own = to_json(SamplerConfig(clip="none"))
    path = tmp_path / "model.onnx"
    write_onnx(str(path), Weights(**{**vars(weights), "config": {**weights.config, "sampler": own}}))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 400_000 < path.with_name("model.onnx.data").stat().st_size
    assert_same(path, 0, 3)
    said = {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}
    assert json.loads(said["sampler"]) == own
