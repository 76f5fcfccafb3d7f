"""A search space in a recipe's own terms: for some of its fields, the values that are tried.

    schedule.name      linear cosine                 each of these
    schedule.beta-end  loguniform:0.005:0.05         between them, even in the logarithm
    train.ema-warmup   uniform:0.02:0.2              between them, evenly
    unet.base-channels integers:16:64:16             16, 32, 48, 64

A field that the other values leave unread is not part of a setting: cosine has no betas, only ddim has an eta. So no setting is
tried twice under two names.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_core.errors import InputError
from pipelines.recipes.config import Recipe
from pipelines.sweeping.fields import field_path, is_read, typed_value
from pipelines.sweeping.setting import Setting, apply, key_of, read_part, shown, unique

_TRIES = 200
"""Settings that are drawn in search of one that is new, or that a value can stand in."""
_MOST = 10_000
"""Combinations of a grid."""
_DIGITS = 4
"""Significant ones of a drawn number: what is printed is what is tried."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """As it is typed."""
        return tuple(map(shown, self.values))

    def draw(self, u: float) -> Any:
        """The value at u in [0, 1)."""
        return self.values[int(u * len(self.values))]


@dataclass(frozen=True)
class Range:
    """A number between two, both included; even in its logarithm or not."""

    low: float
    high: float
    log: bool

    @property
    def values(self) -> tuple[float, ...]:
        """The two ends, by which it is checked."""
        return self.low, self.high

    @property
    def words(self) -> tuple[str, ...]:
        """As it is typed."""
        return (f"{'log' if self.log else ''}uniform:{self.low!r}:{self.high!r}",)

    def draw(self, u: float) -> float:
        """The number at u in [0, 1)."""
        if self.log:
            return _rounded(math.exp(math.log(self.low) + u * math.log(self.high / self.low)))
        return _rounded(self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        domains: by the field's dotted path, as `schedule.beta-end`.
    """

    domains: Mapping[str, Choice | Range]

    @property
    def size(self) -> float:
        """How many combinations there are; infinite where there is a range."""
        return math.prod(
            len(domain.values) if isinstance(domain, Choice) else math.inf for domain in self.domains.values()
        )

    @property
    def words(self) -> dict[str, list[str]]:
        """As it is typed, by field."""
        return {path: list(domain.words) for path, domain in self.domains.items()}

    def encoded(self, setting: Mapping[str, Any]) -> dict[str, str | float]:
        """A setting for a search that knows of names and numbers only."""
        return {
            path: shown(value) if isinstance(self.domains[path], Choice) else value for path, value in setting.items()
        }

    def decoded(self, encoded: Mapping[str, Any]) -> Setting:
        """The setting that was encoded."""
        return {path: _decoded(self.domains[path], value) for path, value in encoded.items()}


def read_space(words: Mapping[str, Sequence[str]]) -> Space:
    """A space from words, as they are typed.

    Args:
        words: by the field's dotted path.

    Raises:
        InputError: in one line, if there is no such field, it is not to be searched, or a value is none.
    """
    if not words:
        raise InputError("the space is empty; expected a field to search: --space.schedule.name linear cosine")
    return Space({field_path(path): _domain(field_path(path), list(said)) for path, said in words.items()})


def would_be_read(recipe: Recipe, setting: Mapping[str, Any], path: str, space: Space) -> bool:
    """Whether a field that a setting leaves open would be read."""
    try:
        return is_read(apply(recipe, {**setting, path: space.domains[path].values[0]}), path)
    except InputError:
        return True  # whoever checks the whole setting says why it cannot be


def grid(space: Space, recipe: Recipe, check: Callable[[Recipe], None]) -> list[Setting]:
    """All settings of a finite space that the recipe can be, each once.

    Args:
        check: refuses a recipe that cannot be trained, by InputError.

    Raises:
        InputError: if there is a range in it, or more than 10,000 combinations.
    """
    for path, domain in space.domains.items():
        if isinstance(domain, Range):
            raise InputError(
                f"space.{path} is a range; expected values, as a grid tries each: list them, or --sweep.search random"
            )
    if space.size > _MOST:
        raise InputError(
            f"the grid has {space.size:,} combinations; expected up to {_MOST:,}: fewer values, or --sweep.search random"
        )
    values = (domain.values for domain in space.domains.values())
    each = (_valid(recipe, dict(zip(space.domains, drawn, strict=True)), check) for drawn in itertools.product(*values))
    return unique(setting for setting in each if setting is not None)


def draws(
    space: Space, recipe: Recipe, seed: int, check: Callable[[Recipe], None], known: Sequence[Setting] = ()
) -> Iterator[Setting]:
    """Settings drawn at random, none twice; it ends where no new one is found.

    The n-th draw of a field depends on the seed, n and the field alone: more trials, or another field, leave it as it is.

    Args:
        known: those that were drawn before; they are not drawn again.
    """
    seen, missed = {key_of(each) for each in known}, 0
    for number in itertools.count():
        drawn = {path: domain.draw(_uniform(seed, number, path)) for path, domain in space.domains.items()}
        setting = _valid(recipe, drawn, check)
        if setting is None or key_of(setting) in seen:
            missed += 1
            if missed > _TRIES:
                break
            continue
        missed = 0
        seen.add(key_of(setting))
        yield setting
    if space.size <= _MOST:  # chance may have left some
        yield from (each for each in grid(space, recipe, check) if key_of(each) not in seen)


def check_space(space: Space, recipe: Recipe, check: Callable[[Recipe], None]) -> None:
    """Refuse a value that stands in no setting.

    Args:
        check: refuses a recipe that cannot be trained, by InputError.

    Raises:
        InputError: with the field, the value and why it is refused.
    """
    for path, domain in space.domains.items():
        for value in domain.values:
            refusals = (_refusal(recipe, {**others, path: value}, check) for others in _some(space))
            first = next(refusals)
            if first and all(refusals):
                raise InputError(f"space.{path} has {shown(value)}, which no setting can have: {first}")


def _some(space: Space) -> Iterator[Mapping[str, Any]]:
    """A number of draws, whatever can stand together."""
    for number in range(_TRIES if len(space.domains) > 1 else 1):
        yield {path: domain.draw(_uniform(0, number, path)) for path, domain in space.domains.items()}


def is_wider(space: Space, than: Space) -> bool:
    """Whether all that the other space has is in this one."""
    if space.domains.keys() != than.domains.keys():
        return False
    for path, before in than.domains.items():
        now = space.domains[path]
        if isinstance(now, Range):
            if not (now.low <= min(before.values) and max(before.values) <= now.high):
                return False
        elif isinstance(before, Range) or not set(map(shown, before.values)) <= set(map(shown, now.values)):
            return False
    return True


def _refusal(recipe: Recipe, setting: Mapping[str, Any], check: Callable[[Recipe], None]) -> str | None:
    try:
        check(apply(recipe, read_part(recipe, setting)))
    except InputError as error:
        return str(error)
    return None


def _valid(recipe: Recipe, setting: Setting, check: Callable[[Recipe], None]) -> Setting | None:
    return None if _refusal(recipe, setting, check) else read_part(recipe, setting)


def _decoded(domain: Choice | Range, value: Any) -> Any:
    if isinstance(domain, Range):
        return _rounded(value)
    return next(each for each in domain.values if shown(each) == value)


def _domain(path: str, said: list[str]) -> Choice | Range:
    if not said:
        raise InputError(f"space.{path} is empty; expected values, or a range as loguniform:0.001:0.1")
    kind, *numbers = said[0].split(":")
    if kind not in ("uniform", "loguniform", "integers"):
        values = [typed_value(path, word) for word in said]
        if len(set(map(shown, values))) < len(values):
            raise InputError(f"space.{path} has {' '.join(said)}; expected each value once")
        return Choice(tuple(values))
    whole = kind == "integers"
    form = "integers:LOW:HIGH or integers:LOW:HIGH:STEP" if whole else f"{kind}:LOW:HIGH"
    try:
        low, high, *step = (int(each) if whole else float(each) for each in numbers)
        sound = low < high and len(step) <= whole and (kind != "loguniform" or low > 0) and all(s > 0 for s in step)
        sound = sound and math.isfinite(low) and math.isfinite(high)
    except ValueError:
        sound = False
    if not sound or len(said) > 1:
        above = ", LOW above 0" if kind == "loguniform" else ""
        raise InputError(f"space.{path} is {' '.join(said)}; expected {form}, LOW below HIGH{above}")
    if whole:
        stride = int(step[0]) if step else 1
        return Choice(tuple(typed_value(path, str(each)) for each in range(int(low), int(high) + 1, stride)))
    for each in numbers:
        typed_value(path, each, ranges=True)
    return Range(_rounded(float(low)), _rounded(float(high)), kind == "loguniform")


def _uniform(seed: int, number: int, path: str) -> float:
    """In [0, 1), of these three alone."""
    return random.Random(f"{seed} {number} {path}").random()


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
