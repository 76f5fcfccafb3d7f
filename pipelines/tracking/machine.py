"""What this machine does meanwhile, by MLflow's own monitors, for the tab of its pages that is named so."""

import time
from functools import cached_property
from typing import Any

from pipelines.tracking.tracker import EVERY_S


class Machine:
    """The driver's machine: processor, memory, disk, network, GPUs."""

    def __init__(self) -> None:
        self._read = time.monotonic()

    def read(self) -> dict[str, float]:
        """Figures by their names in MLflow; empty if they were read a moment ago."""
        if time.monotonic() - self._read < EVERY_S:
            return {}
        self._read = time.monotonic()
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"system/{name}": value for name, value in found.items()}

    @cached_property
    def _monitors(self) -> list[Any]:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            return [*monitors, GPUMonitor()]
        except (ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
            return monitors
