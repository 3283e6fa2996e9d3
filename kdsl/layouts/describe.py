"""A format as text: its formula, its fields, and the map of its bits."""

from __future__ import annotations

import numpy as np

from kdsl.layouts.codes import Code, Float, Int, TwinLog
from kdsl.layouts.format import Buffer, Format, Level
from kdsl.layouts.groups import Shape


def describe(fmt: Format, shape: Shape, words: int = 4) -> str:
    """What a format stores for a matrix of this shape, with a picture of its first words.

    Each line of a picture is a word, most significant bit first; ``r0c5.2`` is bit 2 of the code
    of row 0, column 5, and bits of one entry share a cell: ``r0c5`` spans as many characters.
    """
    lines = [f"{fmt.name}: value = {_formula(fmt.level)}"]
    lines.append(f"  {8 * fmt.nbytes(shape) / (shape[0] * shape[1]):.4g} bits a value at {shape}")
    lines += [f"  {f.name}: {_code(f.code)}, {f.groups!r}" for f in fmt.fields.values()]
    for buffer in fmt.buffers:
        records, count = fmt.buffer_shape(buffer, shape)
        lines.append(f"{buffer.name}: {buffer.word} [{records}, {count}]")
        lines += [f"  {n:3} {text}" for n, text in enumerate(_words(fmt, buffer, shape, words))]
    return "\n".join(lines)


def _formula(level: Level) -> str:
    text = level.field.name
    if level.parameters:
        text = f"twinlog({', '.join([text, *(_formula(p) for p in level.parameters)])})"
    for part, sign in ((level.zero, "-"), (level.scale, "*"), (level.offset, "+")):
        if part is not None:
            text = f"({text} {sign} {_formula(part)})"
    return text


def _code(code: Code) -> str:
    if isinstance(code, Int):
        bias = f" {code.bias:+d}" if code.bias else ""
        return f"{'int' if code.signed else 'uint'}{code.bits}{bias}"
    if isinstance(code, Float):
        sign = "" if code.unsigned else "sign "
        return f"float{code.bits} ({sign}{code.exponent} exponent {code.mantissa} mantissa)"
    if isinstance(code, TwinLog):
        return f"twin-log of {code.levels} bits ({code.variant})"
    return f"codebook {code.name} of {len(code.values)}"


def _words(fmt: Format, buffer: Buffer, shape: Shape, words: int) -> list[str]:
    """The first words of a buffer's records, bit by bit."""
    records, count = fmt.buffer_shape(buffer, shape)
    owners = np.full((records, count * buffer.width), "-", dtype=object)
    start = 0
    for part in buffer.parts:
        field = fmt.fields[part.field]
        place = fmt.placement(part, shape)
        inputs = place.steps[0].inputs
        rows, cols, bits = (int(np.prod([s for _, s in g])) for g in inputs)
        names = np.empty((rows, cols, bits), object)
        low = part.bits[0] if part.bits else 0
        for (row, col, bit), _ in np.ndenumerate(names):
            true = col
            if part.columns:
                period, first, last = part.columns
                true = col // (last - first) * period + first + col % (last - first)
            names[row, col, bit] = (field.name, row, true, low + bit)
        held = place.apply(names)
        if part.trits:
            digits = held.reshape(records, -1, part.trits)
            cells = np.array(
                [["3^" + _label(d[0]) + f"..{d[-1][2]}" for d in r] for r in digits], object
            )
            held = np.repeat(cells, 8, axis=1)
        owners[:, start : start + held.shape[1]] = held
        start += held.shape[1]
    flat = owners.reshape(-1, buffer.width)[:words]
    return [_line(list(word[::-1])) for word in flat]


def _label(owner: tuple[str, int, int, int]) -> str:
    name, row, col, _ = owner
    return f"{'' if name == 'code' else name + ' '}r{row}c{col}"


def _line(word: list[object]) -> str:
    """Cells of consecutive bits of one entry, with the bits they hold."""
    out: list[str] = []
    i = 0
    while i < len(word):
        owner, end = word[i], i + 1
        if isinstance(owner, tuple):
            while end < len(word):
                other = word[end]
                if not isinstance(other, tuple) or other[:3] != owner[:3]:
                    break
                end += 1
            last = word[end - 1]
            assert isinstance(last, tuple)
            span = f"{owner[3]}:{last[3]}" if end - i > 1 else f"{owner[3]}"
            out.append(f"{_label(owner)}[{span}]")
        else:
            while end < len(word) and word[end] == owner:
                end += 1
            out.append(str(owner))
        i = end
    return "| " + " | ".join(out) + " |"
