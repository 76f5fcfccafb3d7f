"""A look at a run: the losses that it says, when it is taken, and that it leaves training as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_core.artifacts.looks import Spread, list_grids, read_looks, write_grid, write_look
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import decode_png, encode_png
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.progress_page import Progress, chosen_steps, render_progress
from ddpm_core.model.config import read_model_config
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.training.ailments import Verdict
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.course import course_from
from ddpm_core.training.fixed_losses import LARGEST, FixedLosses, is_look, spread_of
from ddpm_core.training.identity import run_config
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import TrainState, new_state
from pipelines.training.looker import Looked, Looker
from pipelines.training.page import ProgressPage

UNET = UNetConfig(
    base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.5, num_classes=2
)
TRAIN = TrainConfig(steps=40, batch_size=4, precision="float32", checkpoint_every=30, preview_every=20)
T = 10


def dataset(folder: Path, validation: float = 0.3) -> DatasetIndex:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    data = DataConfig(image_size=8, channels=1, samples_per_shard=16, validation_fraction=validation)
    source = ArraySource(images=images, labels=np.arange(40) % 2, class_names=("a", "b"), stem="noise")
    results = [write_shard(plan, source, data, str(folder)) for plan in plan_dataset(40, data)]
    return commit_dataset(str(folder), results, data, source)


def run_and_state(index: DatasetIndex, folder: Path, objective: str = "simple") -> tuple[Run, TrainState]:
    learned = ReverseConfig(prediction="v", variance="learned_range" if objective == "bound" else "fixed_large")
    config = run_config(
        index,
        unet=UNET,
        schedule=ScheduleConfig(num_timesteps=T),
        reverse=learned,
        loss=LossConfig(objective=objective),  # type: ignore[arg-type]
        train=TRAIN,
        init_from=None,
    )
    run = Run(uri=str(folder / "run"), config=config, dataset_uri=index.uri, dataset_digest=index.digest, versions={})
    network = read_model_config(config).build_network()
    init_unet(network, 0)
    state = new_state(network, 1e-3)
    with torch.no_grad():
        for each in state.network.parameters():
            each += 0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0))
    return run, state


def test_it_says_the_same_of_the_same_weights_and_leaves_them_alone(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    before = {name: p.clone() for name, p in state.network.named_parameters()}
    random = torch.random.get_rng_state()
    state.network.train()
    looking = FixedLosses(index, tmp_path, run.config, torch.device("cpu"))
    one = looking.look(state, autocast_for(TRAIN, torch.device("cpu")))
    again = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        state, autocast_for(TRAIN, torch.device("cpu"))
    )
    assert one == again
    assert state.network.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in state.network.named_parameters())
    assert one.bands == ((0, 1), (2, 4), (5, 6), (7, 9))
    assert len({one.validation, one.train, one.newest}) == 3, "other images, other weights"


def test_averaged_weights_that_are_the_newest_have_their_losses(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    state.ema = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    look = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        state, autocast_for(TRAIN, torch.device("cpu"))
    )
    assert look.validation == look.newest


def test_a_network_of_zeros_has_the_losses_of_no_prediction(tmp_path: Path) -> None:
    """v predicted as 0: the mean of v squared, which is that of alpha_bar eps^2 + (1 - alpha_bar) x_0^2 but for their product."""
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    zeros = {name: torch.zeros_like(p) for name, p in state.ema.items()}
    look = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        replace(state, ema=zeros), autocast_for(TRAIN, torch.device("cpu"))
    )
    square = float(((torch.arange(256) / 127.5 - 1) ** 2).mean())
    assert all(min(1.0, square) * 0.8 < loss < 1.2 for loss in look.validation), (
        "grey levels drawn evenly have less than eps"
    )
    assert look.validation[0] > look.validation[-1], (
        "v is eps where there is no noise, and x_0 where there is nothing else"
    )


def test_without_images_held_out_it_sees_the_others(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data", validation=0.0)
    run, state = run_and_state(index, tmp_path)
    state.ema = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    look = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        state, autocast_for(TRAIN, torch.device("cpu"))
    )
    assert look.validation == ()
    assert look.judged == look.train == look.newest
    assert "losses/validation" not in look.metrics


def test_a_loss_that_is_none_counts_as_the_largest(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    state.ema = {name: torch.full_like(p, float("nan")) for name, p in state.ema.items()}
    look = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        state, autocast_for(TRAIN, torch.device("cpu"))
    )
    assert look.validation == (LARGEST,) * 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40]),
        ({"steps": 5, "checkpoint_every": 3}, [0, 1, 2, 3, 4, 5]),
        (
            {"steps": 1000, "checkpoint_every": 400, "preview_every": 150},
            sorted({*range(0, 1001, 62), 400, 800, *range(150, 1000, 150), 1000}),
        ),
    ],
)
def test_it_is_taken_often_enough(changes: dict[str, int], expected: list[int]) -> None:
    train = replace(TRAIN, **changes)
    assert [step for step in range(train.steps + 1) if is_look(step, train)] == expected


def test_a_look_stands_beside_its_run(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path, "bound")
    looker = Looker(run, index, TRAIN)
    posted = []
    for step in (0, 2, 20, 40):
        state.step = step
        ((kind, what),) = looker.look(state)
        assert kind == "looked"
        posted.append(what)
    assert [each.look for each in posted] == read_looks(run.uri)
    assert [bool(each.grid) for each in posted] == [False, False, True, True]
    assert list(list_grids(run.uri)) == [20, 40]
    assert posted[2].look.made is not None


def test_images_that_are_no_numbers_are_told_and_the_look_stands(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    state.ema = {name: torch.full_like(p, 1e30) for name, p in state.ema.items()}
    state.step = 20
    (kind, what), (other, line) = Looker(run, index, TRAIN).look(state)
    assert (kind, other) == ("looked", "warned")
    assert isinstance(what, Looked)
    assert what.grid is None
    assert line.startswith("step 20 could not be looked at: ")
    assert [look.step for look in read_looks(run.uri)] == [20]


def test_spread_tells_plain_images_from_equal_ones() -> None:
    plain = torch.arange(0, 250, 50, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 4)
    equal = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(5, 3, 4, 4)
    assert spread_of(plain) == Spread(within=0.0, between=round(50 * 2**0.5, 3))
    assert spread_of(equal) == Spread(within=round(((16**2 - 1) / 12) ** 0.5, 3), between=0.0)


def test_the_page_is_written_as_it_goes_and_once_more_at_the_end(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    looker = Looker(run, index, TRAIN)
    page = ProgressPage(run.uri, course_from(run.config, [], []), TRAIN.steps)
    assert not page.is_last()
    rows = [{"step": 2, "images_seen": 8, "loss": 0.5, "grad_norm": 2.0, "images_per_s": 8.0}]
    assert not page.tell(rows, [])
    seen = []
    for step in (0, 2, 20):
        state.step = step
        ((_, what),) = looker.look(state)
        seen.append(page.tell([], [what.look]))
    assert seen == [True, False, False], "the first at once, the others not yet"
    html = Path(page.uri).read_text()
    assert 'http-equiv="refresh"' in html
    assert not page.is_last()
    page.stop()
    stopped = Path(page.uri).read_text()
    page.go_on()
    assert 'http-equiv="refresh"' in Path(page.uri).read_text()
    page.stop()
    html = Path(page.uri).read_text()
    assert html == stopped
    assert "Stopped; the same command goes on" in html
    assert 'http-equiv="refresh"' not in html
    assert not page.is_last()
    page.write(Verdict(words=""))
    html = Path(page.uri).read_text()
    assert page.is_last()
    assert "Step 20 of 40." in html
    assert "Too early to say." in html
    assert "samples after 20 steps" in html
    assert "<script" not in html


def test_the_page_shows_the_first_the_last_and_some_between() -> None:
    assert chosen_steps([]) == []
    assert chosen_steps([10, 20]) == [10, 20]
    assert chosen_steps(list(range(0, 1001, 100))) == [0, 200, 400, 600, 800, 1000]


def test_what_came_from_outside_is_escaped_on_the_page() -> None:
    page = render_progress(Progress(run="<b>run</b>", step=0, steps=1, looks=[], lines=["<i>"]))
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;" in page


def test_a_large_grid_is_made_smaller(tmp_path: Path) -> None:
    big = encode_png(np.zeros((900, 900, 3), dtype=np.uint8))
    page = render_progress(Progress(run="a", step=1, steps=1, looks=[], lines=[], grids={1: big}))
    assert "data:image/webp" in page
    uri = write_grid(str(tmp_path), 3, big)
    assert decode_png(Path(uri).read_bytes()).shape == (900, 900, 3)
    assert list_grids(str(tmp_path)) == {3: uri}


def test_looks_are_read_in_the_order_of_steps(tmp_path: Path) -> None:
    index = dataset(tmp_path / "data")
    run, state = run_and_state(index, tmp_path)
    look = FixedLosses(index, tmp_path, run.config, torch.device("cpu")).look(
        state, autocast_for(TRAIN, torch.device("cpu"))
    )
    for step in (30, 4, 200):
        write_look(run.uri, replace(look, step=step))
    assert [each.step for each in read_looks(run.uri)] == [4, 30, 200]
