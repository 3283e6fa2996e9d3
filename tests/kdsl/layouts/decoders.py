"""Decoders written from the formats' descriptions, word by word, apart from the layout language.

Slow on purpose: plain loops over bytes and words, so that each can be read against its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Buffers = Mapping[str, Array]
Shape = tuple[int, int]


def words(array: Array) -> Array:
    """int32 words as non-negative integers."""
    return array.astype(np.int64) & 0xFFFFFFFF


def gptq(bits: int, group: int) -> Any:
    """AutoGPTQ: for 4 bits, word w of column n holds rows 8w..8w+7; for 3 bits rows of 32 take
    three words as 10 + 1 straddling + 10 + 1 straddling + 10; stored zeros are one too small."""

    def three(triple: Array) -> list[int]:
        a, b, c = map(int, triple)
        out = [(a >> 3 * i) & 7 for i in range(10)]
        out.append((a >> 30) | ((b & 1) << 2))
        out += [(b >> (3 * i + 1)) & 7 for i in range(10)]
        out.append((b >> 31) | ((c & 3) << 1))
        return [*out, *((c >> (3 * i + 2)) & 7 for i in range(10))]

    def run(column: Array) -> list[int]:
        if bits == 4:
            return [(int(w) >> 4 * i) & 15 for w in column for i in range(8)]
        return [v for i in range(0, len(column), 3) for v in three(column[i : i + 3])]

    def decode(held: Buffers, shape: Shape) -> Array:
        rows, cols = shape
        weight, zeros = words(held["qweight"]), words(held["qzeros"])
        g_idx = held["g_idx"].reshape(-1) if "g_idx" in held else np.arange(cols) // group
        points = np.array([run(line) for line in zeros]) + 1
        out = np.zeros(shape, np.float32)
        for n in range(rows):
            codes = np.array(run(weight[:, n]))
            scale = held["scales"][g_idx, n].astype(np.float32)
            out[n] = (codes - points[g_idx, n]).astype(np.float32) * scale
        return out

    return decode


def awq(group: int) -> Any:
    """AutoAWQ GEMM: word (k, w) holds outputs 8w + order[i] at nibble i."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def spread(array: Array) -> Array:
        held = words(array)
        out = np.zeros((held.shape[0], held.shape[1] * 8), np.int64)
        for i, position in enumerate(order):
            out[:, position::8] = (held >> 4 * i) & 15
        return out

    def decode(held: Buffers, shape: Shape) -> Array:
        codes, zeros = spread(held["qweight"]), spread(held["qzeros"])
        at = np.arange(shape[1]) // group
        value = (codes - zeros[at]).astype(np.float32) * held["scales"][at].astype(np.float32)
        return np.ascontiguousarray(value.T)

    return decode


def marlin(group: int) -> Any:
    """Marlin's published permutations, applied backwards."""
    one: list[int] = []
    for lane in range(32):
        first = [
            16 * row + lane // 4 + 8 * block
            for block in (0, 1)
            for row in (
                2 * (lane % 4), 2 * (lane % 4) + 1, 2 * (lane % 4 + 4), 2 * (lane % 4 + 4) + 1,
            )
        ]  # fmt: skip
        one += [p + 256 * j for j in range(4) for p in first]
    interleave = [0, 2, 4, 6, 1, 3, 5, 7]
    order = np.array(one).reshape(-1, 8)[:, interleave].ravel()
    scale_order = [i + 8 * j for i in range(8) for j in range(8)]

    def decode(held: Buffers, shape: Shape) -> Array:
        rows, cols = shape
        packed = words(held["qweight"])
        codes = np.stack([(packed >> 4 * i) & 15 for i in range(8)], axis=-1)
        flat = codes.reshape(-1, len(order))
        straight = np.empty_like(flat)
        straight[:, order] = flat
        tiles = straight.reshape(cols // 16, rows // 16, 16, 16).transpose(0, 2, 1, 3)
        weight = tiles.reshape(cols, rows)
        flat_scales = held["scales"].reshape(-1, 64)
        scales = np.empty_like(flat_scales)
        scales[:, scale_order] = flat_scales
        spread = scales.reshape(-1, rows)[np.arange(cols) // group].astype(np.float32)
        return np.ascontiguousarray(((weight - 8).astype(np.float32) * spread).T)

    return decode


def compressed(bits: int, group: int) -> Any:
    """compressed-tensors: the row's codes as one long little-endian number, less 2**(bits-1)."""

    def decode(held: Buffers, shape: Shape) -> Array:
        out = np.zeros(shape, np.float32)
        for n in range(shape[0]):
            number = int.from_bytes(held["weight_packed"][n].astype("<i4").tobytes(), "little")
            for k in range(shape[1]):
                code = (number >> bits * k) % (1 << bits) - (1 << (bits - 1))
                scale = np.float32(held["weight_scale"][n, k // group])
                out[n, k] = np.float32(code) * scale
        return out

    return decode


def hqq(group: int) -> Any:
    """HQQ's 4-bit packing: groups in two halves, the first in the high nibbles."""

    def decode(held: Buffers, shape: Shape) -> Array:
        packed = held["W_q"].reshape(-1)
        flat = np.concatenate([packed >> 4, packed & 15]).reshape(-1, group).astype(np.float32)
        scale, zero = (held[n].reshape(-1, 1).astype(np.float32) for n in ("scale", "zero"))
        value: Array = ((flat - zero) * scale).reshape(shape)
        return value

    return decode


def nf4(held: Buffers, shape: Shape, table: Array, dynamic: Array) -> Array:
    """QLoRA double quantization: blocks of 64, scales of blocks in runs of 256 less an offset."""
    packed = held["weight"].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    blocks = np.arange(codes.size) // 64
    nested = (
        dynamic[held["absmax"].reshape(-1)]
        * np.repeat(held["nested_absmax"].reshape(-1), 256)[: held["absmax"].size]
    )
    absmax = nested + held["nested_offset"].reshape(-1)[0]
    value: Array = (table[codes] * absmax[blocks]).reshape(shape)
    return value


def small(pattern: int, exponent: int, mantissa: int, bias: int) -> float:
    """An OCP small float without special values, by its definition."""
    e, m = pattern >> mantissa & ((1 << exponent) - 1), pattern & ((1 << mantissa) - 1)
    sign = -1.0 if pattern >> (exponent + mantissa) & 1 else 1.0
    part: float = m / (1 << mantissa)
    return sign * (2.0 ** (1 - bias) * part if e == 0 else 2.0 ** (e - bias) * (1 + part))


def mx(bits: int, exponent: int, mantissa: int, bias: int) -> Any:
    """OCP MX: dense codes, low first; value = element * 2**(scale - 127)."""

    def decode(held: Buffers, shape: Shape) -> Array:
        out = np.zeros(shape, np.float32)
        for n in range(shape[0]):
            number = int.from_bytes(held["codes"][n].tobytes(), "little")
            for k in range(shape[1]):
                code = number >> bits * k & ((1 << bits) - 1)
                power = 2.0 ** (int(held["scales"][n, k // 32]) - 127)
                out[n, k] = small(code, exponent, mantissa, bias) * power
        return out

    return decode


def nvfp4(held: Buffers, shape: Shape) -> Array:
    """NVFP4: e2m1 pairs; scale (m, k) of a 128 x 4 tile at byte (m % 32) * 16 + m // 32 * 4 + k."""
    tiles = -(-(shape[1] // 16) // 4)
    flat = held["scales"].reshape(-1)
    out = np.zeros(shape, np.float32)
    for n in range(shape[0]):
        for k in range(shape[1]):
            code = held["codes"][n, k // 2] >> 4 * (k % 2) & 15
            g = k // 16
            tile = (n // 128 * tiles + g // 4) * 512
            byte = int(flat[tile + n % 32 * 16 + n % 128 // 32 * 4 + g % 4])
            scale = np.float32(small(byte, 4, 3, 7)) * np.float32(held["tensor"][0, 0])
            out[n, k] = np.float32(small(int(code), 2, 1, 1)) * scale
    return out


def half(low: int, high: int) -> np.float32:
    """The float32 value of two bytes of a float16."""
    return np.float32(np.array([low, high], np.uint8).view("<f2")[0])


def q4_0(held: Buffers, shape: Shape) -> Array:
    """ggml: half d; 16 bytes, low nibbles first half, high nibbles second, less 8."""
    out = []
    for block in held["blocks"]:
        nibbles = [int(b) & 15 for b in block[2:]] + [int(b) >> 4 for b in block[2:]]
        out.append([np.float32(v - 8) * half(*block[:2]) for v in nibbles])
    return np.array(out, np.float32).reshape(shape)


def iq4_nl(held: Buffers, shape: Shape) -> Array:
    """ggml: as Q4_0 through a table of sixteen."""
    table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    out = []
    for block in held["blocks"]:
        nibbles = [int(b) & 15 for b in block[2:]] + [int(b) >> 4 for b in block[2:]]
        out.append([np.float32(table[v]) * half(*block[:2]) for v in nibbles])
    return np.array(out, np.float32).reshape(shape)


def q6_k(held: Buffers, shape: Shape) -> Array:
    """ggml: ql[128], qh[64], int8 scales[16], half d, in two halves of 128."""
    out = []
    for block in held["blocks"]:
        ql, qh = block[:128].astype(int), block[128:192].astype(int)
        scales, d = block[192:208].view(np.int8), half(*block[208:210])
        y = np.zeros(256, np.float32)
        for h in range(2):
            low, high, sc = ql[64 * h :], qh[32 * h :], scales[8 * h :]
            for i in range(32):
                four = (
                    (low[i] & 15) | (high[i] & 3) << 4,
                    (low[i + 32] & 15) | (high[i] >> 2 & 3) << 4,
                    (low[i] >> 4) | (high[i] >> 4 & 3) << 4,
                    (low[i + 32] >> 4) | (high[i] >> 6 & 3) << 4,
                )
                for p, q in enumerate(four):
                    scale = d * np.float32(sc[i // 16 + 2 * p])
                    y[128 * h + 32 * p + i] = np.float32(q - 32) * scale
        out.append(y)
    return np.array(out).reshape(shape)


def tq1_0(held: Buffers, shape: Shape) -> Array:
    """ggml: trits of 5 in base 3, a byte b giving digit n as (b * 3**n mod 256) * 3 >> 8."""
    out = []
    for block in held["blocks"]:
        y: list[int] = []
        for part, digits in ((block[:32], 5), (block[32:48], 5), (block[48:52], 4)):
            for n in range(digits):
                y += [((int(b) * 3**n & 255) * 3 >> 8) - 1 for b in part]
        out.append([np.float32(v) * half(*block[52:]) for v in y])
    return np.array(out, np.float32).reshape(shape)


def e4m3(byte: int) -> float:
    """OCP e4m3: no infinities, NaN at all ones."""
    return float("nan") if byte & 127 == 127 else small(byte, 4, 3, 7)


def block_fp8(held: Buffers, shape: Shape) -> Array:
    """DeepSeek-V3: one float32 a tile of 128 x 128."""
    out = np.zeros(shape, np.float32)
    for (n, k), byte in np.ndenumerate(held["codes"]):
        out[n, k] = np.float32(e4m3(int(byte))) * held["scales"][n // 128, k // 128]
    return out


def asymmetric(held: Buffers, shape: Shape) -> Array:
    """(code - zero point) * scale of the token."""
    codes = held["codes"].astype(np.int64) - held["zeros"]
    value: Array = codes.astype(np.float32) * held["scales"]
    return value


def sage(side: str) -> Any:
    """SageAttention2, per thread: tokens t of a warp's 32 queries with equal t % 8 share a scale;
    of a block of 64 keys those with equal t % 8 // 2."""

    def decode(held: Buffers, shape: Shape) -> Array:
        out = np.zeros(shape, np.float32)
        scales = held["scales"].reshape(-1)
        for t in range(shape[0]):
            at = t // 32 * 8 + t % 8 if side == "query" else t // 64 * 4 + t % 8 // 2
            out[t] = held["codes"][t].astype(np.float32) * scales[at]
        return out

    return decode


def slog3(r: float, group: int) -> Any:
    """Two planes: magnitude index, four a byte; sign, eight a byte; entries rounded to int8."""
    top = 2 ** (r * 3.5) - 1
    levels = [round(127 * (2 ** (r * (i + 0.5)) - 1) / top) for i in range(4)]

    def decode(held: Buffers, shape: Shape) -> Array:
        out = np.zeros(shape, np.float32)
        for n in range(shape[0]):
            for k in range(shape[1]):
                level = levels[held["magnitudes"][n, k // 4] >> 2 * (k % 4) & 3]
                sign = -1 if held["signs"][n, k // 8] >> k % 8 & 1 else 1
                out[n, k] = np.float32(sign * level) * np.float32(held["scales"][n, k // group])
        return out

    return decode
