"""The Inception score against its definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_core.evaluation.inception_score import ScoreSums, score_of_splits


def random_logits(count: int, classes: int, seed: int = 1, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def by_definition(logits: Tensor) -> float:
    """exp of the mean of KL(p(y|x) || p(y)), class by class."""
    rows = [[math.exp(float(each)) for each in row] for row in logits.double()]
    p = [[each / sum(row) for each in row] for row in rows]
    marginal = [sum(column) / len(p) for column in zip(*p, strict=True)]
    divergence = [sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in p]
    return math.exp(sum(divergence) / len(p))


@pytest.mark.parametrize(("count", "classes"), [(1, 4), (20, 3), (30, 1008)])
def test_is_its_definition(count: int, classes: int) -> None:
    logits = random_logits(count, classes)
    assert ScoreSums.from_logits(logits).score == pytest.approx(by_definition(logits), rel=1e-12)


def test_parts_give_the_whole() -> None:
    logits = random_logits(40, 7)
    merged = merge_all_sums([*logits.split(9), logits[:0]])
    assert merged.count == 40
    assert merged.score == pytest.approx(by_definition(logits), rel=1e-12)


def merge_all_sums(parts: list[Tensor]) -> ScoreSums:
    found = ScoreSums.from_logits(parts[0])
    for part in parts[1:]:
        found = found.merge(ScoreSums.from_logits(part))
    return found


def test_certain_and_even_predictions_reach_the_number_of_classes() -> None:
    """p underflows to 0, which adds nothing."""
    assert ScoreSums.from_logits(2000.0 * torch.eye(5)).score == pytest.approx(5.0, rel=1e-14)
    assert ScoreSums.from_logits(2000.0 * torch.eye(5)[:2]).score == pytest.approx(2.0, rel=1e-14)
    assert ScoreSums.from_logits(torch.ones(6, 5)).score == pytest.approx(1.0, rel=1e-14)


def test_splits_are_runs_of_neighbours() -> None:
    logits = random_logits(23, 5)
    parts = [logits[split * 23 // 10 : (split + 1) * 23 // 10] for split in range(10)]
    scores = [by_definition(part) for part in parts]
    found = score_of_splits([ScoreSums.from_logits(part) for part in parts])
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)
    assert found[0] < ScoreSums.from_logits(logits).score


def test_refusals() -> None:
    with pytest.raises(ValueError, match="of 3 and of 4 classes"):
        ScoreSums.from_logits(random_logits(2, 3)).merge(ScoreSums.from_logits(random_logits(2, 4)))
    with pytest.raises(ValueError, match="1 of 2 images have logits that are not finite"):
        ScoreSums.from_logits(torch.tensor([[1.0, float("inf")], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="score of 0 images"):
        _ = ScoreSums.from_logits(random_logits(0, 3)).score
