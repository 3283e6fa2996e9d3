"""The Hopper template on a GPU: against the reference, on poisoned outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.expr import Table
from kdsl.grid import Grid
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.runner import AttentionRunner
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build, codecache
from kdsl.specs import HEAD_DIMS, Attention
from kdsl.targets import get
from tests.devices import examples
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected, expected_gradients

torch: Any = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

H100 = get("h100")
BLOCKS = ((128, 128), (64, 64), (128, 64), (64, 128), (256, 128), (128, 256))
EXAMPLES = 5
"""Of each head dimension: a kernel is compiled for each, which takes seconds."""
GRID = Grid(frames=3, height=10, width=12, text=9)


@pytest.fixture(autouse=True)
def hopper_and_poison() -> Iterator[None]:
    """Only on compute capability 9.0; memory that nobody wrote reads NaN."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    held = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1000, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(held)


def configs(spec: Attention, by_what: tuple[Any, ...] = ("leaf", "bits")) -> list[Config]:
    """Configurations of every form, tile, pipeline depth and kind of scheduling that are legal."""
    tunable = AttentionTunable(spec, templates=("hopper",))
    forms = [("late", False), ("late", True), ("early", False), ("early", True)]
    made = [
        Config(m, n, m // 16, stages, "descriptor", "hopper", overlap, pingpong, workers, extra, by)
        for by in by_what
        for m in (64, 128)
        for n in (64, 128)
        for stages, extra in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))
        for overlap, pingpong in forms
        for workers in (0, 1, 2, 3)
    ]
    return [c for c in made if tunable.legal(c.to_json(), H100) is None]


def operator(spec: Attention, config: Config | None = None) -> Any:
    """The spec's Hopper kernel."""
    op = build(spec, backend="gluon", config=config.to_json() if config else None)
    assert op.config["template"] == "hopper"
    return op


def inputs(spec: Attention, batch: int = 1, seed: int = 0) -> tuple[Any, Any, Any]:
    """Gaussian q, k, v."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def made(heads: int, tokens: int) -> Any:
        shape = (batch, heads, tokens, spec.head_dim)
        x = torch.randn(shape, generator=generator, device="cuda")
        return x.to(getattr(torch, spec.dtype))

    keys = (spec.group_heads, spec.key_grid.tokens)
    return made(spec.heads, spec.query_grid.tokens), made(*keys), made(*keys)


def attention(tokens: int = 300, **fields: Any) -> Attention:
    """A small spec: two heads of 128 channels, the log-sum-exp too."""
    plain: dict[str, Any] = {"heads": 2, "head_dim": 128, "return_lse": True}
    if "queries" not in fields:
        plain["tokens"] = tokens
    return Attention(**{**plain, **fields})


def check(spec: Attention, config: Config | None, tensors: Any, tables: Any = None) -> Any:
    """Output and log-sum-exp are within the derived bound; they are returned."""
    found = operator(spec, config)(*tensors, tables=tables)
    out, lse = found if spec.return_lse else (found, None)
    assert out.dtype == tensors[0].dtype
    expected(spec, *tensors, tables, block_n=64).check(out, lse)
    return out, lse


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_kernel_equals_reference(head_dim: int) -> None:
    """Any mask, order, group of heads, block and configuration: output and log-sum-exp are within
    the derived bound, and every element was written."""

    @settings(max_examples=examples(EXAMPLES))
    @given(
        case=cases(("bfloat16", "float16"), (head_dim,), BLOCKS, 700),
        strides=st.sampled_from(("contiguous", "tokens first")),
        data=st.data(),
    )
    def run(case: Case, strides: str, data: Any) -> None:
        spec = case.spec
        legal = configs(spec)
        assume(legal)  # heads that share keys may have several orders
        config = data.draw(st.sampled_from(legal))
        note(f"{spec!r}\n{config}")
        tensors = inputs(spec, case.batch, case.seed)
        if strides == "tokens first":
            tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
        _, lse = check(spec, config, tensors, case.tables)
        assert lse is None or lse.dtype == torch.float32

    run()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_head_dimension(head_dim: int, dtype: str) -> None:
    """Full, partial and ragged blocks and grouped heads, in the default configuration."""
    spec = attention(1000, heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, mask=masks.causal())
    check(spec, None, inputs(spec, batch=2))


@pytest.mark.parametrize("share", range(4))
@pytest.mark.parametrize("block", BLOCKS)
def test_every_configuration(block: tuple[int, int], share: int) -> None:
    """Every third legal configuration of a block size, over rows of one block and more; partial
    blocks by the leaf and by bits in turns."""
    mask = masks.causal() | masks.sink(100)
    spec = attention(900, head_dim=64, mask=mask, block=block)
    tensors = inputs(spec)
    wanted = expected(spec, *tensors, block_n=64)
    for number, config in enumerate(configs(spec, ("leaf",))[::3][share::4]):
        by = "bits" if number % 2 else "leaf"
        wanted.check(*operator(spec, replace(config, masks=by))(*tensors))


def test_many_tiles_for_each_program() -> None:
    """More tiles than programs, of very different lengths, heads with masks of their own: each is
    computed once, by whichever program comes to it."""
    spec = attention(
        2500, heads=60, kv_heads=20, head_dim=64,
        mask=masks.per_head([masks.causal(), masks.window(90), masks.sink(300)] * 20),
    )  # fmt: skip
    check(spec, None, inputs(spec))


def test_rows_that_see_nothing() -> None:
    """They give exactly 0 and minus infinity: in kept blocks, and in rows of blocks without any,
    even beside values that are not finite."""
    spec = attention(600, mask=masks.causal(-300))
    q, k, v = inputs(spec)
    v[:, :, 300:] = float("nan")
    out, lse = operator(spec)(q, k, v)
    assert bool((out[:, :, :300] == 0).all())
    assert bool(lse[:, :, :300].isneginf().all())
    assert bool(lse[:, :, 300:].isfinite().all())
    nothing = attention(300, mask=masks.nothing())
    out, lse = operator(nothing)(*inputs(nothing, batch=2))
    assert bool((out == 0).all())
    assert bool(lse.isneginf().all())


def test_one_token() -> None:
    """One query and one key: the output is the value itself, the log-sum-exp the score."""
    spec = attention(1)
    q, k, v = inputs(spec)
    out, lse = operator(spec)(q, k, v)
    assert torch.equal(out, v)
    score = (q.double() * k.double()).sum(-1) * spec.softmax_scale
    assert bool(((lse - score).abs() < 1e-5).all())


@pytest.mark.parametrize("rise", [0.5, 3.0, 7.9, 8.1, 30.0])
@pytest.mark.parametrize("overlap", ["late", "early"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_that_grow(rise: float, overlap: str, dtype: str) -> None:
    """Maxima that rise by ``rise`` (log2) from block to block: below the slack no sum is rescaled
    and weights exceed 1, above it every one is; rows of a warp rise at different rates."""
    spec = attention(1024, head_dim=64, dtype=dtype)
    q, k, v = inputs(spec)
    q, k = q * 0.01, k * 0.01
    steps = torch.arange(1024, device="cuda") / 128
    rate = torch.linspace(0, 1, 1024, device="cuda")
    q[..., 0] = (rate * 8).to(q.dtype)
    k[..., 0] = (steps * rise / (8 * spec.softmax_scale * 1.4426950408889634)).to(k.dtype)
    config = Config(
        128,
        128,
        8,
        2,
        "descriptor",
        "hopper",
        overlap,
        False,
        1,  # type: ignore[arg-type]
    )
    check(spec, config, (q, k, v))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("side", [64, 128])
def test_not_finite(where: str, value: float, side: int) -> None:
    """NaN and infinity travel as in the reference, and no farther."""
    mask = masks.predicate(lambda q, k: (k // side <= q // side) & (k % 5 != 0) & (q != 3))
    spec = attention(3 * side, heads=1, mask=mask, block=(side, side))
    tensors = dict(zip("qkv", inputs(spec), strict=True))
    for token in (3, 2 * side + 6) if where == "q" else (side + 5, side + 11):
        tensors[where][0, 0, token, 7] = value
    bad = tuple(tensors.values())
    out, lse = operator(spec)(*bad)
    wanted = expected(spec, *bad, block_n=64)
    assert not np.isfinite(wanted.out).all()
    wanted.check(out, lse)
    if where != "q":
        assert bool(out[0, 0, :side].isfinite().all())


def test_a_ragged_end_reads_nothing_of_the_next_head() -> None:
    """What lies behind a head's last token in memory has no part in it, NaN or not."""
    spec = attention(300, mask=masks.everything())
    q, k, v = inputs(spec)
    k[0, 1], v[0, 1] = float("nan"), float("nan")
    out, lse = operator(spec)(q, k, v)
    expected(spec, q, k, v, block_n=64).check(out, lse)
    assert bool(out[0, 0].isfinite().all())


@pytest.mark.parametrize("axes", ["FHW", "WHF"])
def test_stored_order(axes: str) -> None:
    """Tensors in stored order give the output in the original one, for one order and for several
    heads with one each."""
    order = orders.axes(GRID, axes)
    mask = masks.window(GRID, (3, 5, 5)) | masks.text(GRID)
    spec = attention(queries=GRID, keys=GRID, mask=mask, order=order, stored=True)
    check(spec, None, inputs(spec))
    both = orders.per_head([order, orders.cubes(GRID, (3, 5, 4))])
    by_head = replace(spec, tokens=None, order=both, key_order=both)
    check(by_head, None, inputs(by_head))


@pytest.mark.parametrize("strides", ["contiguous", "tokens first", "odd"])
def test_order_of_the_model(strides: str) -> None:
    """Tensors in the model's order are copied first: one order, one for each pair of heads that
    shares keys, queries alone, keys alone; the second call is a prepared one."""
    one, other = orders.axes(GRID, "WHF"), orders.cubes(GRID, (3, 5, 4))
    pairs = orders.per_head([one, one, other, other])
    mask = masks.window(GRID, (3, 5, 5)) | masks.text(GRID)
    for head_dim, ordered in (
        (128, {"order": one}),
        (80, {"order": pairs, "kv_heads": 2}),
        (64, {"order": one, "key_order": orders.identity(GRID)}),
        (128, {"order": orders.identity(GRID), "key_order": other}),
    ):
        spec = attention(queries=GRID, keys=GRID, heads=4, head_dim=head_dim, mask=mask, **ordered)
        op = operator(spec)
        for seed in (0, 1):
            tensors = inputs(spec, batch=2, seed=seed)
            if strides != "contiguous":
                tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
            if strides == "odd":
                tensors = tuple(torch.nn.functional.pad(x, (0, 8))[..., :head_dim] for x in tensors)
            expected(spec, *tensors, None, block_n=64).check(*op(*tensors))


def test_a_runner_takes_bits_and_leaf_in_turns() -> None:
    """What copies tensors into an order is prepared anew for other tables."""
    spec = attention(
        queries=GRID, keys=GRID, head_dim=64, mask=masks.window(GRID, (3, 5, 5)) | masks.text(GRID),
        order=orders.axes(GRID, "WHF"),
    )  # fmt: skip
    runner = AttentionRunner(AttentionTunable(spec), "cuda", codecache.load)
    runner.prepare("random", 0)
    by = {kind: configs(spec, (kind,))[0] for kind in ("bits", "leaf")}
    for _ in range(3):
        for kind, config in by.items():
            runner.poison()
            runner.run(config.to_json())
            assert runner.check().right, kind


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_bits_of_many_partial_blocks(head_dim: int) -> None:
    """Windows of a video by head, each with an order of its own, ragged: nearly all blocks are
    partial; a second call, another batch size, torch.compile and gradients have them too."""
    pair = [orders.axes(GRID, "WHF"), orders.cubes(GRID, (3, 5, 4))]
    mask = masks.per_head([masks.window(GRID, (3, 5, 5)) | masks.text(GRID), masks.causal()])
    for ordered in ({}, {"order": orders.per_head(pair)}):
        spec = attention(queries=GRID, keys=GRID, head_dim=head_dim, mask=mask, **ordered)
        op = operator(spec)
        assert op.config["masks"] == "bits"
        for batch in (1, 1, 2):
            tensors = inputs(spec, batch=batch)
            expected(spec, *tensors, None, block_n=64).check(*op(*tensors))
        compiled = torch.compile(lambda q, k, v, op=op: op(q, k, v), fullgraph=True)
        assert all(map(torch.equal, compiled(*tensors), op(*tensors)))
        leaves = [x.requires_grad_() for x in tensors]
        dout = torch.randn_like(tensors[0])
        found = torch.autograd.grad(op(*leaves)[0], leaves, dout)
        expected_gradients(spec, *(x.detach() for x in tensors), dout).check(*found)


@pytest.mark.parametrize("mask", ["causal", "window"])
def test_a_compiled_call_has_the_same_bits(mask: str) -> None:
    """Whichever way it comes to the launch: a first one, a ready one, one inside torch.compile."""
    made = {"causal": masks.causal(), "window": masks.window(GRID, (3, 5, 5)) | masks.text(GRID)}
    spec = attention(queries=GRID, keys=GRID, mask=made[mask])
    op, tensors = operator(spec), inputs(spec, batch=2)
    first, ready = op(*tensors), op(*tensors)
    compiled = torch.compile(lambda q, k, v: op(q, k, v), fullgraph=True)(*tensors)
    differ = {
        name: [int((x != y).sum()) for x, y in zip(first, found, strict=True)]
        for name, found in {"ready": ready, "compiled": compiled, "again": op(*tensors)}.items()
    }
    assert differ == {name: [0, 0] for name in differ}


def test_tables_of_the_call() -> None:
    """Document ids and a block map that come with the call."""
    mask = masks.same(Table("doc", 600, "int32", 0, 9)) & masks.causal()
    spec = attention(600, mask=mask)
    doc = np.sort(np.random.default_rng(0).integers(0, 5, 600)).astype(np.int32)
    check(spec, None, inputs(spec), {"doc": doc})
    mapped = attention(1000, mask=masks.blocks("plan"))
    kept = np.random.default_rng(1).random((2, 8, 8)) < 0.4
    check(mapped, None, inputs(mapped), {"plan": kept.astype(np.uint8)})


def test_repeats_are_bit_identical() -> None:
    """Whichever program takes a tile, its bits are the same: 100 calls, two streams at once."""
    spec = attention(4000, heads=16, mask=masks.causal())
    op, tensors = operator(spec), inputs(spec)
    out, lse = op(*tensors)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(op(*tensors))
        torch.cuda.synchronize()
        for again, again_lse in found:
            assert torch.equal(out, again)
            assert torch.equal(lse, again_lse)


def test_replay_of_a_graph() -> None:
    """A captured call computes anew from what its inputs hold, again and again, also beside calls
    outside of the graph."""
    spec = attention(3000, heads=8, mask=masks.causal())
    op, tensors = operator(spec), inputs(spec)
    op(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = op(*tensors)
    for seed in range(5):
        for x, new in zip(tensors, inputs(spec, seed=seed), strict=True):
            x.copy_(new)
        out.fill_(float("nan"))
        for _ in range(3):
            graph.replay()
        wanted, wanted_lse = op(*tensors)
        torch.cuda.synchronize()
        assert torch.equal(out, wanted)
        assert torch.equal(lse, wanted_lse)


def test_tensors_that_tma_cannot_fetch() -> None:
    """Odd strides and expanded heads are computed by the portable template."""
    spec = attention(300)
    op = operator(spec)
    q, k, v = inputs(spec)
    odd = torch.zeros((1, 2, 300, 131), dtype=q.dtype, device="cuda")[..., 2:130].copy_(q)
    spread = k[:, :1].expand(-1, 2, -1, -1)
    out, lse = op(odd, spread, v)
    expected(spec, q, spread, v, block_n=64).check(out, lse)


def test_offsets_beyond_32_bits() -> None:
    """Four items of 48 heads of 131,072 tokens: 3.2e9 elements a tensor."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        pytest.skip("needs 40 GB of memory")
    spec = Attention(tokens=131072, heads=48, head_dim=128, mask=masks.window(300), return_lse=True)
    tunable = AttentionTunable(spec, batch=4, templates=("hopper",))
    runner = tunable.make_runner("cuda", codecache.load)
    runner.prepare("random", 0)
    runner.poison()
    runner.run(tunable.default(H100))
    result = runner.check()
    assert result.right, result
