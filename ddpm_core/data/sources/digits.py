"""scikit-learn's digits: 1,797 grey 8x8 pictures of real handwriting that need no download."""

import numpy as np

from ddpm_core.data.sources.base import ArraySource, Listing, class_counts


def open_digits() -> ArraySource:
    """The digits, their grey values 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits  # seconds to import, and every command would wait for it

    digits = load_digits()
    return ArraySource(
        images=np.rint(digits.images * (255 / 16)).astype(np.uint8),
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
        stem="digits",
        listing=Listing(labels="scikit-learn's labels", class_counts=class_counts(digits.target, 10)),
    )
