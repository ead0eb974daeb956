"""A user's own sensor task: `new_task` scaffolds it, `check_task` says what is wrong with it."""

from sim.tasks.check import check_task
from sim.tasks.new import new_task

__all__ = ["check_task", "new_task"]
