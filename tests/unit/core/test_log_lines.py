"""Log lines as JSON: one document each, with what was said."""

from __future__ import annotations

import json
import logging
import sys

from fedretrain.core.log_lines import JsonLines


def _record(exc_info=None):
    return logging.LogRecord(
        "fedretrain.x", logging.WARNING, "f.py", 1, "%s of %d", ("two\nlines", 3), exc_info
    )


def test_a_record_is_one_document_on_one_line():
    line = JsonLines().format(_record())
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["name"], found["text"]) == ("warning", "fedretrain.x", "two\nlines of 3")
    assert "trace" not in found


def test_an_exception_says_where_it_came_from():
    try:
        int("bad")
    except ValueError:
        found = json.loads(JsonLines().format(_record(sys.exc_info())))
    assert "ValueError" in found["trace"]
