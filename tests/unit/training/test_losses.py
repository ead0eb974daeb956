from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedretrain.core.errors import ConfigError, DataError, PrivacyError
from fedretrain.training.config import LossKind
from fedretrain.training.losses import Loss, balanced_class_weights, masked_mean

RNG = torch.Generator().manual_seed(3)
LOGITS, CLASSES = torch.randn(2, 5, 4, generator=RNG), torch.randint(0, 4, (2, 5), generator=RNG)
VALUES, TARGETS = torch.randn(2, 5, 1, generator=RNG), 2 * torch.randn(2, 5, generator=RNG)


def test_cross_entropy_equals_torch_with_and_without_a_client_axis():
    loss = Loss(LossKind.CROSS_ENTROPY)
    expected = functional.cross_entropy(LOGITS.reshape(-1, 4), CLASSES.reshape(-1), reduction="none")
    torch.testing.assert_close(loss.per_sample(LOGITS, CLASSES), expected.reshape(2, 5))
    torch.testing.assert_close(loss.per_sample(LOGITS[1], CLASSES[1]), expected.reshape(2, 5)[1])


def test_class_weights_multiply_each_samples_loss():
    weights = (0.5, 1.0, 3.0, 2.0)
    expected = functional.cross_entropy(LOGITS[0], CLASSES[0], weight=torch.tensor(weights), reduction="none")
    actual = Loss(LossKind.CROSS_ENTROPY, class_weights=weights).per_sample(LOGITS[0], CLASSES[0])
    torch.testing.assert_close(actual, expected)


def test_too_few_class_weights_are_refused():
    with pytest.raises(ConfigError, match="2 class weights were given for 4 classes"):
        Loss(LossKind.CROSS_ENTROPY, class_weights=(1.0, 2.0)).per_sample(LOGITS, CLASSES)


def test_squared_and_huber_losses_equal_torch():
    expected = functional.mse_loss(VALUES[..., 0], TARGETS, reduction="none")
    torch.testing.assert_close(Loss(LossKind.MSE).per_sample(VALUES, TARGETS), expected)
    for delta in (0.1, 1.0, 3.0):
        expected = functional.huber_loss(VALUES[..., 0], TARGETS, reduction="none", delta=delta)
        torch.testing.assert_close(Loss(LossKind.HUBER, delta).per_sample(VALUES, TARGETS), expected)


def test_huber_gradient_equals_torch():
    ours, theirs = (VALUES.clone().requires_grad_() for _ in range(2))
    Loss(LossKind.HUBER, 0.7).per_sample(ours, TARGETS).sum().backward()
    functional.huber_loss(theirs[..., 0], TARGETS, reduction="sum", delta=0.7).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_padding_adds_nothing_and_a_batch_of_padding_is_zero():
    losses = torch.tensor([[1.0, 3.0, 99.0], [99.0, 99.0, 99.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert masked_mean(losses, weight).tolist() == [2.0, 0.0]


def test_balanced_weights_give_each_class_the_same_total():
    labels = np.array([0, 0, 0, 1, 3, 3])
    weights = np.array(balanced_class_weights(labels, 4))
    totals = np.bincount(labels, weights=weights[labels], minlength=4)
    np.testing.assert_allclose(totals[[0, 1, 3]], 2.0)
    assert weights[2] == 1.0  # never seen
    np.testing.assert_allclose(weights[labels].mean(), 1.0)


def test_balanced_weights_are_refused_where_they_would_leak_or_cannot_be():
    with pytest.raises(PrivacyError):
        balanced_class_weights(np.array([0, 1]), 2, private=True)
    with pytest.raises(DataError):
        balanced_class_weights(np.array([], dtype=np.int64), 2)
