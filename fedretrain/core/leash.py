"""A command of an installed package that ends with the process that started it, even if that one is killed.

``python -m fedretrain.core.leash PARENT COMMAND [WORD ...]`` runs a console script of this Python environment, so that a
search path or an activated environment does not matter; ``... PARENT -m MODULE [WORD ...]`` runs a module.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from importlib.metadata import entry_points

_LOOK_S = 0.2
_GRACE_S = 5.0


def watch(parent: int) -> None:
    """End this process, gracefully and then at once, when its parent is another than `parent`."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


def main(words: list[str]) -> None:
    """Run the command or module named by the words."""
    parent, command = int(words[0]), words[1]
    if command == "-m":
        watch(parent)
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        return
    (script,) = entry_points(group="console_scripts", name=command)
    watch(parent)
    sys.argv = words[1:]
    script.load()()


if __name__ == "__main__":
    main(sys.argv[1:])
