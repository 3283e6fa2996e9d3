"""Tensors of more than 2**31 elements, several streams, several devices: what only GPUs show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdsl import masks, table
from kdsl.expr import Table
from kdsl.integrations.flash_attention import varlen, varlen_tables
from kdsl.runtime import build
from kdsl.runtime.builder import device_target
from kdsl.specs import Attention
from tests.tolerance import expected

torch: Any = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
SHAPE = (4, 48, 131072, 128)
SINK, REACH = 64, 129
BACKENDS = pytest.mark.parametrize("backend", ["triton", "gluon"])


def needs(gib: int) -> None:
    """Skip where so much memory is not free."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def on_hopper(backend: str) -> None:
    """Skip the Gluon template elsewhere."""
    target = device_target()
    if backend == "gluon" and (target is None or target.capability[0] != 9):
        pytest.skip("the Gluon template is for Hopper")


def drawn(shape: tuple[int, ...], seed: int) -> Any:
    """Noise in bfloat16, made without a float32 copy."""
    g = torch.Generator("cuda").manual_seed(seed)
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(generator=g)


def seen_by(first: int, count: int) -> Any:
    """Keys that any of some queries sees."""
    low, high = max(first - REACH + 1, 0), min(first + count - 1 + REACH, SHAPE[2])
    return np.union1d(np.arange(SINK), np.arange(low, high))


def only(seen: Table) -> masks.Mask:
    """The pairs where a table holds 1."""
    return masks.predicate(lambda q, k: seen[q, k] == 1)


@pytest.mark.alone
@BACKENDS
def test_more_elements_than_32_bits_count(backend: str) -> None:
    """[4, 48, 131072, 128]: sampled rows at the ends of every axis agree with float64."""
    on_hopper(backend)
    needs(32)
    batch, heads, tokens, head_dim = SHAPE
    mask = masks.window(REACH) | masks.sink(SINK)
    spec = Attention(
        tokens=tokens, heads=heads, head_dim=head_dim, mask=mask, return_lse=True, block=(128, 128)
    )
    op = build(spec, backend=backend)
    q, k, v = (drawn(SHAPE, i) for i in range(3))
    assert q.numel() > 2**31
    out, lse = op(q, k, v)
    places = [(0, 0, 0), (batch - 1, heads - 1, tokens - 16), (2, 31, 65_528), (3, 0, 100)]
    for b, h, first in places:
        rows, columns = np.arange(first, first + 16), seen_by(first, 16)
        at = torch.from_numpy(columns).cuda()
        # The same rows over the keys that they see, as a problem of its own; with tiles of 16 keys
        # the bound allows for more of them than the kernel visits.
        alone = Attention(
            queries=len(rows), keys=len(columns), heads=1, head_dim=head_dim, return_lse=True,
            mask=only(table(mask.dense(rows, columns).astype(np.uint8))),
        )  # fmt: skip
        part = slice(first, first + len(rows))
        own = (x[None, None].float().cpu() for x in (q[b, h, part], k[b, h, at], v[b, h, at]))
        found = (x[b : b + 1, h : h + 1, part].float().cpu() for x in (out, lse))
        expected(alone, *own, block_n=16).check(*found)


@pytest.mark.alone
def test_gradients_of_more_elements_than_32_bits_count() -> None:
    """The same for dQ, dK and dV: a batch item and head at the far end against the same alone."""
    needs(52)
    batch, heads, tokens, head_dim = SHAPE
    mask = masks.window(REACH)
    fields: dict[str, Any] = {"head_dim": head_dim, "mask": mask, "block": (128, 128)}
    op = build(Attention(tokens=tokens, heads=heads, **fields), backend="triton")
    parts = {part: choice.params for part, choice in op.backward_choices.items()}
    spec = Attention(tokens=tokens, heads=1, **fields)
    one = build(spec, backend="triton", config=op.config, backward=parts)
    leaves = [drawn(SHAPE, i).requires_grad_() for i in range(3)]
    out = op(*leaves)
    # One gradient for all heads: an expanded one takes no memory.
    dout = drawn((1, 1, tokens, head_dim), 9).expand(SHAPE)
    found = torch.autograd.grad(out, leaves, dout)
    for b, h in ((0, 0), (batch - 1, heads - 1)):
        alone = [x.detach()[b : b + 1, h : h + 1].clone().requires_grad_() for x in leaves]
        wanted = torch.autograd.grad(one(*alone), alone, dout[b : b + 1, h : h + 1].clone())
        for x, y in zip(found, wanted, strict=True):
            # The same program on the same tiles adds in the same order.
            assert torch.equal(x[b, h], y[0, 0]), (b, h)


@BACKENDS
def test_streams_do_not_share(backend: str) -> None:
    """Calls on two streams at once, with lists that are let go of meanwhile, are each right."""
    on_hopper(backend)
    spec = Attention(tokens=2048, heads=8, head_dim=128, mask=masks.varlen(2048), block=(128, 128))
    op = build(spec, backend=backend)
    streams = [torch.cuda.Stream() for _ in range(2)]
    q, k, v = (drawn((2048, 8, 128), i) for i in range(3))
    lengths = [[64 * (i + 1), 2048 - 64 * (i + 1)] for i in range(12)]
    cus = [torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device="cuda") for n in lengths]
    wanted = [varlen(op, q, k, v, cu, causal=True).clone() for cu in cus]
    torch.cuda.synchronize()
    found: list[Any] = []
    # Twelve sets of tables: an operator remembers eight, so that lists go while others run.
    for i, cu in enumerate(cus * 4):
        with torch.cuda.stream(streams[i % 2]):
            found.append(varlen(op, q, k, v, cu, causal=True))
            torch.full((2**20,), -1, dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    for i, x in enumerate(found):
        assert torch.equal(x, wanted[i % 12]), i


@BACKENDS
def test_current_device_is_not_asked(backend: str) -> None:
    """Tensors on the second GPU are computed there while the first one is current."""
    on_hopper(backend)
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    spec = Attention(tokens=512, heads=2, head_dim=64, mask=masks.causal(), block=(128, 128))
    op = build(spec, backend=backend)
    q, k, v = (drawn((1, 2, 512, 64), i) for i in range(3))
    wanted = op(q, k, v)
    for _ in range(3):
        found = op(*(x.to("cuda:1") for x in (q, k, v)))
        assert found.device.index == 1
        assert torch.cuda.current_device() == 0
        assert torch.equal(found.to("cuda:0"), wanted)
        assert torch.equal(op(q, k, v), wanted)


@BACKENDS
def test_varlen(backend: str) -> None:
    """Packed sequences in bfloat16 against the reference on the same tables."""
    on_hopper(backend)
    spec = Attention(
        queries=1000, keys=1100, heads=4, kv_heads=2, head_dim=128, return_lse=True,
        mask=masks.varlen(1000, 1100), block=(128, 128),
    )  # fmt: skip
    op = build(spec, backend=backend)
    q, k, v = (drawn(s, i) for i, s in enumerate(((900, 4, 128), (1080, 2, 128), (1080, 2, 128))))
    cu_q, cu_k = (
        torch.tensor(x, dtype=torch.int32, device="cuda")
        for x in ([0, 300, 300, 850, 900], [0, 500, 510, 1060, 1080])
    )
    out, lse = varlen(op, q, k, v, cu_q, cu_k, causal=True)
    wide = []
    for x, tokens in zip((q, k, v), (1000, 1100, 1100), strict=True):
        held = torch.zeros((1, x.shape[1], tokens, 128))
        held[0, :, : len(x)] = x.float().cpu().swapaxes(0, 1)
        wide.append(held)
    tables = varlen_tables(cu_q.cpu().numpy(), cu_k.cpu().numpy(), queries=1000, causal=True)
    rows = np.arange(len(q))
    bounds = expected(spec, *wide, tables, rows=rows)
    bounds.check(out.float().cpu().swapaxes(0, 1)[None], lse.cpu()[None])
