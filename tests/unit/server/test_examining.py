"""The offline validation as a process: asked once, each device counted once, over at its end, and the same after a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.package import read_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.verdict import Verdict
from fedretrain.server import validations
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.examining import Examiner, pool_verdict
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.models import Stores
from fedretrain.server.pool import Pool
from fedretrain.server.versions import Version, Versions
from fedretrain.validation.config import CheckName, FieldRules, Source, ValidationPolicy
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Rows
from fedretrain.wire.answers import encode_answer, encode_no_answer
from fedretrain.wire.control import ReportShape, decode
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.rollout_cases import Drive
from tests.slot_cases import SIZE, write
from tests.unit.validation.fleets import answers, pair

NUM, NOW = 24, 1_000_000.0
FIELD = FieldRules(max_devices=100, quorum=10, min_rows=500, deadline_s=3600.0, history_s=50_000.0)
POLICY = ValidationPolicy(
    source=Source.DEVICES, field=FIELD, required=(CheckName.SANITY, CheckName.OVERALL), num_slices=2
)


class Case:
    """A population's examiner with a log, packages and devices."""

    def __init__(self, folder, engine, policy=POLICY, pool=None, num=NUM):
        self.log, self.folder = EventLog(engine), folder
        self.stores = Stores(ContentStore(folder / "packages"), ContentStore(folder / "states"))
        rng = np.random.default_rng(0)
        found = {}
        for version in (1, 2):
            tree = {
                "head.weight": rng.normal(size=(3, SIZE)).astype(np.float32),
                "head.bias": np.zeros(3, np.float32),
            }
            found[version] = write(self.stores.packages, release(None, tree), version)
        self.digests = found
        self.versions = Versions({v: Version(v, d, "w", "", 0.0) for v, d in found.items()})
        self.devices = [
            Device("p", f"d{i}", i, f"{i}", Standing.ACTIVE, Traits(device_type="ab"[i % 2]), seen_at=1.0)
            for i in range(num)
        ]
        self.pool, self.now = pool, NOW
        self.rollout = Drive(candidate=2, champion=1, now=NOW).state
        self.start(policy)

    def start(self, policy=None):
        """A new process, on the same log."""
        self.policy = policy or self.policy
        self.models = models = SimpleNamespace(
            policy=SimpleNamespace(validation=self.policy),
            pool=self.pool,
            stores=self.stores,
            versions=self.versions,
            package=lambda version: read_package(self.stores.packages, self.digests[version]),
        )
        self.fence = self.log.acquire("coordinator", f"at {self.now}", now=self.now, ttl_s=0.1)
        self.examiner = Examiner("p", models, self.log, self.fence)

    def verdict(self, later_s=1.0, kept=frozenset(), **more):
        self.now += later_s
        return self.examiner.validated(self.rollout, self.devices, kept, self.now, **more)

    def counts(self, device, *, right=(0.9, 0.9), size=60):
        """What a device would answer, whose two versions are right as often as that: candidate, champion."""
        question = self.examiner.question
        rng = np.random.default_rng(device)
        at = question.from_at + rng.random(size) * 50_000.0
        moments = Labelled(
            np.full(size, device),
            np.full(size, device % 2),
            at,
            np.full(size, 60.0),
            rng.integers(0, 3, size),
        )
        champion, candidate = pair(moments, right[1], right[0], seed=device)
        said = [
            answers(moments.label_N, one, classes=3, confidence=0.9).astype(np.float32)
            for one in (candidate, champion)
        ]
        return encode_answer(question.evaluation, count_rows(question.layout, Rows(moments, *said)))

    def hear(self, *payloads):
        """Answers: device, payload, and number of the record."""
        said = {
            device: (record, decode(payload, device, 0.0, ReportShape(1, 1, 3), lambda _: None))
            for device, payload, record in payloads
        }
        return self.examiner.hear(said, self.devices, self.now)

    def all_answer(self, devices=range(NUM), **how):
        return self.hear(*((device, self.counts(device, **how), device + 1) for device in devices))

    def report(self):
        judged = self.examiner.known.judged[2]
        return json.loads(self.stores.campaigns.get(judged.report))["report"]


@pytest.fixture
def case(tmp_path, engine):
    return Case(tmp_path, engine)


def test_devices_are_asked_and_the_verdict_is_taken_when_all_have_answered(case):
    assert case.verdict() is Verdict.INCONCLUSIVE
    question = case.examiner.question
    assert (question.candidate, question.champion) == (case.digests[2], case.digests[1])
    assert question.types == ("a", "b")
    assert case.examiner.known.asked.devices == tuple(range(NUM))
    case.all_answer(range(NUM - 1))
    assert case.verdict() is Verdict.INCONCLUSIVE  # one is still on its way
    assert case.examiner.known.describe() == "version 2: 23 of 24 devices have counted"
    case.all_answer([NUM - 1])
    assert case.verdict() is Verdict.PASS
    assert case.examiner.question is None
    report = case.report()
    assert (report["data"]["num_devices"], report["data"]["num_groups"]) == (NUM, 2)
    assert case.examiner.known.judged[2].figures["rows"] == NUM * 60
    assert case.verdict() is Verdict.PASS
    assert case.examiner.known.num_asked == 1


def test_a_harmful_candidate_fails(case):
    case.verdict()
    case.all_answer(right=(0.7, 0.95))
    assert case.verdict() is Verdict.FAIL


def test_silence_is_inconclusive_and_asked_again_after_a_day(case):
    case.verdict()
    case.all_answer(range(5))
    assert case.verdict(FIELD.deadline_s - 10.0) is Verdict.INCONCLUSIVE
    assert case.examiner.question is not None
    assert case.verdict(20.0) is Verdict.INCONCLUSIVE
    assert case.examiner.question is None
    (said,) = [check for check in case.report()["checks"] if check["name"] == "answers"]
    assert said["verdict"] == "INCONCLUSIVE"
    assert said["reason"].startswith(
        "5 of 24 devices with 300 rows (at least 10 and 500); failures: 19 timeout"
    )
    assert case.report()["data"]["num_rows"] == 0  # five devices decide nothing, harm neither
    case.verdict(DAY_S / 2)
    assert case.examiner.question is None
    case.verdict(DAY_S)
    assert case.examiner.question.evaluation == "p/2/2"


def test_the_deadline_decides_with_those_that_answered(case):
    case.verdict()
    case.all_answer(range(15), right=(0.97, 0.9))
    case.hear((20, encode_no_answer("p/2/1", FailureKind.NO_DATA), 90))
    assert case.verdict(FIELD.deadline_s + 1.0) is Verdict.PASS
    (said,) = [check for check in case.report()["checks"] if check["name"] == "answers"]
    assert said["reason"].endswith("failures: 1 no_data, 8 timeout")


def test_a_restart_in_the_middle_goes_on_and_counts_nobody_twice(case):
    case.verdict()
    question = case.examiner.question
    case.all_answer(range(12))
    old = case.examiner
    case.now += 1.0
    case.start()
    assert case.examiner.question == question
    assert case.examiner.known.answers == old.known.answers
    assert not case.all_answer(range(12))  # the table is read anew: the same records
    assert case.hear((3, case.counts(3, right=(0.1, 0.9)), 77)) == {"evaluation: repeated": 1}
    case.all_answer(range(12, NUM))
    assert case.verdict() is Verdict.PASS
    assert case.report()["data"]["num_rows"] == NUM * 60
    case.now += 1.0
    case.start()
    assert case.verdict() is Verdict.PASS
    assert case.examiner.known.num_asked == 1
    with pytest.raises(FencedError):
        old._append([{"kind": validations.ENDED}], case.now)


def test_what_does_not_fit_is_refused_by_name_and_counts_as_a_failure_of_that_device(case):
    case.verdict()
    good = case.counts(0)
    wrong = pb.Payload.FromString(good)
    wrong.evaluation.paired.append(1)
    lies = pb.Payload.FromString(good)
    lies.evaluation.sound[0] += 1000
    refused = case.hear(
        (0, wrong.SerializeToString(), 1),
        (1, lies.SerializeToString(), 2),
        (2, good.replace(b"p/2/1", b"p/9/9"), 3),
    )
    assert refused == {"evaluation: malformed": 2, "evaluation: not asked": 1}
    known = case.examiner.known
    assert {d: (one.failure, one.blob) for d, one in known.answers.items()} == {
        0: ("malformed", ""),
        1: ("malformed", ""),
    }
    assert known.answers[1].detail.startswith("sound: ")
    assert case.hear((0, good, 9)) == {"evaluation: repeated": 1}
    assert case.examiner.known.describe().endswith("failures: 2 malformed")


def test_a_device_that_was_not_asked_is_not_heard(tmp_path, engine):
    case = Case(tmp_path, engine, replace(POLICY, field=replace(FIELD, max_devices=12)))
    case.verdict()
    asked = set(case.examiner.known.asked.devices)
    assert 0 < len(asked) < NUM
    stranger = min(set(range(NUM)) - asked)
    assert case.hear((stranger, case.counts(stranger), 1)) == {"evaluation: not asked": 1}


def test_a_sensor_without_an_agent_is_not_asked(case):
    case.devices = [replace(one, seen_at=0.0) for one in case.devices]
    case.verdict()
    assert case.examiner.question is None
    case.devices[5] = replace(case.devices[5], seen_at=1.0)
    case.verdict()
    assert case.examiner.known.asked.devices == (5,)


def test_devices_that_are_kept_out_are_neither_asked_nor_counted(case):
    case.devices[1] = replace(case.devices[1], standing=Standing.REVOKED)
    case.verdict(kept=frozenset({0}))
    assert case.examiner.known.asked.devices == tuple(range(2, NUM))
    case.all_answer(range(2, NUM))
    case.devices[2] = replace(case.devices[2], standing=Standing.REVOKED)
    assert case.verdict(kept=frozenset({0, 3})) is Verdict.PASS
    (said,) = [check for check in case.report()["checks"] if check["name"] == "answers"]
    assert said["reason"].startswith("20 of 22 devices")
    assert said["reason"].endswith("failures: 2 kept_out")


def test_nobody_is_asked_while_installs_are_stopped_or_after_the_candidate_is_gone(case):
    case.verdict(may_ask=False)
    assert case.examiner.question is None
    case.verdict()
    case.examiner.settle(case.rollout, case.now)
    assert case.examiner.question is not None
    case.examiner.settle(replace(case.rollout, phase=Phase.ROLLED_BACK), case.now)
    assert case.examiner.question is None
    case.verdict()
    case.examiner.settle(None, case.now)
    assert case.examiner.question is None
    case.now += 1.0
    case.start()
    assert case.examiner.question is None


def test_what_devices_counted_goes_when_it_is_over_and_of_a_retired_one_at_once(case):
    case.verdict()
    case.all_answer()
    assert len(case.stores.campaigns.digests()) == NUM
    case.devices[4] = replace(case.devices[4], standing=Standing.RETIRED)
    case.hear()
    assert len(case.stores.campaigns.digests()) == NUM - 1
    blobs = case.examiner.known.blobs
    contents = [case.stores.campaigns.get(one) for one in blobs if case.stores.campaigns.has(one)]
    assert case.verdict() is Verdict.PASS
    assert case.report()["data"]["num_devices"] == NUM - 1
    assert case.stores.campaigns.digests() == (case.examiner.known.judged[2].report,)
    for content in contents:  # a crash between the verdict and the removal
        case.stores.campaigns.put(content)
    case.now += 1.0
    case.start()
    assert case.stores.campaigns.digests() == (case.examiner.known.judged[2].report,)


def test_another_rollout_of_the_same_candidate_is_validated_anew(case):
    case.verdict()
    case.all_answer()
    case.verdict()
    case.rollout = Drive(candidate=2, champion=1, now=case.now + 5.0).state
    assert case.verdict(10.0) is Verdict.INCONCLUSIVE
    assert case.examiner.question.evaluation == "p/2/2"


def _pool(right):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (600, SIZE)).astype(np.float32)
    device = np.arange(600) % 30
    return lambda package: Pool(
        x,
        Labelled(device, device * 0, np.arange(600.0), np.zeros(600), _label(package, x, right)),
        "",
    )


def _label(package, x, right):
    """Labels that a package gets right as often as that."""
    weights, inputs = package.weights, package.pipeline.apply(x)
    said = (inputs @ weights["head.weight"].T + weights["head.bias"]).argmax(axis=1)
    return np.where(np.random.default_rng(2).random(len(x)) < right, said, (said + 1) % 3)


@pytest.mark.parametrize(("of", "expected"), [(2, Verdict.PASS), (1, Verdict.FAIL)])
def test_both_means_that_the_pool_must_agree(tmp_path, engine, of, expected):
    case = Case(tmp_path, engine, replace(POLICY, source=Source.BOTH))
    case.pool = _pool(0.95)(read_package(case.stores.packages, case.digests[of]))
    case.start()
    case.verdict()
    case.all_answer()
    assert case.verdict() is expected
    assert {check["part"] for check in case.report()["checks"] if check["name"] == "overall"} == {"", "pool "}


def test_a_pool_alone_needs_no_device_and_its_verdict_is_kept(tmp_path, engine):
    case = Case(tmp_path, engine, replace(POLICY, source=Source.POOL))
    assert case.verdict() is Verdict.INCONCLUSIVE  # there is none
    case.pool = _pool(0.95)(read_package(case.stores.packages, case.digests[2]))
    case.start()
    assert case.verdict() is Verdict.PASS
    case.now += 1.0
    case.pool = None
    case.start()
    assert case.verdict() is Verdict.PASS
    assert len(list(case.log.read(validations.stream("p")))) == 1


def test_what_the_pool_says_beforehand_is_asked_of_the_pool_alone(tmp_path, engine):
    case = Case(tmp_path, engine)
    for source, right, expected in (
        (Source.DEVICES, 0.95, None),
        (Source.BOTH, 0.95, Verdict.PASS),
        (Source.POOL, 0.95, Verdict.PASS),
        (Source.POOL, 0.0, Verdict.FAIL),
    ):
        case.pool = _pool(right)(read_package(case.stores.packages, case.digests[2]))
        case.now += 1.0
        case.start(replace(POLICY, source=source))
        assert pool_verdict(case.models, 2, 1) is expected
    case.pool = None
    case.start()
    assert pool_verdict(case.models, 2, 1) is Verdict.INCONCLUSIVE


def test_a_damaged_package_is_told_once_a_day(case):
    for file in (case.folder / "packages").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(DataError):
        case.verdict()
    assert case.verdict() is Verdict.INCONCLUSIVE
    with pytest.raises(DataError):
        case.verdict(DAY_S)


def test_a_shadow_that_is_on_goes_on_by_the_verdict_that_was_taken(case):
    shadow = replace(case.rollout, phase=Phase.SHADOW)
    assert case.examiner.validated(shadow, case.devices, frozenset(), NOW) is Verdict.PASS
    case.verdict()
    case.all_answer(right=(0.7, 0.95))
    case.verdict()
    assert case.examiner.validated(shadow, case.devices, frozenset(), case.now) is Verdict.FAIL
