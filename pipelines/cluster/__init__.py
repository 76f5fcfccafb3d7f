"""The Ray cluster: the session that a command attaches to or starts, and what is placed on its nodes."""

import os

# Read by Ray when it is imported and handed down to its workers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A call that comes after the session's end must not start a Ray of its own.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Of two minutes, or half of one, that a node is said to have left, five seconds are much.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A job may have been submitted with variables of its own that workers are to see as well.
os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
