"""Ray Train's controller: it starts the workers, asks how they are, and starts others where some are lost. Here, in the driver.

Ray gives it a process of its own: five seconds of imports at each start, and one process more that may be lost.
"""

import asyncio
from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group

from pipelines.cluster.session import is_own
from pipelines.training.coordinator import NoMeeting


class Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Its `fit` runs the controller in the thread that calls it.

    Two of Ray's helpers, each a process, are left out: for Ray Data's datasets, of which there are none; and for what a lost
    controller had reserved, which goes with the driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        needless = DatasetsCallback | PlacementGroupCleanerCallback
        return [each for each in super()._create_default_callbacks() if not isinstance(each, needless)]

    def _initialize_and_run_controller(self, **what: Any) -> Any:
        if is_own() and isinstance(what["scaling_policy"], FixedScalingPolicy):
            what["scaling_policy"] = _OneMachine(self.scaling_config)
        return asyncio.run(_run(what))


async def _run(what: dict[str, Any]) -> Any:
    controller = _Controller(**what)
    await controller.run()
    return controller.get_result()


class _OneMachine(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as were asked for, and no autoscaler that would have to be asked for room, by a process of its own."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing to ask for."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to ask for."""


class _Workers(WorkerGroup):  # type: ignore[misc]
    """Told of no controller's process: they would ask it only for checkpoints that Ray keeps, and ours are not.

    For the same reason they never meet to report one. Ray has a process for that, which imports all of Ray Train for it.
    """

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        before, worker_group.SynchronizationActor = worker_group.SynchronizationActor, ray.remote(num_cpus=0)(NoMeeting)
        try:
            super()._start_impl(worker_group_state_builder)
        finally:
            worker_group.SynchronizationActor = before

    def _init_train_context_on_workers(self, workers: list[Any], sync_actor: Any, train_context_args: Any) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[i] for name, values in train_context_args.items()},
            )
            for i, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Workers
