"""Every decoder reads what it is given or refuses it by one of our errors, however the bytes were damaged."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.decoders import decoders, try_one

KNOWN = decoders()


@pytest.mark.parametrize("name", sorted(name for name, one in KNOWN.items() if one.seed))
def test_each_reads_its_own_bytes(name):
    assert try_one(KNOWN[name], KNOWN[name].seed)


@pytest.mark.parametrize("name", sorted(KNOWN))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(name, data):
    content = bytearray(KNOWN[name].seed)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 8)))
        content[at:until] = data.draw(st.binary(max_size=8))
    try_one(KNOWN[name], bytes(content))
