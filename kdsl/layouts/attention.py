"""How attention's operands are coded: q, k and v, and the weights between the two products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError, reading
from kdsl.layouts.dynamic import Layout
from kdsl.layouts.groups import Lanes

WEIGHTS = {"e4m3": 256, "uint8": 255, "int8": 127, "uint4": 15}
"""Codes of softmax weights, and what a weight of one is coded as: scales are static, for a weight
is at most one once its row's maximum is taken off.  Below e4m3's 448 stays room for no more than a
power of two, which costs nothing to take off again."""
SUMMED = 32
"""Stored tokens whose codes of v are summed up for products with unsigned weights."""
PADDED = 128
"""Transposed v has a multiple of this many tokens; those past the end are 0."""
STORED = ("tokens", "channels", "lanes")

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class AttentionLayout:
    """Codes of ``q``, ``k`` and ``v`` (None: the spec's dtype), of the weights, and v's storage.

    Scales of q and k belong to groups of tokens, counted as they are stored, that of v to a
    channel.  ``weights`` says how softmax weights are rounded before they meet v: `WEIGHTS`, or
    None for the spec's dtype.

    ``v_stored`` is how v lies in memory: ``"tokens"`` as ``[tokens, channels]``; ``"channels"``
    transposed, ``[channels, tokens]``, as 8-bit matrix instructions read it; ``"lanes"`` transposed
    with the tokens of each sixteen in the order in which a thread holds them (`lane_order`), so
    that weights come out of the first product as the second one takes them.
    """

    q: Layout
    k: Layout
    v: Layout | None = None
    weights: str | None = None
    v_stored: str = "tokens"

    def __post_init__(self) -> None:
        for name, layout in (("q", self.q), ("k", self.k)):
            if not isinstance(layout, Layout) or layout.code not in ("int8", "int4"):
                raise SpecError(f"{name} as {layout!r}", hint='codes "int8" or "int4"')
            if not isinstance(layout.group, Lanes) and layout.group[1] is not None:
                raise SpecError(
                    f"scales of {name} by {layout.group[1]} channels",
                    where=repr(layout),
                    hint="a group of tokens with all channels: a score has one scale",
                )
        fits: tuple[str | None, ...] = (None,)
        if self.v is not None:
            group = None if isinstance(self.v.group, Lanes) else self.v.group
            if group != (None, 1):
                raise SpecError(
                    f"scales of v by {self.v.group}",
                    where=repr(self.v),
                    hint="(None, 1): one a channel, over all tokens",
                )
            fits = ("e4m3",) if self.v.code == "e4m3" else ("uint8", "int8", "uint4")
        if self.weights not in fits:
            code = "v in the spec's dtype" if self.v is None else f"v as {self.v.code}"
            hint = " or ".join(f"weights={w!r}" for w in fits)
            raise SpecError(f"weights as {self.weights!r} with {code}", hint=hint)
        wanted = STORED[1:] if self.v is not None else STORED[:1]
        if self.v_stored not in wanted:
            what = "8-bit products read v transposed" if self.v else "16-bit v is read as it is"
            hint = " or ".join(f"v_stored={s!r}" for s in wanted)
            raise SpecError(f"v stored by {self.v_stored!r}: {what}", hint=hint)

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the tensors of a call, in order."""
        names: tuple[str, ...] = ("q", "q_scale", "k", "k_scale", "v")
        if self.v is not None:
            names += ("v_scale",)
        return (*names, "v_sum") if self.weights == "uint8" else names

    def shapes(self, q: Shape, k: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        """Shape and dtype of each operand for q and k of these shapes.

        All four axes are [batch, heads, ...]; codes are int8, or float8_e4m3fn.
        """
        out = {
            "q": (q, "int8"),
            "q_scale": ((*q[:2], *self.q.scale_shape(*q[2:])), "float32"),
            "k": (k, "int8"),
            "k_scale": ((*k[:2], *self.k.scale_shape(*k[2:])), "float32"),
            "v": (k, dtype),
        }
        if self.v is not None:
            tokens = padded(k[2])
            code = "float8_e4m3fn" if self.v.code == "e4m3" else "int8"
            out["v"] = ((*k[:2], k[3], tokens), code)
            out["v_scale"] = ((*k[:2], *self.v.scale_shape(*k[2:])), "float32")
            out["v_sum"] = ((*k[:2], tokens // SUMMED, k[3]), "int16")
        return {name: out[name] for name in self.operands}

    def nbytes(self, q: Shape, k: Shape, item: int = 2) -> int:
        """Bytes of all operands; ``item`` are those of a number of the spec's dtype."""
        sizes = {"float32": 4, "int16": 2, "int8": 1, "float8_e4m3fn": 1}
        shapes = self.shapes(q, k, "").values()
        return sum(math.prod(shape) * sizes.get(dtype, item) for shape, dtype in shapes)

    def quantize(self, q: npt.ArrayLike, k: npt.ArrayLike, v: npt.ArrayLike) -> tuple[Array, ...]:
        """The operands of 16-bit tensors ``[batch, heads, tokens, head_dim]``, in order.

        Float8 codes come as their bits, uint8.  ``v`` stays as it is where it has no code.
        """
        made: list[Array] = [*self.q.quantize(q), *self.k.quantize(k)]
        if self.v is None:
            return (*made, np.asarray(v))
        codes, scale = self.v.quantize(v)
        stored = self.transposed(codes)
        made += [stored, scale]
        if self.weights == "uint8":
            made.append(sums(stored))
        return tuple(made)

    def transposed(self, codes: Array) -> Array:
        """Codes ``[..., tokens, channels]`` of v as they are stored: ``[..., channels, tokens]``,
        padded."""
        short = padded(codes.shape[-2]) - codes.shape[-2]
        wide = np.pad(codes, [(0, 0)] * (codes.ndim - 2) + [(0, short), (0, 0)])
        if self.v_stored == "lanes":
            wide = np.take(wide, lane_order(wide.shape[-2]), axis=-2)
        return np.ascontiguousarray(np.swapaxes(wide, -1, -2))

    def restored(self, stored: Array, tokens: int) -> Array:
        """Codes of v as ``[..., tokens, channels]``: the inverse of `transposed`."""
        wide = np.swapaxes(stored, -1, -2)
        if self.v_stored == "lanes":
            back = np.argsort(lane_order(wide.shape[-2]))
            wide = np.take(wide, back, axis=-2)
        return wide[..., :tokens, :]

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "q": self.q.to_json(),
            "k": self.k.to_json(),
            "v": self.v.to_json() if self.v else None,
            "weights": self.weights,
            "v_stored": self.v_stored,
        }

    @staticmethod
    @reading("attention layout")
    def from_json(value: Mapping[str, Any]) -> AttentionLayout:
        """The layout written by `to_json`."""
        if extra := set(value) - {"q", "k", "v", "weights", "v_stored"}:
            raise SpecError(f"malformed attention layout: unknown field {min(extra)!r}")
        q, k, v = (value[name] and Layout.from_json(value[name]) for name in "qkv")
        return AttentionLayout(q, k, v, value["weights"], value["v_stored"])


def padded(tokens: int) -> int:
    """Tokens of a transposed v."""
    return -(-tokens // PADDED) * PADDED


def lane_order(tokens: int) -> npt.NDArray[np.int64]:
    """The token that each stored position of v holds under ``v_stored="lanes"``.

    Of sixteen columns of an accumulator a thread of a matrix instruction holds 2t, 2t + 1, 2t + 8,
    2t + 9; of an 8-bit operand it takes 4t to 4t + 3.  (PTX ISA, fragments of wgmma and mma.)
    """
    at = np.arange(tokens)
    return at // 16 * 16 + at // 2 % 2 * 8 + at // 4 % 4 * 2 + at % 2


def sums(stored: Array) -> npt.NDArray[np.int16]:
    """Sums over `SUMMED` tokens of codes ``[..., channels, tokens]``: ``[..., groups, channels]``.

    With weights of ``code + 128``, signed codes, they are what the 128 adds.
    """
    groups = stored.shape[-1] // SUMMED
    parts = stored.reshape(*stored.shape[:-1], groups, SUMMED).astype(np.int16).sum(-1)
    return np.ascontiguousarray(np.swapaxes(parts, -1, -2)).astype(np.int16)


def int8_qk(per: str = "block", block_q: int = 64, block_k: int = 128) -> AttentionLayout:
    """INT8 q and k; weights and v in the spec's dtype.

    ``per="block"``: a scale for ``block_q`` queries and for ``block_k`` keys; ``"thread"``:
    SageAttention2's groups of 4 queries and 16 keys (arXiv 2411.10958, section 3.2).
    """
    return AttentionLayout(*_scores("int8", per, block_q, block_k))


def int8_qk_fp8_pv(
    per: str = "block", block_q: int = 64, block_k: int = 128, v_stored: str = "lanes"
) -> AttentionLayout:
    """INT8 q and k, e4m3 weights and v with a scale a channel (SageAttention2, SpargeAttn)."""
    v = Layout("e4m3", (None, 1))
    return AttentionLayout(*_scores("int8", per, block_q, block_k), v, "e4m3", v_stored)


def int8_qk_int8_pv(
    per: str = "block", block_q: int = 64, block_k: int = 128, v_stored: str = "channels"
) -> AttentionLayout:
    """INT8 q and k, unsigned INT8 weights, INT8 v with a scale a channel (PAROAttention)."""
    v = Layout("int8", (None, 1))
    return AttentionLayout(*_scores("int8", per, block_q, block_k), v, "uint8", v_stored)


def int4_qk(
    pv: str | None = None, per: str = "block", block_q: int = 64, block_k: int = 128
) -> AttentionLayout:
    """INT4 q and k; ``pv`` None for the spec's dtype, ``"e4m3"``, ``"int8"`` or ``"int4"``."""
    q, k = _scores("int4", per, block_q, block_k)
    if pv is None:
        return AttentionLayout(q, k)
    weights = {"e4m3": "e4m3", "int8": "uint8", "int4": "uint4"}
    if pv not in weights:
        raise SpecError(f"int4_qk(pv={pv!r})", hint=" or ".join(map(repr, (None, *weights))))
    return AttentionLayout(q, k, Layout(pv, (None, 1)), weights[pv], "channels")


def _scores(code: str, per: str, block_q: int, block_k: int) -> tuple[Layout, Layout]:
    """Layouts of q and k."""
    if per == "thread":
        return Layout(code, Lanes(32, 8, 1)), Layout(code, Lanes(64, 8, 2))
    if per != "block":
        raise SpecError(f"per={per!r}", hint="'block' or 'thread'")
    return Layout(code, (block_q, None)), Layout(code, (block_k, None))
