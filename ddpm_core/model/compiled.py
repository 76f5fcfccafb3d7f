"""A network compiled for batches of one size.

In float32 on a CPU that is a shared library of its operations, made by a process of its own, which ends and takes along the memory
that a compiler needs. It holds no weights: it works on those of the network that it is loaded for, and serves every checkpoint.
Making one takes half a minute; to load one that was kept takes milliseconds, and nothing of the compiler. In bfloat16 to lay the
weights out anew in every pass would cost more than is gained: there, and on a GPU, torch.compile makes them part of what it
compiles, in each process.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Literal, NamedTuple

import torch

from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNet
from ddpm_core.random import Purpose, normals
from ddpm_core.serialization import from_json, to_json
from ddpm_core.storage.disk_cache import ARRIVING, alone, make_folder, sweep
from ddpm_core.storage.uri import StorageError
from ddpm_core.types import Network, Tensor

_MADE = "made.so"
_UNUSED_S = 90 * 24 * 3600
"""A library that was not loaded for so long is removed when another one is made."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a network is compiled for."""

    config: ModelConfig
    batch_size: int
    precision: Literal["float32", "bfloat16"]

    def example(self, device: torch.device) -> tuple[Tensor, ...]:
        """What a pass is given: x_t, t, and for a network with classes a label for each."""
        x_t = torch.zeros(self.batch_size, *self.config.image_shape, device=device)
        t = torch.zeros(self.batch_size, dtype=torch.int64, device=device)
        return (x_t, t, t.clone()) if self.config.num_classes else (x_t, t)


class Compiled(NamedTuple):
    """A compiled network, and what it was compiled for."""

    network: Network
    passes: Passes


class CompileError(Exception):
    """This machine cannot compile a network; the message says why, in one line."""


def compile_network(network: UNet, passes: Passes, folder: Path | None = None) -> Compiled:
    """The network, compiled; its weights must stay as they are from then on.

    Args:
        network: in eval mode and without gradients, built as the passes' config says.
        folder: keeps libraries. What lies there is run: nobody else may write to it. None to keep nothing.

    Raises:
        CompileError: if there is no compiler, or it failed.
    """
    try:
        call = _compiled(network, passes, folder)
    except (OSError, StorageError, RuntimeError) as error:  # RuntimeError: what torch raises, its compiler, too
        raise CompileError(f"it could not be compiled ({_in_a_line(error)})") from error

    def compiled(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if not passes.config.num_classes:
            return call(x_t, t)
        return call(x_t, t, torch.full_like(t, -1) if labels is None else labels)

    return Compiled(compiled, passes)


def _compiled(network: UNet, passes: Passes, folder: Path | None) -> Network:
    if folder is None:
        with TemporaryDirectory() as gone:  # what is loaded outlives its file
            return _compiled(network, passes, Path(gone))
    make_folder(folder, "the cache of compiled networks")
    device = next(network.parameters()).device
    if device.type == "cpu" and passes.precision == "float32":
        return _Library(_kept(passes, folder), network, passes)
    # With the weights laid once and for all as convolutions want them; on a CPU no Python between one operation and the next.
    options: dict[str, str | int | bool | Callable[..., object]] = {
        "freezing": True,
        "cpp_wrapper": device.type == "cpu",
    }
    found: Network = torch.compile(network, dynamic=False, fullgraph=True, options=options)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=passes.precision == "bfloat16"):
        found(*passes.example(device))
    return found


class _Library:
    """What calls a library with the network's own weights, not with a copy."""

    def __init__(self, path: Path, network: UNet, passes: Passes) -> None:
        with torch.device("meta"):
            usual = dict(passes.config.build_network().named_parameters())
        # It knows only their addresses.
        self._weights = {name: _laid_out_as(usual[name], each.detach()) for name, each in network.named_parameters()}
        self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
        own_names = self._runner.get_constant_names_to_original_fqns()
        self._runner.update_constant_buffer(
            {own: self._weights[name] for own, name in own_names.items()},
            use_inactive=False,
            validate_full_updates=True,
            user_managed=True,
        )
        self._expected = [(each.shape, each.dtype) for each in passes.example(torch.device("cpu"))]

    def __call__(self, *given: Tensor) -> Tensor:
        # It does not look, and would read beyond what is smaller.
        assert [(each.shape, each.dtype) for each in given] == self._expected
        found: Tensor = self._runner.run([each.contiguous() for each in given])[0]
        return found


def _laid_out_as(usual: Tensor, given: Tensor) -> Tensor:
    """The tensor, or a copy that lies as the one does that a library was compiled with."""
    if (given.stride(), given.dtype) == (usual.stride(), usual.dtype):
        return given
    return torch.empty_strided(usual.size(), usual.stride(), dtype=usual.dtype).copy_(given)


def _kept(passes: Passes, folder: Path) -> Path:
    """The library for such passes, made now if it is not there, by one process while others wait.

    Raises:
        CompileError: if it cannot be made.
    """
    any_schedule = replace(passes, config=replace(passes.config, schedule=ScheduleConfig()))
    asked = {"passes": to_json(any_schedule), "threads": torch.get_num_threads()}
    name = hashlib.sha256(json.dumps([asked, _here()], sort_keys=True).encode()).hexdigest()[:32]
    aside = folder / f"{name}{ARRIVING}"
    with alone(folder / f"{name}.lock"):
        library = _whole(folder, name)
        if library is None:
            _tidy(folder)
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
            aside.mkdir()
            try:
                _make_elsewhere(asked, aside)
                library = folder / f"{name}-{_sha256(aside / _MADE)}.so"
                os.replace(aside / _MADE, library)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return library


def _whole(folder: Path, name: str) -> Path | None:
    """The library of this name, marked as used. One that is damaged is removed: to load it may end the process."""
    for library in folder.glob(f"{name}-*.so"):
        if library.stem == f"{name}-{_sha256(library)}":
            os.utime(library)
            return library
        library.unlink()
    return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tidy(folder: Path) -> None:
    sweep(folder)
    for library in folder.glob("*.so"):
        if library.stat().st_mtime < time.time() - _UNUSED_S:
            library.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _here() -> dict[str, str]:
    """What else decides which code comes out, and whether this processor can run it."""
    code, core = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(core.rglob("*.py")):
        code.update(path.read_bytes())
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.node()]
    cpu = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", platform.node()))})
    return {"code": code.hexdigest(), "torch": torch.__version__, "machine": platform.machine(), "cpu": "\n".join(cpu)}


def _make_elsewhere(asked: dict[str, Any], folder: Path) -> None:
    """In a process of its own, which makes `_MADE` in the folder.

    Raises:
        CompileError: if it does not.
    """
    command = [sys.executable, "-P", "-c", f"from {__name__} import make; make()", str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path),
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
    }
    with (
        open(folder / "said.txt", "w+") as said,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        print(json.dumps(asked), file=process.stdin, flush=True)
        why = process.stdout.read().strip()
        process.wait()
        said.seek(0)
        last = [line for line in said.read().splitlines() if line.strip()][-1:]
    if process.returncode:
        how = f"ended by signal {-process.returncode}" if process.returncode < 0 else "failed"
        raise CompileError(f"it could not be compiled ({why or ': '.join([f'its process {how}', *last])})")


def make() -> None:
    """What that process does; why it cannot is printed in one line."""
    asked, folder = json.loads(sys.stdin.readline()), Path(sys.argv[1])
    Thread(target=_end_with_who_asked, daemon=True).start()
    passes = from_json(Passes, asked["passes"])
    torch.set_num_threads(asked["threads"])
    network = passes.config.build_network().eval().requires_grad_(False)
    try:
        _make(network, passes, folder / _MADE)
        _check(network, passes, folder / _MADE)
    except Exception as error:
        print(_in_a_line(error))
        sys.exit(1)


def _end_with_who_asked() -> None:
    """What it asked for is nobody's once it is gone, and another process may make it anew in the same folder."""
    os.read(sys.stdin.fileno(), 1)  # until the other end is closed
    os._exit(1)


def _make(network: UNet, passes: Passes, library: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(network, passes.example(torch.device("cpu")))
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(library.with_suffix(".pt2")),
        # No weight in it: not even one of a few numbers, which the compiler would else write into the code.
        inductor_configs={"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True},
    )
    with zipfile.ZipFile(package) as files, open(library, "wb") as file:
        (name,) = (each for each in files.namelist() if each.endswith(".so"))
        file.write(files.read(name))
        file.flush()
        os.fsync(file.fileno())


def _check(network: UNet, passes: Passes, library: Path) -> None:
    """Refuse a library that does not compute what the network does with other weights than it was compiled with."""
    for each in network.parameters():
        each.mul_(1.25).add_(0.01)
    numbers = torch.arange(passes.batch_size)
    x_t = normals(0, Purpose.SAMPLING, numbers, passes.config.image_shape)
    given = (
        (x_t, numbers, (3 * numbers + 1) % passes.config.num_classes) if passes.config.num_classes else (x_t, numbers)
    )
    expected, found = network(*given), _Library(library, network, passes)(*given)
    if not (found - expected).norm() < 1e-4 * expected.norm():
        raise CompileError("what it computes is not what the network does")


def _in_a_line(error: Exception) -> str:
    """What a compiler says is wrong stands below the line that it failed."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
