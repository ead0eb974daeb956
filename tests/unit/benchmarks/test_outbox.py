from __future__ import annotations

from benchmarks import outbox
from fedretrain.wire.sequence import Priority


def test_a_day_is_counted_to_the_last_record(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "_MINUTES", 40)
    online = outbox.day_case(tmp_path, 10, is_online=True)
    plain = outbox.day_case(tmp_path, 1, is_online=True, is_plain=True)
    assert online["num_records"] == plain["num_records"] == 40 + 40 + 4 + 1
    assert online["case"] == "day_online_10min"
    assert online["payload_mib"] == round((40 * 920 + 4 * 60 + 200) / 2**20, 2)


def test_a_typical_day_has_every_kind_but_samples():
    assert {priority for priority, _ in outbox.Traffic().at(0)} == set(Priority) - {Priority.SAMPLES}
    assert [len(payload) for _, payload in outbox.Traffic().at(1)] == [800, 120]


def test_speed_counts_every_record(tmp_path):
    line = outbox.speed_case(tmp_path, num_records=500, flush_every=50)
    assert line["num_records"] == 500
    assert line["disk_bytes_per_record"] >= 200
