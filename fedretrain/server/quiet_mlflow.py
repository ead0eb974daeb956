"""MLflow as a guest: its telemetry off, its log quiet, and given up on where it does not answer.

Rules of this file:
    * Whoever speaks with MLflow does it within `quiet`: the coordinator's registry and the simulator's tracking alike.
    * Importing MLflow takes a second or more: only within, so only where it is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 10
_NOISY = ("mlflow", "alembic", "sqlalchemy", "urllib3")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """MLflow logs its migrations and warns about its own libraries: nobody's concern."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.tracking  # noqa: F401  (sets its own levels when it is imported)

        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
