"""scikit-learn's digits: 1,797 grey 8x8 pictures of real handwriting that need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ddpm_core.data.sources.base import ArraySource, Listing, class_counts
from ddpm_core.data.sources.labels import numbered_classes
from ddpm_core.errors import InputError

_FILE = Path("datasets/data/digits.csv.gz")
"""In scikit-learn's package: a row an image, 64 grey values of 0 to 16 and its class."""


def open_digits() -> ArraySource:
    """The digits, their grey values stretched to 0..255.

    Raises:
        InputError: if scikit-learn is not installed, or keeps them elsewhere.
    """
    # The file itself: importing scikit-learn takes seconds, in each process that reads the images.
    package = find_spec("sklearn")
    path = Path(package.origin).parent / _FILE if package and package.origin else _FILE
    if not path.is_file():
        raise InputError(f"there is no {path}; expected the digits of scikit-learn: pip install scikit-learn")
    rows = np.loadtxt(path, np.uint8, delimiter=",")
    labels = rows[:, -1].astype(np.int64)
    return ArraySource(
        images=np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8),
        labels=labels,
        class_names=numbered_classes(labels),
        stem="digits",
        listing=Listing(labels="scikit-learn's labels", class_counts=class_counts(labels, 10)),
    )
