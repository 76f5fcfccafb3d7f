"""What stands beside figures, in words."""

from ddpm_core.artifacts.manifest import DatasetIndex


def chosen_by(index: DatasetIndex) -> str:
    """What to say where validation stands in for the test."""
    return "" if index.final_split == "test" else "this dataset has no test: checkpoints may have been chosen by these"


def said(*parts: str) -> str:
    """The parts that say something."""
    return "; ".join(part for part in parts if part)
