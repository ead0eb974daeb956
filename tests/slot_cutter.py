"""``python -m tests.slot_cutter SCENARIO STORE WORK VERSION...``: kills a device at each of its durable operations.

For n = 1, 2, ... a child process does the scenario on a fresh copy of a device and is gone, without a word, just before or
just after its n-th fsync, rename or unlink. Then this process opens what is on the disk, does the scenario again to
its end, and prints one JSON line. It stops at the n that no child reaches.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from fedretrain.artifacts.store import ContentStore
from fedretrain.edge.slots import Slots

KILLED = 9


def install(slots, fetch, versions):
    slots.stage(versions[1], fetch)
    slots.activate(versions[1])


def first(slots, fetch, versions):
    slots.stage(versions[0], fetch)
    slots.activate(versions[0])


def back(slots, fetch, versions):
    slots.mark_bad(versions[1], "it burns")
    if slots.state.current == versions[1]:
        slots.rollback()


def nothing(slots, fetch, versions):
    pass


SCENARIOS = {
    "first": (nothing, first),
    "install": (first, install),
    "back": (lambda *a: (first(*a), install(*a)), back),
}


def cut(at, after):
    """Make the process die at its `at`-th durable operation."""
    counter = itertools.count(1)

    def wrap(real):
        def call(*args, **kwargs):
            dies = next(counter) == at
            if dies and not after:
                os._exit(KILLED)
            result = real(*args, **kwargs)
            if dies:
                os._exit(KILLED)
            return result

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, wrap(getattr(os, name)))


def child(work, do, fetch, versions, at, after):
    """The scenario in a process of its own; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        cut(at, after)
        do(Slots(work), fetch, versions)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in {0, KILLED}, status
    return status == KILLED


def opened(work):
    """What a device serves that was just switched on."""
    package = Slots(work).current()
    return None if package is None else package.digest


def main(scenario, store, work, *versions):
    prepare, do = SCENARIOS[scenario]
    fetch, fresh, work = ContentStore(store).get, Path(work) / "fresh", Path(work) / "device"
    prepare(Slots(fresh), fetch, versions)
    for after in (False, True):
        for at in itertools.count(1):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(fresh, work)
            killed = child(work, do, fetch, versions, at, after)
            found = opened(work)
            do(Slots(work), fetch, versions)
            hidden = [path.name for path in work.rglob(".new-*")]
            held = Slots(work).state.held
            line = {"at": at, "after": after, "killed": killed, "found": found, "again": opened(work)}
            print(json.dumps({**line, "held": held, "hidden": hidden}), flush=True)
            if not killed:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
