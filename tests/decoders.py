"""What reads bytes from the network or the disk, each with bytes that it can read: for whoever fuzzes it.

Rules of this file:
    * A decoder gives a value or raises one of our errors. Anything else is a defect.
    * What is behind a signature or a checksum is read from behind it: whoever can sign must not be able to crash either.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedretrain.artifacts.assignment import Assignment
from fedretrain.artifacts.delta import decode_delta, release
from fedretrain.artifacts.encryption import open_sealed, public_half, seal
from fedretrain.artifacts.identity import FleetAuthority, read_identity, request_certificate
from fedretrain.artifacts.manifest import Manifest
from fedretrain.artifacts.notice import Notice
from fedretrain.artifacts.package import decode_sanity, encode_sanity, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.trust.root import read_root
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.core.errors import FedretrainError
from fedretrain.edge.slot_state import SlotState
from fedretrain.validation.rows import Layout
from fedretrain.wire.answers import decode_answer
from fedretrain.wire.control import MalformedError, ReportShape, decode, encode_alert
from fedretrain.wire.samples import Samples, decode_samples, encode_samples
from tests.package_cases import ABOUT, contents, weights

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = (FedretrainError, MalformedError)
_PRIVATE, _INFO = bytes(range(7, 39)), b"pumps|pump-17|head"
_PACKAGE = "ab" * 32
_LAYOUT = Layout(3, (2.0, 5.0))


@dataclass(frozen=True)
class Decoder:
    """Something that reads bytes.

    Attributes:
        read: Gives a value or raises one of `REFUSED`.
        seed: Bytes that it can read; empty where only a key holder can make some.
    """

    read: Callable[[bytes], object]
    seed: bytes = b""


def _manifest() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store = ContentStore(Path(folder))
        return store.get(write_package(store, contents(), **ABOUT))


def _certificate() -> bytes:
    request = request_certificate(ec.generate_private_key(ec.SECP256R1()), "pumps", "pump-17")
    with tempfile.TemporaryDirectory() as folder:
        return FleetAuthority(Path(folder), now=0.0).issue_device(request, "pumps", "pump-17", now=0.0)


def _slots(state: bytes) -> object:
    """A pointer to the slots whose checksum is right."""
    try:
        said = json.loads(state)
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):
        return None
    return SlotState.from_bytes(json.dumps({"format": 1, "state": said, "sha256": digest}).encode())


def decoders() -> dict[str, Decoder]:
    """Every decoder by name."""
    base, after = weights(0), weights(1)
    delta = release(base, after).delta_bytes
    assert delta is not None
    told = Assignment("pumps", "pump-1", _PACKAGE, "", 3, 0.0, 9.0).to_bytes()
    shape = ReportShape(num_features=3, num_cells=5, num_outputs=4)
    asked = {"device": 4, "group": 1, "from_at": 0.0, "until_at": 9.0, "max_rows": 100}
    return {
        "telemetry": Decoder(
            lambda content: decode(content, 7, 0.0, shape, {_PACKAGE: 3}.get),
            encode_alert("kind", _PACKAGE, "detail"),
        ),
        "samples": Decoder(decode_samples, encode_samples(Samples(np.ones(2), np.ones((2, 3))))),
        "answer": Decoder(lambda content: decode_answer(content, _LAYOUT, **asked)),
        "assignment": Decoder(Assignment.from_bytes, told),
        "notice": Decoder(Notice.from_bytes, Notice("pumps", (_PACKAGE,), "", True, 0.0, 9.0).to_bytes()),
        "manifest": Decoder(Manifest.from_bytes, _manifest()),
        "weights": Decoder(decode_params, encode_params(base)),
        "delta": Decoder(lambda content: decode_delta(content, base), delta),
        "sanity": Decoder(decode_sanity, encode_sanity(contents().sanity)),
        "slots": Decoder(_slots, json.dumps({"current": _PACKAGE}).encode()),
        "root": Decoder(read_root),
        "certificate": Decoder(read_identity, _certificate()),
        "sealed": Decoder(
            lambda content: open_sealed(content, _PRIVATE, _INFO), seal(b"head", public_half(_PRIVATE), _INFO)
        ),
    }


def try_one(decoder: Decoder, content: bytes) -> bool:
    """Whether it read the bytes; False where it refused them. Raises what it should not have raised."""
    try:
        decoder.read(content)
    except REFUSED:
        return False
    return True
