import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.core.params import Layout, digest

leaf = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=st.floats(-9, 9, width=32)
)
trees = st.dictionaries(st.text("abc.", min_size=1, max_size=4), leaf, max_size=5)


@given(trees)
def test_unpack_undoes_pack(tree):
    layout = Layout.of(tree)
    back = layout.unpack(layout.pack(tree))
    assert sorted(back) == sorted(tree)
    for name in tree:
        np.testing.assert_array_equal(back[name], tree[name])
    assert digest(back) == digest(tree)


def test_order_of_insertion_does_not_matter():
    a, b = np.ones(2, np.float32), np.zeros((), np.float32)
    assert Layout.of({"a": a, "b": b}) == Layout.of({"b": b, "a": a})
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a})


def test_integer_buffers_are_refused():
    with pytest.raises(TypeError, match="num_batches_tracked"):
        Layout.of({"num_batches_tracked": np.zeros((), np.int64)})


def test_a_wrong_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="'w'"):
        Layout.of({"w": np.zeros(3, np.float32)}).pack({"w": np.zeros(4, np.float32)})
    with pytest.raises(ValueError, match="3 elements"):
        Layout.of({"w": np.zeros(3, np.float32)}).unpack(np.zeros(2, np.float32))


def test_digest_sees_values_names_and_shapes():
    w = np.arange(4, dtype=np.float32)
    seen = {digest({"w": w}), digest({"v": w}), digest({"w": w.reshape(2, 2)}), digest({"w": w + 1})}
    assert len(seen) == 4
