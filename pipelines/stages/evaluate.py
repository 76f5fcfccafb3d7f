"""The evaluate stage: features measured by parallel tasks and merged, neighbours searched, a report written."""

from dataclasses import dataclass, replace

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex, Split
from ddpm_core.artifacts.report import MARKER_NAME, PAGE_NAME, read_metrics
from ddpm_core.artifacts.sample_set import SampleSet
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import frechet_distance
from ddpm_core.serialization import to_json
from pipelines import reporting
from pipelines.measuring import generated_stats, real_stats, split_bound
from pipelines.naming import digest
from pipelines.recipes.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found."""

    report_uri: str
    page_uri: str
    split: Split
    """What real images beside the training's were measured: those of the test, or of validation."""
    metric: str
    """The figure by which models are ranked; lower is better."""
    metrics: dict[str, float]
    reference: str
    """What the figure was measured against and how: only equal references compare."""

    @property
    def summary(self) -> str:
        """The figure beside its floor, in words."""
        said = f"{self.metric} {self.metrics[self.metric]:.4g}"
        if "floor" not in self.metrics:
            return said
        equal = self.metrics["num_floor"] == self.metrics["num_generated"]
        same = "" if equal else f"{self.metrics['same_n']:.4g} at {self.metrics['num_floor']:,.0f} images, "
        return f"{said} ({same}{self.split} images: {self.metrics['floor']:.4g})"


def run_evaluate(
    weights: Weights, samples: SampleSet, index: DatasetIndex, recipe: Recipe, features: Features
) -> Evaluated:
    """Measure a sample set against the training images and write its report; one that is there is read.

    Raises:
        InputError: if the set has fewer images than are to be measured.
    """
    config = recipe.evaluate
    if samples.num_images < config.num_images:
        raise InputError(
            f"evaluate.num-images is {config.num_images}, the sample set has {samples.num_images}; "
            "lower it, or raise --sample.num-images"
        )
    inputs = [
        samples.identity,
        samples.first_seed,
        samples.block_size,
        index.digest,
        to_json(replace(config, weights=None)),
        features.digest,
    ]
    uri = storage.join(recipe.store, "reports", f"{recipe.recipe}-{digest(inputs)}")
    reference = f"dataset {index.digest[:16]} train, {features.digest}, {config.num_images} images"
    if storage.exists(storage.join(uri, MARKER_NAME)):
        metrics = {name: value for name, value in read_metrics(uri).items() if isinstance(value, float)}
    else:
        metrics = _measure(samples, index, config, recipe.store, features)
        bound = split_bound(weights, index, index.final_split, config, recipe.sample)
        if bound is not None:
            metrics |= {
                "bits_per_dim": bound.bits_per_dim,
                "bits_per_dim_error": bound.standard_error,
                "rate": bound.rate,
                "distortion": bound.distortion,
                "rmse": float(bound.rmse[0]),
            }
        reporting.write(uri, weights, samples, index, recipe, metrics, bound, reference, features)
    return Evaluated(
        report_uri=uri,
        page_uri=storage.join(uri, PAGE_NAME),
        split=index.final_split,
        metric=features.figure(config.num_images),
        metrics=metrics,
        reference=reference,
    )


def _measure(
    samples: SampleSet, index: DatasetIndex, config: EvaluateConfig, store: str, features: Features
) -> dict[str, float]:
    train = real_stats(index, "train", config, store, features=features)
    generated = generated_stats(samples, config.num_images, config.batch_size, features)
    metrics = {
        features.figure(config.num_images): frechet_distance(generated, train),
        "num_generated": float(generated.count),
        "num_train": float(train.count),
        "num_dimensions": float(len(train.mean)),
    }
    # Fewer images raise the distance: the floor is a floor for as many generated images as there are real ones.
    num_floor = min(index.num_samples(index.final_split), config.num_images)
    if num_floor < 2:  # no covariance
        return metrics
    unseen = real_stats(index, index.final_split, config, store, num_floor, features)
    same_n = (
        generated if num_floor == generated.count else generated_stats(samples, num_floor, config.batch_size, features)
    )
    return {
        **metrics,
        "floor": frechet_distance(unseen, train),
        "same_n": frechet_distance(same_n, train),
        "num_floor": float(num_floor),
    }
