"""The pipeline: the stages in their order, each tracked as one MLflow run under one parent. A command runs the part it needs.

Each stage is imported where it is run: with training come Ray Train, with evaluation its plots, for seconds, of which another
command needs nothing.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.run_record import hold
from ddpm_core.artifacts.sample_set import SampleSet
from ddpm_core.interop.model_folder import training_of
from ddpm_core.serialization import to_json
from ddpm_core.training.averages import young_weights
from pipelines.cluster.placement import Ask, check_cluster
from pipelines.cluster.reach import check_reach
from pipelines.cluster.session import session
from pipelines.datasets import find_dataset
from pipelines.feature_weights import find_features
from pipelines.naming import code_version, digest, headline_settings, run_folder, settings, sweep_folder
from pipelines.progress import Progress, say
from pipelines.recipes.config import Recipe, SampleStage, SweepStage
from pipelines.subject import Subject
from pipelines.tracking import (
    Promotion,
    RunHandle,
    Tracker,
    TrackingError,
    default_model,
    import_meanwhile,
    is_champion,
    open_tracking,
    promote,
    register_model,
)
from pipelines.tracking.registry import alone
from pipelines.tracking.resolve import find_weights

if TYPE_CHECKING:
    from pipelines.stages.evaluate import Evaluated
    from pipelines.stages.sample import Sampled
    from pipelines.stages.sweep import Swept
    from pipelines.stages.train import Trained
    from pipelines.sweeping.space import Space

logger = logging.getLogger(__name__)
# In MLflow's descriptions: it puts the ids of the run and its experiment in.
_GRID = "![samples](get-artifact?path=samples.png&run_uuid={run_id})"
_REPORT = "[report](#/experiments/{experiment_id}/runs/{run_id}/artifacts/report.html)"
_REPEATS = "its samples repeat training images more often than unseen real images do; the report shows which"


@dataclass(frozen=True)
class Pipeline:
    """One recipe's stages in one Ray session, tracked under one parent run."""

    recipe: Recipe
    tracker: Tracker
    parent: RunHandle
    main_seed: int
    """Of training: what comes of it stands in the parent, too."""

    @property
    def model_name(self) -> str:
        """The name under which the registry keeps this recipe's models."""
        return f"ddpm-{self.recipe.recipe}"

    def shard(self) -> DatasetIndex:
        """The dataset: named, made now, or there already."""
        from pipelines.stages.shard import run_shard

        if self.recipe.dataset is not None:
            return find_dataset(self.recipe.dataset, self.recipe.store)
        data = self.recipe.data
        key = digest(["shard", self.recipe.store, to_json(data)])
        with self._stage("shard", key, {"data": to_json(data)}) as run:
            shown: list[Progress] = []

            def tell(done: int, total: int) -> None:
                if not shown:
                    shown.append(Progress("shard", total, "image"))
                shown[0].set(done)

            index = run_shard(data, self.recipe.store, name=self.recipe.recipe, on_progress=tell)
            for bar in shown:
                bar.close()
            self._log_dataset(run, index)
            run.log_metrics([{"step": 0, **index.counts, "rejected": index.num_rejected}])
        return index

    def train(self, index: DatasetIndex, init_from: Weights | None = None) -> "Trained":
        """The trained model, from wherever its run was; its averaged weights are registered as the candidate.

        Training is done even if MLflow is away then: a warning says how they come to be registered.
        """
        from pipelines.stages.train import run_train
        from pipelines.training.run import run_name

        key = digest(["train", run_folder(self.recipe.store, run_name(self.recipe, index, init_from))])
        params = {**headline_settings(self.recipe), **({"init_from": init_from.uri} if init_from else {})}
        with self._stage("train", key, params, shown_above=self._is_main and self.parent.shows(key)) as run:
            self._log_dataset(run, index)
            trained = run_train(self.recipe, index, run, init_from)
            self._describe(f"{trained.step:,} steps of {self.recipe.train.batch_size} images")
            weights = read_weights(trained.checkpoint_uri)
            try:
                return replace(trained, version=self._register(run, weights))
            except TrackingError as error:
                logger.warning("%s; trained, but not registered: the same command again registers it", error)
        return trained

    def sample(self, weights: Weights) -> "Sampled":
        """The generated images, made now or there already."""
        from pipelines.stages.sample import run_sample

        config = self.recipe.sample
        key = digest(["sample", self.recipe.store, weights.sha256, to_json(config)])
        sampler = {**to_json(config.sampler), "seeds": f"{config.first_seed} and {config.num_images - 1:,} after it"}
        params = {"sample": sampler, "weights_sha256": weights.sha256, "checkpoint": weights.uri}
        with self._stage("sample", key, params) as run:
            sampled = run_sample(weights, config, self.recipe.store)
            run.log_picture(sampled.grid_uri, "samples/grid", step=weights.step)
            if self._is_main:
                self.parent.log_picture(sampled.grid_uri, "samples")
                self._describe(f"{sampled.samples.num_images:,} images of step {weights.step:,}", _GRID)
            if sampled.num_new:
                run.log_metrics([{"step": weights.step, "images_per_s": sampled.images_per_s}])
        return sampled

    def sample_each(self, weights: Weights, requests: Sequence[SampleStage]) -> list[SampleSet]:
        """The images of several requests; all of them are checked before the first is done."""
        from pipelines.stages.sample import describe_samples

        for request in requests:
            describe_samples(weights, request, self.recipe.store)
        return [replace(self, recipe=replace(self.recipe, sample=each)).sample(weights).samples for each in requests]

    def evaluate(self, subject: Subject, index: DatasetIndex) -> "Evaluated":
        """The report on images, against a dataset."""
        from pipelines.stages.evaluate import run_evaluate

        features = find_features(self.recipe.evaluate, self.recipe.store)
        config = {**to_json(replace(self.recipe.evaluate, weights=None)), "digest": features.digest}
        key = digest(["evaluate", subject.where, subject.identity, index.digest, config])
        params = {"evaluate": config, "images": subject.where, "weights_sha256": subject.weights_sha256}
        with self._stage("evaluate", key, params) as run:
            self._log_dataset(run, index)
            evaluated = run_evaluate(subject, index, self.recipe, features)
            run.log_metrics([{"step": subject.step, **evaluated.metrics, **evaluated.intervals}])
            run.log_file(evaluated.page_uri)
            if self._is_main:
                self.parent.log_figures(evaluated.metrics, subject.step)
                self.parent.log_file(evaluated.page_uri)
                made_by = f", step {subject.step:,}" if subject.model else ""
                self._describe(f"{evaluated.summary}{made_by}; {_REPORT}", *([_GRID] if subject.model else []))
        return evaluated

    def promote(
        self, weights: Weights, evaluated: "Evaluated", trainings: Sequence[float] = ()
    ) -> tuple[int, Promotion]:
        """The weights' version in the registry, and whether it is the champion now.

        Args:
            trainings: the figure of each training seed, where there are several; the weights are of one of them.

        Raises:
            TrackingError: if MLflow is away; all that was made before is there, and the same command goes on here.
        """
        key = digest(["promote", weights.sha256, evaluated.report_uri])
        with self._stage("promote", key, {}) as run:
            try:
                version = self._register(run, weights)
                with self._alone(version):
                    promotion = promote(
                        self.tracker,
                        self.model_name,
                        version,
                        figure=evaluated.figures[0],
                        reference=evaluated.reference,
                        seeds=evaluated.seeds,
                        trainings=trainings,
                        report_uri=evaluated.report_uri,
                        veto=young_weights(weights.config, weights.step) or (_REPEATS if evaluated.suspicious else ""),
                    )
            except TrackingError as error:
                raise TrackingError(f"{error}; the report is made, the same command again promotes") from error
            facts = {"version": str(version), "promoted": str(promotion.promoted), "reason": promotion.reason}
            run.set_tags(facts)
            self.parent.set_tags(facts)
        return version, promotion

    def _alone(self, version: int) -> AbstractContextManager[object]:
        """No other promotion of this model in this store meanwhile: two at once could crown the worse."""
        if is_champion(self.tracker, self.model_name, version):
            return nullcontext()  # nothing to crown
        return alone(self.recipe.store, self.model_name)

    def sweep(
        self, config: SweepStage, space: "Space", index: DatasetIndex, name: str, weights: Weights | None = None
    ) -> "Swept":
        """The ranking of settings, each trial a run under the sweep's.

        Args:
            weights: whose samplers are tried; then nothing is trained.
        """
        from pipelines.stages.sweep import run_sweep
        from pipelines.sweeping.table import in_markdown

        key = digest(["sweep", self.recipe.store, name])
        with (
            self._stage("sweep", key, {"sweep": to_json(config)}) as run,
            hold(sweep_folder(self.recipe.store, name), say=say) as held,
        ):
            self._log_dataset(run, index)
            swept = run_sweep(self.recipe, config, space, index, held, self.tracker, run, weights)
            for uri in (swept.uri, swept.winner_uri):
                run.log_file(uri)
            run.log_file(swept.page_uri)
            run.set_tags({"verdict": swept.verdict, "winner": swept.ranking[0].words, "state": swept.state})
            table = in_markdown(swept.ranking, swept.verdict)
            run.describe(table)
            self._describe(table)
        return swept

    def find_weights(self, model: str | None) -> Weights:
        """The weights at a checkpoint's or run's URI, or models:/NAME@ALIAS; None: the recipe's champion or candidate.

        A line is said of averaged weights that are still too much those that they began with.
        """
        weights = find_weights(model or default_model(self.tracker, self.model_name), self.tracker, self.recipe.store)
        if warning := young_weights(weights.config, weights.step):
            say(f"{weights.uri}: {warning}")
        return weights

    def _stage(
        self, name: str, key: str, params: Mapping[str, Any], *, shown_above: bool = False
    ) -> AbstractContextManager[RunHandle]:
        return self.tracker.run(
            f"{name} {self.recipe.recipe}", key=key, parent=self.parent, shown_above=shown_above, params=params
        )

    @property
    def _is_main(self) -> bool:
        return self.recipe.train.seed == self.main_seed

    def _describe(self, *said: str) -> None:
        if self._is_main:
            self.parent.describe("\n\n".join(said))

    def _register(self, run: RunHandle, weights: Weights) -> int:
        weights.check()
        training = training_of(weights)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.safetensors"
            path.write_bytes(weights.file)
            return register_model(
                self.tracker,
                run,
                name=self.model_name,
                weights=path,
                config={**weights.config, "training": training},
                facts={
                    **training,
                    "seed": weights.config.get("train", {}).get("seed", ""),
                    "code_version": code_version(),
                },
            )

    def _log_dataset(self, run: RunHandle, index: DatasetIndex) -> None:
        facts = {
            "image_size": index.image_size,
            "channels": index.channels,
            "class_names": list(index.class_names),
            "own_splits": list(index.own_splits),
            "source": self.recipe.dataset or self.recipe.data.source,
        }
        for each in (run, self.parent):
            each.log_dataset(self.recipe.recipe, index.digest, index.uri, index.counts, facts)


@contextmanager
def open_pipeline(recipe: Recipe, *asks: Ask, reads_source: bool = False) -> Iterator[Pipeline]:
    """A Ray session and the parent run. Before anything is written, the cluster is asked whether it can do what will come.

    Args:
        recipe: what the pipeline is made from.
        asks: what its stages will ask of the nodes.
        reads_source: whether it shards, so that the nodes read the raw images.

    Raises:
        InputError: in one line, if something cannot be placed, or a node does not reach the store or the source.
    """
    with ExitStack() as stack:
        with import_meanwhile(recipe.store):
            stack.enter_context(session())
            for ask in asks:
                check_cluster(ask)
            check_reach(recipe.store, recipe.data.source if reads_source and recipe.dataset is None else None)
        tracker = open_tracking(recipe.store, f"ddpm-{recipe.recipe}")
        decides, data = settings(recipe), to_json(recipe.data)
        key = digest(["pipeline", recipe.store, recipe.name, recipe.dataset, data, decides])
        tags = {"recipe": recipe.recipe, "store": recipe.store}
        with tracker.run(
            recipe.name or f"{recipe.recipe}-{key}", key=key, tags=tags, params=headline_settings(recipe)
        ) as parent:
            yield Pipeline(recipe, tracker, parent, recipe.train.seed)
