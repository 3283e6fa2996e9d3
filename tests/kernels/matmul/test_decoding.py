"""The machine code that decodes four bits, instruction by instruction on a CPU."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdsl.kernels.matmul.facts import Packed, view
from kdsl.kernels.matmul.hopper import coded_config
from kdsl.kernels.matmul.hopper.coded import decoding
from tests.matrices import packed, spec_of

pytest.importorskip("triton")

Words = npt.NDArray[np.uint32]


def prmt(a: Words, b: Words, selector: Words) -> Words:
    """``prmt.b32``: four bytes out of eight; a selector's top bit spreads the byte's sign."""
    out = np.zeros_like(selector)
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = both >> (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
        spread = np.where(byte & np.uint64(128), 255, 0).astype(np.uint64)
        byte = np.where(nibble & np.uint32(8), spread, byte)
        out |= byte.astype(np.uint32) << np.uint32(8 * i)
    return out


def run(code: str, words: Words) -> Words:
    """The instructions of `decoding` on many words."""
    held: dict[str, Words] = {"$1": words}

    def value(text: str) -> Words:
        if text in held:
            return held[text]
        return np.full_like(words, int(text, 0))

    for line in code.strip("{}").split(";"):
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith(".reg"):
            continue
        to, *given = re.split(r",\s*", rest)
        given_values = [value(t) for t in given]
        if name == "and.b32":
            held[to] = given_values[0] & given_values[1]
        elif name == "shl.b32":
            held[to] = given_values[0] << given_values[1]
        elif name == "prmt.b32":
            held[to] = prmt(*given_values)
        elif name == "lop3.b32":
            assert given[3] == "0xca", "the truth table of a choice by the first operand"
            mask, yes, no = given_values[:3]
            held[to] = (mask & yes) | (~mask & no)
        else:
            raise AssertionError(name)
    return held["$0"]


@pytest.mark.parametrize("code", ["int8", "fp8"])
def test_every_word_is_decoded(code: str) -> None:
    """All 65,536 words of four codes, sign-extended as they are loaded: each byte is the book's."""
    spec = spec_of(code, inner=256, weight=packed(4, code))
    held = view(spec).weight
    assert isinstance(held, Packed)
    made: dict[str, Any] = coded_config.constants(
        spec,
        next(coded_config.preferences(spec, None)),
        (9, 0),  # type: ignore[arg-type]
    )
    text = decoding.fn if hasattr(decoding, "fn") else decoding
    ptx = text(*(made[f"B{i}"] for i in range(4)))
    words = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32)
    found = run(ptx, words)
    book = np.array(held.entries, np.uint32)
    for i in range(4):
        nibble = words >> np.uint32(4 * i) & np.uint32(15)
        np.testing.assert_array_equal(found >> np.uint32(8 * i) & np.uint32(255), book[nibble])


def test_words_lie_as_the_instruction_has_them() -> None:
    """The layout of codes is the fragment of wgmma's first operand of 8 bits (PTX ISA, "Register
    fragments for wgmma.mma_async.m64nNk32"): rows by quads of lanes, K by lanes in a quad."""
    from kdsl.kernels.matmul.hopper.coded import Coded

    c = Coded(128, 128, 2, 6, 12, True, False, False, 0, 1, 0, 0, 0, 0)
    layout = c.WORDS

    def at(bases: Any, index: int) -> npt.NDArray[np.int64]:
        return np.array(
            [b for i, b in enumerate(bases) if index >> i & 1] or [[0, 0]], np.int64
        ).sum(0)

    for warp in range(4):
        for lane in range(32):
            for register in range(16):
                row, word = (
                    at(layout.warp_bases, warp)
                    + at(layout.lane_bases, lane)
                    + at(layout.reg_bases, register)
                )
                step, i = divmod(register, 4)
                assert row == 16 * warp + lane // 4 + 8 * (i & 1)
                assert 4 * word == 32 * step + 4 * (lane % 4) + 16 * (i >> 1)
