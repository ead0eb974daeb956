"""A device's training process, answering orders under example-level DP until it is killed: for tests of its ledger.

``python -m tests.example_child FOLDER POINT``: answers one order after another and writes a line to standard output once an answer
is made, which is the earliest instant at which it could be sent. With a POINT it kills itself there, in the third round: ``trained``
(before the charge), ``charging`` (in the charge's transaction), ``charged`` (before the witness) or ``witnessed`` (before the answer).
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from fedretrain.core.ids import ClientId
from fedretrain.edge import example_ledger
from fedretrain.edge.client_app import Device
from fedretrain.edge.example_ledger import ExampleLedger
from fedretrain.edge.example_privacy import Account, Guard
from fedretrain.edge.training_data import FolderData
from fedretrain.training.config import ExampleDp, LocalTraining
from fedretrain.wire.records import PLAN_OPTION, TrainOrder, encode_order
from tests.flower_cases import PLAN, examples

PLAN_DP = replace(
    PLAN, training=LocalTraining(batch_size=4, epochs=0, max_steps=3, example_dp=ExampleDp(1.5, 0.5))
)
LEDGER, DEADLY = "ledger.db", 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Let the next charge die at a point."""
    charge, chained = Guard.charge, example_ledger._chained

    def trained(_self: Guard) -> float:
        die()
        return 0.0

    def witnessed(self: Guard) -> float:
        charge(self)
        die()
        return 0.0

    def charging(*given: object) -> object:
        die()
        return chained(*given)  # type: ignore[arg-type]

    def charged(_self: object, _head: object) -> None:
        die()

    if point == "trained":
        Guard.charge = trained  # type: ignore[method-assign]
    elif point == "witnessed":
        Guard.charge = witnessed  # type: ignore[method-assign]
    elif point == "charging":
        ledger_charge = ExampleLedger.charge

        def within(self: ExampleLedger, *given: object) -> float:
            example_ledger._chained = charging  # type: ignore[assignment]
            return ledger_charge(self, *given)  # type: ignore[arg-type]

        ExampleLedger.charge = within  # type: ignore[method-assign]
    else:
        example_ledger.WitnessFile.save = charged  # type: ignore[method-assign]


def main() -> None:
    folder, point = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    data = FolderData(folder / "data")
    data.put_examples(ClientId(3), examples(3))
    data.put_account(ClientId(3), Account(str(folder / LEDGER), 0.0, 1e-5))
    device, base = Device(data, "c1"), PLAN_DP.make().first_shared()
    round_ = 0
    while True:
        if point and round_ == DEADLY:
            arm(point)
        order = TrainOrder(ClientId(3), round_, base, 0, 7, at=50.0, options={PLAN_OPTION: PLAN_DP.to_text()})
        reply = device.answer(encode_order(order))
        assert "fedretrain.update" in reply.array_records, reply
        sys.stdout.write(f"{round_}\n")
        sys.stdout.flush()
        round_ += 1


if __name__ == "__main__":
    main()
