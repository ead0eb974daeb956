"""What every finished run folder must hold: all of it there, in agreement, as the schema promises."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import safetensors.numpy
import yaml

from fedretrain.core import params
from fedretrain.privacy.accountant import epsilon
from fedretrain.privacy.event import PrivacyEvent
from sim.outputs import load_run
from sim.results import ArmSummary, schema

if TYPE_CHECKING:
    from pathlib import Path

FILES = ["config.yaml", "devices.parquet", "report.html", "rounds.parquet", "summary.json"]


class Loads(HTMLParser):
    """What a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            fetched = name in {"src", "srcset", "data", "poster"} or (
                name == "href" and tag in {"link", "use", "image"}
            )
            if fetched and value and not value.startswith(("data:", "#")):
                self.found.append((tag, name, value[:80]))


def assert_whole(folder: Path, *, private: bool = False):
    """Every file of a run is there, agrees with the others, and keeps what the schema promises."""
    run = load_run(folder)
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert not (folder / "checkpoint").exists()
    assert not list(folder.rglob(".*")), "no half-written file is left"
    summary = json.loads((folder / "summary.json").read_text())
    _fits(summary, schema(), schema()["$defs"], "summary")
    assert len(pd.read_parquet(folder / "rounds.parquet")) == len(run.rounds) > 0
    assert len(pd.read_parquet(folder / "devices.parquet")) == len(run.devices) > 0
    _assert_self_contained((folder / "report.html").read_text())
    assert yaml.safe_load((folder / "config.yaml").read_text())["resolved_arms"].keys() == {
        arm.arm for arm in run.summary.arms
    }
    for arm in run.summary.arms:
        for seed, digest in arm.weights_digests.items():
            stored = safetensors.numpy.load_file(folder / "weights" / f"{arm.arm}-{seed}.safetensors")
            assert params.digest(stored) == digest
            assert all(np.isfinite(leaf).all() for leaf in stored.values())
        best = arm.headline
        assert best is not None
        assert np.isfinite(best.global_model.score.mean.value)
        assert arm.rounds > 0
        assert arm.bytes_up > 0
        charged = {s: epsilon_of_ledger(folder, arm, s) for s in arm.weights_digests} if arm.privacy else {}
        assert max(charged.values(), default=None) == (arm.privacy.epsilon if arm.privacy else None)
    assert any(arm.privacy is not None for arm in run.summary.arms) == private
    assert {file.parent.name for file in folder.rglob("*.jsonl")} == ({"ledger"} if private else set())
    return run


def epsilon_of_ledger(folder: Path, arm: ArmSummary, seed: str) -> float:
    """Epsilon from the file alone: what an auditor would do."""
    lines = (folder / "ledger" / f"{arm.arm}-{seed}.jsonl").read_text().splitlines()
    return epsilon([PrivacyEvent.from_dict(json.loads(line)) for line in lines], arm.privacy.delta)


def _assert_self_contained(html: str) -> None:
    page = Loads()
    page.feed(html)
    assert page.found == []
    assert not re.findall(r"url\(\s*['\"]?(?!data:|#)[^)]{0,40}|@import", html)
    assert not re.findall(r"\bfetch\(|XMLHttpRequest|importScripts", html)
    assert "<svg" in html or "data:image" in html


def _fits(value, hint, definitions, where):
    """A small reader of the JSON Schema that the project publishes: it must accept what the project writes."""
    if "$ref" in hint:
        hint = definitions[hint["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in hint:
        options = [o for o in hint["anyOf"] if o != {"type": "null"}]
        if value is not None:
            _fits(value, options[0], definitions, where)
        return
    if "enum" in hint:
        assert value in hint["enum"], where
        return
    kinds = hint["type"] if isinstance(hint["type"], list) else [hint["type"]]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    assert any(isinstance(value, types[kind]) for kind in kinds), f"{where} is {value!r}, not {kinds}"
    if isinstance(value, list):
        for i, item in enumerate(value):
            _fits(item, hint["items"], definitions, f"{where}[{i}]")
    if isinstance(value, dict):
        known = hint.get("properties", {})
        assert set(hint.get("required", ())) <= set(value), where
        for key, item in value.items():
            inner = known[key] if key in known else hint["additionalProperties"]
            assert isinstance(inner, dict), f"{where}.{key} is not in the schema"
            _fits(item, inner, definitions, f"{where}.{key}")
