from itertools import count

import pytest

from sim.feed.client import Answer, Outcome
from sim.feed.config import FeedConfig
from sim.feed.playing import Playing
from sim.feed.tally import Tally
from sim.feed.world import World

CONFIG = FeedConfig(num_devices=2, num_agents=1, stream_rows=600, label_fraction=1.0, interval_s=1.0)
WORLD = World(CONFIG)


class FakeAgent:
    """Answers in virtual time with what it is told to."""

    def __init__(self, answer=lambda body: 0):
        self.answer, self.outcome, self.asked, self.told, self.ids = answer, Outcome.DONE, [], [], count()

    def post(self, path, body):
        if self.outcome is not Outcome.DONE:
            return Answer(self.outcome, {})
        if path == "/v1/labels":
            self.told.append(body)
            return Answer(Outcome.DONE, {})
        assert path == "/v1/predict"
        self.asked.append(body)
        return Answer(
            Outcome.DONE,
            {
                "predictions": [
                    {"id": f"p{next(self.ids)}", "label": self.answer(row)} for row in body["rows"]
                ]
            },
        )


def play(agent, playing, instants, drifted_at=None):
    for now in instants:
        playing.take(now, drifted_at)
        while playing.next_at() <= now and playing.step(now, agent.post):
            pass


@pytest.fixture
def tally():
    return Tally()


@pytest.fixture
def playing(tally):
    return Playing(WORLD, (0, 1), 0.0, tally)


def test_every_device_reports_at_every_tick_and_its_labels_come_later(tally, playing):
    agent = FakeAgent()
    play(agent, playing, [0.0, 1.0, 2.0])
    assert [body["device"] for body in agent.asked] == ["device-00", "device-01"] * 3
    assert agent.told == []
    assert agent.asked[2]["rows"] == WORLD.rows(0, 4, 4)[0].tolist()
    play(agent, playing, [4.9, 5.0])
    assert [body["device"] for body in agent.told] == ["device-00", "device-01"]
    assert agent.told[0]["labels"] == [
        {"of": f"p{k}", "label": label, "source": "user"}
        for k, label in enumerate(WORLD.rows(0, 0, 4)[1].tolist())
    ]
    assert (tally.summary(5.0).sent, tally.summary(5.0).labelled) == (6 * 2 * 4, 8)


def test_an_agent_that_is_down_is_told_everything_of_the_last_half_minute(tally, playing):
    agent = FakeAgent()
    play(agent, playing, [0.0])
    agent.outcome = Outcome.DOWN
    play(agent, playing, [float(now) for now in range(1, 41)])
    assert tally.summary(40.0).sent == 8
    agent.outcome = Outcome.DONE
    play(agent, playing, [41.0])
    assert len(agent.asked) == 2 + 2 * 31  # the ticks from 11 s to 41 s
    assert agent.asked[2]["rows"] == WORLD.rows(0, 4 * 11, 4)[0].tolist()
    summary = tally.summary(41.0)
    assert summary.lost == 2 * 10 * 4 + 8  # ticks 1 to 10, and the labels of tick 0
    assert summary.sent == 8 * 32
    assert summary.refused == 0


def test_what_waits_when_the_feed_ends_is_lost_and_what_was_not_due_is_not(tally, playing):
    agent = FakeAgent()
    play(agent, playing, [0.0, 1.0])
    agent.outcome = Outcome.DOWN
    play(agent, playing, [5.5])
    playing.end(5.5)
    assert tally.summary(5.5).lost == 2 * 4 * 4 + 8  # ticks 2 to 5, and the labels of tick 0


def test_a_feed_that_was_held_up_counts_what_it_never_read(tally, playing):
    agent = FakeAgent()
    play(agent, playing, [0.0, 100.0])
    assert len(agent.asked) == 2 + 2 * 31
    assert tally.summary(100.0).lost == 2 * 69 * 4 + 8


def test_what_an_agent_refuses_is_counted_and_not_asked_again(tally, playing):
    agent = FakeAgent()
    agent.outcome = Outcome.REFUSED
    play(agent, playing, [0.0, 1.0])
    agent.outcome = Outcome.DONE
    play(agent, playing, [2.0])
    assert tally.summary(2.0).refused == 16
    assert len(agent.asked) == 2


@pytest.mark.parametrize(
    "content", [{}, {"predictions": []}, {"predictions": "no"}, {"predictions": [{"label": 1}] * 4}]
)
def test_an_answer_that_is_none_is_a_refusal(tally, playing, content):
    playing.take(0.0, None)
    assert playing.step(0.0, lambda path, body: Answer(Outcome.DONE, content))
    assert (tally.summary(0.0).refused, tally.summary(0.0).sent) == (4, 0)


def test_sensors_drift_from_the_tick_on_at_which_they_do(playing):
    (drifting,) = [k for k, device in enumerate(WORLD.devices) if device.drifts]
    agent = FakeAgent()
    play(agent, playing, [3.0], drifted_at=1.5)
    mine = [body["rows"] for body in agent.asked if body["device"] == WORLD.devices[drifting].name]
    clean = [WORLD.rows(drifting, 4 * tick, 4)[0].tolist() for tick in range(4)]
    assert [one == other for one, other in zip(mine, clean, strict=True)] == [True, True, False, False]


def test_an_agent_that_abstains_named_no_class(tally, playing):
    play(FakeAgent(lambda row: -1), playing, [0.0])
    assert (tally.summary(0.0).unanswered, tally.summary(0.0).accuracy) == (8, None)


def test_accuracy_is_that_of_the_last_minute_by_what_was_answered(tally):
    tally.answered(0.0, [1, 1], [1, 1], drifts=True)
    tally.answered(30.0, [0, 1, None, 0], [1, 1, 1, 1], drifts=True)
    tally.answered(50.0, [1], [1], drifts=False)
    assert tally.summary(55.0).accuracy == 4 / 6
    late = tally.summary(61.0)
    assert (late.accuracy, late.drifted_accuracy, late.unanswered) == (2 / 4, 1 / 3, 1)
    assert late.sent == 7
    assert tally.summary(200.0).accuracy is None
    assert str(tally.summary(200.0)).endswith("accuracy unknown, of drifting devices unknown")
