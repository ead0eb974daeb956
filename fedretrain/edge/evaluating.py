"""A federated evaluation on a device: a signed question is verified, what it names is installed to be looked at, the counts go out.

Rules of this file:
    * Without torch: inference, the re-fit of a linear head, and counts. Every device can answer.
    * The candidate passes the signed list, its digests and its sanity vectors as a version that is served does.
    * A question is answered once: the answer and the mark that it was given are one transaction of the outbox.
    * What cannot be had just now (no network, an expired list) is tried again until the question ends. What this device cannot do
      is answered with a failure by name.
    * Nothing that is served, remembered or refused changes.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from fedretrain.artifacts.question import Question, verify
from fedretrain.artifacts.trust.words import TrustError
from fedretrain.core.errors import DataError, UserError
from fedretrain.core.types import FailureKind
from fedretrain.edge import personal
from fedretrain.edge.evaluation import Baseline, Version, count_here
from fedretrain.edge.refit import can_refit
from fedretrain.edge.serving import Served
from fedretrain.wire.answers import encode_answer, encode_no_answer
from fedretrain.wire.sequence import Priority

if TYPE_CHECKING:
    from fedretrain.artifacts.package import Package
    from fedretrain.core.params import Params
    from fedretrain.edge.device import DeviceRuntime
    from fedretrain.edge.evaluation import Contender
    from fedretrain.edge.example_reads import HeldRows
    from fedretrain.edge.following import Download, Installable
    from fedretrain.validation.statistics import DeviceStatistics

ANSWERED = "evaluated_at"
"""The name under which the database keeps the instant of the newest question that was answered."""
_log = logging.getLogger(__name__)


class Evaluating:
    """Answers questions for one device.

    Args:
        runtime: The device.
    """

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime

    def answer(self, envelope: bytes, installable: Installable, download: Download) -> bool:
        """Answer a question, if it is for this device, due, and not answered yet.

        Args:
            envelope: What the heartbeat brought.
            installable: As for `Follower.install`.
            download: Likewise.

        Returns:
            Whether there is something to send now.

        Raises:
            ControlError: If something cannot be fetched just now.
            TrustError: If nothing may be installed just now.
            QuestionError: If it is not to be answered, by name.
        """
        runtime, store = self._runtime, self._runtime.store
        told, now = runtime.remembered.value, store.clock.look()
        question = verify(
            envelope,
            [bytes.fromhex(told.assignment_key)],
            population=runtime.joined.population,
            now=now.guess_at,
        )
        name = runtime.joined.device
        early = now.guess_at < question.begins_at(name)
        if early or not question.asks(name) or question.issued_at <= store.database.recall(ANSWERED):
            return False
        if told.shadow not in ("", question.candidate):
            return False  # its place is taken; that trial is over before the next one begins
        payload = self._payload(question, installable, download)
        mark = partial(store.database.remember, ANSWERED, question.issued_at)
        return store.outbox.add_with([(Priority.KPIS, payload)], store.clock.instant(), mark)

    def _payload(self, question: Question, installable: Installable, download: Download) -> bytes:
        try:
            found = self._counted(question, installable, download)
        except TrustError:
            raise
        except UserError as error:
            _log.warning("%s: %s: %s", self._runtime.joined.device, question.evaluation, error)
            found = FailureKind.REFUSED
        except MemoryError:
            found = FailureKind.REFUSED
        if isinstance(found, FailureKind):
            return encode_no_answer(question.evaluation, found)
        return encode_answer(question.evaluation, found)

    def _counted(
        self, question: Question, installable: Installable, download: Download
    ) -> DeviceStatistics | FailureKind:
        follower = self._runtime.follower
        candidate = follower.fetched(question.candidate, installable, download)
        champion = None
        if question.champion:
            if question.champion not in self._runtime.slots.state.held:
                return (
                    FailureKind.UNAVAILABLE
                )  # it serves something else, and has no place for a third version
            champion = follower.fetched(question.champion, installable, download)
        preprocessing = self._served(candidate).preprocessing
        if champion is not None and self._served(champion).preprocessing != preprocessing:
            raise DataError("the two versions read different inputs", where="preprocessing")
        num_classes = len(candidate.manifest.outputs)
        if question.layout.num_classes != num_classes:
            raise DataError(f"the version has {num_classes} classes", where="layout.num_classes")
        state, since = self._state(champion)
        rows = self._rows(question, preprocessing, since)
        if rows is None:
            return FailureKind.NO_DATA
        config = self._runtime.config.refit
        against: Contender = Baseline(rows, num_classes)
        if champion is not None:
            against = Version(champion, rows, config, state)
        found = count_here(
            question.layout,
            rows,
            Version(candidate, rows, config, {}),
            against,
            device=self._runtime.joined.number,
            group=question.group_of(self._runtime.device.device_type),
        )
        return found if found.num_rows else FailureKind.NO_DATA

    def _served(self, package: Package) -> Served:
        past = self._runtime.answering.past.used if package.pipeline.has_local else None
        return Served.of(package, past=past)

    def _state(self, champion: Package | None) -> tuple[Params, float]:
        """The personal state that the champion serves with and that cannot be re-fitted here, and until when it learnt."""
        if champion is None or can_refit(champion):
            return {}, 0.0
        held = personal.load(self._runtime.personal_folder, self._runtime.stream)
        if held is None or held.base != champion.digest:
            return {}, 0.0
        return held.params, held.fitted_at

    def _rows(self, question: Question, preprocessing: str, since: float) -> HeldRows | None:
        """The rows that neither training nor the personal state has seen."""
        store = self._runtime.store
        with store.database.mutex:
            return store.reads()[0].held(
                question.from_at,
                question.until_at,
                preprocessing,
                known_at=store.clock.look().guess_at,
                learnt_at=since,
                min_confidence=self._runtime.config.training.min_confidence,
                without=store.lineage.seen(),
                most=question.max_rows,
            )
