"""xDiT: its Ulysses x ring call, computed by a sequence-parallel attention of ours.

``xfuser.core.long_ctx_attention.USP(query, key, value, dropout_p, is_causal, ...)`` takes this
rank's tokens as ``[batch, heads, tokens, head_dim]``.  `usp` makes a function of that form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdsl.errors import UnsupportedError

JOINT = ("joint_query", "joint_key", "joint_value")


def usp(attention: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """A function to call, or to put, in ``USP``'s place.

    ``attention`` takes q, k and v of this rank and returns its output: a
    `kdsl.parallel.module.SparseSequenceParallel`.  The mask is the one it was made with.
    UnsupportedError for what would change the meaning: dropout, ``is_causal``, a scale, keys kept
    in an ``attn_layer``, and joint tensors, whose text belongs into the spec's grid with
    ``replicated_text``.
    """

    def call(
        query: Any,
        key: Any,
        value: Any,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Any:
        if dropout_p:
            raise UnsupportedError(f"dropout_p={dropout_p}", hint="dropout_p=0.0")
        if is_causal:
            raise UnsupportedError("is_causal=True", hint="masks.causal() in the spec's mask")
        for name, given in options.items():
            if given is None or name in ("joint_strategy", "combine_qkv_a2a"):
                continue
            hint = f"{name}=None"
            if name in JOINT:
                hint = "text in the spec's grid, Partition(replicated_text=True), and one tensor"
            raise UnsupportedError(f"{name} is given", hint=hint)
        out = attention(query, key, value)
        return out[0] if isinstance(out, tuple) else out

    return call
