"""What a process that lives says on standard error: a line of text for each event, or one JSON document."""

from __future__ import annotations

import json
import logging


class JsonLines(logging.Formatter):
    """Each record as one JSON document: when, how grave, whose, what, and where from if it was an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said = {
            "at": record.created,
            "level": record.levelname.lower(),
            "name": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, sort_keys=True)


def log_lines(*, as_json: bool) -> None:
    """Let the process log to standard error; call it once."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
