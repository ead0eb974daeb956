"""How a command ends: its exit status, and one line on standard error where a person has something to mend."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from fedretrain.core.errors import FedretrainError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable


def exit_status(work: Callable[[], int]) -> int:
    """Do the work of a command.

    Args:
        work: Its own status.

    Returns:
        Its status; 2 for a user's error, 1 for another one of ours, 130 for Ctrl-C, 0 where whoever reads has enough.
    """
    try:
        return work()
    except FedretrainError as error:
        sys.stderr.write(f"fedretrain: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
