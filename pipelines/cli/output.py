"""A sample set as files that other programs take: a folder of PNG, an .npz, a grid, an animation of how the images come to be."""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from ddpm_core import storage
from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.provenance import in_animation, provenance, read_provenance, with_provenance, write_array
from ddpm_core.artifacts.sample_set import SampleSet, read_images
from ddpm_core.data.images import decode_png
from ddpm_core.diffusion.sampler_config import steps_taken
from ddpm_core.errors import InputError, nearest
from ddpm_core.evaluation.pictures import grid_picture, image_grid
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.sampling.labels import labels_of_seeds
from pipelines.progress import progress

_AT_ONCE = 64
"""Images of a grid or an animation, at most."""
_OUR_PNG = re.compile(r"\d{12,}\.png")  # the seeds of a schedule have more digits
_FRAMES, _FRAME_MS, _LAST_MS = 48, 80, 2000


def check_output(out: str) -> None:
    """Refuse an ending that says nothing, a file where a folder stands or the reverse, and what others wrote, which stays.

    Raises:
        InputError: in one line.
    """
    ending, expected = _ending(out), f"expected a file that ends with {', '.join(_FILES)}, or a folder for a PNG a seed"
    if ending and ending not in _FILES:
        raise InputError(f"out is {out}; {expected} (FOLDER/, if that is one){nearest(ending, _FILES)}")
    if not storage.is_s3(out) and (Path(out).is_dir() if ending else Path(out).is_file()):
        raise InputError(f"out is {out}, a {'folder' if ending else 'file'}; {expected}")
    there = storage.absolute(out)
    if not storage.is_s3(out):
        _check_place(out, Path(there))
    if ending and storage.exists(there) and read_provenance(there) is None:
        raise InputError(
            f"out is {out}, a file that is no output of sample.py, and stays as it is; expected another name"
        )
    if not ending and (others := _others(there)):
        raise InputError(f"out is {out}, a folder with other files ({others}); expected one for these images alone")


def _check_place(out: str, there: Path) -> None:
    above = next(each for each in (there, *there.parents) if each.is_dir() or (each != there and each.exists()))
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "cannot be written" if above.is_dir() else "is a file"
        raise InputError(f"out is {out}, and {above} {why}; expected a place that can be written")


def _others(folder: str) -> str:
    """A file in a folder that is no image of a seed; empty if there is none."""
    names = (entry.name for entry in storage.walk(folder))
    return next((name for name in names if not _OUR_PNG.fullmatch(name) and not name.startswith(".")), "")


def write_output(samples: SampleSet, weights: Weights, config: SampleConfig, out: str) -> None:
    """Write the set's images where they were asked for, each file whole, with what made them in it; an earlier output is replaced.

    Args:
        out: a file, of which kind its ending says, or a folder, which gets a PNG a seed: 000000000017.png; local or on S3.
    """
    write = _FILES[_ending(out)] if _ending(out) else _pngs
    write(samples, weights, config, storage.absolute(out))


def _ending(out: str) -> str:
    """Of a file; none of a folder."""
    return "" if out.endswith("/") else PurePath(out).suffix.lower()


def _pngs(samples: SampleSet, weights: Weights, config: SampleConfig, out: str) -> None:
    said = {seed: provenance(samples, range(seed, seed + 1)) for seed in _seeds(samples, samples.num_images)}
    files = {seed: storage.join(out, f"{seed:012d}.png") for seed in said}
    there = {storage.below(out, entry.name) for entry in storage.walk(out)}
    for seed, file in files.items():
        if file in there and read_provenance(file) != json.loads(said[seed]):
            raise InputError(
                f"out is {out}, where {file.rpartition('/')[2]} was drawn otherwise, or by another model; it stays as it is: "
                "expected another folder (the images are in the store)"
            )
    for seed, png in read_images(samples):
        storage.write_bytes(files[seed], with_provenance(png, said[seed]))


def _npz(samples: SampleSet, weights: Weights, config: SampleConfig, out: str) -> None:
    """`arr_0`, uint8 [n, height, width, channels], as evaluation scripts read it, and `seeds`; one image in memory at a time."""
    ((_, first),) = islice(read_images(samples), 1)
    shape = (samples.num_images, *decode_png(first).shape)
    seeds = _seeds(samples, samples.num_images)
    with storage.writing(out) as path, zipfile.ZipFile(path, "w") as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as array:
            npy.write_array_header_2_0(array, {"shape": shape, "fortran_order": False, "descr": "|u1"})
            for _, png in read_images(samples):
                array.write(decode_png(png).tobytes())
        with file.open("seeds.npy", "w") as array:
            npy.write_array(array, np.array(seeds))
        write_array(file, provenance(samples, seeds))


def _seeds(samples: SampleSet, most: int = _AT_ONCE) -> range:
    """The set's first."""
    return range(samples.first_seed, samples.first_seed + min(samples.num_images, most))


def _grid(samples: SampleSet, weights: Weights, config: SampleConfig, out: str) -> None:
    images = [torch.from_numpy(decode_png(png)) for _, png in islice(read_images(samples), _AT_ONCE)]
    grid = image_grid(torch.stack(images).permute(0, 3, 1, 2))
    storage.write_bytes(out, with_provenance(grid, provenance(samples, _seeds(samples))))


def _animation(samples: SampleSet, weights: Weights, config: SampleConfig, out: str) -> None:
    """What the network takes the images for at each step, from noise on; the images themselves at the end, for longer."""
    frames = [*_frames(samples, weights, config)]
    kind = {"format": "WEBP", "lossless": True} if out.lower().endswith(".webp") else {"format": "GIF"}
    made = io.BytesIO()
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_MS]
    told = in_animation(provenance(samples, _seeds(samples)))
    frames[0].save(made, save_all=True, append_images=frames[1:], duration=durations, loop=0, **kind, **told)
    storage.write_bytes(out, made.getvalue())


def _frames(samples: SampleSet, weights: Weights, config: SampleConfig) -> Iterator[Image.Image]:
    model = Model.from_weights(weights, torch.device("cpu"))
    seeds = _seeds(samples)
    taken = steps_taken(config.sampler, model.config.schedule.num_timesteps)[::-1]
    shown = [taken[place] for place in sorted({round(each) for each in np.linspace(0, len(taken) - 1, _FRAMES)})]
    labels = (
        labels_of_seeds(torch.tensor(seeds), config, model.config.num_classes).tolist()
        if model.config.num_classes
        else ()
    )
    with progress("animation", len(taken), "step") as bar:
        seen, images = model.progressive(
            seeds,
            shown,
            sampler=config.sampler,
            labels=labels,
            guidance=config.guidance,
            on_step=lambda t, x_t, x_0_hat: bar.set(bar.count + 1),
        )
    for frame in (*np.moveaxis(seen, 1, 0), images, images):
        yield grid_picture(torch.from_numpy(np.ascontiguousarray(frame)).permute(0, 3, 1, 2))


_FILES: dict[str, Callable[[SampleSet, Weights, SampleConfig, str], None]] = {
    ".npz": _npz,
    ".png": _grid,
    ".gif": _animation,
    ".webp": _animation,
}
