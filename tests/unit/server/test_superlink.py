"""The SuperLink's command line, and the bundle that is a shim."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import TYPE_CHECKING

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.server.superlink import SuperLink, SuperLinkConfig, campaign_bundle

if TYPE_CHECKING:
    from pathlib import Path


def test_the_bundle_is_a_few_lines_that_name_installed_apps() -> None:
    bundle = campaign_bundle()
    assert bundle.digest == hashlib.sha256(bundle.content).hexdigest()
    assert campaign_bundle() == bundle  # the same at every start
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as packed:
        files = {name: packed.read(name).decode() for name in packed.namelist()}
    assert set(files) == {
        "pyproject.toml",
        "fedretrain_campaign_client.py",
        "fedretrain_campaign_server.py",
        ".info/CONTENT",
    }
    code = files["fedretrain_campaign_client.py"] + files["fedretrain_campaign_server.py"]
    assert code == (
        "from fedretrain.edge.client_app import client_app as client_app\n"
        "from fedretrain.server.server_app import server_app as server_app\n"
    )


def test_the_bundles_names_are_there() -> None:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    from fedretrain.edge.client_app import client_app
    from fedretrain.server.server_app import server_app

    assert isinstance(client_app, ClientApp)
    assert isinstance(server_app, ServerApp)


def test_plain_http_only_with_the_development_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a certificate"):
        SuperLinkConfig()
    words = SuperLink(SuperLinkConfig(insecure=True), tmp_path).child.command.words
    assert "--insecure" in words
    certificate, key, roots = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "r.pem"
    config = SuperLinkConfig(certificate=certificate, private_key=key, root_certificates=roots)
    words = SuperLink(config, tmp_path).child.command.words
    assert "--insecure" not in words
    assert "--enable-supernode-auth" in words
    assert words[words.index("--ssl-certfile") + 1] == str(certificate)


def test_it_starts_no_code_of_a_run(tmp_path: Path) -> None:
    link = SuperLink(SuperLinkConfig(insecure=True), tmp_path)
    words = link.child.command.words
    assert words[words.index("--isolation") + 1] == "process"
    assert "--disable-runtime-dependency-installation" in words
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(link.secret)
    assert link.child.command.env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_its_secret_outlives_it(tmp_path: Path) -> None:
    """App processes that are still there can go on."""
    first = SuperLink(SuperLinkConfig(insecure=True), tmp_path).secret.read_bytes()
    assert SuperLink(SuperLinkConfig(insecure=True), tmp_path).secret.read_bytes() == first


def test_it_is_reached_where_it_listens() -> None:
    assert SuperLinkConfig(host="0.0.0.0", port=9, insecure=True).address == "127.0.0.1:9"
    assert SuperLinkConfig(host="10.0.0.1", port=9, insecure=True).address == "10.0.0.1:9"
