"""One-time tokens: who may use one, once, and how long."""

import dataclasses

import pytest

from fedretrain.artifacts import enrolment as module
from fedretrain.artifacts.enrolment import EnrolmentError, EnrolmentToken, TokenRefusal, hash_token, new_token
from fedretrain.core.errors import DataError

NOW = 1_800_000_000.0
KEY, OTHER_KEY = "a" * 64, "b" * 64


@pytest.fixture
def pair():
    return new_token("pumps", "pump-17", now=NOW)


def refusal_of(token, secret, key=KEY, now=NOW):
    with pytest.raises(EnrolmentError) as caught:
        token.redeem(secret, key, now)
    return caught.value


def test_a_token_lets_its_device_in(pair):
    secret, token = pair
    assert token.redeem(secret, KEY, NOW) == dataclasses.replace(token, used_by=KEY)
    assert (token.population, token.device) == ("pumps", "pump-17")


def test_a_used_token_answers_its_key_again_and_no_other(pair):
    secret, token = pair
    used = token.redeem(secret, KEY, NOW)
    assert used.redeem(secret, KEY, NOW + 1) == used
    assert refusal_of(used, secret, OTHER_KEY).refusal is TokenRefusal.USED


def test_a_token_expires_also_for_the_key_that_used_it(pair):
    secret, token = pair
    end = NOW + module.TOKEN_LIFETIME_S
    assert token.redeem(secret, KEY, end - 1).used_by == KEY
    assert refusal_of(token, secret, now=end).refusal is TokenRefusal.EXPIRED
    assert refusal_of(token.redeem(secret, KEY, NOW), secret, now=end).refusal is TokenRefusal.EXPIRED


@pytest.mark.parametrize(
    "wrong", [lambda s: "", lambda s: s[:-1], lambda s: s + "=", lambda s: s.swapcase(), lambda s: "\ud800"]
)
def test_another_secret_is_unknown(pair, wrong):
    secret, token = pair
    assert refusal_of(token, wrong(secret)).refusal is TokenRefusal.UNKNOWN


def test_a_stranger_is_told_the_same_whatever_is_wrong(pair):
    secret, token = pair
    used = token.redeem(secret, KEY, NOW)
    errors = (
        refusal_of(token, "x"),
        refusal_of(token, secret, now=NOW + 10**6),
        refusal_of(used, secret, OTHER_KEY),
    )
    assert {one.refusal for one in errors} == set(TokenRefusal)
    assert len({str(one) for one in errors}) == 1


def test_the_secret_is_not_kept(pair):
    secret, token = pair
    assert token.hash == hash_token(secret)
    assert secret not in repr(token)
    assert len(secret) == 43  # 256 bits in base 64


def test_secrets_differ():
    assert len({new_token("pumps", "pump-17", now=NOW)[0] for _ in range(100)}) == 100


def test_secrets_are_compared_in_constant_time(pair, monkeypatch):
    seen = []
    real = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: (seen.append((a, b)), real(a, b))[1])
    secret, token = pair
    token.redeem(secret, KEY, NOW)
    assert seen == [(token.hash, token.hash)]


@pytest.mark.parametrize("fields", [{"hash": "x"}, {"population": ""}, {"device": "a/b"}, {"used_by": "me"}])
def test_an_impossible_token_cannot_be_made(pair, fields):
    with pytest.raises(DataError):
        dataclasses.replace(pair[1], **fields)
    assert isinstance(pair[1], EnrolmentToken)
