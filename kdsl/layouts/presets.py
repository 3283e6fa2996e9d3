"""Formats in use, each a few lines over the parts.

Bit orders are facts of the formats, taken from their public descriptions.
"""

from __future__ import annotations

from kdsl.errors import SpecError
from kdsl.layouts.codebooks import IQ4_NL, NF4, NF_SCALES, shifted_log
from kdsl.layouts.codes import E2M1, E4M3, E8M0, F16, F32, I32, Code, Float, Int, Lut
from kdsl.layouts.format import Buffer, Field, Format, Level, Part
from kdsl.layouts.groups import Block, Flat, Groups, Indexed, Lanes

_PLAIN = "n g x -> n | g x"
_TURNED = "n g x -> g | n x"


def _scale(
    groups: Groups, code: Code = F16, fit: str = "largest", scale: Level | None = None
) -> Level:
    return Level(Field("scale", code, groups, fit), scale)


def gptq(bits: int = 4, group: int = 128, act_order: bool = False) -> Format:
    """GPTQ as AutoGPTQ stores it: codes along K in int32, zero points less one along N.

    Three bits run on over three words.  ``qweight [K * bits / 32, N]``, ``qzeros [K / group,
    N * bits / 32]``, ``scales [K / group, N]``; ``act_order`` adds ``g_idx [1, K]``.
    """
    groups: Groups = Indexed(group) if act_order else Block(1, group)
    level = Level(
        Field("code", Int(bits)),
        scale=_scale(groups, fit="range"),
        zero=Level(Field("zero", Int(bits, bias=1), groups)),
    )
    buffers = [
        Buffer("qweight", "int32", (Part("code", "n k x -> n (k x); n (w i:32) -> w | n i"),)),
        Buffer("qzeros", "int32", (Part("zero", _TURNED),)),
        Buffer("scales", "float16", (Part("scale", _TURNED),)),
    ]
    extra = (Field("g_idx", I32, Block(None, 1), "given"),) if act_order else ()
    if act_order:
        buffers.append(Buffer("g_idx", "int32", (Part("g_idx", "n k x -> n | k x"),)))
    return Format(f"gptq{bits}", level, tuple(buffers), extra)


def awq(group: int = 128) -> Format:
    """AWQ (AutoAWQ GEMM): four bits along N in int32, in the order 0 2 4 6 1 3 5 7.

    ``qweight [K, N / 8]``, ``qzeros [K / group, N / 8]``, ``scales [K / group, N]``.
    """
    order = "(w i:4 p:2) k x:4 -> k | w p i x"
    level = Level(
        Field("code", Int(4)),
        scale=_scale(Block(1, group), fit="range"),
        zero=Level(Field("zero", Int(4), Block(1, group))),
    )
    return Format(
        "awq",
        level,
        (
            Buffer("qweight", "int32", (Part("code", order),)),
            Buffer("qzeros", "int32", (Part("zero", order),)),
            Buffer("scales", "float16", (Part("scale", _TURNED),)),
        ),
    )


def marlin(group: int | None = 128) -> Format:
    """Marlin: symmetric four bits in the order of a 16-bit matrix instruction's lanes.

    ``qweight [K / 16, 2 N]`` in tiles of 16 x 64, ``scales [K / group, N]`` in the order in which
    a warp reads them (columns eight apart together; with one scale a column, pairs of them).
    """
    scale = "(t i:8 j:8) g x -> g | t j i x" if group else "(t m:4 i:4 r:2) g x -> g | t i m r x"
    code = "(t j:4 b:2 g:8) (u s:2 q:4 r:2) x:4 -> u | t g q j r b s x"
    return Format(
        "marlin",
        Level(Field("code", Int(4, bias=-8)), scale=_scale(Block(1, group))),
        (
            Buffer("qweight", "int32", (Part("code", code),)),
            Buffer("scales", "float16", (Part("scale", scale),)),
        ),
    )


def compressed_tensors(bits: int = 4, group: int = 128) -> Format:
    """compressed-tensors ``pack-quantized``, symmetric: offset codes along K, dense in int32.

    ``weight_packed [N, ceil(K * bits / 32)]``, ``weight_scale [N, K / group]``.
    """
    return Format(
        f"compressed-tensors-int{bits}",
        Level(Field("code", Int(bits, bias=-(1 << (bits - 1)))), scale=_scale(Block(1, group))),
        (
            Buffer("weight_packed", "int32", (Part("code", "n k x -> n | k x"),), pad=True),
            Buffer("weight_scale", "float16", (Part("scale", _PLAIN),)),
        ),
    )


def hqq(group: int = 64) -> Format:
    """HQQ, axis 1: four bits, float zero point; the first half of the groups in the high nibble.

    ``(code - zero) * scale`` over groups of the flattened matrix.
    """
    runs = Flat(group)
    return Format(
        "hqq4",
        Level(
            Field("code", Int(4)),
            scale=_scale(runs, fit="range"),
            zero=Level(Field("zero", F16, runs)),
        ),
        (
            Buffer("W_q", "uint8", (Part("code", "n k x -> (n k) x; (h:2 g) x -> g -h x"),)),
            Buffer("scale", "float16", (Part("scale", "n g x -> g | n x"),)),
            Buffer("zero", "float16", (Part("zero", "n g x -> g | n x"),)),
        ),
    )


def nf4(block: int = 64, nested: bool = True) -> Format:
    """NormalFloat 4 of QLoRA (arXiv 2305.14314): flat blocks, first of two in the high nibble.

    ``nested`` codes the blocks' scales in 8 bits over runs of 256 blocks, less their mean.
    """
    scale = Level(Field("scale", F32, Flat(block)))
    buffers = [Buffer("weight", "uint8", (Part("code", "n (w p:2) x -> n w | -p x"),))]
    if nested:
        scale = Level(
            Field("absmax", Lut(NF_SCALES, "dynamic8"), Flat(block)),
            scale=Level(Field("absmax2", F32, Flat(block * 256))),
            offset=Level(Field("offset", F32, Block(None, None), "mean")),
        )
        buffers += [
            Buffer("absmax", "uint8", (Part("absmax", "n g x -> n | g x"),)),
            Buffer("nested_absmax", "float32", (Part("absmax2", "n g x -> n | g x"),)),
            Buffer("nested_offset", "float32", (Part("offset", "n g x -> n | g x"),)),
        ]
    else:
        buffers.append(Buffer("absmax", "float32", (Part("scale", "n g x -> n | g x"),)))
    return Format("nf4", Level(Field("code", Lut(NF4, "nf4")), scale=scale), tuple(buffers))


_NIBBLES = "n (b h:2 l:16) x:4 -> n b | l h x"


def _gguf(name: str, level: Level, *parts: Part) -> Format:
    return Format(name, level, (Buffer("blocks", "uint8", parts),))


def q4_0() -> Format:
    """GGUF Q4_0: 32 codes less 8, a float16 scale before them."""
    level = Level(Field("code", Int(4, bias=-8)), scale=_scale(Block(1, 32)))
    return _gguf("q4_0", level, Part("scale", "n b x -> n b | x"), Part("code", _NIBBLES))


def iq4_nl() -> Format:
    """GGUF IQ4_NL: Q4_0's struct over a codebook of 16 int8 values."""
    level = Level(Field("code", Lut(IQ4_NL, "iq4_nl")), scale=_scale(Block(1, 32)))
    return _gguf("iq4_nl", level, Part("scale", "n b x -> n b | x"), Part("code", _NIBBLES))


def q6_k() -> Format:
    """GGUF Q6_K: 256 codes less 32 in planes of 4 and 2 bits, int8 scales of 16, a float16."""
    level = Level(
        Field("code", Int(6, bias=-32)),
        scale=Level(Field("sub", Int(8, signed=True), Block(1, 16)), scale=_scale(Block(1, 256))),
    )
    return _gguf(
        "q6_k",
        level,
        Part("code", "n (b h:2 j:2 i:2 l:32) x:4 -> n b | h i l j x", bits=(0, 4)),
        Part("code", "n (b h:2 j:2 i:2 l:32) x:2 -> n b | h l j i x", bits=(4, 6)),
        Part("sub", "n (b s:16) x:8 -> n b | s x"),
        Part("scale", "n b x -> n b | x"),
    )


def tq1_0() -> Format:
    """GGUF TQ1_0: 256 ternary codes, five a byte in base 3, the last 16 four a byte."""
    level = Level(Field("code", Int(2, bias=-1)), scale=_scale(Block(1, 256)))
    return _gguf(
        "tq1_0",
        level,
        Part("code", "n (b t:5 m:32) x -> n b | m t x", columns=(256, 0, 160), trits=5),
        Part("code", "n (b t:5 m:16) x -> n b | m t x", columns=(256, 160, 240), trits=5),
        Part("code", "n (b t:4 m:4) x -> n b | m t x", columns=(256, 240, 256), trits=4),
        Part("scale", "n b x -> n b | x"),
    )


_SWIZZLED = "(R a:4 r:32) (C c:4) x:8 -> R C | r a c x"


def mx(element: Float, swizzled: bool = False) -> Format:
    """OCP Microscaling: 32 small floats along K and an e8m0 scale; low codes first.

    ``swizzled`` stores scales in the 128 x 4 tiles of NVIDIA's block-scaled matrix instructions.
    """
    scales = (
        Part("scale", _SWIZZLED, pad=(128, 4)) if swizzled else Part("scale", "n g x -> n | g x")
    )
    return Format(
        f"mxfp{element.bits}",
        Level(Field("code", element), scale=_scale(Block(1, 32), E8M0)),
        (
            Buffer("codes", "uint8", (Part("code", "n k x -> n | k x"),)),
            Buffer("scales", "uint8", (scales,)),
        ),
    )


def nvfp4() -> Format:
    """NVFP4: 16 e2m1 along K, an e4m3 scale in swizzled 128 x 4 tiles, a float32 of the tensor."""
    whole = Level(Field("tensor", F32, Block(None, None)))
    return Format(
        "nvfp4",
        Level(Field("code", E2M1), scale=_scale(Block(1, 16), E4M3, scale=whole)),
        (
            Buffer("codes", "uint8", (Part("code", "n k x -> n | k x"),)),
            Buffer("scales", "uint8", (Part("scale", _SWIZZLED, pad=(128, 4)),)),
            Buffer("tensor", "float32", (Part("tensor", "n g x -> n | g x"),)),
        ),
    )


def _bytes(name: str, code: Code, groups: Groups, word: str, fit: str = "largest") -> Format:
    zero = Level(Field("zero", I32, groups)) if fit == "range" else None
    buffers = [
        Buffer("codes", word, (Part("code", "n k x -> n | k x"),)),
        Buffer("scales", "float32", (Part("scale", _PLAIN),)),
    ]
    if zero:
        buffers.append(Buffer("zeros", "int32", (Part("zero", _PLAIN),)))
    level = Level(Field("code", code), scale=_scale(groups, F32, fit), zero=zero)
    return Format(name, level, tuple(buffers))


def block_fp8(rows: int = 128, cols: int = 128) -> Format:
    """DeepSeek-V3's fp8 (arXiv 2412.19437, 3.3): e4m3 in tiles with a float32 scale each.

    ``block_fp8(1, 128)`` is its activations.  The last tile of an axis may be short.
    """
    return _bytes(f"fp8-{rows}x{cols}", E4M3, Block(rows, cols, ragged=True), "uint8")


def w8(per: str = "channel", code: str = "int8") -> Format:
    """Symmetric ``"int8"``, or ``"fp8"`` (e4m3), with a float32 scale a row: weights of W8A8 by
    output channel, or tokens."""
    if code not in ("int8", "fp8"):
        raise SpecError(f"w8(code={code!r})", hint='"int8" or "fp8"')
    held: Code = E4M3 if code == "fp8" else Int(8, signed=True)
    return _bytes(f"{code}-{per}", held, Block(1, None), "uint8" if code == "fp8" else "int8")


def a8_asymmetric() -> Format:
    """Activations of W8A8 with a zero point: int8, float32 scale and int32 zero point a token."""
    return _bytes("int8-asymmetric", Int(8, signed=True), Block(1, None), "int8", "range")


def activations(code: str = "int8", group: int | None = None, asymmetric: bool = False) -> Format:
    """Activations on their way into a product: ``"int8"``, ``"fp8"`` (e4m3) or ``"int4"``.

    A float32 scale a token, or for each ``group`` of columns; ``asymmetric`` adds an int32 zero
    point.  Four bits are packed two to a byte, the lower column in the lower half.
    """
    codes: dict[str, Code] = {
        "int8": Int(8, signed=True),
        "fp8": E4M3,
        "int4": Int(4, signed=not asymmetric),
    }
    if code not in codes or (asymmetric and code == "fp8"):
        raise SpecError(
            f"activations({code!r}, asymmetric={asymmetric})",
            hint=", ".join(codes) + "; fp8 has no zero point",
        )
    per = "token" if group is None else f"{group}"
    name = f"{code}-{'asymmetric-' if asymmetric else ''}{per}"
    word = "int8" if code == "int8" else "uint8"
    fit = "range" if asymmetric else "largest"
    return _bytes(name, codes[code], Block(1, group), word, fit)


def sage(side: str = "query", bits: int = 8) -> Format:
    """SageAttention2's per-thread codes of queries or keys, rows being tokens."""
    lanes = Lanes(32, 8, 1) if side == "query" else Lanes(64, 8, 2)
    return _bytes(f"sage-{side}", Int(bits, signed=True), lanes, "int8")


def slog(
    bits: int = 4, r: float | None = None, group: int | None = 128, exact: str = "int8"
) -> Format:
    """The shifted-log codebook, sign and magnitude in planes: no code straddles a word.

    Three bits are one plane of 2-bit magnitudes and one of signs; ``group=None`` is a scale a row.
    ``exact`` says which numbers entries are, ``"int8"``, ``"e4m3"`` or ``"float32"``: what a unit
    multiplies must hold them.
    """
    magnitude = bits - 1
    planes = (
        Buffer("magnitudes", "uint8", (Part("code", "n k x -> n | k x", bits=(0, magnitude)),)),
        Buffer("signs", "uint8", (Part("code", "n k x -> n | k x", bits=(magnitude, bits)),)),
    )
    nibbles = (Buffer("codes", "uint8", (Part("code", "n k x -> n | k x"),)),)
    return Format(
        f"slog{bits}",
        Level(Field("code", shifted_log(bits, r, exact)), scale=_scale(Block(1, group))),
        (
            *(nibbles if bits == 4 else planes),
            Buffer("scales", "float16", (Part("scale", _PLAIN),)),
        ),
    )


def uniform(bits: int = 4, group: int | None = 128, asymmetric: bool = False) -> Format:
    """Whole numbers of four or three bits, placed as those of `slog`, float16 scales of groups.

    Codes stand for ``-2**(bits - 1)`` and up; ``asymmetric`` ones count from 0 and have a zero
    point a group instead, a byte each.
    """
    if bits not in (3, 4):
        raise SpecError(f"uniform({bits})", hint="4 or 3 bits")
    groups = Block(1, group)
    kind = "asymmetric-" if asymmetric else ""
    code = Int(bits, bias=0 if asymmetric else -(1 << (bits - 1)))
    zero = Level(Field("zero", Int(8), groups)) if asymmetric else None
    scale = _scale(groups, fit="range" if asymmetric else "largest")
    zeros = (Buffer("zeros", "uint8", (Part("zero", _PLAIN),)),) if asymmetric else ()
    return Format(
        f"uniform{bits}-{kind}{group or 'row'}",
        Level(Field("code", code), scale=scale, zero=zero),
        (*slog(bits, None, group).buffers, *zeros),
    )
