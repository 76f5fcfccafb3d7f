"""The Report artifact, the page and its pictures."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_core import storage
from ddpm_core.artifacts.looks import Look, Spread
from ddpm_core.artifacts.report import read_findings, read_report, write_report
from ddpm_core.data.pixels import on_white
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.copies import judge_copies, search_copies
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure
from ddpm_core.evaluation.frechet_infinity import Extrapolation
from ddpm_core.evaluation.neighbours import nearest
from ddpm_core.evaluation.pictures import denoising_strip, image_grid, neighbours_grid
from ddpm_core.evaluation.plots import _running_mean, empty_figure, loss_curve, plain_numbers
from ddpm_core.evaluation.report_page import DatasetFacts, ImageFacts, ModelFacts, ReportContent, Strip, render_report

HISTORY = [{"step": step, "loss": 1 / step, "grad_norm": 0.5} for step in range(1, 60)]


def random_images(count: int, size: int = 8, channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def content(size: int = 8, channels: int = 1) -> ReportContent:
    real, generated = random_images(9, size, channels, 1), random_images(9, size, channels, 2)
    return ReportContent(
        title="a trial",
        created_at="2026-01-02",
        dataset=DatasetFacts(
            name="digits",
            uri="/store/datasets/digits",
            digest="7c" * 32,
            image_size=size,
            channels=channels,
            counts={"train": 1455, "validation": 162, "test": 180},
            own_splits=(),
            num_rejected=0,
            class_names=("zero", "one"),
        ),
        images=ImageFacts(uri="/store/samples/set.json", first=100, count=512),
        model=ModelFacts(
            checkpoint_uri="/store/runs/digits/checkpoints/step-00002000",
            weights_sha256="5e" * 32,
            num_parameters=1_234_567,
            step=2000,
            images_seen=128_000,
            sampler="DDIM, 50 steps, eta 0",
            settings={"train.learning_rate": "0.0002", "loss.objective": "<simple>"},
        ),
        figures=(
            Figure(
                name="fd_random_conv",
                of="512 generated against 1,455 training images",
                value=3.21987,
                low=2.912,
                high=3.529,
                headline=True,
            ),
            Figure(name="floor", of="180 test against 1,455 training images", value=0.5, note="real images"),
        ),
        protocol=Features().protocol,
        extractor_digest="fd_random_conv-v1-d256-abc",
        real=real,
        generated=generated,
        strip=Strip(
            frames=random_images(6, size, channels, 3).reshape(2, 3, channels, size, size), labels=("T", "500", "0")
        ),
        queries=generated[:2],
        neighbours=nearest(generated[:2], real, 4),
        history=HISTORY,
        train_images_per_s=512.3,
        commands=("python pipelines/evaluate.py digits",),
        versions={"torch": "2.13.0"},
    )


class Page(HTMLParser):
    """Tags left open, the sources of images, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "href") and value]
        if tag not in ("img", "meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_images_that_are_no_squares_are_shown_in_their_shape_and_on_white() -> None:
    made = content()
    images = torch.randint(256, (9, 4, 8, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shape = replace(made.dataset, image_size=(8, 24), channels=4)
    near = nearest(images[:2], images, 4)
    changes = {"dataset": shape, "real": images, "generated": images, "queries": images[:2], "neighbours": near}
    html = render_report(replace(made, **changes, strip=None))  # type: ignore[arg-type]
    page = Page(html)
    assert "8×24 colour with alpha" in page.text
    assert "8×24 pixels (height × width), 4 channels" in page.text
    assert "--tile: 96px; --aspect: 24 / 8" in html  # 96 is four times its width
    with Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2]))) as first:
        assert (first.mode, first.size) == ("RGB", (24, 8))
        assert np.array_equal(np.asarray(first), on_white(images)[0].permute(1, 2, 0).numpy())
    assert "8×8 pixels, 1 channel" in Page(render_report(made)).text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "report")
    page = write_report(uri, [{"name": "fd", "value": 1.5}], {"of": [3, 4]}, "<p>ü</p>", {"grid.png": b"png"})
    found = read_report(uri)
    assert storage.read_bytes(page).decode() == found.html == "<p>ü</p>"
    assert (found.figures, found.facts) == read_findings(uri) == ([{"name": "fd", "value": 1.5}], {"of": [3, 4]})
    assert found.pngs == {"grid.png": b"png"}


def test_report_json_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies before the end leaves no report, not even the old one with new pictures."""
    uri = str(tmp_path / "report")
    write_report(uri, [{"fd": 1}], {}, "old", {"grid.png": b"old"})
    write = storage.write_bytes

    def dies(to: str, data: bytes) -> None:
        if to.endswith(".html"):
            raise OSError("disk full")
        write(to, data)

    monkeypatch.setattr(storage, "write_bytes", dies)
    with pytest.raises(OSError, match="disk full"):
        write_report(uri, [{"fd": 2}], {}, "new", {"grid.png": b"new"})
    with pytest.raises(FileNotFoundError, match=f"no report at {uri}"):
        read_report(uri)
    monkeypatch.undo()
    write_report(uri, [{"fd": 3}], {}, "newer", {})
    assert read_report(uri).figures == [{"fd": 3}]


def test_damage_is_found(tmp_path: Path) -> None:
    uri = str(tmp_path)
    write_report(uri, [], {}, "page", {"grid.png": b"png"})
    (tmp_path / "grid.png").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"grid\.png: sha256 is [0-9a-f]{64}, report\.json says"):
        read_report(uri)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format_version 3; this code reads up to 2"),
        ({"sha256": {"../secret": "0"}}, "names the file '../secret'; expected a plain file name"),
    ],
)
def test_strange_reports_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_report(str(tmp_path), [], {}, "page", {})
    marker = tmp_path / "report.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        read_report(str(tmp_path))


def test_a_report_of_the_first_format_is_read(tmp_path: Path) -> None:
    write_report(str(tmp_path), [], {}, "page", {})
    marker = tmp_path / "report.json"
    old = {
        "format_version": 1,
        "figures": {"fd": 1.5, "reference": "r"},
        "sha256": json.loads(marker.read_text())["sha256"],
    }
    marker.write_text(json.dumps(old))
    assert read_findings(str(tmp_path)) == ([{"name": "fd", "value": 1.5}], {"reference": "r"})


def test_figures_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(str(tmp_path), [{"fd": float("nan")}], {}, "page", {})
    assert not list(tmp_path.iterdir())


def test_page_says_what_was_measured() -> None:
    page = Page(render_report(content()))
    assert page.open == []
    for said in (
        *("a trial", "3.22", "512 generated against 1,455 training images", "1,234,567", "7c" * 32, "5e" * 32),
        *("Seeds 100 to 108", "seeds 100 to 611", "fd_random_conv-v1-d256-abc", "python pipelines/evaluate.py digits"),
        *(
            "zero, one",
            "torch 2.13.0",
            "95%: 2.912 to 3.529",
            "train.learning_rate",
            "512.3",
            "DDIM, 50 steps",
            "not FID",
            f"{content().neighbours.distances[0, 0]:.2f}",
        ),
    ):
        assert said in page.text, said


def test_page_is_self_contained() -> None:
    html = render_report(content())
    page = Page(html)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", html)


def test_page_shows_the_images_in_order() -> None:
    shown = content()
    pngs = [s for s in Page(render_report(shown)).sources if s.startswith("data:image/png")]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png.split(",")[1])))) for png in pngs]
    neighbours = torch.cat([shown.queries[:, None], shown.neighbours.images], dim=1)
    expected = torch.cat([shown.generated, shown.real, shown.strip.frames.flatten(0, 1), neighbours.flatten(0, 1)])
    small = [pixels for pixels in decoded if pixels.shape == (8, 8)]
    np.testing.assert_array_equal(np.stack(small), expected[:, 0].numpy())
    assert len(decoded) == len(small) + 2  # the curve, light and dark


def test_page_escapes_what_came_from_outside() -> None:
    evil = '<script>alert("x")</script>'
    start = content()
    html = render_report(
        replace(
            start,
            title=evil,
            dataset=replace(start.dataset, name=evil, class_names=(evil,)),
            commands=(evil,),
            versions={evil: evil},
            strip=replace(start.strip, labels=(evil, "1", '" onerror="x')),
            images=replace(start.images, uri=evil),
            without_copies=evil,
        )
    )
    assert "script" not in Page(html).tags
    assert '" onerror="x' not in html


def test_page_shows_what_was_found_of_copies() -> None:
    """The worst pairs with their scores, a verdict, and at small sizes why exact copies alone count."""
    shown = content()
    generated, training = shown.generated[:4], shown.real
    found = judge_copies(search_copies(generated, training), search_copies(random_images(9, seed=8), training))
    pairs = torch.stack([torch.stack([generated[p.generated], training[p.training]]) for p in found.worst])
    page = Page(render_report(replace(shown, copies=found, copy_pairs=pairs)))
    assert page.open == []
    for said in ("0 of 4 generated images are suspected", "no more than real images do", "exact copies alone are"):
        assert said in " ".join(page.text.split()), said
    copied = search_copies(training[:4], training)
    accused = judge_copies(copied, search_copies(random_images(90, seed=8), training))
    page = Page(render_report(replace(shown, copies=accused, copy_pairs=pairs)))
    assert "the model repeats what it was trained on" in page.text


def test_page_draws_the_curves_that_were_measured() -> None:
    """Precision over recall, the distance over the steps of samplers and over 1/N; each for light and dark."""
    curve = Extrapolation(value=1.0, slope=2.0, counts=np.array([10, 20]), distances=np.array([1.2, 1.1]))
    points = np.array([[0.1, 0.2], [0.4, 0.5]])
    steps = {"ddim": [(10, 4.0), (5, 9.0)], "heun": [(5, 3.0)]}
    bare = Page(render_report(content()))
    full = Page(render_report(replace(content(), curve=curve, precision_recall=points, by_steps=steps)))
    assert full.open == []
    assert len(full.sources) == len(bare.sources) + 6
    said = " ".join(full.text.split())
    for words in (
        "where endless images would be",
        "Precision over recall",
        "ddim: 4 in 10 steps, 9 in 5 steps; heun: 3 in 5 steps",
    ):
        assert words in said, words


def test_page_says_how_training_went_and_draws_its_looks() -> None:
    spread = Spread(within=60.0, between=70.0)
    looks = [
        Look(
            step=step,
            bands=((0, 9), (10, 19)),
            validation=(1.0, 2.0),
            train=(1.0, 1.5),
            newest=(2.0, 1.0),
            weight_size=0.1,
            real=spread,
        )
        for step in (0, 100, 200)
    ]
    bare = Page(render_report(content()))
    full = Page(render_report(replace(content(), looks=looks, course=["flat since step 0", "too few <steps>"])))
    assert full.open == []
    assert len(full.sources) == len(bare.sources) + 2
    said = " ".join(full.text.split())
    assert "Training Flat since step 0. Too few <steps>. The loss on the same images under the same noise" in said


def test_page_names_the_classes_in_the_order_of_the_images() -> None:
    made = content()
    assert made.model is not None
    for count, said in ((2, "in turn: rose <1>, rose <2>."), (21, "rose <20> and 1 more.")):
        classes = tuple(f"rose <{number}>" for number in range(1, count + 1))
        assert said in Page(render_report(replace(made, model=replace(made.model, classes=classes)))).text
    assert "in turn" not in Page(render_report(made)).text


def test_page_of_images_without_a_model() -> None:
    page = Page(render_report(replace(content(), model=None, strip=None, history=[])))
    assert page.open == []
    assert "512 images that others made" in page.text
    assert "Numbers 100 to 108" in page.text
    assert "From noise to image" not in page.text


def test_page_without_history_has_no_curve() -> None:
    assert "gradient norm" not in render_report(replace(content(), history=[]))


def test_large_colour_images_are_shown_as_webp() -> None:
    sources = Page(render_report(content(size=96, channels=3))).sources
    assert sum(source.startswith("data:image/webp") for source in sources) == 9 + 9 + 6 + 2 * 5


def test_a_missing_label_is_refused() -> None:
    with pytest.raises(ValueError, match="1 labels for 3 columns"):
        replace(content().strip, labels=("T",))
    with pytest.raises(ValueError, match="1 labels for 3 columns"):
        denoising_strip(content().strip.frames, ["T"])


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_grid_places_and_magnifies() -> None:
    images = random_images(5, 4, 3)
    pixels = opened(image_grid(images, columns=2, scale=3, padding=1))
    assert pixels.shape == (3 * 13 + 1, 2 * 13 + 1, 3)
    third = pixels[14:26, 1:13]  # row 1, column 0
    np.testing.assert_array_equal(third[::3, ::3], images[2].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(third[::3, ::3], third[2::3, 2::3])
    assert (pixels[27:39, 14:26] == 255).all()  # the sixth place is empty


@pytest.mark.parametrize(("size", "shown"), [(8, 64), (28, 56), (32, 64), (64, 64), (256, 256)])
def test_small_images_are_magnified(size: int, shown: int) -> None:
    assert opened(image_grid(random_images(1, size), padding=0)).shape == (shown, shown, 3)


def test_strip_and_neighbours_hold_all_their_images() -> None:
    shown = content(size=16, channels=3)
    strip = opened(denoising_strip(shown.strip.frames, shown.strip.labels, scale=1))
    rows = opened(neighbours_grid(shown.queries, shown.neighbours.images, shown.neighbours.distances, scale=1))
    for canvas, images in ((strip, shown.strip.frames.flatten(0, 1)), (rows, shown.neighbours.images.flatten(0, 1))):
        windows = np.lib.stride_tricks.sliding_window_view(canvas, (16, 16, 3))[:, :, 0]
        for image in images.permute(0, 2, 3, 1).numpy():
            corners = (windows[:, :, 0, 0] == image[0, 0]).all(axis=-1)
            assert (windows[corners] == image).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        HISTORY[:1],
        [{"step": 1, "loss": float("nan"), "grad_norm": float("inf")}, *HISTORY[1:]],
        [{"step": 1, "loss": float("nan"), "grad_norm": 0.0}],
    ],
    ids=["falling", "one step", "gaps", "nothing finite"],
)
def test_curve_of_any_history(history: list[dict[str, float]]) -> None:
    light, dark = loss_curve(history), loss_curve(history, dark=True)
    assert Image.open(io.BytesIO(light)).mode == "RGBA"
    assert light != dark


def test_running_mean_skips_gaps() -> None:
    found = _running_mean(np.array([1.0, np.nan, 4.0, 7.0, np.nan, np.nan, np.nan]), 1)
    np.testing.assert_array_equal(found, [1.0, 2.5, 5.5, 5.5, 7.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("field", "value"), [("num_images", 1), ("num_shown", 0), ("num_rows", 0), ("num_neighbours", 0), ("batch_size", 0)]
)
def test_config_refuses_what_is_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"evaluate\.{field.replace('_', '-')} is {value}; expected"):
        EvaluateConfig(**{field: value})


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.02, 3.0, "0.02 0.05 0.1 0.2 0.5 1 2"), (0.034, 0.058, "0.04 0.05")]
)
def test_a_logarithmic_axis_has_few_plain_numbers(low: float, high: float, shown: str) -> None:
    axes = empty_figure(5.0, 3.0).subplots()
    axes.plot([0, 1], [low, high])
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.figure.canvas.draw()
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_major_ticks() if bottom <= tick.get_loc() <= top]
    assert " ".join(tick.label1.get_text() for tick in ticks) == shown
    assert not any(tick.label1.get_text() for tick in axes.yaxis.get_minor_ticks())
