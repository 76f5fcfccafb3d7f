"""What a command says while it works, where there is no terminal."""

import pytest

from pipelines import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_says_how_far_it_is_and_how_long_it_takes(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress("train", 1_000, "step", initial=100) as shown:
        clock[0] = 100.0  # starting took so long, which says nothing of what comes
        shown.set(101)
        for second in range(1, 61):
            clock[0] = 100.0 + second
            shown.set(101 + 2 * second, **({"loss": f"{1 / second:.2f}"} if second % 20 == 0 else {}))
    assert capsys.readouterr().err.splitlines() == [
        "train: 101 of 1,000 steps",
        "train: 133 of 1,000 steps, 7.2 minutes left",
        "train: 165 of 1,000 steps, 7.0 minutes left, loss 0.05",
        "train: 197 of 1,000 steps, 6.7 minutes left, loss 0.03",
    ]


def test_what_takes_long_tells_that_it_goes_on(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("sample", 64, "image") as shown:
        for second in range(40):
            clock[0] = float(second)
            shown.beat()
        shown.set(64)
        clock[0] = 60.0
        shown.beat("the last look at it")
    assert capsys.readouterr().err.splitlines() == [
        "sample: 0 of 64 images, 16 s so far",
        "sample: 0 of 64 images, 32 s so far",
        "sample: 64 of 64 images, the last look at it, 60 s so far",
    ]


def test_nothing_is_left_of_what_is_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("sample", 64, "image") as shown:
        shown.set(1)
        clock[0] = 20.0
        shown.set(64)
    assert capsys.readouterr().err == "sample: 64 of 64 images\n"
