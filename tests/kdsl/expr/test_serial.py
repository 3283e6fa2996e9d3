"""Expressions as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.errors import KdslError, SpecError
from kdsl.expr import const, serial, table
from kdsl.expr.nodes import var
from kdsl.masks import BlockMap
from tests.strategies import Scope, integer, scopes, truth


@given(st.data(), scopes(40))
def test_round_trip(data: st.DataObject, scope: Scope) -> None:
    """An expression written as JSON text reads back with the same structure."""
    for expr in (truth(data.draw, scope, 3), integer(data.draw, scope, 3)):
        text = json.dumps(serial.to_json(expr))
        assert serial.from_json(json.loads(text)).same(expr)


def test_round_trip_of_block_maps() -> None:
    """Block maps keep name, block and whether heads share them."""
    expr = BlockMap("plan", (64, 128), True)[var("head"), var("qs"), var("ks")]
    assert serial.from_json(serial.to_json(expr)).same(expr)


def test_structure_forgets_sizes_and_constants() -> None:
    """Constants, sizes and names do not make another program; operations and ranks do."""
    q, k = var("q"), var("k")
    a, b = table("a", 8), table("other", 4000)
    assert serial.structure(abs(q - k) < 5) == serial.structure(abs(q - k) < 77)
    assert serial.structure(a[q] < 1) == serial.structure(b[q] < 2)
    assert serial.structure(abs(q - k) < 5) != serial.structure(abs(q + k) < 5)
    assert serial.structure(a[q] < 1) != serial.structure(table("a", 8, "uint8")[q] < 1)
    assert serial.structure(a[q] < 1) != serial.structure(table("c", (2, 8))[const(1), q] < 1)


@pytest.mark.parametrize(
    "value",
    [
        [["spawn", None]],
        [["var", "os"]],
        [["const", 1], ["neg", None, 0]],
        [["const", 1], ["add", None, 0]],
        [["const", 1], ["add", None, 0, -1]],
        [["const", 1], ["add", None, 0, 5]],
        [["var", "q"], ["coord", [[3], 0, 0, "__class__"], 0]],
        [["var", "q"], ["table", ["x; import os", [4], "int32", 0, 3, ""], 0]],
        [["var", "q"], ["and", None, 0, 0]],
        [],
    ],
    ids=repr,
)
def test_foreign_values_are_refused(value: list[object]) -> None:
    """Unknown operations, names, arguments and types raise; nothing from a file is trusted."""
    with pytest.raises(KdslError):
        serial.from_json(value)


def test_a_malformed_value_is_a_spec_error() -> None:
    """Values of the wrong shape raise the library's own error."""
    with pytest.raises(SpecError):
        serial.from_json([["table", None]])
