"""Is it going well? What a run's looks and its history say, in words: the course of it, and what ails it.

Seven ailments are told apart, each by a sign that a person can look up in the run's own figures. How often each is named, and the
healthy are accused, stands in docs/going-well.md (`tests/benchmarks/ailments.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, median

from ddpm_core.artifacts.looks import Look, Spread
from ddpm_core.training.course import Course

TOO_FEW_STEPS = "too few steps"
_BETTER = 0.02
"""By less the loss does not count as better."""
_WORSE, _LEARNED = 0.05, 0.1
"""By so much it has risen above its best, while that of the training images fell by the other: it learns them by heart."""
_STEEP = 0.25
"""By so much it still fell over the last third, at some t: it had not come far."""
_COUNTS = 0.25
"""Of the mean over all t: where the loss is smaller it does not say how far a run has come."""
_UNLEARNED = 0.85
"""Of the loss before the first step: what has more left has learned next to nothing."""
_EXPLODED, _LOST = 1.5, 0.2
"""Times its best, and of the way from the first loss to the best, by logarithms: the newest weights have left what they had
learned. The bound falls by orders of magnitude, and moves by a factor or two."""
_WILD = 1.02
"""Times the loss before the first step: steps that little do not lead there."""
_STRIDE = 0.2
"""Of a weight's usual size: Adam's steps are about as long as the learning rate, and longer ones than this find nothing fine."""
_FEW, _STILL = 200, 0.05
"""In fewer steps nothing is learned that does not go on by so much over the last third; and no less is a fall at some t alone."""
_LAGS = 1.1
"""Times the newest weights' loss: an average that is worse than what it averages."""
_CLIPPED = 0.75
"""Of the steps in the second half whose gradient was clipped."""
_ALIKE = 0.2
"""Of the training images' own spread."""
_PLAIN = 2.0
"""8-bit levels: who differ by less are the same to the eye."""


@dataclass(frozen=True, kw_only=True)
class Ailment:
    """Something that is wrong, how it shows, and what to change."""

    name: str
    sign: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.sign}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether it goes well."""

    words: str
    """One line: improving, flat since a step, overfitting since a step, worse since a step."""
    ailments: tuple[Ailment, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The course, then a line for each ailment."""
        return [*filter(None, [self.words]), *map(str, self.ailments)]


def judge(course: Course) -> Verdict:
    """What a run's course says; `words` is empty if there are too few looks to say anything."""
    looks = course.looks
    found = [_plain(looks[-1].real), _alike(looks)] if looks else []
    if len(looks) < 3:
        return Verdict(words="", ailments=tuple(filter(None, found)))
    exploded, overfits, idle = _exploded(course), _overfits(looks), _idle(course)
    found += [exploded, overfits]
    if exploded is None:
        found += [_lags(course), idle or _short(course)]
    if exploded is None and idle is None:  # of which large gradients are a sign, too
        found += [_clipped(course)]
    return Verdict(words=_course(looks, overfits), ailments=tuple(filter(None, found)))


def _course(looks: Sequence[Look], overfits: Ailment | None) -> str:
    """What the averaged weights' loss did."""
    losses = [fmean(look.judged) for look in looks]
    best = min(range(len(losses)), key=losses.__getitem__)
    of = "validation loss" if looks[-1].validation else "loss on training images (none are held out)"
    least, last = f"{losses[best]:.4g} at step {looks[best].step:,}", f"{losses[-1]:.4g} at step {looks[-1].step:,}"
    if losses[-1] > (1 + _WORSE) * losses[best]:
        return f"{'overfitting' if overfits else 'worse'} since step {looks[best].step:,}: {of} {least}, {last}"
    since = next(at for at, loss in enumerate(losses) if loss <= losses[best] * (1 + _BETTER))
    earlier = max((at for at, look in enumerate(looks) if look.step <= 3 * looks[-1].step / 4), default=0)
    if since > earlier:
        before = looks[earlier]
        by = 1 - losses[-1] / fmean(before.judged)
        return f"improving: {of} {last}, {by:.0%} less than at step {before.step:,}"
    return f"flat since step {looks[since].step:,}: {of} {losses[since]:.4g} then, {last}{_goes_on(looks[since], looks[-1])}"


def _goes_on(then: Look, now: Look) -> str:
    """At which t it became better all the same: the mean over t is that of the large losses, and small ones decide fine detail."""
    falls = [1 - after / before for before, after in zip(then.judged, now.judged, strict=True)]
    most = max(range(len(falls)), key=falls.__getitem__)
    first, final = now.bands[most]
    return f"; at t {first} to {final} it still fell, by {falls[most]:.0%}" if falls[most] >= _STILL else ""


def _plain(real: Spread) -> Ailment | None:
    if real.within >= _PLAIN and real.between >= _PLAIN:
        return None
    how = "each of one colour" if real.within < _PLAIN else "all the same"
    return Ailment(
        name="constant images",
        sign=f"the training images are {how} (they differ by {min(real.within, real.between):.2g} of 255 levels)",
        remedy="look at the dataset's contact sheet, and at how the source's files are read",
    )


def _alike(looks: Sequence[Look]) -> Ailment | None:
    made = [look for look in looks if look.made is not None]
    if not made or made[-1].made is None:
        return None
    found, real, step = made[-1].made, made[-1].real, made[-1].step
    signs = {
        "of one colour each": (found.within, real.within),
        "all the same": (found.between, real.between),
    }
    for how, (ours, theirs) in signs.items():
        if theirs >= _PLAIN and ours < _ALIKE * theirs:
            return Ailment(
                name="constant images",
                sign=f"those sampled at step {step:,} are {how}: they differ by {ours:.2g} levels, training images by {theirs:.2g}",
                remedy="if the loss falls, train on; if it does not, see what else is said here",
            )
    return None


def _clipped(course: Course) -> Ailment | None:
    if course.objective == "bound":  # its gradients are large, and Adam does not mind by what they are divided
        return None
    limit = float(str(course.train.get("grad_clip", "inf")))
    norms = [float(row["grad_norm"]) for row in course.history]
    norms = norms[len(norms) // 2 :]
    if len(norms) < 3 or sum(norm > limit for norm in norms) < _CLIPPED * len(norms):
        return None
    batch = int(str(course.train.get("batch_size", 0)))
    return Ailment(
        name="starved steps",
        sign=f"the gradient was clipped all along: its norm is {median(norms):.2g} in the middle, train.grad-clip {limit:g}",
        remedy=f"raise --train.grad-clip, or steady the gradient by a larger --train.batch-size (now {batch})",
    )


def _exploded(course: Course) -> Ailment | None:
    newest = [fmean(look.newest) for look in course.looks]
    start, best, last = newest[0], min(newest), newest[-1]
    begins = course.from_noise and course.looks[0].step == 0
    rate = course.train.get("learning_rate", 0)
    if last > _EXPLODED * best and log(last / best) > _LOST * log(start / best):
        sign = f"the newest weights' loss is {last:.3g}, {last / best:.2g} times its best"
    elif begins and max(newest[1:]) > _WILD * start:
        sign = f"the loss went up to {max(newest[1:]):.3g}, from {start:.3g} before the first step"
    elif course.skipped >= 3:
        sign = f"{course.skipped} steps were skipped, as their loss or gradient was no number"
    elif float(str(rate)) > _STRIDE * course.looks[0].weight_size:
        sign = f"a step moves each weight by about as much, and they are {course.looks[0].weight_size:.2g} large"
    else:
        return None
    return Ailment(
        name="learning rate too high",
        sign=f"{sign}; train.learning-rate is {rate}",
        remedy="lower --train.learning-rate, by a factor of 3 to 10, or lengthen --train.warmup-steps",
    )


def _overfits(looks: Sequence[Look]) -> Ailment | None:
    """At some t the loss on images held out rose since its best, and that on training images fell."""
    last = looks[-1]
    found = [_rise(looks, band) for band in _counting(last)] if last.validation else []
    rise, fall, step = max(found, default=(0.0, 0.0, 0))
    if rise < _WORSE:
        return None
    return Ailment(
        name="memorising",
        sign=f"since step {step:,} the loss on images held out rose by {rise:.0%}, and that on training images fell by "
        f"{fall:.0%}, at the t where they part most",
        remedy="stop there (--train.validate-every keeps the best), or more images, --train.augment 0.12, a smaller network",
    )


def _rise(looks: Sequence[Look], band: int) -> tuple[float, float, int]:
    """By how much validation's loss rose since its best, and the training images' fell; none if that did not fall."""
    best = min(looks, key=lambda look: look.validation[band])
    rise, fall = looks[-1].validation[band] / best.validation[band] - 1, 1 - looks[-1].train[band] / best.train[band]
    return (rise, fall, best.step) if fall >= _LEARNED else (0.0, 0.0, best.step)


def _counting(look: Look) -> list[int]:
    """The bands of t whose loss says something."""
    return [band for band, loss in enumerate(look.judged) if loss >= _COUNTS * fmean(look.judged)]


def _lags(course: Course) -> Ailment | None:
    last = course.looks[-1]
    averaged, newest = fmean(last.judged), fmean(last.newest)
    if averaged < _LAGS * newest:
        return None
    fixed = course.train.get("ema_decay")
    how = (
        f"train.ema-decay {fixed}" if fixed is not None else f"train.ema-half-life {course.train.get('ema_half_life')}"
    )
    return Ailment(
        name="average that lags",
        sign=f"the averaged weights' loss is {averaged:.3g}, the newest weights' {newest:.3g}; {how}",
        remedy="a shorter --train.ema-half-life with --train.ema-warmup 0.05, or more steps",
    )


def _idle(course: Course) -> Ailment | None:
    """Next to nothing was learned, and no step was wild, so that the steps were too small."""
    looks = course.looks
    if not _is_unlearned(course) or looks[-1].step < _FEW or _fall(looks) >= _STEEP:
        return None
    start, last = fmean(looks[0].newest), fmean(looks[-1].newest)
    return Ailment(
        name="learning rate too low",
        sign=f"after {looks[-1].step:,} steps the loss is {last:.3g}, before the first it was {start:.3g}; "
        f"train.learning-rate is {course.train.get('learning_rate')}",
        remedy="raise --train.learning-rate; 1e-4 to 2e-3 is usual",
    )


def _is_unlearned(course: Course) -> bool:
    """Whether nearly all of the loss before the first step is left."""
    looks = course.looks
    begins = course.from_noise and looks[0].step == 0
    return begins and fmean(looks[-1].newest) >= _UNLEARNED * fmean(looks[0].newest)


def _short(course: Course) -> Ailment | None:
    looks = course.looks
    fall, few = _fall(looks), looks[-1].step < _FEW
    if fall < (_STILL if few else _STEEP) and not (few and _is_unlearned(course)):
        return None
    sign = f"over the last third the loss still fell by {fall:.0%}, at the t where it fell most"
    return Ailment(
        name=TOO_FEW_STEPS,
        sign=sign if fall > _STILL else f"after {looks[-1].step:,} steps next to nothing was learned",
        remedy=f"raise --train.steps beyond {looks[-1].step:,}; the same command goes on from there",
    )


def _fall(looks: Sequence[Look]) -> float:
    """Over the last third of the steps, of the loss at the t where it fell most; not above 1.

    The averaged weights' or the newest ones', whichever fell less. Where next to nothing is lost it may fall for ever: an eps that
    is nearly all there is of x_t is told with ever less error.
    """
    last = looks[-1]
    before = [look for look in looks if look.step <= 2 * last.step // 3]
    if not before:
        return 0.0
    return max(
        1 - max(last.newest[band] / before[-1].newest[band], last.judged[band] / before[-1].judged[band])
        for band in _counting(last)
    )
