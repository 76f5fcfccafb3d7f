"""Reference statistics as a file: the .npz of pytorch-fid and clean-fid (`mu`, `sigma`), with what they were measured on."""

import io
import json
from dataclasses import asdict, dataclass

import numpy as np

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What reference statistics were measured on."""

    dataset_digest: str
    split: str
    count: int
    features: str
    """Digest of the features' definition, the resize included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Moments, and what is known of them."""

    stats: FeatureStats
    facts: ReferenceFacts | None
    """None for a file of other code, which says nothing."""


def reference_bytes(stats: FeatureStats, facts: ReferenceFacts) -> bytes:
    """A file that pytorch-fid and clean-fid read, too: they look for `mu` and `sigma` and nothing else.

    Raises:
        InputError: if there are fewer than 2 images.
    """
    out = io.BytesIO()
    np.savez(out, mu=stats.mean, sigma=stats.covariance, ddpm=np.array(json.dumps(asdict(facts))))
    return out.getvalue()


def read_reference(data: bytes, where: str) -> Reference:
    """The moments of such a file; a pickle in it is refused unread.

    Args:
        where: it lies, for messages.

    Raises:
        InputError: in one line, if it is no such file, or the moments are not finite or not of one dimension.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mu", "sigma")}
            facts = ReferenceFacts(**json.loads(str(file["ddpm"]))) if "ddpm" in file else None
    except (ValueError, OSError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            f"{where} holds no reference statistics ({' '.join(str(error).split())}); expected an .npz with mu and sigma"
        ) from None
    mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise InputError(
            f"{where} has mu of {list(mu.shape)} and sigma of {list(sigma.shape)}; expected [d] and [d, d]"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(f"{where} has moments that are not finite; expected finite ones")
    count = facts.count if facts else 2  # unknown; the distance asks for the covariance alone
    return Reference(stats=FeatureStats(count=count, mean=mu, m2=sigma * (count - 1)), facts=facts)


def open_reference(path: str, features: Features, dimensions: int) -> Reference:
    """The moments in a user's file, of these features.

    Args:
        dimensions: of the features.

    Raises:
        InputError: in one line, if it is not there, no reference, of another dimension, or says that it is of other features.
    """
    try:
        found = read_reference(storage.read_bytes(storage.absolute(path)), path)
    except FileNotFoundError:
        raise InputError(f"evaluate.reference is {path}; no such file") from None
    if len(found.stats.mean) != dimensions:
        raise InputError(
            f"{path} has {len(found.stats.mean)} dimensions; the features {features.network} have {dimensions}"
        )
    if found.facts and found.facts.features != features.digest:
        raise InputError(f"{path} was measured with {found.facts.features}; expected {features.digest}")
    return found
