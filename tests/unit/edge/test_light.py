"""What runs on a device without `[train]` loads nothing of it."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "counts",
    "examples",
    "head",
    "health",
    "health_checks",
    "lineage",
    "personal",
    "transaction",
    "vitals",
)
HEAVY = (
    "torch",
    "flwr",
    "ray",
    "mlflow",
    "hydra",
    "opacus",
    "scipy",
    "fedretrain.server",
    "fedretrain.coordinator",
)


def test_the_health_and_the_examples_of_a_device_need_no_heavy_library():
    names = ", ".join(f"fedretrain.edge.{name}" for name in MODULES)
    code = f"import sys, {names}; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
