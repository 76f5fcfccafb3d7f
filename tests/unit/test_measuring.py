"""What is measured of images does not depend on who measured which part of them, and is told with what it was measured on."""

import itertools
import random
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_core.artifacts.manifest import DatasetIndex, ShardEntry, make_index
from ddpm_core.artifacts.sample_set import SampleSet
from ddpm_core.errors import InputError
from ddpm_core.evaluation.bits_per_dim import BoundStats
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.copies import TooFewHeldOut
from ddpm_core.evaluation.features.networks import PUBLISHED, Features
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.intervals import jackknife
from ddpm_core.evaluation.reference import read_reference
from ddpm_core.types import Tensor
from pipelines.cli.parsing import parse
from pipelines.cluster.tasks import MergeTree
from pipelines.evaluate import EvaluateArgs
from pipelines.measuring import features as measuring
from pipelines.measuring import figures, likelihood
from pipelines.measuring.features import Measured, Wanted
from pipelines.recipes.config import SampleStage
from pipelines.recipes.recipes import make
from pipelines.report_facts import command
from pipelines.stages import evaluate as stage
from pipelines.subject import Subject

PIXELS = Features(network="pixels")


@dataclass(frozen=True)
class Drawn:
    """Noise in parts of odd sizes; brighter by `shift`."""

    num_images: int
    shift: int = 0

    @property
    def parts(self) -> list[range]:
        edges = [*range(0, self.num_images, 13), self.num_images]
        return [range(first, end) for first, end in itertools.pairwise(edges)]

    @property
    def all(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.shift)
        images = torch.randint(0, 200, (self.num_images, 1, 3, 2), generator=generator) + self.shift
        return images.to(torch.uint8)

    def read(self, places: range, batch_size: int) -> Iterator[Tensor]:
        yield from torch.split(self.all[places.start : places.stop], batch_size)


def measured(images: Drawn, wanted: Wanted, order: random.Random | None = None) -> Measured:
    """As tasks do it, each part for itself, in any order."""
    parts = [range(part.start, min(part.stop, wanted.count)) for part in images.parts if part.start < wanted.count]
    numbered = list(enumerate(parts))
    if order is not None:
        order.shuffle(numbered)
    sums = MergeTree(len(parts), Measured.merge)
    for number, part in numbered:
        sums.add(number, measuring._measure_part(part, images, wanted, PIXELS, 5, SampleStage()))
    return sums.total()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_neighbours_are_merged_in_the_same_pairs_whoever_comes_first(size: int) -> None:
    """A merge that is not associative shows the tree itself: brackets."""
    found, held = set(), 0
    for seed in range(10):
        order = list(range(size))
        random.Random(seed).shuffle(order)
        tree = MergeTree(size, lambda one, other: f"({one} {other})")
        for place in order:
            tree.add(place, str(place))
        found.add(tree.total())
    assert len(found) == 1
    (text,) = found
    assert text.replace("(", "").replace(")", "").split() == [str(place) for place in range(size)]
    tree = MergeTree(size, lambda one, other: "")
    for place in range(1, size):  # the first one is late
        tree.add(place, "")
        held = max(held, len(tree.waiting))
    assert held <= 2 * int(np.ceil(np.log2(size + 1)))


def test_sums_are_those_of_the_images_between_the_edges() -> None:
    images, wanted = Drawn(90), Wanted(count=80, cuts=(7, 26, 27, 60), num_kept=30)
    found = measured(images, wanted)
    rows = images.all.reshape(-1, 6).float() / 255
    np.testing.assert_array_equal(found.features, rows[:30].numpy())
    for number, (first, end) in enumerate(itertools.pairwise(wanted.edges)):
        expected = FeatureStats.from_features(rows[first:end])
        stats = found.between(number, number + 1).stats
        assert stats.count == end - first
        np.testing.assert_allclose(stats.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(stats.m2, expected.m2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.total.stats.m2, FeatureStats.from_features(rows[:80]).m2, rtol=1e-9, atol=1e-12)


def test_sums_have_the_same_bits_in_whatever_order_parts_come() -> None:
    wanted = Wanted(count=200, cuts=(50, 100), num_kept=20)
    first, other = (measured(Drawn(200), wanted, random.Random(seed)) for seed in (0, 1))
    assert first.total.stats.m2.tobytes() == other.total.stats.m2.tobytes()
    assert first.total.stats.mean.tobytes() == other.total.stats.mean.tobytes()
    assert first.features.tobytes() == other.features.tobytes()


# --- what is told


def index(train: int, **splits: int) -> DatasetIndex:
    counts = {"train": train, **splits}
    shards = [
        ShardEntry(name=f"{split}.tar", split=split, num_samples=count, size_bytes=1, sha256="0" * 64)
        for split, count in counts.items()
    ]
    return make_index("/data", image_size=3, channels=1, class_names=(), shards=shards, num_rejected=0)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a dataset, and tasks, in this process."""

    def real_features(index: DatasetIndex, split: str, count: int, num_kept: int, *rest: object) -> object:
        found = measured(Drawn(index.num_samples(split), shift=30), Wanted(count=count, num_kept=num_kept))
        return found.total.stats, found.features if num_kept else np.empty((0, 6), np.float32)

    monkeypatch.setattr(figures, "real_features", real_features)
    monkeypatch.setattr(figures, "measure_features", lambda what, images, wanted, *rest: measured(images, wanted))


def evaluated(
    count: int, index: DatasetIndex, features: Features = PIXELS, num_pairs: int = 0
) -> figures.FeatureFigures:
    config = EvaluateConfig(num_images=count, num_pairs=num_pairs)
    return figures.feature_figures(Drawn(count), index, config, "/store", features, SampleStage())


@pytest.mark.usefixtures("real")
def test_the_distance_has_the_interval_of_its_groups_and_stands_beside_the_floor() -> None:
    found = evaluated(100, index(300, validation=0, test=60)).figures
    rows = Drawn(100).all.reshape(-1, 6).float() / 255
    train = measured(Drawn(300, shift=30), Wanted(count=300)).total.stats
    without = [torch.cat([rows[: 5 * group], rows[5 * group + 5 :]]) for group in range(20)]
    left_out = [frechet_distance(FeatureStats.from_features(rest), train) for rest in without]
    value = frechet_distance(FeatureStats.from_features(rows), train)
    sure = jackknife(value, np.array(left_out))
    assert (found[0].value, found[0].low, found[0].high) == pytest.approx((value, sure.low, sure.high), rel=1e-9)
    np.testing.assert_allclose(found[0].left_out, left_out, rtol=1e-9)
    named = {figure.name: figure for figure in found}
    assert list(named)[:3] == ["fd_pixels", "same_n", "floor"]
    assert named["same_n"].value == pytest.approx(
        frechet_distance(FeatureStats.from_features(rows[:60]), train), rel=1e-9
    )
    assert named["floor"].of == "60 test images against 300 training images"
    assert named["same_n"].of == "60 generated images against 300 training images"
    assert "no test" not in named["floor"].note


@pytest.mark.usefixtures("real")
def test_few_images_have_no_interval_and_say_so() -> None:
    found = evaluated(6, index(300, validation=50, test=0)).figures
    assert (found[0].interval, found[0].left_out) == ("", ())
    assert found[0].note == "fewer images than the features' 6 dimensions: much of it is bias"
    (floor,) = [figure for figure in found if figure.name == "floor"]
    assert floor.of.startswith("6 validation images")
    assert "this dataset has no test: checkpoints may have been chosen by these" in floor.note


@pytest.mark.usefixtures("real")
def test_without_images_to_spare_there_is_no_floor() -> None:
    assert [figure.name for figure in evaluated(30, index(300)).figures] == ["fd_pixels"]


@pytest.mark.usefixtures("real")
def test_enough_images_are_extrapolated() -> None:
    """The distance falls with 1/N to where it was: at 6 dimensions 24 images and more make a line."""
    assert evaluated(23, index(300)).curve is None
    found = evaluated(400, index(4000))
    assert found.curve is not None
    assert found.curve.counts[0] >= 40
    named = {figure.name: figure for figure in found.figures}
    assert named["fd_infinity_pixels"].value < named["fd_pixels"].value


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("imported", [False, True])
def test_steps_are_held_against_the_same_reference_as_the_figure(
    imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the training images, or the file that is asked for."""
    images, theirs = Drawn(60), measured(Drawn(200, shift=50), Wanted(count=200)).total.stats
    np.savez(tmp_path / "stats.npz", mu=theirs.mean, sigma=theirs.covariance)
    monkeypatch.setattr(figures, "imported_reference", lambda path, *_: read_reference(Path(path).read_bytes(), path))
    given = {"reference": str(tmp_path / "stats.npz"), "reference_protocol": "other noise"} if imported else {}
    args = index(300), EvaluateConfig(num_images=60, num_pairs=0, **given), "/store", PIXELS, SampleStage()
    first = figures.feature_figures(images, *args).figures[0]
    assert figures.distances_by_steps([("ddim", 5, images)], *args) == {
        "ddim": [(5, pytest.approx(first.value, rel=1e-12))]
    }
    assert ("declared to be other noise" in first.of) is imported


def test_a_group_of_bits_per_dim_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found stands in the store: the same again, by whichever worker, reads it."""
    asked = []

    def group_bound(model: object, index: object, split: str, numbers: range, config: EvaluateConfig) -> BoundStats:
        asked.append(numbers)
        zeros, seen = np.zeros(4), np.ones(4, np.int64)
        sums = {"prior": 0.1, "total": 2.5, "total_squares": 3.0}
        return BoundStats(count=len(numbers), terms=zeros, x_0_mse=zeros, seen=seen, **sums)

    monkeypatch.setattr(likelihood, "loaded_model", lambda *_: None)
    monkeypatch.setattr(likelihood, "group_bound", group_bound)
    groups = [range(32), range(32, 64), range(32, 40)]
    args = (None,), index(9), "test", EvaluateConfig(), str(tmp_path / "bounds"), SampleStage()
    first, again = ([likelihood._group_bound(group, *args) for group in groups] for _ in range(2))
    assert [stats.to_bytes() for stats in again] == [stats.to_bytes() for stats in first]
    assert asked == groups


def test_too_few_held_out_images_are_no_verdict_and_damage_is_no_such_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> None:
        def find_copies(*_: object) -> None:
            raise error

        monkeypatch.setattr(stage, "find_copies", find_copies)

    subject, held = Subject(images=Drawn(9), identity=[], where="/images", first=0), index(9, test=9)
    fails(TooFewHeldOut("4 held-out images are left"))
    assert stage._copies(subject, held, EvaluateConfig()) == (None, "4 held-out images are left")
    fails(InputError("shard-000001.tar is damaged"))
    with pytest.raises(InputError, match="is damaged"):
        stage._copies(subject, held, EvaluateConfig())
    none = stage._copies(subject, index(9), EvaluateConfig())
    assert none == (None, "no images are held out of training to compare with")
    assert stage._copies(subject, held, EvaluateConfig(num_copies=0)) == (None, "")


def test_the_command_of_a_report_asks_for_all_that_decided_it() -> None:
    """It is read as a shell and this command would read it, and asks for the same."""
    asked = {"num_images": 77, "features": "inception", "resize": "clean_fid", "weights": "/store/w-6726825d.pth"}
    asked |= {"reference": "/a b.npz", "reference_protocol": "CIFAR-10's train"}
    recipe = make("digits")
    recipe = replace(recipe, store="/my store", evaluate=replace(recipe.evaluate, **asked))
    features = Features(network="inception", resize="clean_fid", weights=recipe.evaluate.weights, sha256=PUBLISHED)
    subject = Subject(images=Drawn(80), identity=[], where="/their images", first=0)

    def read(subject: Subject) -> EvaluateArgs:
        python, file, *typed = shlex.split(command(subject, index(9), recipe, features))
        assert (python, file) == ("python", "pipelines/evaluate.py")
        return parse(EvaluateArgs, typed, "evaluate.py", "")

    found = read(subject)
    assert (found.recipe, found.store, found.images, found.dataset) == ("digits", "/my store", "/their images", "/data")
    assert (found.evaluate, found.steps) == (recipe.evaluate, ())
    set_ = SampleSet(uri="/s", identity={}, first_seed=0, num_images=80, block_size=8, facts={})
    found = read(
        replace(subject, by_steps=tuple((name, count, set_) for name in ("ddim", "heun") for count in (5, 10)))
    )
    assert (found.samplers, found.steps) == (("ddim", "heun"), (5, 10))


def test_only_the_published_sum_gives_bare_names() -> None:
    published, other = (Features(network="inception", sha256=sha256) for sha256 in (PUBLISHED, "cb3eec85" + "0" * 56))
    assert [published.named("kid"), published.figure(50_000), published.figure(2_048)] == ["kid", "fid", "fid@2048"]
    assert [other.named("kid"), other.figure(50_000)] == ["kid_inception_cb3eec85", "fd_inception_cb3eec85"]
    assert [PIXELS.named("kid"), PIXELS.figure(50_000)] == ["kid_pixels", "fd_pixels"]


@pytest.mark.parametrize(("bits", "shown"), [(4.9, True), (107.0, False)])
def test_a_bound_above_grey_levels_as_they_are_says_nothing_and_is_no_headline(bits: float, shown: bool) -> None:
    one = np.ones(4)
    stats = BoundStats(
        count=2,
        prior=0.0,
        total=2 * bits,
        total_squares=2 * bits**2,
        terms=bits / 2 * one,
        x_0_mse=one,
        seen=np.full(4, 2),
    )
    figure = likelihood.bound_figures(stats, index(train=9, validation=3))[0]
    assert (figure.value, figure.headline, "says nothing of the images" in figure.note) == (bits, shown, not shown)
