"""The reference of `Permute` against loops that follow its definition word by word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import orders
from kdsl.errors import InputError
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.layouts import Layout
from kdsl.reference.permute import permute
from kdsl.specs import Permute

GRID = Grid(height=4, width=6, text=3)


def order_of(data: st.DataObject) -> Any:
    one = st.one_of(
        st.sampled_from(["HW", "WH"]).map(lambda a: orders.axes(GRID, a)),
        st.tuples(st.integers(1, 5), st.integers(1, 7)).map(lambda c: orders.cubes(GRID, c)),
        st.permutations(range(GRID.tokens)).map(lambda p: orders.table(p, GRID)),
    )
    drawn = data.draw(st.one_of(one.map(lambda o: [o]), st.tuples(one, one).map(list)))
    return drawn[0] if len(drawn) == 1 else orders.per_head(drawn)


@given(data=st.data())
def test_positions_hold_the_tokens_of_the_order(data: st.DataObject) -> None:
    """``out[b, h, s] = x[b, h, index[s]]`` for every head's own order."""
    order = order_of(data)
    spec = Permute(tokens=GRID, heads=2, head_dim=4, order=order, dtype="float32")
    x = np.random.default_rng(0).standard_normal((2, 2, GRID.tokens, 4)).astype(np.float32)
    out = permute(spec, x)
    for head in range(2):
        own = order.orders[head] if isinstance(order, orders.PerHead) else order
        for s, token in enumerate(own.index()):
            np.testing.assert_array_equal(out[:, head, s], x[:, head, token])


@given(
    data=st.data(),
    tokens=st.one_of(st.none(), st.integers(1, 40)),
    channels=st.sampled_from([None, 1, 2, 4]),
)
def test_groups_are_counted_in_stored_order(
    data: st.DataObject, tokens: int | None, channels: int | None
) -> None:
    """Each group of stored rows and channels has its own maximum / 127 and nearest codes."""
    layout = Layout("int8", (tokens, channels))
    spec = Permute(
        tokens=GRID, heads=2, head_dim=4, order=order_of(data), dtype="float32", layout=layout
    )
    x = np.random.default_rng(1).standard_normal((1, 2, GRID.tokens, 4)).astype(np.float32)
    codes, scales = permute(spec, x)
    plain = permute(Permute(tokens=GRID, heads=2, head_dim=4, order=spec.order, dtype="float32"), x)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    rows, columns = tokens or GRID.tokens, channels or 4
    assert scales.shape == (1, 2, *layout.scale_shape(GRID.tokens, 4))
    for head, s, c in np.ndindex(2, GRID.tokens, 4):
        scale = scales[0, head, s // rows, c // columns]
        first, left = s // rows * rows, c // columns * columns
        group = plain[0, head, first : first + rows, left : left + columns]
        assert scale == np.abs(group).max() / np.float32(127)
        assert codes[0, head, s, c] == np.rint(plain[0, head, s, c] / scale)


def test_bfloat16_travels_as_float32() -> None:
    """A bfloat16 torch tensor gives float32 values and the codes of those values."""
    torch = pytest.importorskip("torch")
    x = torch.randn(1, 2, GRID.tokens, 4, dtype=torch.bfloat16)
    spec = Permute(tokens=GRID, heads=2, head_dim=4, order=orders.axes(GRID, "WH"))
    out = permute(spec, x)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, x.float().numpy()[:, :, spec.order.index()])


def test_open_tables_come_with_the_call() -> None:
    """A list named in the spec is read from ``tables``; without it the error names the list."""
    spec = Permute(
        tokens=GRID, heads=2, head_dim=4, order=orders.table(Table("plan", GRID.tokens), GRID)
    )
    x = np.arange(2 * GRID.tokens * 4, dtype=np.float32).reshape(1, 2, GRID.tokens, 4)
    plan = np.random.default_rng(2).permutation(GRID.tokens)
    np.testing.assert_array_equal(permute(spec, x, {"plan": plan}), x[:, :, plan])
    with pytest.raises(InputError, match="'plan' has no values"):
        permute(spec, x)


def test_wrong_shapes_are_refused() -> None:
    """The shape that would work is in the error."""
    spec = Permute(tokens=GRID, heads=2, head_dim=4, order=orders.identity(GRID))
    with pytest.raises(InputError, match=r"\[batch, 2, 27, 4\]"):
        permute(spec, np.zeros((1, 27, 2, 4), np.float32))
