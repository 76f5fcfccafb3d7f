"""The solvers' error against the work they do: tables on stdout, and docs/pictures/convergence.png.

    python tests/benchmarks/convergence.py

Data are a mixture of two normals, whose optimal denoiser is known; the truth is the probability-flow ODE by scipy.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from known_data import even_in_log_snr, line_of, probability_flow  # noqa: E402

from ddpm_core.diffusion.reverse import ReverseProcess  # noqa: E402
from ddpm_core.diffusion.sampler_config import SamplerConfig, SamplerName  # noqa: E402
from ddpm_core.diffusion.samplers import sample  # noqa: E402
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule  # noqa: E402
from ddpm_core.types import Tensor  # noqa: E402

DATA = line_of([0.4, 0.6], [-0.4, 0.5], [0.25, 0.15])
X_T = torch.linspace(-2, 2, 33, dtype=torch.float64).view(1, 1, 1, 33)
SOLVERS: dict[SamplerName, tuple[str, str, int, int]] = {
    "ddim": ("DDIM", "#8a857a", 1, 1),
    "dpm_solver": ("DPM-Solver++(2M)", "#9a5b13", 1, 2),
    "heun": ("Heun", "#2f6b7e", 2, 2),
}
"""Name, colour, network passes a step, order."""
INK, FAINT = "#3b3832", "#b9b6ae"


def errors(schedule: NoiseSchedule, name: SamplerName, num_steps: Sequence[int], *, last: bool) -> list[float]:
    """Root mean square error of x_0 (last), or of x at t = 0, before the step to x_0."""
    exact = probability_flow(DATA, schedule, X_T, clean=last)
    p = ReverseProcess(denoiser=DATA.denoiser(schedule), schedule=schedule)
    found = []
    for steps in num_steps:
        states: dict[int, Tensor] = {}
        x_0 = sample(
            p,
            SamplerConfig(name=name, num_steps=steps, clip="none"),
            X_T,
            lambda t: X_T,
            on_step=lambda t, x_t, x_0_hat, states=states: states.update({t: x_t}),
        )
        found.append(float(((x_0 if last else states[0]) - exact).square().mean().sqrt()))
    return found


def table(title: str, num_steps: Sequence[int], measured: dict[SamplerName, list[float]]) -> None:
    print(f"\n{title}\n")
    print("  steps" + "".join(f"{SOLVERS[name][0]:>19}  slope" for name in measured))
    for i, steps in enumerate(num_steps):
        row = f"{steps:7d}"
        for values in measured.values():
            slope = math.log(values[i - 1] / values[i]) / math.log(num_steps[i] / num_steps[i - 1]) if i else math.nan
            row += f"{values[i]:>19.2e}  " + (f"{slope:5.2f}" if i else "     ")
        print(row)


def draw(axes: Axes, num_steps: Sequence[int], measured: dict[SamplerName, list[float]], title: str, y: str) -> None:
    for name, values in measured.items():
        label, colour, passes, _ = SOLVERS[name]
        axes.plot(
            [passes * s for s in num_steps], values, "o-", color=colour, label=label, markersize=4.5, linewidth=1.8
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, loc="left", color=INK, fontsize=11, pad=12)
    axes.set_xlabel("network passes", color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.xaxis.set_minor_locator(NullLocator())


def annotate_slope(axes: Axes, x: Sequence[float], y: Sequence[float], order: int, colour: str, *, above: bool) -> None:
    """A triangle beside the last stretch of a line, as steep as theory says, and the slope that was measured."""
    slope = math.log(y[-2] / y[-1]) / math.log(x[-1] / x[-2])
    left, right, lift = x[-2], x[-1], 1.7 if above else 0.6
    top, bottom = y[-2] * lift, y[-2] * lift * (right / left) ** -order
    corner = (right, top) if above else (left, bottom)
    axes.plot(*zip((left, top), corner, (right, bottom), (left, top), strict=True), color=colour, linewidth=0.9)
    axes.annotate(
        f"slope {slope:.2f}",
        (math.sqrt(left * right), top) if above else (left, math.sqrt(top * bottom)),
        xytext=(0, 5) if above else (-6, 0),
        textcoords="offset points",
        ha="center" if above else "right",
        va="bottom" if above else "center",
        color=colour,
        fontsize=9,
    )


def main() -> None:
    even, paper = even_in_log_snr(-8, 8, 4097), make_schedule(ScheduleConfig())
    even_steps, paper_steps = [2**k + 1 for k in range(3, 10)], [5, 10, 15, 20, 35, 50, 100, 200, 500, 1000]
    on_even = {name: errors(even, name, even_steps, last=False) for name in SOLVERS}
    on_paper = {name: errors(paper, name, paper_steps, last=True) for name in SOLVERS}
    table("Steps even in log SNR: error of x at t = 0", even_steps, on_even)
    table("The paper's schedule, T = 1000, linspace: error of the image", paper_steps, on_paper)

    figure = Figure(figsize=(11, 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw(left, [s - 1 for s in even_steps], on_even, "Steps even in log SNR", "error of x at t = 0")
    for name, (_, colour, passes, order) in SOLVERS.items():
        annotate_slope(
            left, [passes * (s - 1) for s in even_steps], on_even[name], order, colour, above=name != "dpm_solver"
        )
    left.xaxis.set_major_locator(FixedLocator([10, 30, 100, 300, 1000]))
    left.xaxis.set_major_formatter("{x:g}")
    draw(right, paper_steps, on_paper, "The paper's schedule, T = 1000, steps even in t", "error of the image")
    right.xaxis.set_major_locator(FixedLocator([5, 10, 20, 50, 100, 200, 500, 1000, 2000]))
    right.xaxis.set_major_formatter("{x:g}")
    right.axhline(2 / 255, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
    right.text(2000, 2 / 255 * 1.12, "one level of an 8-bit image", color=INK, fontsize=9, ha="right", va="bottom")
    right.annotate(
        "left by the\nlast step",
        (2000, on_paper["heun"][-1]),
        xytext=(0, 24),
        textcoords="offset points",
        color=INK,
        fontsize=9,
        ha="right",
    )
    right.legend(frameon=False, labelcolor=INK, fontsize=10)
    out = ROOT / "docs" / "pictures" / "convergence.png"
    figure.savefig(out, facecolor="white")
    print(f"\n{out}")


if __name__ == "__main__":
    main()
