"""Formats in use, bit for bit against decoders written from their descriptions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kdsl import layouts
from kdsl.errors import InputError, SpecError
from tests.kdsl.layouts.cases import CASES, Case, buffers

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
FREE_BYTES = ("tq1_0",)
"""Formats with more bytes than meanings: 256 for 243 numbers in base 3."""


@ALL
def test_decodes(case: Case) -> None:
    """Random patterns stand for exactly the values that the format's description gives them."""
    held = buffers(case)
    found = case.fmt.dequantize(held, case.shape)
    wanted = case.decode(held, case.shape)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))


@ALL
def test_packs_what_it_unpacks(case: Case) -> None:
    """Every buffer comes back byte for byte, and takes the bytes that `nbytes` says."""
    held = buffers(case, 1)
    fields = case.fmt.unpack(held, case.shape)
    again = case.fmt.pack(fields, case.shape)
    assert sum(a.nbytes for a in again.values()) == case.fmt.nbytes(case.shape)
    for name, array in held.items():
        np.testing.assert_array_equal(again[name].view(np.uint8), array.view(np.uint8))


@ALL
def test_every_bit_counts(case: Case) -> None:
    """Flipping any one of 64 sampled bits of the codes' buffers changes some unpacked pattern."""
    rng = np.random.default_rng(2)
    held = buffers(case, 2)
    fields = case.fmt.unpack(held, case.shape)
    stored = [
        b for b in case.fmt.buffers if not b.pad and not any(p.pad != (1, 1) for p in b.parts)
    ]
    for buffer in stored:
        raw = held[buffer.name].view(np.uint8)
        for _ in range(64 // len(stored)):
            at, bit = int(rng.integers(raw.size)), int(rng.integers(8))
            raw.flat[at] ^= 1 << bit
            got = case.fmt.unpack(held, case.shape)
            raw.flat[at] ^= 1 << bit
            same = all(np.array_equal(got[n], fields[n]) for n in fields)
            assert not same or case.fmt.name in FREE_BYTES, (buffer.name, at, bit)


@ALL
def test_json(case: Case) -> None:
    """A format comes back equal from its canonical JSON."""
    text = json.dumps(layouts.to_json(case.fmt), sort_keys=True)
    assert layouts.from_json(json.loads(text)) == case.fmt


@ALL
def test_foreign_and_truncated(case: Case) -> None:
    """A missing, shortened, or differently typed buffer is an error that names it."""
    held = buffers(case)
    for buffer in case.fmt.buffers:
        rest: dict[str, Any] = {n: a for n, a in held.items() if n != buffer.name}
        with pytest.raises(InputError, match=f"no buffer '{buffer.name}'"):
            case.fmt.unpack(rest, case.shape)
        for wrong in (held[buffer.name][:-1], held[buffer.name].astype(np.float64)):
            with pytest.raises(InputError, match=f"buffer '{buffer.name}' is"):
                case.fmt.unpack({**rest, buffer.name: wrong}, case.shape)


@ALL
def test_picture(case: Case) -> None:
    """`describe` names every buffer and field, and every bit of its first word has an owner."""
    text = layouts.describe(case.fmt, case.shape, words=1)
    for buffer in case.fmt.buffers:
        assert f"\n{buffer.name}: {buffer.word}" in text
    assert "| - |" not in text


def test_pictures_word_for_word() -> None:
    """The bit maps of GPTQ's straddling words and of AWQ's order, as pictures."""
    three = layouts.describe(layouts.gptq(3, 32), (32, 32), words=1)
    assert "    0 | r0c10[1:0] | r0c9[2:0] | r0c8[2:0]" in three
    four = layouts.describe(layouts.awq(32), (8, 32), words=1)
    assert (
        "| r7c0[3:0] | r5c0[3:0] | r3c0[3:0] | r1c0[3:0] "
        "| r6c0[3:0] | r4c0[3:0] | r2c0[3:0] | r0c0[3:0] |"
    ) in four


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q6_K", "TQ1_0"])
def test_ggufs_own_reader(name: str) -> None:
    """The gguf package, where installed, decodes our blocks to the same floats."""
    gguf = pytest.importorskip("gguf")
    case = CASES[name.lower()]
    held = buffers(case, 3)["blocks"]
    wanted = gguf.quants.dequantize(held, getattr(gguf.GGMLQuantizationType, name))
    found = case.fmt.dequantize({"blocks": held}, case.shape)
    np.testing.assert_array_equal(found, wanted.reshape(case.shape))


def test_does_not_divide() -> None:
    """Groups and words that do not divide are refused with the sizes that would."""
    with pytest.raises(SpecError, match="groups of 128 columns do not divide 96"):
        layouts.quantize(layouts.awq(128), np.ones((8, 96)))
    with pytest.raises(SpecError, match="no whole words of 32"):
        layouts.gptq(4, 32).check((7, 64))
    with pytest.raises(SpecError, match="does not split"):
        layouts.marlin(32).check((100, 64))
    with pytest.raises(SpecError, match="a multiple of 256"):
        layouts.q6_k().check((4, 300))
