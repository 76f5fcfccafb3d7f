"""What show.py says of a thing, and how it finds it."""

import json
import re
import webbrowser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_run import Typed, typing, write_run

from ddpm_core import storage
from ddpm_core.artifacts import run_record
from ddpm_core.artifacts.manifest import make_index
from ddpm_core.artifacts.provenance import provenance, with_provenance
from ddpm_core.artifacts.report import write_report
from ddpm_core.artifacts.run_record import hold
from ddpm_core.artifacts.sample_set import SampleSet, commit_sample_set, sample_set_folder, write_block
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import encode_png
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.form import UNetForm
from pipelines.naming import trajectory, unlike_paper
from pipelines.recipes.config import Recipe, TrainStage

ROOT = Path(__file__).parents[2]
REPORT = "reports/small-0123456789ab"
FIGURE = {
    "name": "fd_random_conv",
    "value": 4.5,
    "of": "24 generated images",
    "low": 4.0,
    "high": 5.0,
    "headline": True,
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run and a report about it, and no MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    store = str(tmp_path / "store")
    facts = {"reference": "dataset 0123", "checkpoint": f"{write_run(store)}/checkpoints/step-00000002"}
    write_report(storage.join(store, REPORT), [FIGURE, {**FIGURE, "name": "kid", "headline": False}], facts, "<p>", {})
    return store


@pytest.fixture
def typed(store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    return typing("show.py", store, capsys, monkeypatch)


def rows(out: str) -> dict[str, str]:
    return dict(re.split("  +", line, maxsplit=1) for line in out.splitlines())


def test_a_run_in_a_dozen_lines(typed: Typed, store: str) -> None:
    code, out, err = typed("runs/small")
    said = rows(out)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 12
    assert said["run"] == f"{store}/runs/small"
    assert re.fullmatch(r"20..-..-.. ..:.. UTC, \d+ seconds ago; [\d.]+ [kM]B in 10 files", said["changed"])
    assert re.match(
        "digits: unet.base_channels 16, unet.channel_multipliers 1 2, .*schedule.rescale True", said["recipe"]
    )
    assert "linear" not in said["recipe"]  # the paper's
    assert said["step"] == "2, after 8 images; loss 0.25 at step 2"
    assert said["data"].endswith("datasets/small-0123456789ab")
    assert said["checkpoints"] == f"2, the newest {store}/runs/small/checkpoints/step-00000002"
    assert said["figures"] == "fd_random_conv 4.5 (95%: 4 to 5)"
    assert said["page"] == f"{store}/{REPORT}/report.html"
    assert not Path(store, "mlflow.db").exists()  # looking makes nothing


def test_of_the_papers_own_settings_none_is_named() -> None:
    """However a run's config says them: precision as it was resolved, averaging as it is done."""
    index = make_index("", image_size=32, channels=3, class_names=(), shards=(), num_rejected=0)
    assert unlike_paper(trajectory(Recipe(), index, None)) == {}
    other = replace(
        Recipe(),
        unet=replace(Recipe().unet, form=UNetForm(norm_groups=2)),
        train=TrainStage(ema_decay=0.9999, augment=0.1),
        schedule=ScheduleConfig(name="cosine"),
    )
    assert unlike_paper(trajectory(other, index, None)) == {
        "unet.form.norm_groups": 2,
        "schedule.name": "cosine",
        "train.ema_decay": 0.9999,
        "train.augment": 0.1,
    }


@pytest.mark.parametrize(
    "named",
    [
        "small",
        "runs/small/",
        "{store}/runs/small",
        "./store/../store/runs/small",
        "store/runs/small",
        "{store}/runs/small/checkpoints/step-00000001",
    ],
)
def test_a_thing_has_several_names(typed: Typed, store: str, named: str) -> None:
    named = named.format(store=store)
    elsewhere = ("--store", "nowhere") if "store/" in named else ()
    code, out, _ = typed(named, *elsewhere)
    assert (code, rows(out)["run"]) == (0, f"{store}/runs/small")


def test_json_has_figures_and_page(typed: Typed, store: str) -> None:
    code, out, _ = typed(REPORT, "--json")
    said = json.loads(out.splitlines()[-1])
    assert (code, said["kind"], said["name"], said["opened"]) == (0, "report", REPORT, False)
    assert said["figures"] == {"fd_random_conv": 4.5, "kid": 4.5}
    assert said["page"] == f"{store}/{REPORT}/report.html"
    assert said["lines"]["fd_random_conv"] == "4.5 (95%: 4 to 5), of 24 generated images"
    assert said["lines"]["others"] == "kid 4.5"
    assert said["lines"]["of"] == f"{store}/runs/small/checkpoints/step-00000002"
    assert said["lines"]["recipe"].startswith("digits: unet.base_channels 16")


def test_a_store_that_was_moved_refers_to_itself(typed: Typed, store: str) -> None:
    moved = Path(store).rename(Path(store).with_name("moved"))
    said = rows(typed(REPORT, "--store", str(moved))[1])
    assert said["of"] == f"{moved}/runs/small/checkpoints/step-00000002"
    assert said["recipe"].startswith("digits: ")


@pytest.mark.parametrize("takes", [True, False])
def test_its_page_is_opened_where_there_is_a_browser(
    typed: Typed, store: str, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url) and takes)
    code, out, err = typed("small", "--open", "--json")
    page = f"{store}/{REPORT}/report.html"
    assert (code, opened, json.loads(out.splitlines()[-1])["opened"]) == (0, [Path(page).as_uri()], takes)
    assert err == ("" if takes else f"there is no browser here to open {page}\n")


def test_what_has_no_page_is_seen_in_mlflow(typed: Typed, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail(url))
    write_run(store, "other")
    code, _, err = typed("other", "--open")
    assert (code, err.count("\n")) == (0, 1)
    assert re.match(r"it has no page; .*pipelines/ui.py --store \S+ shows MLflow's", err)


def test_an_mlflow_that_is_away_hides_nothing_else(typed: Typed, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert typed("small/")[:2] == typed("small")[:2]  # as a shell completes it
    code, out, err = typed("small")
    assert (code, rows(out)["run"]) == (0, f"{store}/runs/small")
    assert "which models are registered is not known: MLflow at http://127.0.0.1:9 cannot be opened" in err


def test_a_picture_that_left_the_store_says_which_model_drew_it(typed: Typed, store: str, tmp_path: Path) -> None:
    identity = {
        "weights_sha256": "ab" * 32,
        "sampler": {"name": "ddim", "num_steps": 3},
        "labels": [2],
        "guidance": 1.5,
    }
    checkpoint = f"{store}/runs/small/checkpoints/step-00000002"
    samples = SampleSet(
        uri=sample_set_folder(store, identity, 4), identity=identity, first_seed=0, num_images=4, block_size=4,
        facts={"checkpoint": checkpoint, "step": 2},
    )  # fmt: skip
    png = encode_png(np.zeros((8, 8, 1), np.uint8))
    write_block(samples.uri, 0, [png] * 4)
    commit_sample_set(samples)
    Path("bird.png").write_bytes(with_provenance(png, provenance(samples, range(3, 4))))
    code, out, err = typed("bird.png")
    said = rows(out)
    assert (code, err, len(out.splitlines()) <= 12) == (0, "", True)
    assert said["images"] == "seed 3, by ddim in 3 steps"
    assert said["labels"] == "2 in turn, guidance 1.5"
    assert said["weights"] == f"sha256 {'ab' * 32}, step 2"
    assert said["of"] == checkpoint
    source = ArraySource(
        images=np.zeros((9, 4, 4), np.uint8),
        labels=np.arange(9) % 3,
        class_names=("ant", "bee", "bird"),
        stem="image",
    )
    config, data = DataConfig(image_size=4, channels=1), f"{store}/datasets/small-0123456789ab"
    commit_dataset(data, [write_shard(plan, source, config, data) for plan in plan_dataset(9, config)], config, source)
    assert rows(typed("bird.png")[1])["labels"] == "2 (bird) in turn, guidance 1.5"
    elsewhere = rows(typed("bird.png", "--store", str(tmp_path / "other"))[1])
    assert elsewhere["samples"].startswith(f"{Path(samples.uri).name}: not in {tmp_path}/other")
    Path("cat.png").write_bytes(png)
    code, out, err = typed("cat.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cat.png does not say what made it" in err


def test_a_projects_file_says_what_the_store_has_of_it(typed: Typed, store: str) -> None:
    Path("small.toml").write_text('project = "small"\n[data]\nsource = "photos"\n[schedule]\nname = "cosine"\n')
    said = rows(typed("small.toml")[1])
    assert said["images"] == str(Path("photos").absolute())
    assert said["settings"] == "schedule.name cosine"
    assert said["reports"] == "small-0123456789ab"
    assert said["page"] == f"{store}/{REPORT}/report.html"
    assert "runs" not in said  # one by another name, that keeps no file of this project
    storage.write_bytes(f"{store}/runs/small-tuned/run.json", b"{}")  # by a name that only begins like it
    assert "runs" not in rows(typed("small.toml")[1])
    storage.write_bytes(f"{store}/runs/small/recipe.toml", Path("small.toml").read_bytes())
    assert rows(typed("small.toml")[1])["runs"] == "small"
    Path("new.toml").write_text('project = "new"\n[data]\nsource = "photos"\n')
    assert rows(typed("new.toml")[1])["made"] == "nothing yet; workflow.py takes the file"


def test_what_is_under_way_is_said_to_be_so(typed: Typed, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "BEAT_S", 0.2)
    with hold(storage.join(store, "runs/begun"), say=print):
        said = rows(typed("begun")[1])
    assert said["at work"].startswith("process ")
    assert said["checkpoints"] == "none yet"
    storage.write_bytes(storage.join(store, "datasets/half-0123456789ab/shard-000000.tar"), b"")
    assert rows(typed("half-0123456789ab")[1])["state"] == "unfinished: a job is at it, or was killed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("smal",), r"no smal in \S+/store; expected KIND/NAME or NAME as .*; did you mean small\?"),
        (("runs/smal",), r"no runs/smal in \S+; .*; did you mean runs/small\?"),
        (("../my-photos/home/IMG_1.jpg",), r"no \.\./my-photos/home/IMG_1\.jpg in \S+/store; expected KIND/NAME .*"),
        (("twice",), r"twice is runs/twice and sweeps/twice; expected one of them"),
        (("models:/digits/1",), r"models:/digits/1: no model is registered in \S+/store; expected another --store, .*"),
        (("models:/digits",), r"models:/digits names no model; expected models:/NAME@ALIAS or .*"),
        ((), r"nothing is named; expected `python pipelines/show.py RUN.*` .*"),
        (("small", "--opne"), r".*did you mean --open.*"),
    ],
)
def test_a_mistake_is_one_line(typed: Typed, store: str, words: tuple[str, ...], said: str) -> None:
    for kind in ("runs", "sweeps"):
        storage.write_bytes(f"{store}/{kind}/twice/run.json", b"{}")
    code, out, err = typed(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(f"error: {said}\n", err), err
    assert not Path(store, "mlflow.db").exists()


def test_a_damaged_checkpoint_is_said(typed: Typed, store: str) -> None:
    (state,) = Path(store).glob("runs/small/checkpoints/step-00000002/history-*.parquet")
    state.write_bytes(state.read_bytes()[:-9])
    code, _, err = typed("runs/small")
    assert (code, err.count("\n")) == (2, 1)
    assert "step-00000002" in err
