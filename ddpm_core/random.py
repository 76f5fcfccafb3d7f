"""Counter-based noise: a pure function of (seed, purpose, step, index), with no generator state anywhere.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") in tensor operations.
The key is the 64-bit seed; the counter's four 32-bit words are

    block | purpose << 24 + step | index, low half | index, high half

so that no two purposes, steps or indices ever share a word. Words are 32-bit unsigned integers in int64 tensors: they
have the same bits on every device, in every batch and however the work is chunked.
"""

import math
from enum import IntEnum

import torch

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_STEP_BITS = 24
# Blocks a CPU thread computes at once, so that the temporaries stay in its cache; torch splits no work finer than this.
_CHUNK = 1 << 15


class Purpose(IntEnum):
    """What noise is for; each purpose has its own stream."""

    PERMUTATION = 0
    TIMESTEP = 1
    EPS = 2
    FLIP = 3
    DROPOUT = 4
    SAMPLING = 5
    WEIGHTS = 6
    LABEL = 7
    LIKELIHOOD = 8
    SUBSET = 9
    AUGMENT = 10
    CROP = 11
    LOOK = 12


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Int[Tensor, "*shape 4"]:
    """Philox4x32-10.

    Args:
        counter: four int64 tensors of words in [0, 2^32), of shapes that broadcast together.
        key: two words.

    Returns:
        Four words in [0, 2^32) for each counter, along a last axis.
    """
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, which keeps all 64 bits; a low half is only ever xored, so one mask a round suffices.
        p_0, p_1 = c_0 * _MULTIPLIERS[0], c_2 * _MULTIPLIERS[1]
        c_0 = ((p_1 >> 32) ^ c_1).bitwise_xor_(k_0).bitwise_and_(_MASK)
        c_2 = ((p_0 >> 32) ^ c_3).bitwise_xor_(k_1).bitwise_and_(_MASK)
        c_1, c_3 = p_1, p_0
        k_0, k_1 = (k_0 + _WEYL[0]) & _MASK, (k_1 + _WEYL[1]) & _MASK
    # By now every word depends on all four of the counter, and so has the broadcast shape.
    return torch.stack((c_0, c_1 & _MASK, c_2, c_3 & _MASK), dim=-1)


def random_bits(
    seed: int, purpose: Purpose, index: Int[Tensor, " n"], count: int, *, step: int | Tensor = 0
) -> Int[Tensor, "n count"]:
    """The first `count` random words of each index, on the device of `index`.

    Args:
        seed: in [0, 2^64).
        index: int64, not negative; names the rows.
        step: in [0, 2^24); one for all, or an int64 tensor [n] with one for each row (whose range is not checked).

    Returns:
        int64 in [0, 2^32). A row is a pure function of (seed, purpose, step, its index).

    Raises:
        InputError: if the seed or the step is out of its range.
    """
    if not 0 <= seed < 1 << 64:
        raise InputError(f"the seed is {seed}; expected 0 to 2^64 - 1")
    if isinstance(step, int) and not 0 <= step < 1 << _STEP_BITS:
        raise InputError(f"the step of a random stream is {step}; expected 0 to {(1 << _STEP_BITS) - 1}")
    index = index.to(torch.int64)
    stream = torch.as_tensor((purpose << _STEP_BITS) + step, device=index.device).expand(len(index))
    block = torch.arange(-(-count // 4), device=index.device)
    rows = torch.stack((stream, index & _MASK, (index >> 32) & _MASK))[:, :, None]
    key = (seed & _MASK, seed >> 32)
    chunk = _CHUNK * torch.get_num_threads()
    if index.device.type != "cpu" or torch.compiler.is_compiling() or len(index) * len(block) <= chunk:
        return philox4x32((block, rows[0], rows[1], rows[2]), key).flatten(1)[:, :count]
    out = torch.empty((len(index), len(block), 4), dtype=torch.int64)
    width = min(len(block), chunk)
    height = chunk // width
    for top in range(0, len(index), height):
        part = rows[:, top : top + height]
        for left in range(0, len(block), width):
            counter = (block[left : left + width], part[0], part[1], part[2])
            out[top : top + height, left : left + width] = philox4x32(counter, key)
    return out.flatten(1)[:, :count]


def uniforms(
    seed: int, purpose: Purpose, index: Int[Tensor, " n"], count: int, *, step: int | Tensor = 0
) -> Float[Tensor, "n count"]:
    """float64 uniforms (word + 1/2) / 2^32: never 0, never 1, exact on every device."""
    return (random_bits(seed, purpose, index, count, step=step).to(torch.float64) + 0.5) * 2.0**-32


def normals(
    seed: int, purpose: Purpose, index: Int[Tensor, " n"], shape: tuple[int, ...], *, step: int | Tensor = 0
) -> Float[Tensor, "n *shape"]:
    """float32 standard normals of `shape` for each index (Box and Muller 1958), of magnitude 6.77 at the most.

    Computed in float64 and rounded at the end, so that how a device rounds a logarithm or a sine hardly ever shows.
    """
    size = math.prod(shape)
    half = -(-size // 2)
    uniform = uniforms(seed, purpose, index, 2 * half, step=step)
    radius = (-2 * uniform[:, :half].log()).sqrt()
    angle = 2 * math.pi * uniform[:, half:]
    pair = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
    return pair[:, :size].to(torch.float32).reshape(len(index), *shape)


def integers(
    seed: int, purpose: Purpose, index: Int[Tensor, " n"], high: int, *, step: int | Tensor = 0
) -> Int[Tensor, " n"]:
    """An int64 in [0, high) for each index: the high half of word x high (Lemire 2019), with a bias below high / 2^32.

    Raises:
        InputError: if `high` is not in 1 to 2^31.
    """
    if not 1 <= high <= 1 << 31:
        raise InputError(f"the upper bound of random integers is {high}; expected 1 to 2^31")
    return (random_bits(seed, purpose, index, 1, step=step)[:, 0] * high) >> 32


def dropout_mask(seed: int, index: Int[Tensor, " n"], shape: tuple[int, ...], rate: int, *, step: int) -> Tensor:
    """Which values dropout keeps: each is dropped with probability rate / 2^16, by 16 bits of a word of its own.

    Args:
        shape: of one row.
        rate: in [0, 2^16].
        step: the number of the dropout layer.

    Returns:
        bool [n, *shape].
    """
    size = math.prod(shape)
    word = random_bits(seed, Purpose.DROPOUT, index, -(-size // 2), step=step)
    halves = torch.stack(((word & 0xFFFF) >= rate, word >= rate << 16), dim=1)
    return halves.flatten(1)[:, :size].reshape(len(index), *shape)
