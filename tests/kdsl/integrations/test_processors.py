"""diffusers' processors and xDiT's call, against stand-ins of their layers in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdsl.errors import InputError, UnsupportedError
from kdsl.integrations.diffusers import AttentionProcessor, rotated
from kdsl.integrations.xdit import usp

HEADS, DIM, TOKENS = 4, 8, 10


class Layer(torch.nn.Module):
    """What a processor needs of an attention layer; norms over a head or over all, or none."""

    def __init__(self, norm: int | None, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.heads, wide = HEADS, HEADS * DIM
        self.to_q = torch.nn.Linear(wide, wide)
        self.to_k, self.to_v = (torch.nn.Linear(wide, kv_heads * DIM) for _ in "kv")
        self.norm_q, self.norm_k = (torch.nn.RMSNorm(norm) if norm else None for _ in "qk")
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(wide, wide), torch.nn.Dropout(0.0)])


def attention(q: Any, k: Any, v: Any) -> Any:
    """Dense, grouped keys too."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def by_hand(layer: Layer, x: torch.Tensor, angle: torch.Tensor | None) -> torch.Tensor:
    """The layer's output, complex numbers for the rotation."""
    found = []
    for project, norm in (
        (layer.to_q, layer.norm_q),
        (layer.to_k, layer.norm_k),
        (layer.to_v, None),
    ):
        y = project(x)
        over_all = norm is not None and norm.weight.shape[0] == y.shape[-1]
        y = norm(y) if norm is not None and over_all else y
        y = y.unflatten(-1, (-1, DIM))
        y = norm(y) if norm is not None and not over_all else y
        if angle is not None and project is not layer.to_v:
            pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
            y = torch.view_as_real(pairs * torch.polar(torch.ones(()), angle)[:, None]).flatten(-2)
        found.append(y.transpose(1, 2))
    return layer.to_out[0](attention(*found).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("norm", [None, DIM, HEADS * DIM])
@pytest.mark.parametrize("turned", [False, True])
def test_a_processor_computes_its_layer(norm: int | None, turned: bool) -> None:
    """Projections, norms over a head (Flux) or over all heads (Wan), rotation of neighbouring
    pairs, and the way out: as by hand, within float32's roundings."""
    torch.manual_seed(0)
    layer, x = Layer(norm), torch.randn(2, TOKENS, HEADS * DIM)
    angle = torch.randn(TOKENS, DIM // 2) if turned else None
    emb = (
        None
        if angle is None
        else tuple(f(angle).repeat_interleave(2, -1) for f in (torch.cos, torch.sin))
    )
    with torch.no_grad():
        got = AttentionProcessor(attention)(layer, x, rotary_emb=emb)
        again = AttentionProcessor(attention)(layer, x, image_rotary_emb=emb)
        want = by_hand(layer, x, angle)
    assert torch.equal(got, again)
    assert (got - want).abs().max() < 64 * HEADS * DIM * torch.finfo(torch.float32).eps


def test_grouped_keys_and_pairs() -> None:
    """Fewer key heads than query heads; operators that return a log-sum-exp too."""
    torch.manual_seed(0)
    layer, x = Layer(DIM, 2), torch.randn(1, TOKENS, HEADS * DIM)
    with torch.no_grad():
        got = AttentionProcessor(lambda *t: (attention(*t), None))(layer, x)
        assert (got - by_hand(layer, x, None)).abs().max() < 1e-5


def test_what_a_processor_leaves_or_refuses() -> None:
    """Cross-attention goes to the old processor; a mask, unknown arguments and a rotary embedding
    of the whole sequence are refused."""
    layer, x = Layer(None), torch.zeros(1, TOKENS, HEADS * DIM)
    other = AttentionProcessor(attention, otherwise=lambda *given: given[2])
    assert other(layer, x, "text") == "text"
    mine = AttentionProcessor(attention)
    for options in ({"encoder_hidden_states": x}, {"attention_mask": x}, {"gate": x}):
        with pytest.raises(UnsupportedError):
            mine(layer, x, **options)
    with pytest.raises(InputError, match="20 tokens for 10"):
        rotated(torch.zeros(1, TOKENS, HEADS, DIM), (torch.zeros(20, DIM),) * 2)


def test_usp() -> None:
    """The call in USP's form gives our output, and refuses what would change it."""
    q, k, v = torch.randn(3, 1, HEADS, TOKENS, DIM).unbind()
    call = usp(attention)
    assert torch.equal(call(q, k, v, dropout_p=0.0, is_causal=False), attention(q, k, v))
    plain = call(q, k, v, joint_query=None, joint_strategy="none", attn_layer=None)
    assert torch.equal(plain, attention(q, k, v))
    for options in (
        {"dropout_p": 0.1},
        {"is_causal": True},
        {"joint_query": q},
        {"attn_layer": Layer(None)},
        {"scale": 1.0},
    ):
        with pytest.raises(UnsupportedError):
            call(q, k, v, **options)
