"""A model that was exported is the model: what is loaded back gives what the original gives."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from written_run import MODEL, SIZE, T, Typed, tensors, typing, write_run

import ddpm_core
from ddpm_core import storage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a run of two checkpoints, and no MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_run(str(tmp_path / "store"))
    return str(tmp_path / "store")


@pytest.fixture
def typed(store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    return typing("export.py", store, capsys, monkeypatch)


def loaded(line: str) -> dict[str, Any]:
    """What the printed line of Python defines."""
    names: dict[str, Any] = {}
    exec(line, names)
    return names


def told(out: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in out.splitlines())


def drawn(model: ddpm_core.Model) -> np.ndarray:
    return model.sample(range(3), sampler="ddim", num_steps=2)


@pytest.mark.parametrize(
    ("words", "seed"), [((), 21), (("--weights", "model"), 20), (("--step", "1"), 11)], ids=["ema", "model", "step"]
)
def test_our_own_format_gives_the_same_images_to_the_bit(
    typed: Typed, tmp_path: Path, words: tuple[str, ...], seed: int
) -> None:
    code, out, err = typed("small", "--to", "safetensors", "--out", "made/here", *words)
    assert (code, err) == (0, "")
    model = loaded(told(out)["load"])["model"]
    expected = drawn(ddpm_core.Model.from_tensors(MODEL, tensors(seed)))
    assert expected.std() > 1
    assert np.array_equal(drawn(model), expected)
    assert model.weights.sha256 == told(out)["sha256"]
    assert (model.weights.step, model.weights.recipe, model.weights.dataset_digest[:4]) == (
        1 if "--step" in words else 2,
        "digits",
        "0123",
    )
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["here"]
    assert typed("made/here", "--to", "safetensors", "--out", "again")[0] == 0  # a folder is a model, too
    assert {path.name: path.read_bytes() for path in Path("made/here").iterdir()} == {
        path.name: path.read_bytes() for path in Path("again").iterdir()
    }


@torch.no_grad()
def test_diffusers_takes_the_same_step(typed: Typed, store: str) -> None:
    """To 1e-5 of the largest value: its attention adds up in another order."""
    code, out, err = typed("runs/small", "--to", "diffusers", "--out", "theirs")
    assert (code, err) == (0, "")
    unet = loaded(told(out)["load"])["pipeline"].unet
    x_t, t = 2 * torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, T - 1])
    expected = ddpm_core.load(f"{store}/runs/small").network(x_t, t, torch.full((3,), -1))
    assert float(expected.std()) > 0.1
    assert float((unet(x_t, t).sample - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert drawn(ddpm_core.load("theirs")).shape == (3, SIZE, SIZE, 1)


@torch.no_grad()
def test_onnxruntime_takes_the_same_step(typed: Typed, store: str) -> None:
    code, out, err = typed(f"{store}/runs/small", "--to", "onnx", "--out", "denoiser")
    assert (code, err) == (0, "export: torch writes the network down, which takes some 10 s\n")
    said = told(out)
    assert (
        said["takes"] == f"x_t float32 [b, 1, {SIZE}, {SIZE}], t int64 [b]; session.run(['output'], inputs) gives eps"
    )
    session = loaded(said["load"])["session"]
    x_t, t = 2 * torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, T - 1])
    expected = ddpm_core.load(f"{store}/runs/small").network(x_t, t, torch.full((3,), -1))
    (found,) = session.run(["output"], {"x_t": x_t.numpy(), "t": t.numpy()})
    assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert [path.name for path in Path("denoiser").iterdir()] == ["model.onnx"]


def test_json_says_the_same(typed: Typed) -> None:
    code, out, _ = typed("small", "--to", "safetensors", "--out", "made", "--json")
    found = json.loads(out.splitlines()[-1])
    assert (code, found["step"], len(found["sha256"])) == (0, 2, 64)
    assert Path(found["weights"]).is_relative_to(found["folder"])
    assert "model" in loaded(found["load"])


def test_what_stands_there_is_not_overwritten(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for there in ("empty", "file"):
        code, out, err = typed("small", "--to", "safetensors", "--out", there)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.endswith("is there; expected a folder that does not exist yet: name another one, or delete it\n")
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_that_came_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def write() -> None:
        with storage.writing_folder(str(target), "a") as folder:
            (folder / "a").write_text("ours")
            assert not target.exists()
            target.mkdir()
            (target / "b").write_text("theirs")

    with pytest.raises(ValueError, match="made is there"):
        write()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "made"]


def test_what_fails_in_the_middle_leaves_nothing(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = typed("small", "--to", "onnx", "--out", "made")
    assert (code, out) == (2, "")
    assert err == f"error: an ONNX file needs onnx; expected it installed: pip install -e '{ROOT}[onnx]'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("smal",), r"no run and no model smal in \S+; expected a run .*; did you mean small\?"),
        (("runs/smal",), r"no run and no model runs/smal in .*; did you mean runs/small\?"),
        (("small", "--step", "3"), r"step is 3; expected one of which \S+/runs/small has a checkpoint: 1, 2"),
        (
            ("models:/ddpm@champion",),
            r"models:/ddpm@champion: no model is registered in \S+/store; expected another .*",
        ),
        (("flowers.toml",), r"no run and no model ddpm-flowers in \S+; expected a run .*"),
        (("models:/ddpm", "--step", "3"), r"models:/ddpm names no model; expected models:/NAME@ALIAS or .*"),
        (("small", "--weight", "model"), r".*did you mean --weights.*"),
        ((), r"nothing is named; expected `python pipelines/export.py RUN\|MODEL` .*"),
    ],
)
def test_a_mistake_is_one_line(typed: Typed, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "flowers.toml").write_text('project = "flowers"\n[data]\nsource = "photos"\n')
    code, out, err = typed(*words, "--to", "safetensors", "--out", "made")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(f"error: {said}\n", err), err
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_asked_for(typed: Typed) -> None:
    assert (
        typed("small", "--out", "made")[2] == "error: --to is missing; expected one of diffusers, onnx, safetensors\n"
    )
    assert typed("small", "--to", "onnx")[2].startswith("error: --out is missing; expected the folder to write")
    assert (
        "expected a folder, into which model.onnx is written"
        in typed("small", "--to", "onnx", "--out", "model.onnx")[2]
    )


def test_a_folder_has_no_other_weights_than_its_own(typed: Typed) -> None:
    typed("small", "--to", "safetensors", "--out", "made")
    code, _, err = typed("made", "--to", "safetensors", "--out", "again", "--weights", "model")
    assert (code, err.count("\n")) == (2, 1)
    assert "weights is model, and made has the averaged weights of one step alone; expected a run, as of the run" in err


def test_on_s3_it_is_there_whole_or_not_at_all(
    typed: Typed, store: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"s3://{bucket}/made"
    code, said, err = typed("small", "--to", "safetensors", "--out", out)
    assert (code, err) == (0, "")
    assert np.array_equal(drawn(loaded(told(said)["load"])["model"]), drawn(ddpm_core.load(f"{store}/runs/small")))
    assert typed("small", "--to", "safetensors", "--out", out)[0] == 2
    upload, sent = storage.upload, []

    def break_off(path: Path, uri: str) -> None:
        sent.append(uri.rpartition("/")[2])
        if uri.endswith("model_index.json"):
            raise storage.StorageError("the line is cut")
        upload(path, uri)

    monkeypatch.setattr(storage, "upload", break_off)
    code, _, err = typed("small", "--to", "diffusers", "--out", f"s3://{bucket}/other")
    assert (code, err, len(sent), sent[-1]) == (2, "error: the line is cut\n", 4, "model_index.json")
    assert list(storage.walk(f"s3://{bucket}/other")) == []
