"""`python -m sim`: run, compare and repeat simulated campaigns; scaffold tasks.

Rules of this file:
    * Heavy libraries are imported by the command that needs them: `--help` answers at once.
    * A `UserError` is one line on standard error and exit status 2; Ctrl-C leaves a checkpoint and exits with 130.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a RuntimeError that names it where memory is short
USAGE = """\
python -m sim [KEY=VALUE ...]                 run an experiment (experiment=watch unless another is named)
python -m sim --multirun KEY=A,B [...]        one run for each combination, in parallel on one shared Ray
python -m sim resume=PATH                     continue an interrupted run from its checkpoint, bit for bit
python -m sim compare RUN RUN                 paired differences between two runs, with intervals
python -m sim reproduce RUN                   run again from a run's resolved configuration and compare digests
python -m sim log OUT.jsonl [KEY=VALUE ...]   what a coordinator would see of the campaign's fleet, as an event log
python -m sim fit LOG [OUT.yaml] [--until AT] a fleet that can be simulated from a fleet's event log, and how true it is
python -m sim gate candidate=RUN fleet=FITTED [KEY=VALUE ...]
                                              replay a candidate's aggregation there; exit status 0 PASS, 1 FAIL, 3 INCONCLUSIVE
python -m sim feed prepare DIR [KEY=VALUE ...]
                                              a synthetic fleet's files for a coordinator and its agents
python -m sim feed run DIR [KEY=VALUE ...]    play its sensors to the agents in real time; `touch DIR/drift.now` and they drift
python -m sim task new NAME [FOLDER]          scaffold a sensor task of your own
python -m sim task check PATH                 say what is wrong with it
python -m sim schema                          the documented schema of summary.json
python -m sim --cfg [KEY=VALUE ...]           print the composed configuration and stop
python -m sim --help                          this text

--config-dir DIR adds a folder of your own configuration groups.
Examples:
  python -m sim experiment=wisdm data_dir=DIR seeds=5
  python -m sim personalization=apfl privacy=central privacy.target_epsilon=8 fleet.num_devices=2000
  python -m sim --multirun training.optimizer.lr=0.01,0.03,0.1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after ``python -m sim``; those of this process if not given.

    Returns:
        The exit status: 0, 1 for a difference found by `reproduce` or a FAIL of `gate`, 2 for a user's error, 3 for a `gate` that is
        INCONCLUSIVE, 130 for Ctrl-C, 141 where nobody reads on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # A simulated client is too small to be worth two threads: processes share the cores instead.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        status = _command(words)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in {"fedretrain", "sim"}:
            raise  # a defect of ours, not a library that is absent
        print(
            f"error: the library {error.name!r} is not installed - fix: pip install 'fedretrain[sim]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has enough; the status is that of a process that SIGPIPE ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _ALLOCATOR not in str(error):
            raise
        print(
            "error: this machine has too little memory - make the fleet or the model smaller", file=sys.stderr
        )
        return 2
    return status


def _command(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "compare": _compare,
        "reproduce": _reproduce,
        "log": _log,
        "fit": _fit,
        "gate": _gate,
        "feed": _feed,
        "task": _task,
        "schema": _schema,
    }
    if "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return _run(words)


def _run(words: list[str]) -> int:
    folder, words = _option(words, "--config-dir")
    flags = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if not word.startswith("-")]
    unknown = flags - {"--multirun", "-m", "--cfg"}
    if unknown:
        raise ConfigError(f"there is no option {min(unknown)!r}", fix="python -m sim --help")
    if "--cfg" in flags:
        import yaml

        from fedretrain.core.build import plain
        from sim.configure import configure

        print(yaml.safe_dump(plain(configure(overrides, folder=folder)), sort_keys=False))
        return 0
    from sim.experiment import multirun, run_overrides

    if flags & {"--multirun", "-m"}:
        return multirun(overrides, folder=folder)
    return run_overrides(overrides, folder=folder)


def _option(words: list[str], name: str) -> tuple[str, list[str]]:
    """The value of ``--name VALUE`` or ``--name=VALUE``, and the words without it."""
    for i, word in enumerate(words):
        if word == name:
            if i + 1 == len(words):
                raise ConfigError(f"{name} needs a value")
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith(name + "="):
            return word.split("=", 1)[1], words[:i] + words[i + 1 :]
    return "", words


def _two(words: list[str], usage: str, count: int) -> list[str]:
    if len(words) != count:
        raise ConfigError(f"{count} arguments were expected, not {len(words)}", fix=usage)
    return words


def _compare(words: list[str]) -> int:
    from sim.compare import compare, render
    from sim.outputs import load_run

    first, second = _two(words, "python -m sim compare RUN RUN", 2)
    print(render(compare(load_run(Path(first)), load_run(Path(second)))))
    return 0


def _reproduce(words: list[str]) -> int:
    from sim.reproduce import reproduce

    (run,) = _two(words, "python -m sim reproduce RUN", 1)
    return reproduce(run)


def _log(words: list[str]) -> int:
    from sim.fleetlog.command import log_command

    folder, words = _option(words, "--config-dir")
    return log_command(words, folder=folder)


def _fit(words: list[str]) -> int:
    from sim.fit.command import fit_command

    until, words = _option(words, "--until")
    return fit_command(words, until=until)


def _gate(words: list[str]) -> int:
    from sim.gating.command import gate_command

    return gate_command(words)


def _feed(words: list[str]) -> int:
    from sim.feed.command import feed_command

    return feed_command(words)


def _task(words: list[str]) -> int:
    from sim.tasks import check_task, new_task

    usage = "python -m sim task new NAME [FOLDER] | task check PATH"
    if words[:1] == ["new"] and len(words) in (2, 3):
        print(new_task(words[1], words[2] if len(words) == 3 else "."))
        return 0
    if words[:1] == ["check"] and len(words) == 2:
        print(check_task(words[1]))
        return 0
    raise ConfigError("unknown task command", where=" ".join(words), fix=usage)


def _schema(words: list[str]) -> int:
    from sim.results import schema

    _two(words, "python -m sim schema", 0)
    print(json.dumps(schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
