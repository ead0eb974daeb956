"""``python -m tests.fuzz DECODER [--runs N]``: coverage-guided fuzzing of one of `tests.decoders`.

The bytes that did it are printed, and kept beside, as libFuzzer does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def main(words: list[str]) -> None:
    """Fuzz one decoder; does not return."""
    import atheris

    with atheris.instrument_imports(include=["fedretrain"]):
        from tests.decoders import decoders, try_one
    known = decoders()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes.")
    parser.add_argument("decoder", choices=sorted(known))
    parser.add_argument("--runs", type=int, default=100_000, help="how many inputs (default: %(default)s)")
    arguments = parser.parse_args(words)
    decoder = known[arguments.decoder]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "seed").write_bytes(decoder.seed)
        limits = [f"-runs={arguments.runs}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=4096", "-seed=1"]
        atheris.Setup(["fuzz", *limits, folder], lambda content: try_one(decoder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
