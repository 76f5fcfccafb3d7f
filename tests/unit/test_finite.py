"""NaN and infinity in weights and images: refused where they are read, saved, or about to become pixels."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ddpm_core
from ddpm_core.api.arrays import to_images
from ddpm_core.api.loading import find_weights
from ddpm_core.artifacts.checkpoint import Checkpoint, Weights, write_checkpoint
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.finite import check_finite, find_not_finite
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.errors import DivergedError, InputError
from ddpm_core.interop.__main__ import main as export
from ddpm_core.interop.diffusers import write_diffusers
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.generate import generate
from ddpm_core.serialization import to_json
from ddpm_core.training.checkpointing import Checkpointer, Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import new_state
from ddpm_core.training.step import advance
from ddpm_core.types import Tensor

NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
CONFIG = ddpm_core.ModelConfig(
    image_size=8,
    channels=1,
    # as diffusers' norms ask
    unet=UNetConfig(
        base_channels=128, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.0
    ),
    schedule=ScheduleConfig(num_timesteps=4),
    reverse=ReverseConfig(variance="fixed_small"),
)
NAME = "conv_in.weight"


def tensors(value: float = 0.0) -> dict[str, Tensor]:
    """A network's weights, one value of them as given."""
    network = CONFIG.build_network()
    init_unet(network, 0)
    found = {name: p.detach().contiguous() for name, p in network.named_parameters()}
    found[NAME][3, 0, 1, 1] = value
    return found


def weights(value: float = 0.0) -> Weights:
    file = safetensors.torch.save(tensors(value))
    return Weights(
        uri="/runs/a",
        step=3,
        sha256=sha256_of(file),
        config=to_json(CONFIG),
        dataset_digest="",
        dataset_uri="",
        file=file,
    )


def checkpoint(run_uri: str, step: int, ema: dict[str, Tensor], **config: object) -> str:
    return write_checkpoint(
        run_uri,
        Checkpoint(
            step=step,
            images_seen=step,
            seed=0,
            dataset_digest="",
            dataset_uri="",
            config={**to_json(CONFIG), **config},
            versions={},
            model=ema,
            ema=ema,
            optimizer={},
            history=[],
        ),
    )


SAID = rf"{NAME} has 1 of 1,152 values that are not finite; expected finite ones: "


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_one_value_is_found_wherever_it_lies(value: float, dtype: torch.dtype, place: int) -> None:
    tensor = torch.tensor([-1.0, 2.0, 0.0, -3e4, 5e4, 1.0], dtype=dtype)
    assert find_not_finite({"a": tensor}) == ""
    tensor[place] = value
    assert find_not_finite({"a": tensor.view(2, 3)}) == "a has 1 of 6 values that are not finite"


def test_counts_losses_and_what_is_empty_are_finite() -> None:
    assert find_not_finite({"counts": torch.tensor([0, 9]), "none": torch.empty(0), "one": torch.tensor(1.0)}) == ""


def test_infinities_of_both_signs_and_other_tensors_are_told() -> None:
    inf = float("inf")
    bad = {"b": torch.tensor([inf, -inf, 1.0]), "c": torch.tensor([float("nan")]), "a": torch.zeros(2)}
    expected = (
        "here: b has 2 of 3 values that are not finite, as have 1 other tensors of 3; expected finite ones: do this"
    )
    with pytest.raises(InputError) as told:
        check_finite(bad, "here", "do this")
    assert str(told.value) == expected


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("where", ["run", "checkpoint", "registered version", "diffusers"])
def test_weights_are_refused_wherever_they_lie(tmp_path: Path, where: str, value: float) -> None:
    folder = uri = str(tmp_path / "model")
    if where in ("run", "checkpoint"):
        checkpoint(folder, 5, tensors())
        assert find_weights(folder) is not None
        newest = checkpoint(folder, 9, tensors(value))
        uri = folder if where == "run" else newest
        told = newest
    elif where == "diffusers":
        write_diffusers(folder, weights())
        assert find_weights(folder) is not None
        (file,) = Path(folder).rglob("*.safetensors")
        found = safetensors.torch.load_file(file)
        found["conv_in.weight"][3, 0, 1, 1] = value
        safetensors.torch.save_file(found, file)
        told = folder
    else:
        Path(folder).mkdir()
        (Path(folder) / "weights.safetensors").write_bytes(weights(value).file)
        (Path(folder) / "config.json").write_text(json.dumps(to_json(CONFIG)))
        told = folder
    for read in (find_weights, ddpm_core.load):
        with pytest.raises(InputError, match=rf"^{told}: {SAID}name an earlier checkpoint, or get a sound copy"):
            read(uri)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_model_is_not_made_of_them_nor_exported(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=SAID):
        ddpm_core.Model.from_weights(weights(value))
    with pytest.raises(InputError, match=SAID):
        ddpm_core.Model.from_tensors(CONFIG, tensors(value))
    with pytest.raises(InputError, match=SAID):
        write_diffusers(str(tmp_path / "diffusers"), weights(value))
    checkpoint(str(tmp_path / "run"), 9, tensors(value))
    with pytest.raises(SystemExit) as ended:
        export([str(tmp_path / "run"), str(tmp_path / "diffusers")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: {tmp_path}/run/checkpoints/step-00000009: {NAME} has 1 of 1,152 values")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "diffusers").exists()


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("part", ["network", "ema", "optimizer"])
@pytest.mark.parametrize("leaving", [False, True])
def test_a_state_that_holds_them_is_not_saved_and_the_sound_checkpoints_stay(
    tmp_path: Path, part: str, value: float, leaving: bool
) -> None:
    """Kept, it would push the sound ones out: the newest few stay."""
    config, warned = TrainConfig(batch_size=4, keep_checkpoints=1), list[str]()
    state = new_state(torch.nn.Linear(3, 2), 1e-3)
    run = Run(uri=str(tmp_path), config={}, dataset_uri="/data", dataset_digest="d", versions={})
    with hold_run(run.uri, say=print) as hold:
        store = CheckpointStore(run.uri, hold)
        writer = Checkpointer(state, config, run, store, saved=lambda uri: None, warned=warned.append)
        for damaged in (False, True):
            for p in state.network.parameters():
                p.grad = torch.ones_like(p)
            advance(state, config, update=True)
            if damaged:
                of_part = {
                    "network": state.network.weight.data,
                    "ema": state.ema["weight"],
                    "optimizer": state.optimizer.state[state.network.weight]["exp_avg_sq"],
                }
                of_part[part][1, 2] = value
            else:
                writer.save()
                writer.finish()

        def save() -> None:
            writer.save()
            writer.finish(last=True)

        with pytest.raises(
            DivergedError, match=r"^step 2 is not saved: \S*weight has 1 of 6 values that are not finite"
        ):
            (writer.save_emergency if leaving else save)()
        assert store.steps() == [1]
    assert not (tmp_path / "checkpoints/step-00000002").exists()


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("sampler", [SamplerConfig(clip="none"), SamplerConfig(name="ddim", num_steps=2, clip="none")])
def test_an_image_that_is_none_is_refused_with_its_seed(sampler: SamplerConfig, value: float) -> None:
    """Finite weights may overflow all the same; what comes then was black, and passed for an image."""

    def overflows(x_t: Tensor, t: Tensor) -> Tensor:
        out = 0.1 * x_t
        out[1:, 0, 0, 0] = value
        return out

    p = ReverseProcess(denoiser=overflows, schedule=make_schedule(ScheduleConfig(num_timesteps=4, beta_end=0.5)))
    said = (
        "^the image of seed 17 has values that are not finite, as have 2 of the 3 in its batch; expected finite ones: "
    )
    with pytest.raises(InputError, match=said):
        generate(p, sampler, torch.tensor([3, 17, 4]), (1, 2, 2))


def test_neither_do_edited_images_and_bounds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the images have 1 of 4 values that are not finite"):
        to_images(torch.tensor([0.0, 1.0, float("nan"), 0.0]).view(1, 1, 2, 2))
    model = ddpm_core.Model.from_weights(weights())
    with torch.no_grad():
        model.network.get_parameter(NAME).fill_(1e38)  # finite
    images = np.zeros((2, 8, 8, 1), np.uint8)
    for call in (
        lambda: model.sample([17]),
        lambda: model.interpolate(images[:1], images[1:], [0.5], step=3),
        lambda: model.inpaint(images[:1], np.zeros((1, 8, 8, 1), bool), [1]),
        lambda: model.progressive([1], [0]),
        lambda: model.bits_per_dim(images),
    ):
        with pytest.raises(InputError, match="not finite"):
            call()


@pytest.mark.parametrize(("step", "said"), [(640, True), (60_000, False)])
def test_whoever_loads_a_young_average_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int, said: bool
) -> None:
    checkpoint(str(tmp_path), step, tensors(), train={"batch_size": 64, "ema_decay": 0.9999, "label_dropout": 0.1})
    with caplog.at_level(logging.WARNING):
        ddpm_core.load(str(tmp_path))
    lines = [record.message for record in caplog.records]
    assert len(lines) == said
    if said:
        assert lines[0].startswith(f"{tmp_path}: the averaged weights of step 640 are still 93.8% those")


def test_weights_without_a_training_are_loaded_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_diffusers(str(tmp_path), weights())
    assert replace(weights(), step=0).config.get("train") is None
    with caplog.at_level(logging.WARNING):
        ddpm_core.load(str(tmp_path))
    assert not caplog.records
