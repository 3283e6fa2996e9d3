"""The module as users have it: kdsl's kernels on the ranks' shares, whole masks, new tables, the
page about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import kdsl
from kdsl import Grid, masks, orders
from kdsl.errors import UnsupportedError
from kdsl.parallel import families
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.module import SparseSequenceParallel
from kdsl.parallel.work import BlockWork
from kdsl.runtime.merge import merge
from tests.parallel.ranks import together
from tests.parallel.test_plans import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
GRID = Grid(frames=4, height=6, width=5, text=7)
HEADS, KV_HEADS = 4, 2
MASK = masks.window(GRID, (3, 3, 3)) | masks.text(GRID)


def spec_of(order: Any = None, mask: masks.Mask = MASK, **options: Any) -> kdsl.Attention:
    """A clip of 127 tokens in blocks of 16, so that the last one is ragged."""
    said = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": 64, "dtype": "float32"} | options
    return kdsl.Attention(
        tokens=GRID, mask=mask, order=order, block=(16, 16), return_lse=True, **said
    )


def drawn(dtype: type = np.float32) -> list[np.ndarray]:
    """q, k, v of two items."""
    rng, sizes = np.random.default_rng(0), (HEADS, KV_HEADS, KV_HEADS)
    return [rng.standard_normal((2, h, GRID.tokens, 64)).astype(dtype) for h in sizes]


def off(module: SparseSequenceParallel, tables: dict[str, np.ndarray] | None = None) -> float:
    """Largest error of this rank's output and log-sum-exp."""
    given = drawn(np.float16 if module.spec.dtype == "float16" else np.float32)
    truth, log = kdsl.build(module.spec, backend="reference").reference(*given, tables=tables)
    at = module.home.tokens_of(module.channel.rank)
    out, lse = module(*(torch.from_numpy(x[:, :, at]) for x in given))
    found, wanted = lse.numpy(), log[:, :, at]
    nothing = np.isneginf(wanted)
    assert (np.isneginf(found) == nothing).all()
    errors = out.float().numpy() - truth[:, :, at], found[~nothing] - wanted[~nothing]
    return float(np.max([np.abs(e).max(initial=0) for e in errors]))  # NaN stays


def each_family(rank: int, world: int) -> None:
    """Masks that cut blocks, in three stored orders, by every family and by the chosen plan."""
    by_head = [orders.axes(GRID, "HWF")] * 2 + [orders.axes(GRID, "WHF")] * 2
    varied = [masks.window(GRID, (3, 3, 3)), masks.causal(), masks.frame_band(GRID, 1), MASK]
    for order, mask in ((None, varied), (orders.axes(GRID, "HWF"), MASK), (by_head, MASK)):
        spec = spec_of(order, mask)
        work = BlockWork.of(spec.rows(), HEADS, KV_HEADS)
        assert work.blocks is not None
        assert work.blocks.partial.any()
        part = kdsl.Partition(attention=spec, world=world, replicated_text=True)
        module = SparseSequenceParallel(part, device="cpu", backend="reference", timeout_s=30)
        # The kernel is exact but for two roundings of its results to float32; a ring rounds each
        # part, and its float32 merge some ten times more (values and log-sum-exps stay below 8).
        limit = 16 * np.finfo(np.float32).eps * 8
        assert off(module) < limit
        for make in FAMILIES.values():
            module.replan(plan=make(work, Mesh(1, world)))
            assert off(module) < limit, module.plan.family


def test_every_family_with_our_kernels() -> None:
    """Element masks (one a head, one for all), three stored orders, grouped keys, a ragged block,
    text on all ranks: kdsl's operators on the ranks' shares give what the whole spec means."""
    assert together(3, each_family, 3) == [""] * 3


def new_tables(rank: int) -> None:
    """A block plan that changes between steps, and what is refused."""
    spec = spec_of(mask=masks.blocks("plan", block=(16, 16)) & masks.causal())
    rng, module = np.random.default_rng(1), None
    for step in range(3):
        tables = {"plan": (rng.random((HEADS, 8, 8)) < 0.2 + 0.3 * step).astype(np.uint8)}
        if module is None:
            module = SparseSequenceParallel(
                spec, tables=tables, device="cpu", backend="reference", timeout_s=30
            )
        else:
            module.replan(tables)
        assert off(module, tables) < 16 * np.finfo(np.float32).eps * 8
    assert module is not None
    here = len(module.home.tokens_of(rank))
    asked = [torch.zeros(1, h, here, 64, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS)]
    work = BlockWork.of(spec.rows(tables), HEADS, KV_HEADS)
    module.replan(tables, FAMILIES["ring"](work, Mesh(1, 2)))
    with pytest.raises(UnsupportedError, match="around a ring"):
        module(*asked)
    with torch.no_grad():
        module(*asked)


def test_plans_of_new_tables() -> None:
    """Values of an open table are replaced from step to step; gradients around a ring are refused,
    calls without them are not."""
    assert together(2, new_tables) == ["", ""]


def gradients(rank: int, world: int) -> None:
    """Of output and log-sum-exp, by every family without a ring, and as chosen."""
    spec = spec_of()
    work = BlockWork.of(spec.rows(), HEADS, KV_HEADS)
    part = kdsl.Partition(attention=spec, world=world, replicated_text=True)
    module = SparseSequenceParallel(
        part, device="cpu", backend="reference", timeout_s=30, gradients=True
    )
    assert module.plan.delivery != "ring"
    at, text = module.home.tokens_of(rank), GRID.text
    given = [torch.from_numpy(x) for x in drawn()]
    rng = np.random.default_rng(5)
    weight = torch.from_numpy(rng.standard_normal((2, HEADS, GRID.tokens, 64)).astype(np.float32))
    more = torch.from_numpy(rng.standard_normal((2, HEADS, GRID.tokens)).astype(np.float32))
    whole = [x.clone().requires_grad_() for x in given]
    out, lse = kdsl.build(spec, backend="reference")(*whole)
    # Each rank weighs its own copy of the text, so the text counts once a rank.
    times = torch.ones(GRID.tokens)
    times[:text] = world
    ((out * weight * times[:, None]).sum() + (lse * more * times).sum()).backward()
    plans = {name: make(work, Mesh(1, world)) for name, make in FAMILIES.items()}
    plans["idle rank"] = families.ulysses(work, world, owner=np.array([0, 0, 1, 1]))
    for name, plan in [("chosen", None), *plans.items()]:
        if plan is not None:
            if plan.delivery == "ring":
                continue
            module.replan(plan=plan)
        own = [x[:, :, at].clone().requires_grad_() for x in given]
        out, lse = module(*own)
        ((out * weight[:, :, at]).sum() + (lse * more[:, :, at]).sum()).backward()
        for mine, truth in zip(own, whole, strict=True):
            assert mine.grad is not None
            assert truth.grad is not None
            found, wanted = mine.grad, truth.grad[:, :, at]
            summed = found[:, :, :text].contiguous()
            dist.all_reduce(summed)
            found[:, :, :text] = summed
            # Parts are float32, made from results rounded to float32; at most `world` are added,
            # and a key's head has two query heads.
            limit = 16 * np.finfo(np.float32).eps * float(truth.grad.abs().max())
            off_by = float((found - wanted).abs().max())
            assert off_by < limit, (name, off_by / limit)


def test_gradients_of_every_family() -> None:
    """dQ, dK and dV of each rank's tokens are those of attention in one place: keys that several
    ranks used add up, text that lives everywhere has its parts on the ranks, idle ranks join in."""
    assert together(3, gradients, 3) == [""] * 3


def interpreted(rank: int) -> None:
    """Needed keys and a ring, by the generated kernel."""
    spec = spec_of(mask=MASK, dtype="float16")
    work = BlockWork.of(spec.rows(), HEADS, KV_HEADS)
    for family in ("rows needed", "ring"):
        module = SparseSequenceParallel(
            spec,
            plan=FAMILIES[family](work, Mesh(1, 2)),
            device="cpu",
            backend="triton",
            timeout_s=120,
        )
        # Weights and results are rounded to float16 (2**-11 each), parts of a ring once more.
        assert off(module) < 4 * 2**-11 * 4, family
    spec = spec_of(mask=masks.blocks("plan", block=(16, 16)), dtype="float16")
    tables = {"plan": (np.random.default_rng(2).random((HEADS, 8, 8)) < 0.5).astype(np.uint8)}
    module, sources = None, set()
    for make in (FAMILIES["split"], FAMILIES["rows needed"], FAMILIES["ring"]):
        work = BlockWork.of(spec.rows(tables), HEADS, KV_HEADS)
        plan = make(work, Mesh(1, 2))
        if module is None:
            module = SparseSequenceParallel(
                spec, plan=plan, tables=tables, device="cpu", backend="triton", timeout_s=120
            )
        else:
            module.replan(tables, plan)
        assert off(module, tables) < 4 * 2**-11 * 4, plan.family
        kernels = (k for step in module.execution.kernels for k in step if k is not None)
        sources |= {kernel.source for kernel in kernels}  # type: ignore[attr-defined]
    assert len(sources) <= 2  # with and without grouped heads: no size is in them


def test_the_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable kernel, interpreted, computes the shares of two ranks; where the mask cuts no
    block, one generated kernel serves the shares of every plan and size, the ragged end too."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert together(2, interpreted, limit_s=120) == ["", ""]


def test_parts_are_merged_safely() -> None:
    """Minus infinity on either side or both gives the other part or nothing, never NaN; otherwise
    the merge is one softmax over all keys, within float64's roundings."""
    rng = np.random.default_rng(0)
    score, v = torch.from_numpy(rng.normal(0, 30, (64, 40))), torch.from_numpy(rng.random((40, 5)))
    score[:16, :20] = score[8:24, 20:] = -torch.inf
    parts = []
    for cut in (slice(0, 20), slice(20, 40), slice(0, 40)):
        lse = score[:, cut].logsumexp(-1)
        weight = torch.exp(score[:, cut] - torch.where(lse == -torch.inf, 0.0, lse)[:, None])
        parts.append((weight @ v[cut], lse))
    out, lse = merge(*parts[0], *parts[1])
    assert (out - parts[2][0]).abs().max() < 1e-13
    assert torch.equal(torch.isneginf(lse), torch.isneginf(parts[2][1]))
    assert (lse - parts[2][1])[24:].abs().max() < 1e-12
    assert (out[8:16] == 0).all()


def test_the_page_runs(tmp_path: Path) -> None:
    """The code of docs/parallel.md under torchrun with three processes."""
    page = (ROOT / "docs" / "parallel.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*run, "--nproc-per-node", "3", str(tmp_path / "example.py")],
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1",
             "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SparseSequenceParallel(") == 3
