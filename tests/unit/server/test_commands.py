"""Every command on a small real folder: what it says, what it writes, and one line for every mistake."""

from __future__ import annotations

import re
import shlex

import pytest

from fedretrain.artifacts.identity import FleetAuthority
from fedretrain.cli import main, parser
from fedretrain.server import orders
from fedretrain.server.examples import EXAMPLES, leaves
from tests.server_cases import lines

COMMANDS = sorted(tuple(words.split()) for words, _ in leaves(parser("edge")))


def test_every_command_is_found():
    named = {" ".join(words) for words in COMMANDS}
    assert {"config check", "models import", "rollout approve", "kill-switch", "verify", "edge run"} <= named
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example_that_it_takes(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "usage: fedretrain " + " ".join(words) in said
    assert "--json" in said
    example = EXAMPLES[" ".join(words)]
    assert "example: " + example.partition(" --")[0] in " ".join(said.split())
    taken = parser(words[0]).parse_args(shlex.split(example)[1:])
    assert taken.command == words[0]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("enrol",), "no device"),
        (("enrol", "a b/c"), "'a b/c' is no name"),
        (("enrol", "--batch", "nowhere.txt"), "nowhere.txt"),
        (("enrol", "a", "--hours", "-1"), "--hours"),
        (("enrol", "a", "--hours", "nan"), "--hours"),
        (("devices", "revoke", "ghost", "--by", "anna"), "no device ghost"),
        (("models", "import", "--weights", "nowhere.st"), "nowhere.st"),
        (("models", "import", "--outputs", "a,b"), "2 outputs"),
        (("models", "propose", "--by", "anna", "--weights", "nowhere.st"), "nowhere.st"),
        (("models", "withdraw", "7", "--by", "anna"), "no version 7"),
        (("rollout", "approve", "--by", " "), "--by"),
        (("status", "-p", "nobody"), "name one of pumps"),
        (("log", "--after", "-1"), "--after"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(office, words, named):
    said = office.on(*words)
    assert (said.status, said.out) == (2, "")
    (line,) = lines(said.err)
    assert line.startswith("fedretrain: ")
    assert named in line
    log = office.log()
    assert log.head(orders.stream("pumps")).counter == 0
    log.engine.dispose()


def test_a_configuration_is_checked_with_every_file_that_it_names(office):
    found = office.type("config", "check", office.config, "--json").json
    assert re.fullmatch(
        r"4, for about [\d,]+ devices in \d+ slots; 10,000 take \d+\.\d\d",
        found["populations.pumps.watching.memory_gib"],
    )
    assert found["database"] == f"sqlite:///{office.folder}/state/fedretrain.db"
    assert found["populations.pumps.policy"].startswith("small, digest ")
    assert found["populations.pumps.training"] == "mlp, 2 rounds"
    assert found["populations.pumps.features"] == "4 channels"
    assert found["populations.pumps.pool"] == "240 rows"
    assert found["at rest"] == "encrypted, key beside the stores"
    assert not (office.folder / "state").exists()


def test_a_password_of_the_database_is_not_shown(office):
    office.config.write_text('database = "postgresql://u:secret@h/n"\n' + office.config.read_text())
    said = office.type("config", "check", office.config)
    assert said.status == 0
    assert "postgresql+psycopg://u:***@h/n" in said.out
    assert "secret" not in said.out


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("server.toml", "folder = ", "server.toml"),
        (
            "server.toml",
            'folder = "a"\n[populations.pumps]\npolicy = "gone.yaml"',
            "populations.pumps.policy",
        ),
        ("server.toml", "", "there is no folder"),
        (
            "server.toml",
            'folder = "a"\n[listen]\nenrol = "127.0.0.1:7443"\n[populations.pumps]\npolicy = "policy.yaml"',
            "listen.enrol",
        ),
        ("policy.yaml", "format: 1\nname: x\nsurprise: 1", "surprise"),
        ("training.yaml", "num_rounds: 0", "training.yaml"),
        ("features.json", "{}", "features.json"),
        ("pool/lab.safetensors", "no tensors", "lab.safetensors"),
    ],
)
def test_a_mistake_in_any_file_is_named(office, file, content, named):
    (office.folder / file).write_text(content)
    said = office.type("config", "check", office.config)
    assert said.status == 2
    (line,) = lines(said.err)
    assert named in line


def test_an_agents_file_is_checked_too(office):
    file = office.folder / "edge.toml"
    text = 'folder = "agent"\nenrol = "{}"\nauthority = "ca.pem"\n[[devices]]\nname = "d1"\ntoken = "t"\n'
    file.write_text(text.format("127.0.0.1:7444"))
    (office.folder / "ca.pem").write_bytes(FleetAuthority(office.folder, now=0.0).certificate)
    found = office.type("config", "check", file, "--json").json
    assert found["at rest"] == "encrypted, key beside the stores"
    assert (found["devices"], found["authority"]) == ("d1", str(office.folder / "ca.pem"))
    file.write_text(text.format("nowhere"))
    assert "'nowhere' is no address" in _refused(office, file)
    file.write_text('enrol = "127.0.0.1:7444"\n')
    assert "there is no folder" in _refused(office, file)
    file.write_text(text.format("127.0.0.1:7444"))
    (office.folder / "ca.pem").write_bytes(b"-----BEGIN")
    assert "authority is no certificate" in _refused(office, file)
    (office.folder / "ca.pem").unlink()
    assert "authority cannot be read" in _refused(office, file)


def _refused(office, file):
    said = office.type("config", "check", file)
    (line,) = lines(said.err)
    assert said.status == 2
    return line
