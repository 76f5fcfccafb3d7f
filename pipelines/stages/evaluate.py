"""The evaluate stage: features measured by parallel tasks and merged, neighbours searched, a report written."""

import hashlib
from dataclasses import dataclass, replace

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.report import MARKER_NAME, PAGE_NAME, read_findings
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.copies import TooFewHeldOut
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure, number
from ddpm_core.serialization import from_json, to_json
from pipelines import reporting
from pipelines.measuring.copies import Copies, copy_figures, find_copies
from pipelines.measuring.figures import distances_by_steps, feature_figures
from pipelines.measuring.image_sets import SampledImages
from pipelines.measuring.likelihood import bound_figures, split_bound
from pipelines.naming import digest
from pipelines.recipes.config import Recipe
from pipelines.recipes.paper import Printed, printed
from pipelines.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found."""

    report_uri: str
    figures: tuple[Figure, ...]
    """The one by which models are ranked comes first; lower is better."""
    reference: str
    """What the first was measured against and how: only equal references compare."""
    seeds: str
    """Of the images; models of equal seeds are compared group by group."""
    images: str = ""
    """Where they lie."""
    suspicious: bool = False
    """Whether more of them repeat training images than real ones do."""

    @property
    def page_uri(self) -> str:
        """The report's page."""
        return storage.join(self.report_uri, PAGE_NAME)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures' values by their names."""
        return {figure.name: figure.value for figure in self.figures}

    @property
    def intervals(self) -> dict[str, float]:
        """The ends of their 95% intervals, where there are any."""
        ends = {f"{figure.name}.low": figure.low for figure in self.figures}
        ends |= {f"{figure.name}.high": figure.high for figure in self.figures}
        return {name: end for name, end in ends.items() if end is not None}

    @property
    def summary(self) -> str:
        """The first figure beside its floor, in words."""
        said = {figure.name: figure for figure in self.figures}
        first = f"{self.figures[0].name} {self.figures[0].text}"
        there = [said[name] for name in ("same_n", "floor") if name in said]
        beside = [f"{number(figure.value)} of {figure.of.partition(' against ')[0]}" for figure in there]
        return f"{first}; {', '.join(beside)}" if beside else first


def run_evaluate(subject: Subject, index: DatasetIndex, recipe: Recipe, features: Features) -> Evaluated:
    """Measure images against the training images and write their report; one that is there is read.

    Raises:
        InputError: if there are fewer images than are to be measured.
    """
    config, there = recipe.evaluate, subject.images.num_images
    if there < config.num_images:
        raise InputError(
            f"evaluate.num-images is {config.num_images}, {subject.where} has {there}; "
            "lower it, or raise --sample.num-images"
        )
    against = _against(config, index)
    inputs = [subject.identity, index.digest, to_json(replace(config, weights=None)), features.digest, against]
    uri = storage.join(recipe.store, "reports", f"{recipe.recipe}-{digest(inputs)}")
    if not storage.exists(storage.join(uri, MARKER_NAME)):
        found = _measure(subject, index, recipe, features)
        facts = {
            "reference": f"{against}, {features.digest}, {config.num_images} images",
            "images": subject.where,
            "seeds": f"{subject.first} to {subject.first + config.num_images - 1}",
            "checkpoint": subject.model[0].uri if subject.model else None,
            "suspicious": found.copies is not None and found.copies.report.suspicious,
        }
        reporting.write(uri, subject, index, recipe, found, facts, features)
    return read_evaluated(uri)


def _against(config: EvaluateConfig, index: DatasetIndex) -> str:
    if config.reference is None:
        return f"dataset {index.digest[:16]} train"
    content = hashlib.sha256(storage.read_bytes(storage.absolute(config.reference))).hexdigest()
    return f"imported {content[:16]} ({config.reference_protocol})"


def read_evaluated(uri: str) -> Evaluated:
    """What an evaluation found, of its report.

    Raises:
        MissingError: if no report is there.
    """
    figures, facts = read_findings(uri)
    return Evaluated(
        report_uri=uri,
        figures=tuple(from_json(Figure, {"of": "", **figure}) for figure in figures),
        reference=facts["reference"],
        seeds=facts.get("seeds", ""),
        images=facts.get("images", ""),
        suspicious=facts.get("suspicious", False),
    )


def _measure(subject: Subject, index: DatasetIndex, recipe: Recipe, features: Features) -> reporting.Found:
    config, where = recipe.evaluate, recipe.sample
    found = feature_figures(subject.images, index, config, recipe.store, features, where)
    bound = None
    if subject.model is not None:
        bound = split_bound(subject.model[0], index, index.final_split, config, recipe.store, where)
    copies, without = _copies(subject, index, config)
    figures = found.figures + bound_figures(bound, index) + copy_figures(copies, index)
    others = [(name, steps, SampledImages(samples)) for name, steps, samples in subject.by_steps]
    papers = printed(recipe.recipe, subject.model[0].config, subject.step) if subject.model else None
    return reporting.Found(
        figures=tuple(_beside(figure, papers) for figure in figures),
        curve=found.curve,
        precision_recall=found.precision_recall,
        by_steps=distances_by_steps(others, index, config, recipe.store, features, where),
        bound=bound,
        copies=copies,
        without_copies=without,
        paper=papers,
    )


def _beside(figure: Figure, papers: Printed | None) -> Figure:
    """With what the paper prints, where the model is the paper's."""
    if papers is None or figure.name not in papers.figures:
        return figure
    return replace(figure, note="; ".join(filter(None, (figure.note, f"the paper: {papers.figures[figure.name]}"))))


def _copies(subject: Subject, index: DatasetIndex, config: EvaluateConfig) -> tuple[Copies | None, str]:
    """What repeats training images; or why that cannot be said."""
    if not config.num_copies:
        return None, ""
    if not index.num_samples(index.final_split):
        return None, "no images are held out of training to compare with"
    try:
        return find_copies(subject.images, index, config.num_copies), ""
    except TooFewHeldOut as error:
        return None, str(error)
