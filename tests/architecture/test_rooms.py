"""The plan of the house, held against the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_core import ModelConfig
from ddpm_core.artifacts.checkpoint import Checkpoint, write_checkpoint
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "ddpm_core").rglob("*.py"))
COMMANDS = ["new", "shard", "train", "sweep", "sample", "evaluate", "workflow", "schedule", "show", "export"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_library_imports_where_ray_mlflow_and_webdataset_are_missing() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in LIBRARY if path.stem != "__init__"]
    blocked = "import sys\nfor name in ('ray', 'mlflow', 'webdataset'): sys.modules[name] = None\n"
    found = run(blocked + "\n".join(f"import {module}" for module in modules))
    assert found.returncode == 0, found.stderr


def test_a_model_is_loaded_sampled_and_measured_with_five_packages_and_asks_for_others_in_a_line(
    tmp_path: Path,
) -> None:
    """README's lines, where nothing but torch, numpy, safetensors, pillow and cattrs can be imported, and what these need."""
    network = UNetConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    model = ModelConfig(
        image_size=8, channels=1, unet=network, schedule=ScheduleConfig(num_timesteps=4), reverse=ReverseConfig()
    )
    tensors = {name: p.detach() for name, p in model.build_network().named_parameters()}
    write_checkpoint(
        str(tmp_path),
        Checkpoint(
            step=1,
            images_seen=1,
            seed=0,
            dataset_digest="",
            dataset_uri="",
            config=to_json(model),
            versions={},
            model=tensors,
            ema=tensors,
            optimizer={},
            history=[],
        ),
    )
    absent = "jaxtyping boto3 botocore pyarrow matplotlib platformdirs imagecodecs sklearn webdataset ray mlflow scipy"
    code = f"""
import sys
import torch
for name in {absent.split()!r}:
    sys.modules[name] = None
import ddpm_core
model = ddpm_core.load({str(tmp_path)!r})
images = model.sample(seeds=range(2), sampler="dpm_solver", num_steps=2)
assert images.shape == (2, 8, 8, 1) and model.bits_per_dim(images).shape == (2,)
schedule = ddpm_core.schedule("cosine", num_timesteps=10)
assert schedule.alpha_bar.shape == (10,)
for ask, package in ((schedule.plot, "matplotlib"), (lambda: ddpm_core.load("s3://bucket/run"), "boto3")):
    try:
        ask()
    except ValueError as error:
        assert str(error).endswith(f"pip install {{package}}"), error
    else:
        raise AssertionError(package)
"""
    found = run(code)
    assert found.returncode == 0, found.stderr


def test_mathematics_network_and_step_import_with_torch_alone() -> None:
    absent = ("numpy", "jaxtyping", "boto3", "pyarrow", "PIL", "sklearn", "safetensors", "cattrs", "tyro")
    code = f"""
import sys
import torch
for name in list(sys.modules):
    if name.split('.')[0] in {absent!r}:
        del sys.modules[name]
for name in {absent!r}:
    sys.modules[name] = None
import ddpm_core.random, ddpm_core.diffusion.samplers, ddpm_core.diffusion.losses, ddpm_core.model.unet
import ddpm_core.sampling.generate, ddpm_core.sampling.labels, ddpm_core.model.ema, ddpm_core.data.pixels
import ddpm_core.diffusion.editing, ddpm_core.diffusion.likelihood, ddpm_core.training.step
"""
    found = run(code)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_where_a_strangers_file_can_reach(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module not in {"pickle", "cloudpickle", "dill", "joblib"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_hidden_generator_state(path: Path) -> None:
    """Every random number is keyed: nothing draws from torch's, numpy's or Python's global generators."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            drawn = ("torch.rand", "torch.normal", "torch.bernoulli", "torch.multinomial", "np.random", "random.random")
            assert not name.startswith(drawn), f"line {node.lineno}: {name}"
            assert name not in ("nn.Dropout", "F.dropout", "functional.dropout"), f"line {node.lineno}: {name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_without_starting_anything(command: str, tmp_path: Path) -> None:
    """Nor does it wait for Ray and MLflow, which take seconds to import."""
    path = ROOT / "pipelines" / f"{command}.py"
    code = f"""
import runpy, sys
sys.modules["ray"] = sys.modules["mlflow"] = None
sys.argv = [{str(path)!r}, "--help"]
runpy.run_path({str(path)!r}, run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stderr
    assert ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] in found.stdout  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())


def test_help_may_be_read_in_part() -> None:
    """As by head, which closes the pipe."""
    command = subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines/train.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    with command.stderr as told:
        assert told.read() == b""
    assert command.wait() == 0


def test_tables_in_pythons_files_are_read_without_threads() -> None:
    """ddpm_core/artifacts/parquet.py says why: else a process in three aborts when it ends."""
    places = [path for room in ("ddpm_core", "pipelines") for path in (ROOT / room).rglob("*.py")]
    text = {path.relative_to(ROOT).as_posix(): path.read_text() for path in places}
    opened = {name for name, code in text.items() if re.search(r"pq\.ParquetFile\((?!path\b|pa\.BufferReader)", code)}
    assert opened == {"ddpm_core/artifacts/parquet.py"}
    reads = [call for code in text.values() for call in re.findall(r"\.read_row_group\(.*", code)]
    assert reads
    assert all("use_threads=False" in call for call in reads)
    tables = [call for code in text.values() for call in re.findall(r"pq\.read_table\((.{60})", code, flags=re.S)]
    assert all(call.startswith("folder /") for call in tables), "of a path, which pyarrow opens itself: it reads ahead"
    buffers = [call for code in text.values() for call in re.findall(r"pq\.ParquetFile\(pa\.BufferReader.*", code)]
    assert all("pre_buffer=False" in call for call in buffers)
