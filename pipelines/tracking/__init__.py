"""The only MLflow code, and for drivers alone: workers never log.

Importing this costs nothing: MLflow itself is imported when a store is opened.
"""

from pipelines.tracking.machine import Machine
from pipelines.tracking.outage import TrackingError
from pipelines.tracking.promotion import Promotion, is_champion, promote
from pipelines.tracking.registry import ResolvedModel, default_model, register_model, resolve_model
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import Server, import_meanwhile, is_server, open_server, standing_server, tracking_uri
from pipelines.tracking.tracker import Tracker, open_tracking, sync

__all__ = [
    "Machine",
    "Promotion",
    "ResolvedModel",
    "RunHandle",
    "Server",
    "Tracker",
    "TrackingError",
    "default_model",
    "import_meanwhile",
    "is_champion",
    "is_server",
    "open_server",
    "open_tracking",
    "promote",
    "register_model",
    "resolve_model",
    "standing_server",
    "sync",
    "tracking_uri",
]
