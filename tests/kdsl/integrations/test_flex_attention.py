"""FlexAttention: lists and masks go to torch and come back as they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.blocks import Blocks, from_maps
from kdsl.errors import InputError, SpecError
from kdsl.grid import Grid
from kdsl.integrations import flex_attention as flex
from kdsl.reference.attention import attention
from kdsl.specs import Attention
from tests.kdsl.integrations.rows import assert_same, some_rows
from tests.strategies import Problem, problems

torch = pytest.importorskip("torch")
attention_module = pytest.importorskip("torch.nn.attention.flex_attention")
GRID = Grid(frames=3, height=5, width=7, text=4)


@given(some_rows())
def test_lists_round_trip(rows: Blocks) -> None:
    """Full and partial blocks of every head and batch item survive a BlockMask, and so do the lists
    that its backward reads."""
    made = flex.to_block_mask(rows, lambda b, h, q, k: q >= k)
    assert_same(flex.from_block_mask(made), rows)
    assert tuple(made.seq_lengths) == (rows.queries, rows.keys)
    for kind, kept in (("", rows.kept(full=False)), ("full_", rows.kept(partial=False))):
        dense = attention_module._ordered_to_dense(
            getattr(made, f"{kind}q_num_blocks"), getattr(made, f"{kind}q_indices"), rows.rows
        )
        np.testing.assert_array_equal(dense.numpy() != 0, kept.swapaxes(-1, -2))


def specs() -> list[Attention]:
    """Masks by coordinates, heads, batch, tables and block maps, in orders by head."""
    ids = np.repeat(np.arange(4), 30)[: GRID.tokens].astype(np.int32)
    by_head = orders.per_head([orders.axes(GRID, "HWF"), orders.cubes(GRID, (2, 2, 4))])
    each = masks.per_head([masks.window(GRID, (3, 3, 3)), masks.frame_band(GRID, 1)])
    by_batch = masks.predicate(lambda q, k, batch: (q - k) % 7 >= batch)
    plan = masks.blocks("plan", order=by_head, block=(16, 16)) & masks.same(ids)
    common: dict[str, Any] = {"heads": 2, "head_dim": 64, "dtype": "float32", "block": (16, 16)}
    return [
        Attention(tokens=GRID, mask=masks.everything(), **common),
        Attention(tokens=GRID, mask=masks.causal() & masks.same(ids), **common),
        Attention(tokens=GRID, mask=each | masks.text(GRID), order=by_head, **common),
        Attention(tokens=GRID, mask=by_batch, **common),
        Attention(tokens=GRID, mask=plan, order=by_head, **common),
    ]


def values_of(spec: Attention) -> dict[str, Any]:
    """Values for a map of blocks, where there is one."""
    rng = np.random.default_rng(0)
    return {t.name: rng.integers(0, 2, t.shape).astype(np.uint8) for t in spec.open_tables}


@pytest.mark.parametrize("number", range(5))
def test_agrees_with_create_block_mask(number: int) -> None:
    """`create_block_mask` of a spec's `mask_mod` finds the blocks that our classifier lists.

    Torch pads the ends with what is not seen, so that a whole ragged block is partial there.
    """
    spec = specs()[number]
    tables = values_of(spec)
    mod = flex.mask_mod(spec, tables)
    n = GRID.tokens
    theirs = attention_module.create_block_mask(mod, 2, 2, n, n, device="cpu", BLOCK_SIZE=(16, 16))
    rows = spec.rows(tables, batch=2)
    found = flex.from_block_mask(theirs)
    shape = found.start.shape[:2]
    kept = np.broadcast_to(rows.kept(), (*shape, rows.rows, rows.columns))
    np.testing.assert_array_equal(found.kept(), kept)
    full = np.broadcast_to(rows.kept(partial=False), kept.shape).copy()
    full[:, :, n // 16 :] = full[..., n // 16 :] = False
    np.testing.assert_array_equal(found.kept(partial=False), full)


def test_equals_create_block_mask_to_the_bit() -> None:
    """Where no end is ragged, our BlockMask holds the very tensors of torch's, padding included."""
    spec = Attention(tokens=256, heads=1, head_dim=64, mask=masks.causal(), block=(32, 64))
    mod = flex.mask_mod(spec)
    theirs = attention_module.create_block_mask(
        mod, None, None, 256, 256, device="cpu", BLOCK_SIZE=(32, 64)
    )
    ours = flex.to_block_mask(spec.rows(), mod)
    names = [f"{f}{s}_{x}" for f in ("", "full_") for s in "q" for x in ("num_blocks", "indices")]
    names += [f"{f}kv_{x}" for f in ("", "full_") for x in ("num_blocks", "indices")]
    for name in names:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@given(problems(masks_each=1), st.integers(0, 1), st.integers(0, 1))
def test_masks_read_in_torch(problem: Problem, head: int, batch: int) -> None:
    """Any tree reads in torch as in NumPy, over stored positions, in any order."""
    spec_like = SimpleNamespace(
        element_mask=problem.masks[0].resolve(2, problem.queries.tokens, problem.keys.tokens),
        query_order=problem.query_order,
        kv_order=problem.key_order,
    )
    mod = flex.mask_mod(spec_like, problem.tables)  # type: ignore[arg-type]
    b, h, q, k = (
        torch.tensor(x)
        for x in (
            batch, head, np.arange(problem.queries.tokens)[:, None],
            np.arange(problem.keys.tokens)[None, :],
        )
    )  # fmt: skip
    found = mod(b, h, q, k)
    assert found.dtype == torch.bool
    wanted = problem.truth(problem.masks[0], head, batch)
    np.testing.assert_array_equal(np.broadcast_to(found.numpy(), wanted.shape), wanted)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("number", [1, 2, 4])
def test_flex_attention_computes_the_same(number: int) -> None:
    """FlexAttention with our BlockMask, on tensors in stored order, is our reference."""
    spec = specs()[number]
    tables = values_of(spec)
    rng = np.random.default_rng(number)
    q, k, v = rng.standard_normal((3, 1, 2, GRID.tokens, 64)).astype(np.float32)
    wanted, _ = attention(spec, q, k, v, tables)
    made = flex.to_block_mask(spec.rows(tables), flex.mask_mod(spec, tables))
    order = np.stack([p.index() for p in (spec.query_order.parts * 2)[:2]])[None, :, :, None]
    stored = (torch.tensor(np.take_along_axis(x, order, 2)) for x in (q, k, v))
    out = attention_module.flex_attention(*stored, block_mask=made).numpy()
    found = np.empty_like(out)
    np.put_along_axis(found, order, out, 2)
    # Float32 sums of up to 109 products on either side: a few units of 2**-24 of values below 4.
    np.testing.assert_allclose(found, wanted, atol=4e-6)


def test_whole_blocks_bring_their_map() -> None:
    """Without a mask_mod the BlockMask's own is the map of blocks, so that eager FlexAttention,
    which asks nothing else, sees the same."""
    spec = specs()[1]
    rows = spec.rows()
    with pytest.raises(InputError, match="partial") as error:
        flex.to_block_mask(rows)
    assert 'partial="full"' in error.value.hint
    kept = rows.kept()[0, 0]
    for choice, wanted in (("full", kept), ("drop", rows.kept(partial=False)[0, 0])):
        made = flex.to_block_mask(rows, partial=choice)  # type: ignore[arg-type]
        np.testing.assert_array_equal(flex.from_block_mask(made).kept()[0, 0], wanted)
        dense = attention_module.create_mask(made.mask_mod, 1, 2, GRID.tokens, GRID.tokens, "cpu")
        each = np.kron(wanted, np.ones((16, 16), bool))[: GRID.tokens, : GRID.tokens]
        np.testing.assert_array_equal(dense[0, 1].numpy(), each)


def test_a_mask_mod_becomes_a_mask() -> None:
    """Arithmetic and comparisons are traced; what calls torch is refused with what would work."""
    found = flex.mask_of(lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < 9 + h))
    q = np.arange(40)
    for head in range(2):
        away = q[:, None] - q[None, :]
        np.testing.assert_array_equal(found.dense(q, q, head=head), (away >= 0) & (away < 9 + head))
    ids = torch.zeros(40, dtype=torch.long)
    wrong = [
        lambda b, h, q, k: ids[q] == ids[k],
        lambda b, h, q, k: torch.where(q > k, True, False),
        attention_module.or_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: k < 4),
        lambda b, h, q, k: q,
    ]
    for mod in wrong:
        with pytest.raises(SpecError):
            flex.mask_of(mod)


def test_a_block_mask_as_a_spec() -> None:
    """Two maps and the traced mask_mod say exactly what a BlockMask says, whose full blocks do not
    ask the mask_mod."""
    rng = np.random.default_rng(3)
    kinds = rng.choice(3, (1, 2, 4, 4))
    rows = from_maps(kinds == 1, kinds == 2, (16, 16), 60, 60)
    theirs = flex.to_block_mask(rows, lambda b, h, q, k: (q + k) % 3 == 0)
    read = flex.from_block_mask(theirs)
    mask = masks.blocks("full", block=(16, 16)) | (
        masks.blocks("partial", block=(16, 16)) & flex.mask_of(theirs.mask_mod)
    )
    spec = Attention(tokens=60, heads=2, head_dim=64, mask=mask, block=(16, 16))
    tables = {
        "full": read.kept(partial=False)[0].astype(np.uint8),
        "partial": read.kept(full=False)[0].astype(np.uint8),
    }
    at = np.arange(60)
    for head in range(2):
        dense = spec.element_mask.dense(at, at, head=head, tables=tables, stored=(at, at))
        each = np.kron(kinds[0, head], np.ones((16, 16), int))[:60, :60]
        wanted = (each == 1) | ((each == 2) & ((at[:, None] + at[None, :]) % 3 == 0))
        np.testing.assert_array_equal(dense, wanted)
    assert_same(spec.rows(tables), rows)


def broken(**changes: Any) -> Any:
    """A BlockMask's fields with some of them wrong."""
    good = {
        "seq_lengths": (64, 64),
        "BLOCK_SIZE": (32, 32),
        "kv_num_blocks": torch.tensor([[[1, 2]]]),
        "kv_indices": torch.tensor([[[[0, 1], [0, 1]]]]),
        "full_kv_num_blocks": None,
        "full_kv_indices": None,
    }
    return SimpleNamespace(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_num_blocks": torch.tensor([[[1, 3]]])}, "1 to 3 blocks in a row of 2"),
        ({"kv_num_blocks": torch.tensor([[[-1, 1]]])}, "-1 to 1 blocks"),
        ({"kv_indices": torch.tensor([[[[0, 1], [0, 5]]]])}, "columns 0 to 5"),
        ({"kv_indices": torch.tensor([[[[0, 1], [1, 1]]]])}, "row 1 lists column 1 twice"),
        ({"kv_num_blocks": torch.tensor([[[1.0, 2.0]]])}, "float32"),
        ({"seq_lengths": (96, 64)}, "3 rows"),
        (
            {
                "full_kv_num_blocks": torch.tensor([[[0, 1]]]),
                "full_kv_indices": torch.tensor([[[[0, 1], [1, 0]]]]),
            },
            "row 1 lists column 1 twice",
        ),
    ],
)
def test_broken_lists(changes: dict[str, Any], said: str) -> None:
    """Counts, columns and shapes that cannot be are named; a block in both lists is, too."""
    assert flex.from_block_mask(broken()).counts.tolist() == [[[1, 2]]]
    with pytest.raises(InputError, match=said):
        flex.from_block_mask(broken(**changes))
