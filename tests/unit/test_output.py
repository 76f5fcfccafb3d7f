"""Sample sets as files for other programs."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Checkpoint, Weights, read_weights, write_checkpoint
from ddpm_core.artifacts.provenance import read_provenance
from ddpm_core.artifacts.sample_set import SampleSet, commit_sample_set, sample_set_folder, write_block
from ddpm_core.data.images import encode_png
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.serialization import to_json
from pipelines.cli.output import check_output, write_output
from pipelines.scheduling.resolve import first_seed

FIRST, COUNT = 6, 5
CONFIG = SampleConfig(num_images=COUNT, first_seed=FIRST, block_size=4, sampler=SamplerConfig(name="ddim", num_steps=3))

IDENTITY = {"weights_sha256": "ab" * 32, "sampler": to_json(CONFIG.sampler), "labels": [2], "guidance": 1.5, "unet": {}}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def samples(tmp_path: Path, images: np.ndarray) -> SampleSet:
    """Five of twelve images in three blocks."""
    found = SampleSet(
        uri=sample_set_folder(str(tmp_path), {}, 4),
        identity=IDENTITY,
        first_seed=FIRST,
        num_images=COUNT,
        block_size=4,
        facts={"step": 1, "checkpoint": "/home/somebody/runs/small/checkpoints/step-00000001"},
    )
    for block in found.blocks:
        write_block(found.uri, block, [encode_png(image) for image in images[block : block + 4]])
    commit_sample_set(found)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    network = UNetConfig(
        base_channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_classes=3
    )
    model = ModelConfig(
        image_size=8, channels=3, unet=network, schedule=ScheduleConfig(num_timesteps=4), reverse=ReverseConfig()
    )
    tensors = {name: p.detach() for name, p in model.build_network().named_parameters()}
    uri = write_checkpoint(
        str(tmp_path_factory.mktemp("run")),
        Checkpoint(
            step=1, images_seen=1, seed=0, dataset_digest="", dataset_uri="", config=to_json(model), versions={}, model=tensors,
            ema=tensors, optimizer={}, history=[],
        ),
    )  # fmt: skip
    return read_weights(uri)


def test_a_folder_gets_a_png_a_seed(samples: SampleSet, weights: Weights, images: np.ndarray, tmp_path: Path) -> None:
    write_output(samples, weights, CONFIG, str(tmp_path / "out"))
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{seed:012d}.png" for seed in range(FIRST, FIRST + COUNT)]
    assert (np.stack([np.asarray(Image.open(file)) for file in files]) == images[FIRST : FIRST + COUNT]).all()


def test_an_npz_is_what_numpy_reads(samples: SampleSet, weights: Weights, images: np.ndarray, tmp_path: Path) -> None:
    write_output(samples, weights, CONFIG, str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as made:
        assert (made["arr_0"] == images[FIRST : FIRST + COUNT]).all()
        assert made["seeds"].tolist() == list(range(FIRST, FIRST + COUNT))


@pytest.mark.parametrize("name", ["way.gif", "way.webp"])
def test_an_animation_ends_with_what_the_model_draws(
    name: str,
    samples: SampleSet,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.progress._PLAIN_EVERY_S", -1.0)
    write_output(samples, weights, CONFIG, str(tmp_path / name))
    assert capsys.readouterr().err.splitlines()[-1] == "animation: 3 of 3 steps"
    with Image.open(tmp_path / name) as made:
        assert getattr(made, "n_frames", 1) >= 3  # three steps and the images; a format may join equal ones
        first = np.asarray(made.convert("RGB")).copy()
        made.seek(made.n_frames - 1)  # type: ignore[attr-defined]
        assert not np.array_equal(first, np.asarray(made.convert("RGB")))


def test_on_s3_too(samples: SampleSet, weights: Weights, bucket: str) -> None:
    write_output(samples, weights, CONFIG, f"s3://{bucket}/grid.png")
    assert Image.open(io.BytesIO(storage.read_bytes(f"s3://{bucket}/grid.png"))).width > 3 * 64


@pytest.mark.parametrize("name", ["out/", "out.npz", "out.png", "way.gif", "way.webp"])
def test_a_file_says_what_made_it_and_no_path_of_the_machine(
    name: str, samples: SampleSet, weights: Weights, tmp_path: Path
) -> None:
    for _ in range(2):  # its own output is replaced
        check_output(str(tmp_path / name) + ("/" if name.endswith("/") else ""))
        write_output(samples, weights, CONFIG, str(tmp_path / name))
    file, one = (
        (tmp_path / name, False) if (tmp_path / name).is_file() else (tmp_path / f"out/{FIRST + 2:012d}.png", True)
    )
    said = read_provenance(str(file))
    assert said == {
        "first_seed": FIRST + 2 if one else FIRST,
        "num_images": 1 if one else COUNT,
        "samples": Path(samples.uri).name,
        "step": 1,
        **{key: value for key, value in IDENTITY.items() if key != "unet"},
    }
    assert b"somebody" not in file.read_bytes()


def test_a_folder_takes_the_images_of_one_tick_after_another(
    samples: SampleSet, weights: Weights, tmp_path: Path
) -> None:
    """Whose seeds, the Unix minute times a million, have more digits than others'."""
    out = f"{tmp_path}/out/"
    Path(out).mkdir()
    (Path(out) / f"{first_seed(datetime(2026, 11, 30, 12, 19, tzinfo=UTC)):012d}.png").write_bytes(b"")
    check_output(out)
    write_output(samples, weights, CONFIG, out)
    assert len(list(Path(out).iterdir())) == COUNT + 1


def test_an_image_of_another_model_stays(samples: SampleSet, weights: Weights, tmp_path: Path) -> None:
    """Of the same seed, under the same name: nothing is written then, of the other seeds neither."""
    out, other = tmp_path / "out", replace(samples, identity={**samples.identity, "weights_sha256": "cd" * 32})
    write_output(samples, weights, CONFIG, str(out))
    (out / f"{FIRST:012d}.png").unlink()
    stands = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match=rf"out is .*, where {FIRST + 1:012d}.png was drawn otherwise, or by another"):
        write_output(other, weights, CONFIG, str(out))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == stands


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "000000000006.png").write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))
    check_output(str(photos))
    forged = {**dict.fromkeys(("first_seed", "num_images", "samples", "step", "weights_sha256"), 0), "sampler": "ddim"}
    Image.new("RGB", (8, 8)).save(photos / "cat.gif", comment=json.dumps(forged).encode())
    np.savez(photos / "mine.npz", arr_0=np.zeros(3))
    for name in ("cat.gif", "mine.npz", "000000000006.png"):
        with pytest.raises(InputError, match=f"out is .*{name}, a file that is no output of sample.py, and stays"):
            check_output(str(photos / name))
    with pytest.raises(InputError, match=r"a folder with other files \((cat.gif|mine.npz)\); expected one for these"):
        check_output(str(photos))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("images.jpg", r"expected a file that ends with .npz, .png, .gif, .webp, or a folder .*FOLDER/"),
        ("images.giff", r"did you mean .gif"),
        ("there.npz", r"a folder; expected a file"),
        ("note", r"a file; expected"),
        ("note/y.png", r"/note is a file; expected a place that can be written"),
        ("note/folder/", r"/note is a file; expected a place that can be written"),
    ],
)
def test_what_can_be_no_output_is_one_line(out: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "there.npz").mkdir()
    (tmp_path / "note").write_text("")
    with pytest.raises(InputError, match=said):
        check_output(str(tmp_path / out))
    check_output(f"{tmp_path}/v1.2/")
    check_output(str(tmp_path / "new.npz"))
