"""diffusers: an attention processor whose self-attention is one of our operators.

Made for ``model.set_attn_processor`` and ``attn.set_processor``: a processor is called with its
attention layer, whose projections and norms it uses.  Nothing of diffusers is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdsl.errors import InputError, UnsupportedError


class AttentionProcessor:
    """Self-attention of one layer by ``attention``; everything else as the layer has it.

    ``attention`` takes ``q, k, v [batch, heads, tokens, head_dim]``: an operator of `kdsl.build`,
    or a `kdsl.parallel.module.SparseSequenceParallel`, and then all tensors here, the rotary
    embedding's among them, are of this rank's tokens.  ``otherwise`` is the layer's old processor,
    for calls with ``encoder_hidden_states``.  ``rotate(x, embedding)`` turns
    ``x [batch, tokens, heads, head_dim]``; the default takes (cos, sin) of neighbouring pairs, as
    Wan and Flux do.
    """

    def __init__(
        self,
        attention: Callable[[Any, Any, Any], Any],
        otherwise: Callable[..., Any] | None = None,
        rotate: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.attention, self.otherwise, self.rotate = attention, otherwise, rotate or rotated

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        rotary_emb: Any = None,
        **options: Any,
    ) -> Any:
        """The layer's output of ``hidden_states [batch, tokens, channels]``."""
        if encoder_hidden_states is not None:
            if self.otherwise is None:
                raise UnsupportedError(
                    "a call with encoder_hidden_states", hint="otherwise=attn.processor"
                )
            return self.otherwise(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **options
            )
        if attention_mask is not None:
            raise UnsupportedError("attention_mask is given", hint="the spec's mask says it")
        embedding = options.pop("image_rotary_emb", None) if rotary_emb is None else rotary_emb
        unknown = [name for name, value in options.items() if value is not None]
        if unknown:
            raise UnsupportedError(f"{unknown[0]} is given", hint=f"{unknown[0]}=None")
        q, k = (
            _projected(attn, hidden_states, name, f"norm_{name[-1]}") for name in ("to_q", "to_k")
        )
        v = _projected(attn, hidden_states, "to_v", "")
        if embedding is not None:
            q, k = self.rotate(q, embedding), self.rotate(k, embedding)
        out = self.attention(*(x.transpose(1, 2) for x in (q, k, v)))
        out = out[0] if isinstance(out, tuple) else out
        out = out.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        for layer in attn.to_out:
            out = layer(out)
        return out


def _projected(attn: Any, x: Any, name: str, norm: str) -> Any:
    """``[batch, tokens, heads, head_dim]``, normalised over a head or over all of them."""
    found = getattr(attn, name)(x)
    # Grouped keys have fewer heads than queries: the head's size is what both share.
    size = attn.to_q.weight.shape[0] // attn.heads
    layer = getattr(attn, norm, None) if norm else None
    if layer is not None and _over(layer, found.shape[-1]) == found.shape[-1]:
        found, layer = layer(found), None
    found = found.unflatten(-1, (-1, size))
    return found if layer is None else layer(found)


def _over(norm: Any, default: int) -> int:
    """How many numbers a norm takes together."""
    weight = getattr(norm, "weight", None)
    return default if weight is None else int(weight.shape[-1])


def rotated(x: Any, embedding: Any) -> Any:
    """``x [batch, tokens, heads, head_dim]`` turned in neighbouring pairs by (cos, sin).

    These are ``[tokens, head_dim]`` or broadcast with x, each value twice in a row.
    """
    import torch

    cos, sin = (e[:, None] if e.dim() == 2 else e for e in embedding)
    if cos.shape[-3] not in (1, x.shape[1]):
        raise InputError(
            f"a rotary embedding of {cos.shape[-3]} tokens for {x.shape[1]}",
            hint="this rank's own tokens: home.tokens_of(rank)",
        )
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)
