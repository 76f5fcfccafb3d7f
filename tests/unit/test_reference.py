"""Reference statistics are the .npz of other code, too, and a foreign one is read for what it is, or refused in one line."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_core.artifacts.manifest import DatasetIndex, ShardEntry, make_index
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.reference import ReferenceFacts, read_reference, reference_bytes
from pipelines.measuring.features import imported_reference

PIXELS = Features(network="pixels")


def stats(seed: int, count: int = 30, dimensions: int = 4) -> FeatureStats:
    return FeatureStats.from_features(torch.rand(count, dimensions, generator=torch.Generator().manual_seed(seed)))


def index(num_train: int = 30) -> DatasetIndex:
    shard = ShardEntry(name="shard-000000.tar", split="train", num_samples=num_train, size_bytes=1, sha256="0" * 64)
    return make_index("/data", image_size=2, channels=1, class_names=(), shards=[shard], num_rejected=0)


def facts(**changes: object) -> ReferenceFacts:
    described = {"dataset_digest": index().digest, "split": "train", "count": 30, "features": PIXELS.digest}
    return ReferenceFacts(**{**described, **changes})  # type: ignore[arg-type]


def npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def test_other_code_finds_mean_and_covariance() -> None:
    """As pytorch-fid's calculate_fid_given_paths opens it: f["mu"], f["sigma"]."""
    features = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)).numpy()
    with np.load(io.BytesIO(reference_bytes(stats(1), facts()))) as file:
        np.testing.assert_allclose(file["mu"], features.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), rtol=1e-5)


def test_what_is_written_is_read() -> None:
    found = read_reference(reference_bytes(stats(1), facts()), "here")
    assert found.facts == facts()
    assert found.stats.count == 30
    np.testing.assert_allclose(found.stats.m2, stats(1).m2, rtol=1e-14)
    assert frechet_distance(found.stats, stats(2)) == pytest.approx(frechet_distance(stats(1), stats(2)), rel=1e-9)


def test_a_file_of_other_code_gives_the_same_distance(tmp_path: Path) -> None:
    theirs = stats(1, count=500)
    (tmp_path / "stats.npz").write_bytes(npz(mu=theirs.mean, sigma=theirs.covariance))
    found = imported_reference(str(tmp_path / "stats.npz"), index(), PIXELS)
    assert found.facts is None
    assert frechet_distance(stats(2), found.stats) == pytest.approx(frechet_distance(stats(2), theirs), rel=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a zip", "holds no reference statistics .*; expected an .npz with mu and sigma"),
        (npz(mean=np.zeros(4)), "holds no reference statistics"),
        (npz(mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1))), "Object arrays cannot be loaded|allow_pickle"),
        (npz(mu=np.zeros(4), sigma=np.zeros(4)), r"mu of \[4\] and sigma of \[4\]; expected \[d\] and \[d, d\]"),
        (npz(mu=np.full(4, np.nan), sigma=np.eye(4)), "moments that are not finite"),
        (npz(mu=np.zeros(5), sigma=np.eye(5)), "has 5 dimensions; the features pixels have 4"),
        (
            reference_bytes(stats(1), facts(dataset_digest="f" * 64)),
            f"dataset {'f' * 16}; expected {index().digest[:16]}",
        ),
        (reference_bytes(stats(1), facts(features="other-v1")), "measured with other-v1; expected pixels-v1"),
    ],
    ids=["rubbish", "names", "pickle", "shape", "nan", "dimensions", "dataset", "features"],
)
def test_what_is_no_reference_is_refused_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "stats.npz").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        imported_reference(str(tmp_path / "stats.npz"), index(), PIXELS)
    assert "\n" not in str(error.value)


def test_a_reference_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        imported_reference(str(tmp_path / "none.npz"), index(), PIXELS)


@pytest.mark.parametrize("given", [{"reference": "x.npz"}, {"reference_protocol": "CIFAR-10"}])
def test_a_reference_is_declared(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected both: a file does not say what it was measured on"):
        EvaluateConfig(**given)  # type: ignore[arg-type]
