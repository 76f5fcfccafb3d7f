"""Search spaces by name, as they would be typed: --space.FIELD VALUES."""

from collections.abc import Mapping, Sequence

OPEN = ("beta-schedules", "quick")
"""To whose words the recipe's own are added where they are not among them."""
SPACES: dict[str, Mapping[str, Sequence[str]]] = {
    # Which noise, and how much of it.
    "beta-schedules": {
        "schedule.name": ("linear", "quadratic", "cosine", "sigmoid"),
        "schedule.beta-start": ("loguniform:5e-5:5e-4",),
        "schedule.beta-end": ("loguniform:5e-3:5e-2",),
    },
    # What decides most in short trainings.
    "quick": {
        "schedule.name": ("linear", "cosine"),
        "reverse.prediction": ("eps", "v"),
        "train.learning-rate": ("loguniform:3e-4:3e-3",),
    },
    # Ho, Jain, Abbeel 2020, Table 2; what the paper leaves out, L_simple with a learned variance, cannot be.
    "paper-table-2": {
        "reverse.prediction": ("mean", "eps"),
        "loss.objective": ("bound", "simple"),
        "reverse.variance": ("learned", "fixed_small"),
    },
    # Nothing is trained: --model names the weights.
    "sampler": {
        "sample.sampler.name": ("ancestral", "ddim", "dpm_solver", "heun"),
        "sample.sampler.num-steps": ("5", "10", "25", "50", "100"),
    },
}
