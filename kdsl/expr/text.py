"""Print an expression for people: valid Python over the index names."""

from __future__ import annotations

from kdsl.expr.nodes import Expr

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "floordiv": "//",
    "mod": "%",
    "shr": ">>",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
}
_CHAINS = ("add", "and", "or", "mul")
_CALLS = {"clear": "clear", "min": "minimum", "max": "maximum", "abs": "abs", "where": "where"}


def to_text(expr: Expr, *, source: bool = False) -> str:
    """The expression as Python over ``q``, ``k``, ``head``, ``batch`` and coordinates.

    Tables appear by name; with ``source`` they are written out, so that the text evaluates back.
    """
    text: dict[str, str] = {}
    for node in expr.walk():
        text[node.key] = _text(node, text, source)
    return text[expr.key]


def _text(node: Expr, text: dict[str, str], source: bool) -> str:
    def operand(arg: Expr, first: bool = True) -> str:
        # Only the left operand of a chain goes bare: the text must parse back to the same tree.
        plain = arg.op not in _INFIX or (first and arg.op == node.op and node.op in _CHAINS)
        return text[arg.key] if plain else f"({text[arg.key]})"

    args = [text[a.key] for a in node.args]
    if node.op == "const":
        return str(node.data)
    if node.op == "bool":
        return str(bool(node.data))
    if node.op == "var":
        return str(node.data)
    if node.op == "not":
        return f"~{operand(node.args[0])}"
    if node.op == "table":
        return f"{repr(node.data) if source else node.data.name}[{', '.join(args)}]"
    if node.op == "coord":
        return f"{operand(node.args[0])}.{node.data[-1]}"
    if node.op == "visual":
        return f"{operand(node.args[0])}.visual"
    if node.op == "blocks":
        return f"{repr(node.data) if source else node.data.name}[{', '.join(args)}]"
    if node.op in _CALLS:
        return f"{_CALLS[node.op]}({', '.join(args)})"
    return f"{operand(node.args[0])} {_INFIX[node.op]} {operand(node.args[1], False)}"
