"""Noise is a pure function of (seed, purpose, step, index), and has the distribution that it should."""

import math

import pytest
import torch

from ddpm_core import random
from ddpm_core.random import Purpose, dropout_mask, integers, normals, random_bits, uniforms

BIG = 2**40 + 12345  # an index with both halves in use


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, from the paper's description."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, 0xA4093822299F31D0])
@pytest.mark.parametrize("step", [0, 7, 2**24 - 1])
def test_words_are_philox_of_the_documented_counter(seed: int, step: int) -> None:
    index = [0, 3, BIG, 2**63 - 1]
    expected = [
        [
            word
            for block in range(3)
            for word in python_philox(
                [block, Purpose.EPS * 2**24 + step, i % 2**32, i // 2**32], [seed % 2**32, seed // 2**32]
            )
        ][:10]
        for i in index
    ]
    assert random_bits(seed, Purpose.EPS, torch.tensor(index), 10, step=step).tolist() == expected


def test_each_row_can_have_a_step_of_its_own() -> None:
    index, step = torch.tensor([5, 5, BIG]), torch.tensor([0, 9, 1000])
    together = random_bits(3, Purpose.SAMPLING, index, 6, step=step)
    for row in range(3):
        alone = random_bits(3, Purpose.SAMPLING, index[row : row + 1], 6, step=int(step[row]))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize(("rows", "count"), [(1, 500), (5, 37), (300, 2), (7, 1)])
def test_words_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int, count: int) -> None:
    whole = random_bits(1, Purpose.EPS, torch.arange(rows), count)
    monkeypatch.setattr(random, "_CHUNK", chunk)
    assert torch.equal(random_bits(1, Purpose.EPS, torch.arange(rows), count), whole)


def test_a_row_does_not_depend_on_its_batch() -> None:
    index = torch.tensor([17, 4, BIG, 0, 99])
    reversed_ = index.flip(0)
    for draw in (
        lambda i: normals(2, Purpose.EPS, i, (3, 5, 7), step=4),
        lambda i: uniforms(2, Purpose.EPS, i, 33),
        lambda i: dropout_mask(2, i, (3, 5, 7), 6554, step=4),
        lambda i: integers(2, Purpose.TIMESTEP, i, 1000),
    ):
        together = draw(index)
        assert torch.equal(draw(reversed_).flip(0), together)
        for row in range(len(index)):
            assert torch.equal(draw(index[row : row + 1])[0], together[row])


def test_normals_do_not_depend_on_the_batch_at_the_size_of_cifar() -> None:
    index = torch.arange(64)
    together = normals(0, Purpose.EPS, index, (3, 32, 32))
    apart = torch.cat([normals(0, Purpose.EPS, part, (3, 32, 32)) for part in index.split(5)])
    assert torch.equal(together, apart)


def test_streams_do_not_meet() -> None:
    index = torch.arange(50)
    streams = [random_bits(s, p, index, 8, step=t) for s in (0, 1, 2**32) for p in Purpose for t in (0, 1)]
    values = torch.cat([stream.flatten() for stream in streams])
    # 19,200 words of 2^32 are expected to hold 0.04 equal pairs
    assert len(values.unique()) >= len(values) - 2


def test_normals_are_standard_normal_in_both_outputs() -> None:
    x = normals(0, Purpose.EPS, torch.arange(1000), (10, 20)).double()
    assert x.dtype == torch.float64
    assert x.shape == (1000, 10, 20)
    for half in x.flatten(1).split(100, dim=1):
        n = half.numel()
        assert abs(half.mean()) < 4 / math.sqrt(n)
        assert abs(half.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs((half**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for limit in (-2.0, -0.5, 0.0, 1.0, 2.5):
        share = 0.5 * (1 + math.erf(limit / math.sqrt(2)))
        assert float((x < limit).double().mean()) == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / x.numel())
        )
    first, second = x.flatten(1)[:, :100], x.flatten(1)[:, 100:]
    assert abs((first * second).mean()) < 4 / math.sqrt(first.numel())


def test_normals_are_box_muller_of_the_uniforms() -> None:
    u = uniforms(5, Purpose.EPS, torch.tensor([8]), 4)[0].tolist()
    expected = [
        math.sqrt(-2 * math.log(u[i])) * f(2 * math.pi * u[2 + i]) for f in (math.cos, math.sin) for i in (0, 1)
    ]
    drawn = normals(5, Purpose.EPS, torch.tensor([8]), (3,))
    assert drawn.dtype == torch.float32
    assert drawn[0].tolist() == pytest.approx(expected[:3], rel=1e-7)


def test_uniforms_are_neither_0_nor_1() -> None:
    u = uniforms(0, Purpose.LABEL, torch.arange(1000), 50)
    assert u.dtype == torch.float64
    assert 0 < u.min() < 1e-3
    assert 1 > u.max() > 1 - 1e-3
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * u.numel()))


@pytest.mark.parametrize("high", [1, 2, 1000, 2**31])
def test_integers_are_uniform_below_high(high: int) -> None:
    drawn = integers(0, Purpose.TIMESTEP, torch.arange(20_000), high)
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() < high
    assert float((drawn + 0.5).mean() / high) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 20_000))


def test_kept_uses_the_low_halves_of_the_words_and_then_the_high_ones() -> None:
    drawn = random_bits(9, Purpose.DROPOUT, torch.tensor([BIG]), 4, step=3)[0].tolist()
    halves = [word % 2**16 for word in drawn] + [word // 2**16 for word in drawn]
    for rate in (6554, 2**15):
        assert dropout_mask(9, torch.tensor([BIG]), (7,), rate, step=3)[0].tolist() == [
            half >= rate for half in halves[:7]
        ]


@pytest.mark.parametrize("rate", [0, 1, 6554, 2**15, 2**16])
def test_kept_drops_at_the_rate(rate: int) -> None:
    keep = dropout_mask(0, torch.arange(10), (4, 50, 50), rate, step=3)
    assert keep.dtype == torch.bool
    assert keep.shape == (10, 4, 50, 50)
    p = rate / 2**16
    for half in keep.flatten(1).double().split(5000, dim=1):
        assert float(1 - half.mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / half.numel()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: random_bits(-1, Purpose.EPS, i, 1), "seed is -1"),
        (lambda i: random_bits(2**64, Purpose.EPS, i, 1), f"seed is {2**64}"),
        (lambda i: random_bits(0, Purpose.EPS, i, 1, step=2**24), f"is {2**24}; expected 0 to {2**24 - 1}"),
        (lambda i: random_bits(0, Purpose.EPS, i, 1, step=-1), "is -1; expected 0"),
        (lambda i: integers(0, Purpose.EPS, i, 0), "is 0; expected 1"),
        (lambda i: integers(0, Purpose.EPS, i, 2**31 + 1), f"is {2**31 + 1}; expected 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("^", r"\^")):
        call(torch.arange(2))
