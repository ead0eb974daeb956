import numpy as np
import pytest

from sim.personal_store import PersonalStore


def test_rows_come_back_and_survive_a_checkpoint():
    store = PersonalStore(2)
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)
    store.stage(np.array([7, 3]), rows)
    assert len(store) == 0
    store.commit()
    rows[:] = -1  # the store holds copies
    assert sorted(store.get([3, 7, 9])) == [3, 7]
    np.testing.assert_array_equal(store.get([7])[7], [0, 1])
    back = PersonalStore.from_arrays(store.to_arrays())
    np.testing.assert_array_equal(back.get([3])[3], [2, 3])
    assert len(back) == 2


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="rows of shape"):
        PersonalStore(2).stage(np.array([1]), np.zeros((1, 3), np.float32))


def test_an_empty_store_survives_too():
    assert len(PersonalStore.from_arrays(PersonalStore(5).to_arrays())) == 0


def test_what_is_discarded_never_was():
    store = PersonalStore(1)
    store.stage(np.array([1]), np.ones((1, 1), np.float32))
    store.discard()
    store.commit()
    assert len(store) == 0
