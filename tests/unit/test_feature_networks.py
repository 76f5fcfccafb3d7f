"""Which features there are, what a figure on them is called, and where their weights come from."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features import random_conv
from ddpm_core.evaluation.features.inception import Inception
from ddpm_core.evaluation.features.networks import (
    FEATURES,
    PUBLISHED,
    PUBLISHED_DINOV2,
    FeatureName,
    Features,
)
from ddpm_core.evaluation.features.resize import RESIZES, ResizeName
from ddpm_core.evaluation.features.weights import read_network
from pipelines import feature_weights
from pipelines.feature_weights import find_features


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the network's tensors, named by its sum as published ones are."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(Inception().state_dict(), path)
    return path.rename(path.with_name(f"made-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


def inception(weights: object = None, **changes: object) -> EvaluateConfig:
    return EvaluateConfig(features="inception", weights=None if weights is None else str(weights), **changes)


def test_names_are_those_of_the_registries() -> None:
    assert get_args(FeatureName) == tuple(FEATURES)
    assert get_args(ResizeName) == tuple(RESIZES)


def test_only_the_published_weights_at_50_000_images_give_what_is_called_fid() -> None:
    published = Features(network="inception", sha256=PUBLISHED)
    other = Features(network="inception", sha256="ab12cd34" + "0" * 56)
    assert published.figure(50_000) == "fid"
    assert published.figure(2_048) == "fid@2048"
    assert other.figure(50_000) == "fd_inception_ab12cd34"
    assert Features().figure(50_000) == random_conv.NAME
    assert Features(network="pixels").figure(10) == "fd_pixels"


def test_only_the_published_large_dinov2_at_50_000_images_gives_what_is_called_fd_dinov2() -> None:
    large = Features(network="dinov2_vitl14", sha256=PUBLISHED_DINOV2["vitl14"])
    base = Features(network="dinov2_vitb14", sha256=PUBLISHED_DINOV2["vitb14"])
    other = Features(network="dinov2_vitl14", sha256="ab12cd34" + "0" * 56)
    assert [large.figure(50_000), large.figure(2_048), large.named("kid")] == [
        "fd_dinov2",
        "fd_dinov2@2048",
        "kid_dinov2",
    ]
    assert [base.figure(50_000), base.named("kid")] == ["fd_dinov2_vitb14_0b8b82f8", "kid_dinov2_vitb14_0b8b82f8"]
    assert [other.figure(50_000), other.named("kid")] == ["fd_dinov2_vitl14_ab12cd34", "kid_dinov2_vitl14_ab12cd34"]
    assert "the published weights (sha256 d5383ea8f4877b24), images brought to 224x224" in large.protocol
    assert "the published weights" in base.protocol
    assert "another file than the published one (sha256 ab12cd34" in other.protocol
    assert all(each.is_heavy for each in (large, base, other))


def test_whatever_changes_the_features_changes_their_digest() -> None:
    all_of_them = [Features(), Features(network="pixels")]
    all_of_them += [
        Features(network="inception", resize=resize, sha256=sha256)
        for resize in get_args(ResizeName)
        for sha256 in ("0" * 64, "1" * 64)
    ]
    sizes: tuple[FeatureName, ...] = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14")
    all_of_them += [Features(network=size, sha256=sha256) for size in sizes for sha256 in ("0" * 64, "1" * 64)]
    assert len({each.digest for each in all_of_them}) == len(all_of_them)
    assert Features().digest == random_conv.extractor_digest()


def test_features_of_each_network(weights: Path, tmp_path: Path) -> None:
    grey = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = find_features(inception(weights), str(tmp_path)).extract(grey)
    assert found.shape == (3, 2048)
    assert found.dtype == torch.float32
    torch.testing.assert_close(Features(network="pixels").extract(grey), grey.reshape(3, 64) / 255)
    assert Features().extract(grey).equal(random_conv.extract(grey))
    with pytest.raises(InputError, match="5 channels; expected 1"):
        Features(network="pixels").extract(torch.zeros(1, 5, 8, 8, dtype=torch.uint8))


def test_weights_lie_in_the_store_and_their_source_may_go(weights: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.safetensors"
    save_file(Inception().state_dict(), source)
    found = find_features(inception(source), str(tmp_path / "store"))
    source.unlink()
    read_network.cache_clear()
    assert found.sha256[:16] in found.weights
    assert found.figure(100) == f"fd_inception_{found.sha256[:8]}"
    assert found.extract(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 2048)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nowhere.pth", "evaluate.weights is .*nowhere.pth, and there is no such file; expected a path or a URL"),
        ("empty.pth", "does not hold the weights of FID's Inception network"),
        ("other.pth", "does not hold the weights of FID's Inception network.*Missing key|Error"),
        ("named-00000000.pth", "has the sha256 [0-9a-f]{64}, its name says 00000000"),
    ],
)
def test_refuses_in_one_line(tmp_path: Path, given: str, why: str) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "named-00000000.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=why) as refused:
        find_features(inception(tmp_path / given), str(tmp_path / "store"))
    assert "\n" not in str(refused.value)


class Touching:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_foreign_file_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"fc.weight": Touching(tmp_path / "touched")}, tmp_path / "object.pth")
    with pytest.raises(InputError, match="does not hold the weights of FID's Inception network"):
        find_features(inception(tmp_path / "object.pth"), str(tmp_path / "store"))
    assert not (tmp_path / "touched").exists()


def test_refuses_weights_for_a_network_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"random_conv has no weights; leave it out, or say --evaluate\.features incep"
    ):
        find_features(EvaluateConfig(weights="x.pth"), str(tmp_path))


def test_weights_that_changed_in_the_store_are_refused(weights: Path, tmp_path: Path) -> None:
    found = find_features(inception(weights), str(tmp_path))
    read_network.cache_clear()
    Path(found.weights).write_bytes(b"cut short")
    with pytest.raises(InputError, match=f"expected {found.sha256}: it changed, or was cut short; delete it"):
        found.extract(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.fixture
def served(weights: Path) -> Iterator[tuple[str, list[str]]]:
    """A server's URL that has the weights, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            there = self.path == f"/{weights.name}"
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(weights.read_bytes() if there else b"")

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_url_is_fetched_once(served: tuple[str, list[str]], weights: Path, tmp_path: Path) -> None:
    url, asked = served
    first = find_features(inception(f"{url}/{weights.name}"), str(tmp_path))
    assert find_features(inception(f"{url}/{weights.name}"), str(tmp_path)) == first
    assert asked == [f"/{weights.name}"]
    Path(first.weights).write_bytes(b"cut short")
    with pytest.raises(InputError, match="its name says"):
        find_features(inception(f"{url}/{weights.name}"), str(tmp_path))


def test_a_url_that_cannot_be_had_says_what_to_do(
    served: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = r"cannot be fetched from here \(.*404.*\); download it .* --evaluate\.weights PATH, or say .* random_conv"
    monkeypatch.setattr(feature_weights, "PUBLISHED_URL", f"{served[0]}/pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(InputError, match=why):
        find_features(inception(), str(tmp_path))
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    "url", ["http://", "http://127.0.0.1:1/x.pth?token=SECRET", "http://user:SECRET@127.0.0.1:1/x"]
)
def test_what_is_no_url_or_signs_one_is_told_without_its_secret(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="cannot be fetched from here") as refused:
        find_features(inception(url), str(tmp_path))
    said = capsys.readouterr()
    assert "SECRET" not in str(refused.value) + said.out + said.err


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate\.weights is .*; expected a path or a URL"):
        find_features(inception(tmp_path), str(tmp_path / "store"))
