"""The Hopper backward on a GPU: against the reference, on poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kdsl import masks
from kdsl.grid import Grid
from kdsl.kernels.attention.backward.tunable import KERNELS, BackwardTunable
from kdsl.kernels.attention.config import HOPPER, Config
from kdsl.kernels.attention.hopper.backward import config as hopper
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.runtime import build
from kdsl.specs import Attention
from kdsl.targets import get
from tests.devices import examples, poisoned_memory
from tests.interpreter.strategies import Case, cases
from tests.tolerance import expected_gradients

torch: Any = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

H100 = get("h100")
BLOCKS = ((128, 128), (256, 128), (128, 256))
EXAMPLES = 4
"""Of each head dimension: kernels are compiled for each, which takes seconds."""
GRID = Grid(frames=3, height=10, width=12, text=9)
NAMES = ("dq", "dk", "dv")


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    """Only on compute capability 9.0."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")


@pytest.fixture(params=[False, True], ids=["at once", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both of what torch's switch chooses; with the second, memory that nobody wrote reads NaN."""
    if not request.param:
        yield False
        return
    with poisoned_memory():
        yield True


def configs(spec: Attention, part: Any) -> list[Config]:
    """Every legal configuration of the template."""
    tunable = BackwardTunable(AttentionTunable(spec, templates=("hopper",)), part)
    made = [
        Config(m, n, 8, stages, "descriptor", "hopper")
        for m in HOPPER["block_m"]
        for n in HOPPER["block_n"]
        for stages in HOPPER["num_stages"]
    ]
    return [c for c in made if tunable.legal(c.to_json(), H100) is None]


def operator(spec: Attention, chosen: dict[str, Config] | None = None) -> Any:
    """The spec's Hopper operator."""
    backward = {part: c.to_json() for part, c in (chosen or {}).items()}
    return build(spec, backend="gluon", backward=backward)


def inputs(spec: Attention, batch: int = 1, seed: int = 0) -> tuple[list[Any], Any]:
    """Gaussian q, k, v that want gradients, and one of the output."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def made(heads: int, tokens: int) -> Any:
        shape = (batch, heads, tokens, spec.head_dim)
        x = torch.randn(shape, generator=generator, device="cuda")
        return x.to(getattr(torch, spec.dtype))

    keys, own = (spec.group_heads, spec.key_grid.tokens), (spec.heads, spec.query_grid.tokens)
    tensors = made(*own), made(*keys), made(*keys)
    return [x.requires_grad_() for x in tensors], made(*own)


def check(op: Any, tensors: Any, dout: Any, tables: Any = None) -> Any:
    """Gradients within the derived bounds; they are returned."""
    found = torch.autograd.grad(op(*tensors, tables=tables), tensors, dout)
    expected_gradients(op.spec, *tensors, dout, tables).check(*found)
    return found


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_gradients_equal_the_reference(head_dim: int) -> None:
    """Any mask, group of heads, block and configuration, at once and apart."""

    @settings(max_examples=examples(EXAMPLES))
    @given(
        case=cases(("bfloat16", "float16"), (head_dim,), BLOCKS, 500, ordered=False),
        data=st.data(),
    )
    def run(case: Case, data: Any) -> None:
        spec = replace(case.spec, tokens=None, return_lse=False)
        picked = {p: data.draw(st.sampled_from(configs(spec, p))) for p in KERNELS}
        note(f"{spec!r}\n{picked}")
        tensors, dout = inputs(spec, case.batch, case.seed)
        op = operator(spec, picked)
        check(op, tensors, dout, case.tables)
        with poisoned_memory():
            check(op, tensors, dout, case.tables)

    run()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_head_dimension(head_dim: int, dtype: str, deterministic: bool) -> None:
    """Full, partial and ragged blocks and grouped heads, in the default configurations."""
    spec = Attention(
        tokens=701, heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, mask=masks.causal()
    )
    check(operator(spec), *inputs(spec, batch=2))


@pytest.mark.parametrize("part", KERNELS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_configuration(head_dim: int, part: Any) -> None:
    """Each legal configuration of each kernel."""
    spec = Attention(tokens=600, heads=2, head_dim=head_dim, mask=masks.causal() | masks.sink(100))
    tensors, dout = inputs(spec)
    wanted = expected_gradients(spec, *tensors, dout)
    for config in configs(spec, part):
        out = operator(spec, {part: config})(*tensors)
        if part == "all":
            wanted.check(*torch.autograd.grad(out, tensors, dout))
        else:
            with poisoned_memory():
                wanted.check(*torch.autograd.grad(out, tensors, dout))


@pytest.mark.parametrize(
    "mask",
    [
        masks.window(GRID, (3, 5, 5)) | masks.text(GRID),
        masks.per_head([masks.causal(), masks.window(GRID, (1, 3, 3))] * 2),
        masks.predicate(lambda q, k: (q // 128 == 1) & (k < 40)),
    ],
    ids=["window", "per head", "most rows empty"],
)
def test_masks(mask: Any, deterministic: bool) -> None:
    """Partial blocks on a ragged grid, heads with masks of their own, queries and keys that nobody
    sees: their gradients are 0."""
    spec = Attention(tokens=GRID, heads=4, kv_heads=1, head_dim=128, mask=mask)
    check(operator(spec), *inputs(spec, batch=2))


def test_strides_and_odd_addresses(deterministic: bool) -> None:
    """Tokens before heads, an expanded gradient, and addresses that TMA cannot fetch from."""
    spec = Attention(tokens=333, heads=2, head_dim=64, mask=masks.causal())
    (q, k, v), dout = inputs(spec)
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    shifted = torch.zeros(k.numel() + 1, dtype=k.dtype, device="cuda")[1:].view(k.shape)
    shifted.copy_(k.detach())
    op = operator(spec)
    for tensors in (turned, [q.detach(), shifted, v.detach()]):
        leaves = [x.requires_grad_() for x in tensors]
        check(op, leaves, dout)
        check(op, leaves, dout[:, :, :1].expand_as(dout))


def test_gradient_of_the_log_sum_exp(deterministic: bool) -> None:
    """It comes in through delta."""
    spec = Attention(tokens=333, heads=2, head_dim=128, mask=masks.causal(), return_lse=True)
    tensors, dout = inputs(spec)
    out, lse = operator(spec)(*tensors)
    dlse = torch.randn_like(lse)
    found = torch.autograd.grad((out, lse), tensors, (dout, dlse))
    expected_gradients(spec, *tensors, dout, dlse=dlse).check(*found)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_same_bits_again(head_dim: int) -> None:
    """Over 100 repeats: all gradients where torch is deterministic, dK and dV always."""
    spec = Attention(tokens=2000, heads=4, kv_heads=2, head_dim=head_dim, mask=masks.causal())
    tensors, dout = inputs(spec)
    out = operator(spec)(*tensors)

    def gradients() -> Any:
        return torch.autograd.grad(out, tensors, dout, retain_graph=True)

    first = gradients()
    assert all(
        torch.equal(a, b)
        for _ in range(100)
        for a, b in zip(gradients()[1:], first[1:], strict=True)
    )
    with poisoned_memory():
        first = gradients()
        for _ in range(100):
            assert all(map(torch.equal, gradients(), first))


def test_graphs(deterministic: bool) -> None:
    """A captured backward, replayed after the inputs changed, starts from sums of zero again."""
    spec = Attention(tokens=700, heads=2, head_dim=128, mask=masks.causal())
    op, (tensors, dout) = operator(spec), inputs(spec)
    torch.autograd.grad(op(*tensors), tensors, dout)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(op(*tensors), tensors, dout)
    for seed in (1, 2):
        fresh, grad = inputs(spec, seed=seed)
        for x, y in zip((*tensors, dout), (*fresh, grad), strict=True):
            x.data.copy_(y)
        graph.replay()
        expected_gradients(spec, *tensors, dout).check(*found)


def test_many_steps_spread_over_one_query_block() -> None:
    """Every key block adds to each query: sums of 16 tiles are complete and none counts twice."""
    spec = Attention(tokens=2048, heads=1, head_dim=64, mask=masks.sink(2048))
    assert hopper.step_of(configs(spec, "all")[0], "all") == 128
    check(operator(spec), *inputs(spec))
