"""Nodes of the expression tree: integers and truth values over named indices.

A node is a value: it never changes, and `key` identifies its structure.  ``==`` builds a
comparison, as ``<`` does; compare structures with `Expr.same`.  ``//`` and ``%`` round towards
minus infinity in every reader, as in Python and NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from kdsl.errors import SpecError

INT_OPS = frozenset(
    {
        "const",
        "var",
        "coord",
        "table",
        "add",
        "sub",
        "mul",
        "floordiv",
        "mod",
        "shr",
        "min",
        "max",
        "abs",
        "where",
    }
)
BOOL_OPS = frozenset(
    {"bool", "visual", "blocks", "lt", "le", "eq", "ne", "and", "or", "not", "clear"}
)
"""``clear``: no bit of a third integer is set in either of two.  Leaves are printed with it
(`kdsl.kernels.attention.ranges`); masks and specs never hold it."""
VARIABLES = ("q", "k", "qs", "ks", "head", "batch", "s", "row", "col")
"""Original query and key token, their stored positions, query head, batch item, the one index of an
order (a stored position, or an original token in its inverse), and the two of a coded matrix."""


class Expr:
    """One node: an operation, its arguments, and what else it needs to know."""

    __slots__ = ("__weakref__", "args", "data", "key", "op")
    __array_ufunc__ = None  # NumPy scalars leave operators to this class.

    op: str
    args: tuple[Expr, ...]
    data: Any
    key: str

    def __init__(self, op: str, args: tuple[Expr, ...] = (), data: Any = None) -> None:
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "data", data)
        text = f"{op}|{_data_key(data)}|{'|'.join(a.key for a in args)}"
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:24])

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("expression nodes never change")

    def __reduce__(self) -> tuple[Any, ...]:
        return Expr, (self.op, self.args, self.data)

    @property
    def is_bool(self) -> bool:
        """Whether the node is a truth value; otherwise it is an integer."""
        return self.op in BOOL_OPS

    @property
    def value(self) -> int | None:
        """The value of a constant node (truth values as 0 and 1), else None."""
        return self.data if self.op in ("const", "bool") else None

    def same(self, other: Expr) -> bool:
        """Whether both nodes have the same structure."""
        return self.key == other.key

    def walk(self) -> Iterator[Expr]:
        """Every distinct node below and including this one, arguments first."""
        seen: set[str] = set()
        stack: list[tuple[Expr, bool]] = [(self, False)]
        while stack:
            node, ready = stack.pop()
            if node.key in seen:
                continue
            if ready:
                seen.add(node.key)
                yield node
            else:
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args))

    def rebuild(self, change: Callable[[Expr], Expr | None]) -> Expr:
        """The tree with nodes replaced: ``change`` sees each node after its arguments were.

        It returns the new node, or None to keep the old one (over its new arguments).
        """
        done: dict[str, Expr] = {}
        for node in self.walk():
            args = tuple(done[a.key] for a in node.args)
            kept = all(a is b for a, b in zip(args, node.args, strict=True))
            fresh = node if kept else make(node.op, args, node.data)
            changed = change(fresh)
            done[node.key] = fresh if changed is None else changed
        return done[self.key]

    def replace(self, values: Mapping[str, Expr | int]) -> Expr:
        """The tree with variables replaced by expressions."""

        def change(node: Expr) -> Expr | None:
            if node.op == "var" and node.data in values:
                return as_expr(values[node.data])
            return None

        return self.rebuild(change)

    def variables(self) -> frozenset[str]:
        """Names of the variables that occur."""
        return frozenset(n.data for n in self.walk() if n.op == "var")

    def __repr__(self) -> str:
        from kdsl.expr.text import to_text

        return to_text(self)

    def __bool__(self) -> NoReturn:
        raise SpecError(
            "an expression has no truth value while a mask is being described",
            where=repr(self),
            hint="`&`, `|`, `~` and `where(c, a, b)` instead of `and`, `or`, `not` and `if`",
        )

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Expr | int) -> Expr:
        return make("add", (self, as_expr(other)))

    def __radd__(self, other: int) -> Expr:
        return make("add", (as_expr(other), self))

    def __sub__(self, other: Expr | int) -> Expr:
        return make("sub", (self, as_expr(other)))

    def __rsub__(self, other: int) -> Expr:
        return make("sub", (as_expr(other), self))

    def __mul__(self, other: Expr | int) -> Expr:
        return make("mul", (self, as_expr(other)))

    def __rmul__(self, other: int) -> Expr:
        return make("mul", (as_expr(other), self))

    def __floordiv__(self, other: Expr | int) -> Expr:
        return make("floordiv", (self, as_expr(other)))

    def __rfloordiv__(self, other: int) -> Expr:
        return make("floordiv", (as_expr(other), self))

    def __mod__(self, other: Expr | int) -> Expr:
        return make("mod", (self, as_expr(other)))

    def __rmod__(self, other: int) -> Expr:
        return make("mod", (as_expr(other), self))

    def __rshift__(self, other: Expr | int) -> Expr:
        return make("shr", (self, as_expr(other)))

    def __neg__(self) -> Expr:
        return make("sub", (const(0), self))

    def __abs__(self) -> Expr:
        return make("abs", (self,))

    def __lt__(self, other: Expr | int) -> Expr:
        return make("lt", (self, as_expr(other)))

    def __le__(self, other: Expr | int) -> Expr:
        return make("le", (self, as_expr(other)))

    def __gt__(self, other: Expr | int) -> Expr:
        return make("lt", (as_expr(other), self))

    def __ge__(self, other: Expr | int) -> Expr:
        return make("le", (as_expr(other), self))

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return make("eq", (self, as_expr(other)))

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return make("ne", (self, as_expr(other)))

    def __and__(self, other: Expr | bool) -> Expr:
        return make("and", (self, as_expr(other)))

    __rand__ = __and__

    def __or__(self, other: Expr | bool) -> Expr:
        return make("or", (self, as_expr(other)))

    __ror__ = __or__

    def __xor__(self, other: Expr | bool) -> Expr:
        other = as_expr(other)
        return (self & ~other) | (~self & other)

    __rxor__ = __xor__

    def __invert__(self) -> Expr:
        return make("not", (self,))

    def __truediv__(self, other: object) -> NoReturn:
        raise SpecError("`/` gives fractions, and indices are integers", hint="`//`")

    def __pow__(self, other: object) -> NoReturn:
        raise SpecError("there are no powers of indices", where=repr(self), hint="`x * x`")


def _data_key(data: Any) -> str:
    return data.key if hasattr(data, "key") else repr(data)


def as_expr(value: object) -> Expr:
    """An expression as it is; a Python or NumPy integer or truth value as a constant."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, (bool, np.bool_)):
        return boolean(bool(value))
    if isinstance(value, (int, np.integer)):
        return const(int(value))
    hint = "kdsl.table(values)[q]" if isinstance(value, np.ndarray) else "integers and `//`"
    raise SpecError(f"{value!r} is not an integer or a truth value", hint=hint)


def const(value: int) -> Expr:
    """An integer constant."""
    return Expr("const", (), int(value))


def boolean(value: bool) -> Expr:
    """A constant truth value."""
    return Expr("bool", (), int(value))


def var(name: str) -> Expr:
    """One of `VARIABLES`."""
    if name not in VARIABLES:
        raise SpecError(f"unknown index {name!r}", hint=", ".join(VARIABLES))
    return Expr("var", (), name)


def minimum(a: Expr | int, b: Expr | int) -> Expr:
    """The smaller of two integers."""
    return make("min", (as_expr(a), as_expr(b)))


def maximum(a: Expr | int, b: Expr | int) -> Expr:
    """The larger of two integers."""
    return make("max", (as_expr(a), as_expr(b)))


def where(condition: Expr, a: Expr | int, b: Expr | int) -> Expr:
    """``a`` where the condition holds, else ``b``; both integers."""
    return make("where", (condition, as_expr(a), as_expr(b)))


_FOLD: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "shr": lambda a, b: a >> b,
    "min": min,
    "max": max,
    "abs": abs,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: 1 - a,
}


_SAME = {"eq": True, "le": True, "ne": False, "lt": False}
"""Comparisons of an expression with itself."""


def make(op: str, args: tuple[Expr, ...], data: Any = None) -> Expr:
    """A node, checked and simplified: constants folded, neutral elements dropped."""
    _check(op, args, data)
    if op in ("eq", "ne") and args[0].value is not None:
        args = args[::-1]
    values = tuple(a.value for a in args)
    if op in _FOLD and None not in values:
        return (boolean if op in BOOL_OPS else const)(_FOLD[op](*values))  # type: ignore[arg-type]
    simpler = _simplify(op, args, values)
    return Expr(op, args, data) if simpler is None else simpler


_ARITY = {
    **dict.fromkeys(("const", "bool", "var"), 0),
    **dict.fromkeys(("coord", "visual", "abs", "not"), 1),
    **dict.fromkeys(("where", "blocks", "clear"), 3),
}
_BOOLEAN_ARGUMENTS = {
    "and": (True, True),
    "or": (True, True),
    "not": (True,),
    "where": (True, False, False),
}


def _check(op: str, args: tuple[Expr, ...], data: Any) -> None:
    arity = len(data.shape) if op == "table" else _ARITY.get(op, 2)
    if len(args) != arity:
        raise SpecError(f"{op!r} takes {arity} arguments, got {len(args)}")
    wanted = _BOOLEAN_ARGUMENTS.get(op, (False,) * arity)
    for arg, boolean_wanted in zip(args, wanted, strict=True):
        if arg.is_bool == boolean_wanted:
            continue
        if boolean_wanted:
            kinds, hint = ("a truth value", "an integer"), "compare it first, e.g. `x == 0`"
        else:
            kinds, hint = ("an integer", "a truth value"), "`where(condition, 1, 0)`"
        raise SpecError(f"{op!r} takes {kinds[0]}, got {kinds[1]}", where=repr(arg), hint=hint)
    if op == "shr" and args[1].value is not None and not 0 <= args[1].value < 32:
        raise SpecError(f"shift by {args[1].value}", where=repr(args[0]), hint="0 to 31 bits")
    if op in ("floordiv", "mod") and args[1].value is not None and args[1].value <= 0:
        raise SpecError(
            f"division by {args[1].value}", where=repr(args[0]), hint="a positive divisor"
        )


def _simplify(op: str, args: tuple[Expr, ...], values: tuple[int | None, ...]) -> Expr | None:
    """A simpler node of the same value, or None."""
    if op in _SAME and args[0].same(args[1]):
        return boolean(_SAME[op])
    if op in ("and", "or"):
        absorbing = 0 if op == "and" else 1
        for this, other in (args, args[::-1]):
            if this.value is not None:
                return this if this.value == absorbing else other
        return args[0] if args[0].same(args[1]) else None
    if op == "not" and args[0].op == "not":
        return args[0].args[0]
    if op == "where":
        if values[0] is not None:
            return args[1] if values[0] else args[2]
        return args[1] if args[1].same(args[2]) else None
    if op == "add" and 0 in values:
        return args[1] if values[0] == 0 else args[0]
    if op == "sub":
        if args[0].same(args[1]):
            return const(0)
        return args[0] if values[1] == 0 else None
    if op == "shr" and (values[0] == 0 or values[1] == 0):
        return args[0]
    if op == "mul" and (0 in values or 1 in values):
        if 0 in values:
            return const(0)
        return args[1] if values[0] == 1 else args[0]
    if op == "floordiv" and values[1] == 1:
        return args[0]
    if op == "mod" and values[1] == 1:
        return const(0)
    if op in ("min", "max") and args[0].same(args[1]):
        return args[0]
    return None
