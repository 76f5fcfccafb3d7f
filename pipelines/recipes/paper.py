"""What the paper prints of its own models (Ho et al. 2020, Tables 1, 2 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_core.serialization import to_json
from pipelines.recipes.recipes import make


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A model's figures as they are printed."""

    figures: Mapping[str, str]
    """By the name that the figure has here."""
    progress: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Table 4: after so many reverse steps the bits/dim received and the RMSE (0..255)."""


PAPER = {
    "cifar10": Printed(
        figures={
            "inception_score": "9.46 ± 0.11 (Table 1)",
            "fid": "3.17 (Table 1)",
            "bits_per_dim": "≤ 3.75 (Table 1)",
            "rate": "1.78 (Section 4.3)",
            "distortion": "1.97 (Section 4.3)",
            "rmse": "0.95 (Section 4.3)",
        },
        progress={
            1000: (1.77581, 0.95136),
            900: (0.11994, 12.02),
            800: (0.05415, 18.47),
            700: (0.02866, 24.44),
            600: (0.01507, 30.81),
            500: (0.00716, 38.03),
            400: (0.00282, 46.13),
            300: (0.00081, 54.19),
            200: (0.00013, 60.97),
            100: (0.0, 67.60),
        },
    ),
    "cifar10_bound": Printed(
        figures={
            "inception_score": "7.67 ± 0.13 (Table 1)",
            "fid": "13.51 (Table 1)",
            "bits_per_dim": "≤ 3.70 (Table 1)",
        }
    ),
}


TABLE_2 = {
    ("mean", "bound", "learned"): "IS 7.28 ± 0.10, FID 23.69",
    ("mean", "bound", "fixed"): "IS 8.06 ± 0.09, FID 13.22",
    ("mean", "simple", "fixed"): "unstable",
    ("eps", "bound", "learned"): "unstable",
    ("eps", "bound", "fixed"): "IS 7.67 ± 0.13, FID 13.51",
    ("eps", "simple", "fixed"): "IS 9.46 ± 0.11, FID 3.17",
}
"""Table 2, CIFAR-10: by what is predicted, the objective and the variance. Where the paper has dashes, training was unstable."""
_ELSEWHERE = {"seed", "precision"}
"""Fields of training that make a run another one, but not another model."""


def printed(recipe: str, config: Mapping[str, Any], step: int) -> Printed | None:
    """What the paper prints of a run; None if it is none of the paper's, or was trained otherwise, as for fewer steps.

    Args:
        recipe: its name.
        config: with which the run was trained, as its checkpoint keeps it.
        step: so many steps.
    """
    if recipe not in PAPER:
        return None
    papers = make(recipe)
    same = all(config.get(part) == to_json(getattr(papers, part)) for part in ("unet", "schedule", "reverse", "loss"))
    wanted = to_json(papers.train)
    train = {name: value for name, value in config.get("train", {}).items() if name not in _ELSEWHERE}
    same = same and step == papers.train.steps and all(wanted.get(name) == value for name, value in train.items())
    return PAPER[recipe] if same else None
