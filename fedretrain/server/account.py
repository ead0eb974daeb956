"""The operating system's account under which a command runs, for the audit log beside ``--by``.

It is what the command itself finds: true for whoever uses `fedretrain`. Whoever may write to the database can write another, so the
folder, and a database's password, belong to the operators' accounts alone.
"""

from __future__ import annotations

import os
import pwd


def account() -> str:
    """The real user's name (``sudo`` leaves root's); the number where it has no name."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
