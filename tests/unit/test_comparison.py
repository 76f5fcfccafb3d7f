"""Models side by side: differences of the same seeds are told from chance, others as far as their intervals allow."""

import numpy as np
import pytest

from ddpm_core.evaluation.comparison import compare, render_comparison
from ddpm_core.evaluation.figures import Figure, jackknifed
from ddpm_core.evaluation.intervals import difference

RNG = np.random.default_rng(0)
SHARED = RNG.normal(0, 0.2, 20)


def distance(value: float) -> Figure:
    """Its groups move with the seeds, and a little for themselves."""
    return jackknifed(value, value + SHARED + RNG.normal(0, 0.002, 20), name="fd", of="512 images")


def test_the_same_seeds_tell_apart_what_two_intervals_do_not() -> None:
    a, b, c = distance(5.0), distance(4.8), distance(4.999)
    (row,) = compare([[a], [b], [c]])
    assert a.low is not None
    assert b.high is not None
    assert b.high > a.low  # each by itself, they overlap
    assert row.apart[1] == difference(b.value, np.array(b.left_out), a.value, np.array(a.left_out))
    assert row.verdicts[0] == ""
    assert row.verdicts[1].startswith("-0.2 (-0.2")
    assert row.verdicts[1].endswith("beyond noise")
    assert row.verdicts[2].endswith("within noise")


def test_figures_without_groups_are_compared_by_their_intervals() -> None:
    one = Figure(name="bits_per_dim", value=3.0, low=2.9, high=3.1, of="test images")
    near, far = (Figure(name="bits_per_dim", value=v, low=v - 0.1, high=v + 0.1, of="test images") for v in (3.1, 3.2))
    (row,) = compare([[one], [near], [far]])
    assert [apart and apart.low for apart in row.apart] == [
        None,
        pytest.approx(0.1 - 2**0.5 / 10),
        pytest.approx(0.2 - 2**0.5 / 10),
    ]
    assert row.verdicts[1].endswith("within noise")
    assert row.verdicts[2].endswith("beyond noise")


def test_what_has_no_interval_has_no_verdict_and_what_one_model_lacks_is_left_out() -> None:
    recall = Figure(name="recall", value=0.5, of="images")
    rows = compare([[distance(5.0), recall], [distance(4.0), recall, Figure(name="more", value=1.0, of="")]])
    assert [row.name for row in rows] == ["fd", "recall"]
    assert rows[1].verdicts == ("", "")


def test_the_page_names_the_models_and_escapes_them() -> None:
    rows = compare([[distance(5.0)], [distance(4.0)]])
    page = render_comparison("a against b", ["<b>", "models:/x/2"], rows, {"<b>": "data:image/png;base64,AAAA"})
    assert "beyond noise" in page
    assert "&lt;b&gt;" in page
    assert "models:/x/2" in page
    assert "<b>" not in page
