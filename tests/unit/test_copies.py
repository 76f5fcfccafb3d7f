"""The copy guard against scores known in closed form, planted copies, and the guarantees that it words."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from ddpm_core.evaluation.copies import (
    CopySearch,
    Pair,
    copy_rule,
    copy_scores,
    judge_copies,
    merge_searches,
    near_duplicates,
    pair_images,
    search_copies,
)
from ddpm_core.evaluation.neighbours import NeighbourIndices
from ddpm_core.evaluation.shares import Share

FAR = 1000
"""Of a score in thousandths: nowhere near."""


def random_images(count: int, seed: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, size, size), generator=generator, dtype=torch.uint8)


def flat(levels: list[int], size: int = 16) -> Tensor:
    """Images of one level each."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, size, size)


def with_scores(plain: list[int], mirrored: list[int] | None = None) -> CopySearch:
    """A search whose relative scores are these thousandths: two neighbours, at distances of which 1000 is the mean."""

    def side(thousandths: list[int], first: int) -> NeighbourIndices:
        near = torch.tensor(thousandths, dtype=torch.int64)
        indices = torch.arange(2 * len(near)).view(-1, 2) + first
        return NeighbourIndices(squared=torch.stack([near**2, (2000 - near) ** 2], dim=1), indices=indices)

    other = [FAR] * len(plain) if mirrored is None else mirrored
    return CopySearch(plain=side(plain, 0), mirrored=side(other, 10_000), shape=(1, 16, 16))


def same(a: CopySearch, b: CopySearch) -> bool:
    sides = (a.plain, b.plain), (a.mirrored, b.mirrored)
    return all(torch.equal(x.squared, y.squared) and torch.equal(x.indices, y.indices) for x, y in sides)


def honest(n: int = 399) -> CopySearch:
    """Held-out images with scores of 600 and up, both halves alike."""
    return with_scores([600 + place // 2 for place in range(n)])


def test_scores_in_closed_form() -> None:
    """Flat images lie on a line: 10 is 2, 5 and 20 away from the three."""
    scores = copy_scores(search_copies(flat([10]), flat([30, 12, 5, 200]), k=3))
    np.testing.assert_allclose(scores, [[2 / 9], [2 / 9]])


def test_a_mirror_has_neighbours_of_its_own() -> None:
    """Left half 0 and right half 100, beside training images that are its mirror but for 4 levels, and black."""
    step = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    step[..., 8:] = 100
    images = torch.cat([torch.zeros_like(step), step.flip(-1) + 4])
    found = search_copies(step, images)
    root = math.sqrt(128)  # pixels of a half
    black, mirror = 100 * root, root * math.hypot(104, 96)
    away = 4 * root * math.sqrt(2)
    np.testing.assert_allclose(
        copy_scores(found)[:, 0], [black / ((black + mirror) / 2), away / ((away + black) / 2)], rtol=1e-12
    )
    assert found.plain.indices.tolist() == [[0, 1]]
    assert found.mirrored.indices.tolist() == [[1, 0]]


def test_a_training_set_that_repeats_one_image_throughout_leaves_a_score() -> None:
    assert copy_scores(search_copies(flat([7]), flat([7, 7, 7]))).tolist() == [[0.0], [0.0]]


def test_parts_in_any_order_give_the_whole() -> None:
    queries, images = random_images(5, 1), random_images(23, 2)
    images[[3, 9, 20]] = images[0].clone()
    whole = search_copies(queries, images, k=4)
    bounds = (0, 2, 11, 23)
    parts = [search_copies(queries, images[a:b], first_index=a, k=4) for a, b in itertools.pairwise(bounds)]
    for order in itertools.permutations(parts):
        merged = functools.reduce(lambda a, b: merge_searches(a, b, 4), order)
        assert same(merged, whole)
        assert merged.shape == (1, 16, 16)


def test_the_even_places_set_the_threshold_and_the_odd_ones_measure_it() -> None:
    even, odd = [640 - n for n in range(19)], [900] * 15 + [623, 622, 610, 601]
    held_out = with_scores([score for pair in zip(even, odd, strict=True) for score in pair])
    report = judge_copies(with_scores([FAR]), held_out, false_alarms=0.1)
    assert report.threshold == pytest.approx(0.623)  # the second lowest of 19: 2 / 20
    assert (report.held_out.count, report.held_out.total) == (3, 19)  # 623 itself is not below
    assert report.held_out == report.held_out_unpurged
    assert (report.num_held_out, report.num_purged) == (38, 0)


def test_near_duplicates_neither_move_the_threshold_nor_count_as_false_alarms() -> None:
    held_out = with_scores(
        [100, 499, *(600 + n for n in range(40)), FAR, 501], [FAR] * 10 + [50] + [FAR] * 33
    )  # at place 10, only the mirror is one
    assert near_duplicates(held_out).nonzero()[0].tolist() == [0, 1, 10]
    report = judge_copies(with_scores([FAR]), held_out, false_alarms=0.05)
    assert report.num_purged == 3
    assert report.threshold == pytest.approx(0.600)  # of 20: the lowest
    assert (report.held_out.count, report.held_out.total) == (1, 21)  # 501 is none, but suspect
    assert (report.held_out_unpurged.count, report.held_out_unpurged.total) == (2, 22)
    assert "0.5 of the mean distance" in report.purge_rule


def test_the_rate_of_false_alarms_is_what_was_asked_for() -> None:
    """Of scores from any distribution: here of 300 sets of held-out images, at 2 of 100."""
    rng = np.random.default_rng(3)
    counted = [
        judge_copies(
            with_scores([FAR]), with_scores(rng.integers(500, 10**3, 198).tolist()), false_alarms=0.02
        ).held_out
        for _ in range(300)
    ]
    rate = sum(share.count for share in counted) / sum(share.total for share in counted)
    assert 0.012 < rate < 0.02 + 0.004  # a little less, for equal scores are not below each other


def test_planted_copies_are_found_and_an_honest_model_is_not_accused() -> None:
    training, real = random_images(60, 4), random_images(420, 5)
    held_out, generated = search_copies(real[:400], training), real[400:].clone()
    assert not judge_copies(search_copies(generated, training), held_out).suspicious
    generated[3], generated[7] = training[11], training[12].flip(-1)
    generated[9] = (training[13].int() + torch.randint(-5, 6, (1, 16, 16))).clamp(0, 255)
    report = judge_copies(search_copies(generated, training), held_out)
    assert report.suspicious
    assert (report.generated.count, report.generated.total) == (3, 20)
    pairs = [(pair.generated, pair.training, pair.mirrored) for pair in report.worst]
    assert pairs[:3] == [(3, 11, False), (7, 12, True), (9, 13, False)]
    assert len(pairs) == 12
    scores = [pair.score for pair in report.worst]
    assert scores == sorted(scores)
    assert scores[1] == 0.0 < scores[2] < report.threshold < scores[3]
    nearest = (generated[9].double() - training[13].double()).square().sum().sqrt().item() / 255
    assert report.worst[2].distance == pytest.approx(nearest)


def test_a_pair_is_with_the_nearer_side_and_of_equals_the_plain_one() -> None:
    worst = judge_copies(with_scores([300, 200, 250], [100, 200, 900]), honest()).worst
    assert [(pair.generated, pair.training, pair.mirrored) for pair in worst] == [
        (0, 10_000, True),
        (1, 2, False),
        (2, 4, False),
    ]


def test_the_verdict_asks_for_intervals_that_do_not_overlap() -> None:
    held_out = honest(1999)
    few, many = (judge_copies(with_scores([100] * n + [FAR] * (1000 - n)), held_out) for n in (13, 40))
    assert few.held_out.rate < few.generated.low < few.held_out.high
    assert not few.suspicious
    assert many.suspicious


def test_of_small_images_exact_copies_alone_are_suspect() -> None:
    """A level everywhere is rounding; one pixel that differs by a step of the digits, 16 levels, is another image."""
    training = random_images(50, 6, size=8).clamp(2, 200)
    stroke, rounded = training[:4].clone(), training[:4] + 1
    stroke[:, :, 3, 3] += 16
    held_out = search_copies(torch.cat([stroke, random_images(6, 7, size=8), training[:1]]), training)
    report = judge_copies(search_copies(torch.cat([stroke, rounded, training[5:6].flip(-1)]), training), held_out)
    assert report.rule == "exact"
    assert report.threshold == 1.5
    assert report.generated.count == 5
    assert (report.num_purged, report.held_out.count, report.held_out.total) == (0, 1, 11)
    assert report.held_out_unpurged == report.held_out
    assert [pair.score for pair in report.worst[:6]] == [0.0, 1.0, 1.0, 1.0, 1.0, 2.0]  # 16 levels in one of 64
    assert report.worst[0].mirrored


@pytest.mark.parametrize(("shape", "rule"), [((1, 15, 16), "exact"), ((1, 16, 15), "exact"), ((3, 16, 16), "relative")])
def test_the_rule_goes_by_the_size(shape: tuple[int, int, int], rule: str) -> None:
    assert copy_rule(shape) == rule


def test_the_images_of_pairs() -> None:
    training, generated = random_images(9, 8), random_images(4, 9)
    pairs = [
        Pair(generated=row, training=index, mirrored=False, distance=1.0, score=0.5) for row, index in ((3, 8), (0, 2))
    ]
    shown = pair_images(pairs, generated, lambda indices: training[indices])
    assert torch.equal(
        shown, torch.stack([torch.stack([generated[3], training[8]]), torch.stack([generated[0], training[2]])])
    )


def test_errors_are_one_line() -> None:
    found = honest()
    with pytest.raises(ValueError, match=r"^1 held-out images are left .*; expected 199 or more for 0\.50%"):
        judge_copies(found, with_scores([600, 600, 300, 600]))
    small = search_copies(flat([1], size=8), flat([1, 2], size=8))
    with pytest.raises(
        ValueError, match=r"^generated images are \(1, 8, 8\) and held-out \(1, 16, 16\); expected the same"
    ):
        judge_copies(small, found)
    with pytest.raises(ValueError, match=r"^copies were searched among 1 training images; expected 2 or more"):
        copy_scores(search_copies(flat([1]), flat([2])))
    with pytest.raises(ValueError, match=r"^the rate of false alarms is 1\.0; expected a number between 0 and 1"):
        judge_copies(found, found, false_alarms=1.0)
    with pytest.raises(ValueError, match=r"^queries are 1x16x16 and images 1x8x8"):
        search_copies(flat([1]), flat([2], size=8))
    with pytest.raises(ValueError, match=r"^a share of 2 of 1 was asked for; expected 0 to 1 of 1 or more"):
        Share(count=2, total=1)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 40), (1, 1), (3, 10), (50, 10_000), (9_999, 10_000)])
def test_the_interval_is_that_of_clopper_and_pearson(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="exact")
    share = Share(count=count, total=total)
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.rate == count / total


def test_the_interval_of_none_in_closed_form() -> None:
    assert Share(count=0, total=100).high == pytest.approx(1 - 0.025 ** (1 / 100))
