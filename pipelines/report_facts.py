"""What a report says of its dataset, its model and itself, gathered from their artifacts."""

import shlex
from collections.abc import Sequence
from typing import Any

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.sample_set import SampleSet
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.report_page import DatasetFacts, ModelFacts
from ddpm_core.training.course import Course, course_of
from pipelines.recipes.config import Recipe, as_named
from pipelines.subject import Subject


def command(subject: Subject, index: DatasetIndex, recipe: Recipe, features: Features) -> str:
    """The one that gives this report again, in a checkout; a project is named by where its file lies."""
    named = storage.absolute(recipe.file) if recipe.file else as_named(recipe)
    config, words = recipe.evaluate, ["python", "pipelines/evaluate.py", named, "--store", recipe.store]
    if subject.model:
        words += ["--model", subject.model[0].uri, "--sample.num-images", str(subject.images.num_images)]
    else:
        words += ["--images", subject.where, "--dataset", index.uri]
    words += ["--evaluate.num-images", str(config.num_images), *_flags(features)]
    if config.reference is not None:
        words += ["--evaluate.reference", config.reference, "--evaluate.reference-protocol", config.reference_protocol]
    if subject.by_steps:
        names, steps = zip(*((name, str(steps)) for name, steps, _ in subject.by_steps), strict=True)
        words += ["--samplers", *dict.fromkeys(names), "--steps", *dict.fromkeys(steps)]
    return shlex.join(words)


def _flags(features: Features) -> list[str]:
    """Those that ask for the same features."""
    if features.network == "random_conv":
        return []
    resize = ["--evaluate.resize", features.resize] if features.network == "inception" else []
    weights = ["--evaluate.weights", features.weights] if features.weights else []
    return ["--evaluate.features", features.network, *resize, *weights]


def dataset_facts(name: str, index: DatasetIndex) -> DatasetFacts:
    """Of the dataset."""
    return DatasetFacts(
        name=name,
        uri=index.uri,
        digest=index.digest,
        image_size=index.image_size,
        channels=index.channels,
        counts=index.counts,
        own_splits=index.own_splits,
        num_rejected=index.num_rejected,
        class_names=index.class_names,
    )


def model_facts(weights: Weights, samples: SampleSet, index: DatasetIndex) -> ModelFacts:
    """Of the model, and how it was sampled; classes have their names where the dataset is the one that it was trained on."""
    sampler = samples.identity["sampler"]
    steps = sampler["num_steps"] or weights.config["schedule"]["num_timesteps"]
    return ModelFacts(
        checkpoint_uri=weights.uri,
        weights_sha256=weights.sha256,
        num_parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        step=weights.step,
        images_seen=weights.step * weights.config["train"]["batch_size"],
        sampler=f"{sampler['name']}, {steps} steps{_noise(samples.identity)}, {samples.identity['precision']}",
        classes=_classes_in_turn(samples, index.class_names if weights.dataset_digest == index.digest else ()),
        settings={name: value for part in _SETTINGS for name, value in _flat(part, weights.config.get(part)).items()},
    )


def _classes_in_turn(samples: SampleSet, names: Sequence[str]) -> tuple[str, ...]:
    """From the first seed on."""
    labels = samples.identity["labels"]
    start = samples.first_seed % len(labels) if labels else 0
    named = {-1: "without", **dict(enumerate(names))}
    return tuple(named.get(label, str(label)) for label in [*labels[start:], *labels[:start]])


_SETTINGS = ("unet", "schedule", "reverse", "loss", "train")
"""The parts of a run's config that decide its weights."""


def _flat(name: str, value: Any) -> dict[str, str]:
    """Nested settings by dotted names, in words."""
    if isinstance(value, dict):
        return {key: said for inner, each in value.items() for key, said in _flat(f"{name}.{inner}", each).items()}
    if isinstance(value, list):
        return {name: ", ".join(map(str, value)) or "none"}
    return {name: "none" if value is None else str(value)}


def _noise(identity: dict[str, Any]) -> str:
    """The noise of a sampler in words; none of one that has none."""
    sampler = identity["sampler"]
    match sampler["name"]:
        case "ddim":
            return f", eta {sampler['eta']:g}"
        case "ancestral":
            variance: str = sampler["variance"] or identity["reverse"]["variance"]
            return f", {variance.replace('_', ' ')} variance"
        case _:
            return ""


def course_to(weights: Weights) -> Course | None:
    """What is known of the run up to these weights, where the checkpoint still stands; old ones are deleted by policy."""
    try:
        return course_of(weights.uri)
    except FileNotFoundError:
        return None
