"""A plant for each module, started once, with what the module's `OPTIONS` say."""

from __future__ import annotations

import pytest

from tests.plant_cases import Plant


@pytest.fixture(scope="module")
def plant(tmp_path_factory, request):
    made = Plant(tmp_path_factory.mktemp("plant"), **getattr(request.module, "OPTIONS", {}))
    try:
        made.start()
        yield made
    finally:
        made.stop()
