"""Programs of other people that tests start as their children."""

from __future__ import annotations

import shutil


def dying_with_us(command: list[str]) -> list[str]:
    """The command as one that is ended when this process is gone, however that ends; util-linux knows how."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "QUIT", *command] if setpriv else command
