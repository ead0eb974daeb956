"""The local API: who is let in, how much, and that mistakes are answers."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from fedretrain.core.errors import DataError
from fedretrain.core.rate import RateLimit
from fedretrain.edge.api import LocalApi
from fedretrain.edge.config import ApiConfig
from tests.api_cases import Agent


@pytest.fixture
def api(tmp_path):
    config = ApiConfig(http="127.0.0.1:0", socket=str(tmp_path / "s"), max_body_bytes=2000, burst=50)
    with LocalApi(Agent(), config) as running:
        yield running


def ask(api, path, body=None, method=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, content, sent)
    reply = connection.getresponse()
    found = reply.read()
    connection.close()
    return reply.status, found if reply.headers["Content-Type"] == "text/html; charset=utf-8" else json.loads(
        found
    )


def test_samples_are_answered(api):
    status, found = ask(api, "/v1/predict", {"rows": [[1, None], [2, 3]], "samples": ["x", "y"]})
    assert status == 200
    assert found["predictions"][1] == {
        "id": "p1",
        "label": 1,
        "name": "warm",
        "confidence": 0.5,
        "package": "d",
    }
    assert api.agent.device().rows[0][1] == ["x", "y"]


def test_labels_are_taken_by_number_by_name_and_withdrawn(api):
    body = {
        "labels": [
            {"of": "p0", "label": 1},
            {"of": "p0", "label": "warm", "source": "user"},
            {"of": "p0", "label": None},
        ]
    }
    assert ask(api, "/v1/labels", body)[0] == 200
    assert api.agent.device().labels == [
        ("p0", 1, "api", 1.0),
        ("p0", 1, "user", 1.0),
        ("p0", None, "api", 1.0),
    ]


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/v1/predict", {}, "no samples"),
        ("/v1/predict", {"rows": [1, 2]}, "no samples"),
        ("/v1/predict", {"rows": [[1], [1, 2]]}, "no samples"),
        ("/v1/predict", {"rows": [["x"]]}, "no samples"),
        ("/v1/predict", {"rows": [[1, True]]}, "all numbers"),
        ("/v1/predict", {"rows": [[[1], [False]]]}, "all numbers"),
        ("/v1/predict", {"rows": [["1"]]}, "all numbers"),
        ("/v1/predict", {"rows": [[1]], "sample": ["x"]}, "no key 'sample'"),
        ("/v1/predict", {"rows": [[1]], "samples": [1]}, "names"),
        ("/v1/predict", {"rows": [[1]], "device": "b"}, "no device"),
        ("/v1/predict", {"rows": [[1]], "device": 3}, "no text"),
        ("/v1/labels", {"of": "p0"}, "no label"),
        ("/v1/labels", {"of": "p0", "label": "cold"}, "no class"),
        ("/v1/labels", {"of": "p0", "label": 1.5}, "no class"),
        ("/v1/labels", {"of": "p0", "label": True}, "no class"),
        ("/v1/labels", {"of": 7, "label": 1}, "no text"),
        ("/v1/labels", {"of": "p0", "label": 1, "confidence": "high"}, "no number"),
        ("/v1/labels", {"labels": "all"}, "no labels"),
        ("/v1/labels", {"of": "p0", "label": 1, "sure": 1}, "no key 'sure'"),
        ("/v1/labels", {"labels": [{"of": "p0", "label": 1, "device": "a"}]}, "no key 'device'"),
        ("/v1/labels", {"labels": [], "label": 1}, "no key 'label'"),
        ("/v1/predict", b"[1]", "no JSON object"),
        ("/v1/predict", b"{", "not JSON"),
    ],
)
def test_a_mistake_is_answered_with_what_is_wrong(api, path, body, what):
    status, found = ask(api, path, body)
    assert status == 400
    assert what.split()[-1] in found["error"]


def test_what_is_not_for_this_machine_is_refused(api):
    assert ask(api, "/v1/status", Host="evil.example")[0] == 403
    assert ask(api, "/v1/status", Host="evil.example:80")[0] == 403
    assert ask(api, "/v1/status", Origin="http://evil.example")[0] == 403
    assert ask(api, "/v1/status", Host=f"localhost:{api.port}")[0] == 200
    assert ask(api, "/v1/status", Origin=f"http://127.0.0.1:{api.port}")[0] == 200
    assert ask(api, "/v1/labels", {"of": "p0", "label": 1}, Content_Type="text/plain")[0] == 415


def test_what_is_too_long_or_unknown_is_refused(api):
    assert ask(api, "/v1/predict", {"rows": [[0.0] * 2000]})[0] == 413
    assert ask(api, "/elsewhere")[0] == 404
    assert ask(api, "/v1/elsewhere", {})[0] == 404
    assert ask(api, "/v1/predict", {}, Content_Length="x")[0] in {400, 411}


def test_too_many_requests_are_refused(api):
    found = [ask(api, "/healthz")[0] for _ in range(60)]
    assert found[0] == 200
    api.limit = RateLimit(1e-9, 1)
    assert [ask(api, "/healthz")[0] for _ in range(2)] == [200, 429]


def test_the_page_needs_nothing_but_itself(api):
    status, page = ask(api, "/")
    assert status == 200
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page
    assert b"src=" not in page
    assert b"href=" not in page


def test_recent_predictions_are_listed(api):
    status, found = ask(api, "/v1/predictions?limit=5")
    assert (status, found["outputs"], found["predictions"][0]["id"]) == (200, ["calm", "warm"], "p0")
    assert ask(api, "/v1/predictions?limit=x")[0] == 400


def test_the_socket_answers_as_the_port_does(api):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(api.config.socket)
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 200")
    assert found.endswith(b'{"ok": true}')


def test_a_socket_that_a_dead_agent_left_is_replaced_and_a_live_ones_is_not(api, tmp_path):
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    LocalApi(Agent(), ApiConfig(http="", socket=str(stale))).start()
    with pytest.raises(DataError, match="cannot listen"):
        LocalApi(Agent(), ApiConfig(http="", socket=api.config.socket)).start()


def test_a_taken_port_is_one_line(api):
    with pytest.raises(DataError, match="cannot listen on 127"):
        LocalApi(Agent(), ApiConfig(http=f"127.0.0.1:{api.port}")).start()
