"""`python -m sim log OUT [KEY=VALUE ...]`: a simulated campaign's fleet as its coordinator would see it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError
from fedretrain.wire.fleet_log import KINDS, write_log
from sim.arm import Arms
from sim.fleetlog.play import header_of, play
from sim.outputs import disk_errors
from sim.plan import plan_run

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "python -m sim log OUT.jsonl [KEY=VALUE ...]"


def log_command(words: Sequence[str], *, folder: str = "") -> int:
    """Write the log of the first arm that `words` ask for, and print what is in it.

    Args:
        words: The file, then Hydra overrides.
        folder: A folder of the user's own configuration groups.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If a word is wrong or the disk refuses the file.
    """
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise ConfigError("no file to write is named", fix=USAGE)
    path, plan = Path(words[0]), plan_run(list(words[1:]), folder=folder)
    arm = Arms().get(plan.arms[0].config, plan.seeds[0])
    header, events = header_of(arm), list(play(arm))
    with disk_errors(path):
        digest = write_log(path, header, events)
    counted = Counter(type(event) for event in events)
    days = (header.end_at - header.begin_at) / 86_400
    print(f"{path}: {header.num_devices} devices, {days:.3g} days, sha256 {digest}")
    print(", ".join(f"{counted[cls]} {word}" for word, cls in KINDS.items() if counted[cls]))
    return 0
