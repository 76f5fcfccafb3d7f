"""A compiled network makes the same images; where none can be compiled, that is said; and what a pass costs is counted right."""

import hashlib
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_core.api.model import Model
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model import compiled
from ddpm_core.model.compiled import CompileError, Passes
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import forward_flops, forward_flops_at_most
from ddpm_core.model.form import UNetForm
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.config import SampleConfig
from pipelines.recipes.config import SampleStage
from pipelines.stages.sample import compiles

UNET = UNetConfig(
    base_channels=16, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(16,), num_classes=3
)
CONFIG = ModelConfig(
    image_size=16, channels=3, unet=UNET, schedule=ScheduleConfig(num_timesteps=20), reverse=ReverseConfig()
)
REQUEST = SampleConfig(sampler=SamplerConfig(num_steps=10), batch_size=16)


def lively(seed: int = 0, config: ModelConfig = CONFIG) -> Model:
    """A model whose images are neither black nor white."""
    network, generator = config.build_network(), torch.Generator().manual_seed(seed)
    init_unet(network, 0)
    noise = {name: 0.02 * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}
    return Model.from_tensors(config, {name: p.detach() + noise[name] for name, p in network.named_parameters()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the library of CONFIG's network in it."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "killed.arriving").mkdir()  # of a process that came to no end
    lively().compile(REQUEST, folder)
    return folder


def test_nothing_but_the_library_is_kept(folder: Path) -> None:
    (library,) = folder.iterdir()
    assert library.suffix == ".so"


def same_but_for_rounding(found: torch.Tensor, expected: torch.Tensor, rare: float) -> bool:
    assert 30 < float(expected.float().std()) < 110
    apart = (found.int() - expected.int()).abs()
    return int(apart.max()) <= 1 and float((apart > 0).float().mean()) < rare


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_same_images_compiled_and_not_whatever_the_batch(folder: Path, guidance: float) -> None:
    request, model, seeds, told = replace(REQUEST, guidance=guidance), lively(), torch.arange(40), list[int]()
    fast = model.compile(request, folder)
    found = fast.generate(seeds, request, on_step=lambda t, x_t, x_0_hat: told.append(len(x_t)))
    assert told == [16] * 20 + [8] * 10  # the last batch is filled up, and nobody hears of it
    assert same_but_for_rounding(found, model.generate(seeds, request), rare=1e-4)


def test_what_it_was_not_compiled_for_goes_as_it_is_written(folder: Path) -> None:
    model, request = lively(), replace(REQUEST, precision="bfloat16")
    fast = model.compile(REQUEST, folder)
    assert torch.equal(fast.generate(torch.arange(3), request), model.generate(torch.arange(3), request))
    assert fast.generate(torch.arange(0), REQUEST).shape == (0, 3, 16, 16)


def test_a_compiled_model_goes_to_other_processes_as_it_is_written(folder: Path) -> None:
    fast, seeds = lively().compile(REQUEST, folder), torch.arange(3)
    sent = pickle.loads(pickle.dumps(fast))
    assert sent.compiled is None
    assert torch.equal(sent.generate(seeds, REQUEST), lively().generate(seeds, REQUEST))


def test_other_weights_and_other_betas_need_no_other_library(folder: Path) -> None:
    config = replace(CONFIG, schedule=ScheduleConfig(name="cosine", num_timesteps=30))
    model, there = lively(1, config), list(folder.iterdir())
    for each in model.network.parameters():
        if each.dim() == 2:
            each.data = each.data.T.contiguous().T  # unlike those that the library was compiled with
    found = model.compile(REQUEST, folder).generate(torch.arange(16), REQUEST)
    assert same_but_for_rounding(found, model.generate(torch.arange(16), REQUEST), rare=1e-4)
    assert list(folder.iterdir()) == there


def test_a_library_that_computes_something_else_is_refused(folder: Path) -> None:
    (library,) = folder.glob("*.so")
    # The same tensors, taken in another order.
    network = replace(CONFIG, unet=replace(UNET, form=UNetForm(time_cos_first=True))).build_network()
    passes = Passes(config=CONFIG, batch_size=REQUEST.batch_size, precision="float32")
    with torch.no_grad(), pytest.raises(CompileError, match="not what the network does"):
        compiled._check(network, passes, library)


def test_a_damaged_library_is_removed(folder: Path, tmp_path: Path) -> None:
    (library,) = folder.glob("*.so")
    name, whole = library.name.partition("-")[0], library.read_bytes()
    damaged = tmp_path / library.name
    damaged.write_bytes(whole[:10_000])  # who loads this is ended by the kernel
    assert compiled._whole(tmp_path, name) is None
    assert not damaged.exists()
    damaged.write_bytes(whole)
    assert compiled._whole(tmp_path, name) == damaged


def test_without_a_compiler_it_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=r"No working C\+\+ compiler[^\n]*$"):
        lively().compile(REQUEST, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_what_the_compiler_said_is_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"""#!{sys.executable}
import sys
if "--version" not in sys.argv:
    print("as usual\\na.cpp:1: fatal error: no room left\\nterminated", file=sys.stderr)
    sys.exit(1)
print("g++ 12")
""")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompileError, match=r"\(a\.cpp:1: fatal error: no room left\)$"):
        lively().compile(REQUEST, tmp_path / "kept")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for precision in ("float32", "bfloat16"):
        with pytest.raises(CompileError, match=r"cannot write to the cache of compiled networks[^\n]*$"):
            lively().compile(replace(REQUEST, precision=precision), tmp_path / "file" / "kept")


def test_a_library_that_cannot_be_loaded_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    (library,) = folder.glob("*.so")
    no_library = b"from a machine of another kind"
    (tmp_path / f"{library.name.partition('-')[0]}-{hashlib.sha256(no_library).hexdigest()}.so").write_bytes(no_library)
    with pytest.raises(CompileError, match=r"could not be compiled \(Error in dlopen[^\n]*$"):
        lively().compile(REQUEST, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
def test_the_compiler_ends_with_who_asked(tmp_path: Path) -> None:
    def running() -> list[str]:
        """The processes that were started for this folder."""
        found = []
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                found += [each.parent.name] if str(tmp_path) in each.read_text() else []
        return found

    def wait_until(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(running()) != number:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    code = "from test_compiled import REQUEST, Path, lively; import sys; lively().compile(REQUEST, Path(sys.argv[1]))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    script = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(script, env={**os.environ, "PYTHONPATH": path}) as asking:
        wait_until(2)
        asking.kill()
    wait_until(0)
    assert not list(tmp_path.rglob("made.so"))  # it did not go on to its own end


def _in_bfloat16(rank: int, folder: Path) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    model, request, seeds = lively(), replace(REQUEST, precision="bfloat16"), torch.arange(16)
    torch.save([each.generate(seeds, request) for each in (model.compile(request), model)], folder / "made.pt")


def test_in_bfloat16_the_compiler_rounds_less_often(tmp_path: Path) -> None:
    # In a process of its own: here shapes are checked at every call, which torch.compile cannot see through.
    torch.multiprocessing.spawn(_in_bfloat16, (tmp_path,), nprocs=1)
    found, expected = torch.load(tmp_path / "made.pt", weights_only=True)
    assert same_but_for_rounding(found, expected, rare=0.1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (SampleStage(num_images=64), False),
        (SampleStage(num_images=64, compile="on"), True),
        (SampleStage(num_images=10**7, compile="off"), False),
        (SampleStage(num_images=10**7), True),
        (SampleStage(num_images=10**7, num_workers=10**4), True),
        (SampleStage(num_images=10**7, use_gpu=True), False),
    ],
)
def test_what_is_asked_for_decides(asked: SampleStage, expected: bool) -> None:
    assert compiles(CONFIG, asked) is expected


@pytest.mark.parametrize("image_size", [16, (16, 24)])
def test_operations_are_counted_by_hand(image_size: int | tuple[int, int]) -> None:
    config = replace(CONFIG, image_size=image_size)
    network, counted = config.build_network(), list[int]()

    def count(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):  # a product and a sum for each weight, at each pixel
            counted.append(2 * module.weight.numel() * out[0, 0].numel())
        elif isinstance(module, nn.Linear):
            counted.append(2 * module.weight.numel())

    def count_attention(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        channels, pixels = out.shape[1], out[0, 0].numel()
        counted.append(2 * 2 * pixels**2 * channels)  # queries by keys, then by values

    for module in network.modules():
        module.register_forward_hook(count_attention if type(module).__name__ == "Attention" else count)
    network(torch.zeros(1, *config.image_shape), torch.zeros(1, dtype=torch.int64))
    assert sum(counted) == forward_flops(config) <= forward_flops_at_most(config)
