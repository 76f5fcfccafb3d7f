"""What code that registered versions of older days carry asks for, and is told in a line; nothing else imports this."""

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        "this registered version carries serving code of an older ddpm-pipeline. Its weights load as ever (sample.py, "
        "evaluate.py, ddpm_core.load); to serve it, delete the version in MLflow and run its train.py command again, which "
        "registers the same weights with today's code"
    )
