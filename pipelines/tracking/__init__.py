"""The only MLflow code, and for drivers alone: workers never log.

Importing this costs nothing: MLflow itself is imported when a store is opened.
"""

from pipelines.tracking.outage import TrackingError
from pipelines.tracking.registry import (
    Promotion,
    ResolvedModel,
    default_model,
    promote,
    register_model,
    resolve_model,
)
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import tracking_uri
from pipelines.tracking.tracker import Tracker, open_tracking

__all__ = [
    "Promotion",
    "ResolvedModel",
    "RunHandle",
    "Tracker",
    "TrackingError",
    "default_model",
    "open_tracking",
    "promote",
    "register_model",
    "resolve_model",
    "tracking_uri",
]
