"""The recorder counts what the health checks need, and nothing else."""

from __future__ import annotations

import numpy as np

from fedretrain.edge.vitals import Recorder, Sample
from fedretrain.monitoring.reports import NUM_LATENCY_BINS, latency_bin


def test_a_sample_counts_each_prediction_once_and_begins_anew():
    recorder = Recorder(slow_s=0.02, over_s=0.05)
    latencies = [0.001, 0.02, 0.021, 0.06, 20.0]
    for latency in latencies:
        recorder.prediction(latency)
    recorder.prediction(9.0, failed=True)
    recorder.label(correct=True)
    recorder.label(correct=False)
    recorder.sanity(2)
    for rss in (30 * 2**20, 28 * 2**20, 31 * 2**20):
        recorder.memory(rss)
    sample = recorder.take()
    assert (sample.num_served, sample.num_failed, sample.num_slow, sample.num_over) == (5, 1, 3, 2)
    assert (sample.num_labelled, sample.num_correct, sample.num_insane) == (2, 1, 2)
    assert sample.memory_mib == 28.0
    bins = np.bincount(latency_bin(np.array(latencies)), minlength=NUM_LATENCY_BINS)
    assert sample.latency_L == tuple(bins.tolist())
    assert recorder.take() == Sample(latency_L=(0,) * NUM_LATENCY_BINS)
