"""The weights of a feature network: fetched once, checked, and kept in the store, from where every worker reads them."""

import hashlib
import re
import urllib.request
from http.client import HTTPException
from pathlib import PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import FEATURES, FeatureName, Features
from ddpm_core.evaluation.features.weights import read_network
from pipelines.progress import say

PUBLISHED_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"
_HUGGING_FACE: dict[FeatureName, str] = {
    "dinov2_vits14": "facebook/dinov2-small",
    "dinov2_vitb14": "facebook/dinov2-base",
    "dinov2_vitl14": "facebook/dinov2-large",
}
_DIGITS = re.compile(r"-([0-9a-f]{8,64})$")
_TIMEOUT_S = 30.0


def check_features(config: EvaluateConfig) -> None:
    """Refuse features that cannot be had; nothing is fetched or written.

    Raises:
        InputError: in one line.
    """
    weights = FEATURES[config.features].weights
    if weights is None:
        if config.weights is not None:
            raise InputError(
                f"evaluate.weights is {config.weights}, and {config.features} has no weights; "
                "leave it out, or say --evaluate.features inception"
            )
        return
    weights.check()
    source = config.weights or _published(config.features)
    if not _is_url(source) and not storage.exists(source):
        raise InputError(f"evaluate.weights is {source}, and there is no such file; expected a path or a URL")


def find_features(config: EvaluateConfig, store: str) -> Features:
    """The features that are asked for, their weights in the store.

    Raises:
        InputError: in one line, if the weights cannot be had, or are not those of the network.
    """
    check_features(config)
    weights = FEATURES[config.features].weights
    if weights is None:
        return Features(network=config.features)
    uri, sha256 = _kept(config.weights or _published(config.features), storage.join(store, "feature_weights"))
    if config.weights is None and sha256 != weights.published:
        raise InputError(f"{uri} has the sha256 {sha256}; expected {weights.published}, the published file: delete it")
    read_network(weights, uri, sha256, "cpu")
    return Features(network=config.features, resize=config.resize, weights=uri, sha256=sha256)


def _published(network: FeatureName) -> str:
    """The URL to fetch from where none is given: of a file whose name says its sum."""
    if network == "inception":
        return PUBLISHED_URL
    raise InputError(
        f"evaluate.features is {network}, whose weights are not fetched by themselves; expected --evaluate.weights with a "
        f"path or URL of {DINOV2_URL.format(network)}, or of Hugging Face's model.safetensors of {_HUGGING_FACE[network]}"
    )


def _kept(source: str, folder: str) -> tuple[str, str]:
    """Where the weights lie in the store, and their sha256; what their name says of it is held against it."""
    is_url = _is_url(source)
    name = PurePosixPath(urlsplit(source).path if is_url else source)
    digits = _DIGITS.search(name.stem)
    if is_url and digits:
        there = storage.join(folder, name.name)
        if storage.exists(there):
            return there, _sum(there, storage.read_bytes(there), digits[1])
    data = _fetch(source) if is_url else storage.read_bytes(source)
    sha256 = _sum(_without_secrets(source) if is_url else source, data, digits[1] if digits else "")
    kept = storage.join(folder, name.name if digits else f"{name.stem}-{sha256[:16]}{name.suffix}")
    if not (storage.exists(kept) and storage.read_bytes(kept) == data):
        storage.write_bytes(kept, data)
    return kept, sha256


def _is_url(source: str) -> bool:
    return urlsplit(source).scheme in ("http", "https")


def _sum(uri: str, data: bytes, digits: str) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(digits):
        raise InputError(
            f"{uri} has the sha256 {sha256}, its name says {digits}...: another file, or cut short; fetch it again"
        )
    return sha256


def _fetch(url: str) -> bytes:
    shown = _without_secrets(url)
    say(f"evaluate: fetching {shown}, once")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read()
    except (OSError, ValueError, HTTPException) as error:  # no answer, no URL, an answer that was cut short
        raise InputError(
            f"{shown} cannot be fetched from here ({error}); download it where it can be had and pass "
            "--evaluate.weights PATH, or say --evaluate.features random_conv, which needs no weights"
        ) from None
    return data


def _without_secrets(url: str) -> str:
    """Without what may sign it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
