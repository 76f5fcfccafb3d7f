"""What made images, in their own file: a PNG's text, a GIF's comment, WebP's EXIF, an array of an .npz.

A file that has left the store says from whose weights it is, by which sampler, and of which seeds. No path of the machine is in it.
"""

import io
import json
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from ddpm_core import storage
from ddpm_core.artifacts.sample_set import SampleSet

KEY = "ddpm"
"""Under which a PNG and an .npz have it."""
_DECIDES = ("weights_sha256", "sampler", "labels", "guidance", "precision")
"""Of a set's identity; the network is the weights'."""
_SAID_ALWAYS = {"first_seed", "num_images", "samples", "step", "weights_sha256", "sampler"}


def provenance(samples: SampleSet, seeds: range) -> str:
    """What made the images of these seeds of a set, as JSON: seeds, the folder of the set, and what decides them."""
    said = {key: samples.identity[key] for key in _DECIDES if samples.identity.get(key) not in (None, [])}
    where = {"samples": samples.uri.rpartition("/")[2], "step": samples.facts.get("step")}
    return json.dumps({"first_seed": seeds.start, "num_images": len(seeds), **where, **said})


def with_provenance(png: bytes, said: str) -> bytes:
    """The same pixels, and what made them."""
    text, made = PngInfo(), io.BytesIO()
    text.add_text(KEY, said)
    Image.open(io.BytesIO(png)).save(made, "PNG", pnginfo=text)
    return made.getvalue()


def write_array(file: zipfile.ZipFile, said: str) -> None:
    """Put it into an .npz, as a text that numpy reads without unpickling."""
    with file.open(f"{KEY}.npy", "w") as array:
        npy.write_array(array, np.array(said), allow_pickle=False)


def in_animation(said: str) -> dict[str, Any]:
    """What Pillow's `save` takes for it: a GIF's comment, and WebP's EXIF; each format leaves out the other."""
    exif = Image.Exif()
    exif[Base.ImageDescription] = said
    return {"comment": said.encode(), "exif": exif.tobytes()}


def read_provenance(uri: str) -> dict[str, Any] | None:
    """What a file says of what made it; None if it says nothing, or is none of these.

    Raises:
        MissingError: if there is no such file.
    """
    with storage.open_read(uri) as file:
        try:
            said = json.loads(_of_arrays(file) if uri.lower().endswith(".npz") else _of_image(file))
        except (OSError, SyntaxError, ValueError, KeyError, zipfile.BadZipFile, Image.DecompressionBombError):
            return None
    known = isinstance(said, dict) and said.keys() >= _SAID_ALWAYS and isinstance(said["sampler"], dict)
    return said if known and "name" in said["sampler"] else None


def _of_arrays(file: Any) -> str:
    with zipfile.ZipFile(file) as arrays, arrays.open(f"{KEY}.npy") as array:
        return str(npy.read_array(array, allow_pickle=False))


def _of_image(file: Any) -> str:
    with Image.open(file, formats=["PNG", "GIF", "WEBP"]) as image:
        said = image.info.get(KEY) or image.info.get("comment") or image.getexif().get(Base.ImageDescription, "")
    return said.decode() if isinstance(said, bytes) else str(said)
