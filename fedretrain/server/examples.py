"""One example for each command, shown by its ``--help``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

EXAMPLES: Mapping[str, str] = {
    "server": "fedretrain server --config server.toml",
    "config check": "fedretrain config check server.toml --json",
    "enrol": "fedretrain enrol pump-1 pump-2 --hours 48",
    "devices list": "fedretrain devices list --json",
    "devices revoke": "fedretrain devices revoke pump-1 --by anna --reason 'it was stolen'",
    "devices quarantine": "fedretrain devices quarantine pump-1 --by anna --reason 'the sensor came loose'",
    "devices release": "fedretrain devices release pump-1 --by anna --reason 'the sensor is mended'",
    "devices watch": "fedretrain devices watch pump-7 pump-8 --site north",
    "sources list": "fedretrain sources list --json",
    "sources refused": "fedretrain sources refused --limit 100",
    "devices retire": "fedretrain devices retire pump-1 --by anna --reason 'scrapped'",
    "models list": "fedretrain models list -p pumps",
    "models report": "fedretrain models report 7",
    "models import": "fedretrain models import --onnx first.onnx --outputs ok,worn",
    "models propose": "fedretrain models propose --weights new.safetensors --by anna --reason 'the laboratory'",
    "models withdraw": "fedretrain models withdraw 7 --by anna --reason 'wrong units'",
    "rollout status": "fedretrain rollout status -p pumps",
    "rollout start": "fedretrain rollout start 4 --by anna --reason 'last season again'",
    "rollout approve": "fedretrain rollout approve --by ben --key ben.key --reason 'shadow looks good'",
    "rollout refuse": "fedretrain rollout refuse --by ben --reason 'not before the holidays'",
    "rollout pause": "fedretrain rollout pause --by anna --reason 'maintenance until five'",
    "rollout resume": "fedretrain rollout resume --by anna",
    "rollout rollback": "fedretrain rollout rollback --by anna --reason 'complaints from site north'",
    "rollout abort": "fedretrain rollout abort --by anna --reason 'wrong candidate'",
    "rollout de-escalate": "fedretrain rollout de-escalate --by anna --reason 'step by step'",
    "rollout freeze": "fedretrain rollout freeze --by anna --reason 'to look at it in shadow'",
    "rollout unfreeze": "fedretrain rollout unfreeze --by anna --reason 'understood'",
    "policy status": "fedretrain policy status -p pumps",
    "policy approve": "fedretrain policy approve --by ben --reason 'as we agreed in May'",
    "policy refuse": "fedretrain policy refuse --by ben --reason 'alpha is too large'",
    "people key": "fedretrain people key anna --out anna.key",
    "people list": "fedretrain people list --json",
    "incident show": "fedretrain incident show rollout-3/kpi_regression --json",
    "incident resubmit": "fedretrain incident resubmit 7 --by carl --reason 'the sensor was broken, not the model'",
    "incident discard": "fedretrain incident discard 7 --by anna --reason 'trained on wrong units'",
    "baseline collect": "fedretrain baseline collect --by anna --reason 'a week in the field'",
    "labels import": "fedretrain labels import later.csv --by anna --reason 'inspection of May'",
    "labels report": "fedretrain labels report --json",
    "retrain": "fedretrain retrain --by anna --reason 'new season'",
    "safe-mode": "fedretrain safe-mode on --by anna --reason 'false alarms'",
    "kill-switch": "fedretrain kill-switch stop installs --by anna --reason 'network work'",
    "status": "fedretrain status --json",
    "log": "fedretrain log --after 120",
    "verify": "fedretrain verify --json",
    "edge run": "fedretrain edge run --config edge.toml",
    "edge status": "fedretrain edge status --config edge.toml --json",
    "edge lineage": "fedretrain edge lineage --config edge.toml --device pump-1 --version DIGEST",
    "edge erase": "fedretrain edge erase --config edge.toml --device pump-1",
    "demo": "fedretrain demo --folder /tmp/story",
}
"""By the words of the command."""


def leaves(
    made: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that has no commands below it: its words and its parser."""
    below = [group.choices for group in made._actions if isinstance(group.choices, dict)]  # noqa: SLF001 - argparse has no public way
    if not below:
        yield " ".join(words), made
    for choices in below:
        for name, parser in choices.items():
            yield from leaves(parser, (*words, name))


def show_examples(root: argparse.ArgumentParser) -> None:
    """Let each command's help end with its example."""
    for words, made in leaves(root):
        if words in EXAMPLES:
            made.epilog = f"example: {EXAMPLES[words]}"
