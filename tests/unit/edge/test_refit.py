"""Personal layers beside a new version: read through the head, fitted from the right start, kept only if they pay."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.manifest import Personalization
from fedretrain.artifacts.package import open_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import UnsupportedModelError
from fedretrain.core.types import ClientData, MethodKind
from fedretrain.edge import personal
from fedretrain.edge.config import RefitConfig
from fedretrain.edge.examples import Stream
from fedretrain.edge.personal import Personal
from fedretrain.edge.refit import can_refit, features_under, personal_for, refitted
from fedretrain.training.keep import Verdict
from tests.slot_cases import SIZE, write

STREAM, NAMES, HIDDEN = Stream("a", "plant"), ("head.weight", "head.bias"), 40
RNG = np.random.default_rng(1)
X = RNG.uniform(-1, 1, (300, SIZE)).astype(np.float32)


def package(folder, method=MethodKind.FEDPER, patterns=("head.*",), seed=0):
    rng = np.random.default_rng(seed)
    tree = {
        "body.weight": rng.normal(size=(HIDDEN, SIZE)).astype(np.float32),
        "body.bias": np.zeros(HIDDEN, np.float32),
        "head.weight": rng.normal(size=(3, HIDDEN)).astype(np.float32),
        "head.bias": rng.normal(size=3).astype(np.float32),
    }
    store = ContentStore(folder)
    about = {"personalization": Personalization(method, patterns)}
    return open_package(store, write(store, release(None, tree), 1, **about))


def features(package, x):
    return np.maximum(x @ package.weights["body.weight"].T + package.weights["body.bias"], 0)


def labelled(package, head):
    return ClientData(X, (features(package, X) @ head.T).argmax(axis=1))


def ask(package, folder, data, bases=("v",)):
    return personal_for(package, folder, STREAM, (*bases, package.digest), data, RefitConfig(), 10.0)


def test_features_are_read_through_the_head(tmp_path):
    made = package(tmp_path)
    assert np.allclose(features_under(made, NAMES, X), features(made, X), atol=1e-5)


def test_a_layer_that_is_not_the_last_one_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="last"):
        features_under(package(tmp_path), ("body.weight", "body.bias"), X)


def test_a_head_that_fits_the_device_better_is_kept_and_found_again(tmp_path):
    made = package(tmp_path / "store")
    data = labelled(made, RNG.normal(size=(3, HIDDEN)))
    found = ask(made, tmp_path, data)
    assert found.verdict is Verdict.KEPT
    held = personal.load(tmp_path, STREAM)
    assert held.base == made.digest
    again = ask(made, tmp_path, data)
    assert again.verdict is None
    assert all(np.array_equal(again.params[name], found.params[name]) for name in NAMES)


def test_where_the_global_head_is_right_nothing_personal_is_kept(tmp_path):
    made = package(tmp_path / "store")
    right = (features(made, X) @ made.weights["head.weight"].T + made.weights["head.bias"]).argmax(axis=1)
    noise = right.copy()
    noise[:200] = RNG.integers(0, 3, 200)  # what it would be fitted on is worth nothing
    found = ask(made, tmp_path, ClientData(X, noise))
    assert (found.verdict, found.params) == (Verdict.FELL, {})
    assert personal.load(tmp_path, STREAM) is None


def test_an_earlier_head_that_is_still_the_best_stays(tmp_path):
    made = package(tmp_path / "store")
    own = RNG.normal(size=(3, HIDDEN)).astype(np.float32)
    data = labelled(made, own)
    spoilt = data.y.copy()
    spoilt[:200] = RNG.integers(0, 3, 200)
    before = {"head.weight": own, "head.bias": np.zeros(3, np.float32)}
    personal.save(tmp_path, STREAM, Personal(before, "v", 1.0))
    found = ask(made, tmp_path, ClientData(X, spoilt))
    assert found.verdict is Verdict.FELL
    assert np.array_equal(found.params["head.weight"], own)


def test_a_head_of_too_long_ago_is_no_start(tmp_path):
    made = package(tmp_path / "store")
    own = RNG.normal(size=(3, HIDDEN)).astype(np.float32)
    personal.save(
        tmp_path, STREAM, Personal({"head.weight": own, "head.bias": np.zeros(3, np.float32)}, "v", 1.0)
    )
    few = ClientData(X[:4], np.zeros(4, np.int64))
    assert ask(made, tmp_path, few, ("v", "1", "2", "3", "4")).params == {}


def test_too_few_labels_leave_the_global_model(tmp_path):
    found = ask(package(tmp_path / "s"), tmp_path, ClientData(X[:4], np.zeros(4, np.int64)))
    assert (found.verdict, found.params) == (Verdict.TOO_FEW, {})


@pytest.mark.parametrize(
    ("method", "patterns"),
    [(MethodKind.DITTO, ()), (MethodKind.FEDPER, ("body.*",)), (MethodKind.FEDPER, ("nothing.*",))],
)
def test_what_needs_torch_or_fits_nothing_is_said_and_the_global_model_serves(tmp_path, method, patterns):
    found = ask(
        package(tmp_path / "s", method, patterns), tmp_path, ClientData(X, np.zeros(len(X), np.int64))
    )
    assert (found.verdict, found.params) == (None, {})
    assert found.why


def test_nothing_is_personal_under_fedavg(tmp_path):
    found = ask(
        package(tmp_path / "s", MethodKind.FEDAVG, ()),
        tmp_path,
        labelled(package(tmp_path / "s"), RNG.normal(size=(3, HIDDEN))),
    )
    assert (found.verdict, found.params, found.why) == (None, {}, "")


def test_a_damaged_file_is_refitted_and_named(tmp_path):
    made = package(tmp_path / "s")
    personal.file_of(tmp_path, STREAM).write_bytes(b"nothing")
    found = ask(made, tmp_path, labelled(made, RNG.normal(size=(3, HIDDEN))))
    assert found.verdict is Verdict.KEPT
    assert "damaged" in found.why


def again(package, folder, data):
    bases = (package.digest,)
    return personal_for(package, folder, STREAM, bases, data, RefitConfig(), 20.0, again=True)


def test_what_was_fitted_beside_this_version_is_fitted_again_where_that_is_ordered(tmp_path):
    made = package(tmp_path / "store")
    first = labelled(made, RNG.normal(size=(3, HIDDEN)))
    before = ask(made, tmp_path, first)
    drifted = labelled(made, RNG.normal(size=(3, HIDDEN)))
    found = again(made, tmp_path, drifted)
    assert found.verdict is Verdict.KEPT
    assert not np.array_equal(found.params["head.weight"], before.params["head.weight"])
    held = personal.load(tmp_path, STREAM)
    assert held.fitted_at == 20.0
    assert all(np.array_equal(held.params[name], found.params[name]) for name in NAMES)


@pytest.mark.parametrize(("spoilt", "verdict"), [(200, Verdict.FELL), (296, Verdict.TOO_FEW)])
def test_a_refresh_that_does_not_pay_leaves_everything_as_it_was(tmp_path, spoilt, verdict):
    made = package(tmp_path / "store")
    own = RNG.normal(size=(3, HIDDEN)).astype(np.float32)
    before = {"head.weight": own, "head.bias": np.zeros(3, np.float32)}
    personal.save(tmp_path, STREAM, Personal(before, made.digest, 1.0))
    data = labelled(made, own)
    data.y[:spoilt] = RNG.integers(0, 3, spoilt)
    if verdict is Verdict.TOO_FEW:
        data = ClientData(data.x[:4], data.y[:4])
    found = again(made, tmp_path, data)
    assert found.verdict is verdict
    assert np.array_equal(found.params["head.weight"], own)
    assert personal.load(tmp_path, STREAM).fitted_at == 1.0


def test_a_full_disk_puts_a_refresh_off(tmp_path, monkeypatch):
    made = package(tmp_path / "store")
    data = labelled(made, RNG.normal(size=(3, HIDDEN)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(personal, "save", full)
    with pytest.raises(OSError, match="No space"):
        again(made, tmp_path, data)


@pytest.mark.parametrize(
    ("method", "patterns", "can"),
    [
        (MethodKind.FEDAVG, (), False),
        (MethodKind.FEDPER, ("head.*",), True),
        (MethodKind.FEDPER, ("body.*",), False),
        (MethodKind.DITTO, ("head.*",), False),
    ],
)
def test_a_linear_head_can_be_refitted_here_and_nothing_else(tmp_path, method, patterns, can):
    assert can_refit(package(tmp_path, method, patterns)) is can


def test_a_refit_rests_on_the_given_examples_alone(tmp_path):
    made = package(tmp_path / "store")
    data = labelled(made, RNG.normal(size=(3, HIDDEN)))
    personal.save(tmp_path, STREAM, Personal({"head.bias": np.full(3, 9, np.float32)}, made.digest, 1.0))
    found = refitted(made, data, RefitConfig())
    assert set(found) == set(NAMES)
    said = (features(made, X) @ found["head.weight"].T + found["head.bias"]).argmax(axis=1)
    plain = (features(made, X) @ made.weights["head.weight"].T + made.weights["head.bias"]).argmax(axis=1)
    assert (said == data.y).mean() > (plain == data.y).mean() + 0.1
    assert refitted(made, ClientData(X[:1], data.y[:1]), RefitConfig()) == {}  # too few: the global head
