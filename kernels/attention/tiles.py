"""What a mask says of a whole tile, read once a tile and a step ahead of its use.

A map of blocks looked up by the tile that is being computed would make that tile's loads wait, and
the compiler then keeps no loads in flight at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdsl.expr.nodes import Expr, const, make, where
from kdsl.kernels.attention.heads import Variant

MOST = 31
"""Truths that one integer carries."""
OF_A_TILE = frozenset({"row", "column", "head", "batch"})


def by_block(expr: Expr, block: tuple[int, int]) -> Expr:
    """The mask with stored positions over the block size read as the tile's row and column."""
    names = {"qs": ("row", block[0]), "ks": ("column", block[1])}

    def change(node: Expr) -> Expr | None:
        if node.op != "floordiv" or node.args[0].op != "var" or node.args[0].data not in names:
            return None
        name, size = names[node.args[0].data]
        divisor = node.args[1].value
        if divisor is None or divisor % size:
            return None
        return Expr("var", (), name) // (divisor // size)

    return expr.rebuild(change)


def split(variants: Sequence[Variant]) -> tuple[list[Variant], Expr]:
    """Variants over `by_block` that read bits of ``known``, and the integer with these bits.

    A bit is the truth of a part that looks a table up by column and speaks of nothing finer than
    tiles.
    """
    bits: dict[str, Expr] = {}
    out = []
    for heads, expr in variants:
        found = {part.key: part for part in _parts(expr)}
        for key in found:
            if len(bits) < MOST:
                bits.setdefault(key, found[key])
        numbers = {key: i for i, key in enumerate(bits)}
        out.append((heads, _replaced(expr, numbers)))
    known: Expr = const(0)
    for i, part in enumerate(bits.values()):
        known = known + where(part, 2**i, 0)
    return out, known


def _replaced(expr: Expr, numbers: Mapping[str, int]) -> Expr:
    def bit(node: Expr) -> Expr | None:
        if node.key not in numbers:
            return None
        shifted: Expr = Expr("var", (), "known") // 2 ** numbers[node.key]
        return make("ne", (shifted % 2, const(0)))

    return expr.rebuild(bit)


def _parts(expr: Expr) -> list[Expr]:
    """The largest truths of a tile in an expression that look something up by column."""
    if expr.is_bool and expr.variables() <= OF_A_TILE:
        by_column = any(n.op == "table" and "column" in n.variables() for n in expr.walk())
        return [expr] if by_column else []
    return [part for arg in expr.args for part in _parts(arg)]
