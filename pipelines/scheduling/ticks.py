"""One tick, from its claim to its done record, in steps that never wait. Another scheduler may be at it at any time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pipelines.scheduling.calendar import parse_tick
from pipelines.scheduling.claims import (
    Claim,
    Done,
    Owner,
    create_claim,
    create_done,
    read_claim,
    read_done,
    swap_claim,
    this_owner,
)
from pipelines.scheduling.jobs import Job, JobResult, Launcher

POLL = timedelta(seconds=1)
"""Between two looks at a job of ours."""
LOOK_AGAIN = timedelta(seconds=15)
"""Between two looks at another's claim."""
RETRY_AFTER = timedelta(seconds=30)
"""Before a failed job is started again, and before the store, the registry or the cluster is asked again."""


@dataclass(frozen=True, kw_only=True)
class TickRunner:
    """A scheduler, as its ticks see it."""

    name: str
    """Of the schedule."""
    folder: str
    """Where the claims lie."""
    lease: timedelta
    retries: int
    """How often a failed job is started again."""
    launcher: Launcher
    pin: Callable[[datetime], tuple[str, ...]]
    """The command of a tick, complete; asked once, when the tick is claimed."""
    now: Callable[[], datetime]
    say: Callable[[str], None]
    me: Owner = field(default_factory=this_owner)

    def lease_end(self) -> str:
        """Of a lease that begins now."""
        return (self.now() + self.lease).isoformat()

    def submission_id(self, tick: str, attempt: int) -> str:
        """Of the job of an attempt."""
        return f"{self.name}-{tick}-{attempt}"

    def retry_at(self) -> datetime:
        """Soon, and well before the lease runs out."""
        return self.now() + min(RETRY_AFTER, self.lease / 6)


@dataclass(kw_only=True)
class TickState:
    """A tick that is not done."""

    tick: str
    look_at: datetime
    """When to attend to it next."""
    held: tuple[Claim, bytes] | None = None
    """Our claim, and its bytes as they stand."""
    job: Job | None = None
    started_at: datetime | None = None
    result: JobResult | None = None
    trouble: str = ""
    """What went wrong at the last look."""


def advance(by: TickRunner, state: TickState, *, may_start: bool) -> Done | None:
    """Do what there is to do for a tick now.

    Args:
        may_start: whether a job may be started; a tick that must wait for it is claimed and held all the same.

    Returns:
        how it ended, once it has.

    Raises:
        OSError: if the store, the registry or the cluster is out of reach; calling again later is safe.
        InputError: if the model is not there, or a record cannot be read.
    """
    if state.held is None:
        ended = _approach(by, state)
        if ended is not None:
            return ended
    if state.held is not None and state.result is None:
        _renew(by, state)
    return None if state.held is None else _work(by, state, may_start)


def release(by: TickRunner, state: TickState) -> None:
    """Leave the job and let the lease end now, so that another scheduler need not wait for it."""
    if state.job is not None:
        state.job.leave()
    if state.held is not None:
        claim, data = state.held
        try:
            swap_claim(by.folder, replace(claim, lease_until=by.now().isoformat()), data)
        except OSError as error:  # then it runs out by itself
            by.say(f"{state.tick}  the lease could not be given back ({error}); it ends at {claim.lease_until}")


def _approach(by: TickRunner, state: TickState) -> Done | None:
    """Claim a tick that nobody holds; else wait for who holds it."""
    ended = read_done(by.folder, state.tick)
    if ended is not None:
        return ended
    found, now = read_claim(by.folder, state.tick), by.now()
    if found is None:
        _claim(by, state)
    elif found[0].owner == by.me:  # ours; the answer to our writing it was lost
        state.held = found
    elif found[0].expired(now):
        _take_over(by, state, *found)
    else:
        state.look_at = min(datetime.fromisoformat(found[0].lease_until), now + LOOK_AGAIN)
    return None


def _claim(by: TickRunner, state: TickState) -> None:
    first, command = 1, by.pin(parse_tick(state.tick))
    claim = Claim(
        tick=state.tick,
        owner=by.me,
        attempt=first,
        failures=0,
        lease_until=by.lease_end(),
        command=command,
        submission_id=by.submission_id(state.tick, first),
    )
    data = create_claim(by.folder, claim)
    state.held = (claim, data) if data else None


def _take_over(by: TickRunner, state: TickState, claim: Claim, data: bytes) -> None:
    """Its command stays. A job of it that still runs on the cluster, or has succeeded, is followed, not repeated."""
    job = by.launcher.find(claim.submission_id)
    attempt = claim.attempt + 1
    mine = replace(
        claim,
        owner=by.me,
        attempt=attempt,
        lease_until=by.lease_end(),
        submission_id=claim.submission_id if job else by.submission_id(claim.tick, attempt),
    )
    swapped = swap_claim(by.folder, mine, data)
    if swapped is None:
        return  # somebody was faster; the next look tells who
    state.held, state.job, state.started_at = (mine, swapped), job, by.now() if job else None
    by.say(f"{claim.tick}  taken over from {claim.owner.host} (process {claim.owner.pid}), attempt {attempt}")


def _renew(by: TickRunner, state: TickState) -> None:
    """Lengthen the lease once a third of it has gone."""
    assert state.held is not None
    claim = state.held[0]
    if datetime.fromisoformat(claim.lease_until) - by.now() < by.lease * 2 / 3:
        _swap(by, state, replace(claim, lease_until=by.lease_end()))


def _swap(by: TickRunner, state: TickState, claim: Claim) -> bool:
    """Replace our claim; if another holds the tick now, let go of the job."""
    assert state.held is not None
    data = swap_claim(by.folder, claim, state.held[1])
    if data is not None:
        state.held = (claim, data)
        return True
    found = read_claim(by.folder, state.tick)
    if found is not None and found[0].owner == by.me:  # the answer to an earlier swap was lost
        state.held = found
        return found[0].attempt == claim.attempt
    if state.job is not None:
        state.job.leave()
        by.say(f"{state.tick}  another scheduler holds it now: the lease had run out")
    state.held = state.job = state.started_at = state.result = None
    return False


def _work(by: TickRunner, state: TickState, may_start: bool) -> Done | None:
    """Start the job, follow it, and see to its end."""
    assert state.held is not None
    claim = state.held[0]
    state.look_at = by.now() + POLL
    if state.job is None:
        if not may_start:
            return None
        state.job, state.started_at = by.launcher.start(claim.submission_id, claim.command), by.now()
        by.say(f"{claim.tick}  started as {claim.submission_id}; log: {state.job.log}")
    state.result = state.result or state.job.poll()
    if state.result is None:
        return None
    if state.result.exit_code != 0 and claim.failures < by.retries:
        _again(by, state, claim, state.result)
        return None
    ended = _ended(by, state, claim, state.job, state.result)
    return ended if create_done(by.folder, ended) else read_done(by.folder, state.tick)


def _again(by: TickRunner, state: TickState, claim: Claim, result: JobResult) -> None:
    attempt = claim.attempt + 1
    again = replace(
        claim,
        attempt=attempt,
        failures=claim.failures + 1,
        lease_until=by.lease_end(),
        submission_id=by.submission_id(claim.tick, attempt),
    )
    if _swap(by, state, again):
        state.job = state.started_at = state.result = None
        state.look_at = by.retry_at()
        by.say(f"{claim.tick}  failed with exit code {result.exit_code} ({result.last_line}); it will be started again")


def _ended(by: TickRunner, state: TickState, claim: Claim, job: Job, result: JobResult) -> Done:
    failed = result.exit_code != 0
    made = {} if failed else result.made
    return Done(
        tick=claim.tick,
        status="failed" if failed else "succeeded",
        exit_code=result.exit_code,
        samples=made.get("samples"),
        made=made,
        message=result.last_line if failed else "",
        log=job.log,
        attempt=claim.attempt,
        submission_id=claim.submission_id,
        command=claim.command,
        owner=claim.owner,
        started_at=state.started_at.isoformat() if state.started_at else None,
        ended_at=by.now().isoformat(),
    )
