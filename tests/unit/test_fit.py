"""How a picture comes to a dataset's size and channels: each fit against slices and Pillow, alpha against Pillow's own."""

import io
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.config import DataConfig
from ddpm_core.data.fit import Fit
from ddpm_core.data.images import BadImage, decode_png, decode_pngs, encode_png, exact_pixels, to_pixels
from ddpm_core.data.pixels import num_colours, on_white
from ddpm_core.errors import InputError
from ddpm_core.serialization import from_json, to_json
from pipelines.cli.parsing import parse
from pipelines.datasets import source_key
from pipelines.recipes.config import Recipe

FITS: tuple[Fit, ...] = ("crop", "pad", "stretch", "random_crop")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
LANCZOS = Image.Resampling.LANCZOS


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@given(
    height=st.integers(4, 12),
    width=st.integers(4, 12),
    channels=st.sampled_from([1, 2, 3, 4]),
    fit=st.sampled_from(FITS),
    as_file=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_image_of_the_right_form_keeps_every_bit(
    height: int, width: int, channels: int, fit: Fit, as_file: bool
) -> None:
    pixels = noise(height, width, channels)
    again = to_pixels(encode_png(pixels) if as_file else pixels, (height, width), channels, fit=fit, position=3)
    np.testing.assert_array_equal(again, pixels)
    np.testing.assert_array_equal(exact_pixels(encode_png(pixels), (height, width), channels), pixels)


@pytest.mark.parametrize("channels", MODES)
def test_a_png_is_of_its_kind_and_is_read_by_either_library(channels: int) -> None:
    pixels = noise(8, 12, channels)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == MODES[channels]
        np.testing.assert_array_equal(np.asarray(image).reshape(8, 12, channels), pixels)
    out = np.empty((8, 12, channels), dtype=np.uint8)
    decode_png(encode_png(pixels), out)
    np.testing.assert_array_equal(out, pixels)
    np.testing.assert_array_equal(decode_pngs([encode_png(pixels)])[0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize(("height", "width"), [(8, 20), (17, 12), (8, 13)])
def test_crop_keeps_the_centre_of_the_sizes_aspect(height: int, width: int) -> None:
    pixels = noise(height, width, 3)
    top, left = (height - 8) // 2, (width - 12) // 2
    np.testing.assert_array_equal(to_pixels(pixels, (8, 12), 3), pixels[top : top + 8, left : left + 12])


def test_crop_is_then_made_smaller_or_larger() -> None:
    pixels = noise(48, 100, 3)
    image = Image.fromarray(pixels[:, 14:86])
    np.testing.assert_array_equal(to_pixels(pixels, (8, 12), 3), np.asarray(image.resize((12, 8), LANCZOS)))
    small = Image.fromarray(noise(2, 3, 3))
    np.testing.assert_array_equal(to_pixels(np.asarray(small), (8, 12), 3), np.asarray(small.resize((12, 8), LANCZOS)))


@pytest.mark.parametrize("channels", MODES)
def test_pad_keeps_all_of_it_in_the_middle_of_white(channels: int) -> None:
    pixels = noise(4, 12, channels)
    padded = to_pixels(pixels, (8, 12), channels, fit="pad")
    np.testing.assert_array_equal(padded[2:6], pixels)
    outside = [255] * num_colours(channels) + [0] * (channels - num_colours(channels))
    assert (padded[[0, 1, 6, 7]] == outside).all()
    tall = to_pixels(noise(8, 3, channels), (8, 12), channels, fit="pad")
    assert (tall[:, [*range(4), *range(7, 12)]] == outside).all()
    np.testing.assert_array_equal(tall[:, 4:7], noise(8, 3, channels))


def test_stretch_is_all_of_it_resized() -> None:
    image = Image.fromarray(noise(31, 17, 3))
    expected = np.asarray(image.resize((12, 8), LANCZOS))
    np.testing.assert_array_equal(to_pixels(np.asarray(image), (8, 12), 3, fit="stretch"), expected)


def test_a_random_crop_is_a_part_whose_place_seed_and_position_say() -> None:
    pixels = noise(8, 20, 1)

    def place(position: int, seed: int = 0) -> int:
        found = to_pixels(pixels, (8, 12), 1, fit="random_crop", seed=seed, position=position)
        (left,) = [left for left in range(9) if np.array_equal(found, pixels[:, left : left + 12])]
        return left

    places = [place(position) for position in range(180)]
    counts = np.bincount(places, minlength=9)
    assert counts.min() >= 8  # 20 are expected, with a deviation of 4.2
    assert places == [place(position) for position in reversed(range(180))][::-1]
    assert places != [place(position, seed=1) for position in range(180)]
    upright = to_pixels(pixels[:, :9].reshape(9, 8), (4, 8), 1, fit="random_crop", position=1)
    assert any(np.array_equal(upright, pixels[:, :9].reshape(9, 8, 1)[top : top + 4]) for top in range(6))


def test_any_image_becomes_each_kind() -> None:
    grey, colour = Image.fromarray(noise(8, 12)), Image.fromarray(noise(8, 12, 3))
    grey_alpha, colour_alpha = (Image.fromarray(noise(8, 12, channels)) for channels in (2, 4))
    palette = colour.quantize(16)
    opaque = np.full((8, 12, 1), 255)
    for image, channels in product((grey, colour, palette), (2, 4)):
        found = to_pixels(encoded(image), (8, 12), channels)
        np.testing.assert_array_equal(found[..., -1:], opaque)
        np.testing.assert_array_equal(found[..., :-1], to_pixels(encoded(image), (8, 12), channels - 1))
    np.testing.assert_array_equal(to_pixels(encoded(grey_alpha), (8, 12), 4), np.asarray(grey_alpha.convert("RGBA")))
    np.testing.assert_array_equal(to_pixels(encoded(colour_alpha), (8, 12), 2), np.asarray(colour_alpha.convert("LA")))


@pytest.mark.parametrize("channels", [2, 4])
def test_left_out_alpha_is_laid_on_white_as_metrics_lay_it(channels: int) -> None:
    pixels = noise(8, 12, channels)
    seen = on_white(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(to_pixels(encode_png(pixels), (8, 12), channels - 1), seen)


def test_on_white_is_pillows_composite_of_every_level_and_alpha() -> None:
    levels = np.indices((256, 256)).astype(np.uint8)  # value, alpha
    image = Image.fromarray(np.stack([levels[0]] * 3 + [levels[1]], axis=-1))
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]
    found = on_white(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(on_white(torch.from_numpy(levels[None])), found[None, ..., 0][:, None])
    for channels in (1, 3):
        images = torch.from_numpy(noise(2, channels, 4, 6))
        assert on_white(images) is images


def test_what_is_invisible_lends_no_colour_when_resized() -> None:
    pixels = np.zeros((16, 24, 4), dtype=np.uint8)
    pixels[:, :12] = 255, 0, 0, 0
    pixels[:, 12:] = 0, 0, 255, 255
    small = to_pixels(pixels, (8, 10), 4, fit="stretch").astype(int)
    assert small[..., 0].max() == 0
    assert (small[small[..., 3] > 0][:, 2] == 255).all()


def test_a_picture_of_another_size_or_kind_is_not_exact() -> None:
    with pytest.raises(BadImage, match=r"12x8 pixels; expected 8x12 \(width x height\)"):
        exact_pixels(encode_png(noise(8, 12, 4)), (12, 8), 4)
    with pytest.raises(BadImage, match="colour; expected grey"):
        exact_pixels(encode_png(noise(8, 12, 4)), (8, 12), 2)


def test_a_config_says_the_fit_only_where_it_is_another_and_a_square_as_one_number() -> None:
    assert "fit" not in to_json(DataConfig())
    assert to_json(DataConfig(image_size=(8, 8))) == to_json(DataConfig(image_size=8))
    other = DataConfig(image_size=(24, 40), channels=4, fit="pad")
    assert (to_json(other)["image_size"], to_json(other)["fit"]) == ([24, 40], "pad")
    assert from_json(DataConfig, to_json(other)) == other
    assert source_key(DataConfig(image_size=(8, 8))) == source_key(DataConfig())
    shapes = [{"image_size": (8, 12)}, {"image_size": (12, 8)}, *({"fit": fit} for fit in FITS)]
    assert len({source_key(DataConfig(**shape)) for shape in shapes}) == len(shapes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 5}, r"data.channels is 5; expected 1 \(grey\), 2 \(grey with alpha\), 3 \(colour\) or 4"),
        ({"image_size": (3, 8)}, "data.image-size is 3 8; expected 4 or more pixels"),
    ],
)
def test_what_there_is_not_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataConfig(**fields)  # type: ignore[arg-type]


def test_a_fit_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"invalid choice 'squash' .*\('crop', 'pad', 'stretch', 'random_crop'\)"):
        parse(Recipe, ["--data.fit", "squash"], "shard.py", "")
    with pytest.raises(InputError, match=r"'crop', 'pad', 'stretch', 'random_crop'\]\) @ \$\.fit"):
        from_json(DataConfig, {**to_json(DataConfig()), "fit": "squash"})
