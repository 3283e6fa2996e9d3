"""Gradients of keys and values, and what they add to those of queries, as they go.

A program has 128 keys, 64 a warpgroup, and walks the query blocks that visit them, for all query
heads of their group.  Scores stand transposed, keys by queries, so that weights and their gradients
are register operands of dV += P^T dO and dK += dS^T Q.  With SPREAD the two warpgroups also hand
each other dS through shared memory, and each computes half of dS K and adds it to a float32 sum in
global memory: half of the columns, or of a step's 128 queries.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.backward.choices import (
    accumulator_layout,
    cut,
    flat_layout,
    flattened,
    fresh,
)
from kdsl.kernels.attention.hopper.backward.weights import (
    add,
    against,
    fetch,
    hide_pairs,
    less,
    listed,
    operands,
    power,
)
from kdsl.kernels.attention.hopper.choices import advance, named
from kdsl.kernels.attention.hopper.leaves import tile_facts

# --- template ---


@gluon.constexpr_function
def half_width(c, wg):
    """Columns of a warpgroup's half of dS K."""
    return c.D1 if c.HALVES == 1 and wg == 1 else c.D0


@gluon.jit
def key_tile(lists, sizes, C: gl.constexpr):
    """Batch item, first query head, block of keys, first key of this program's tile."""
    SPLIT: gl.constexpr = C.MASK_OWN // C.OWN
    leads = sizes[0] // C.GROUP
    pid = gl.program_id(0)
    tile = gl.load(lists[4] + pid // SPLIT % (leads * sizes[1]))
    batch = pid // (SPLIT * leads * sizes[1])
    lead, column = tile // sizes[1], tile % sizes[1]
    return batch, lead * C.GROUP, column, column * C.MASK_OWN + pid % SPLIT * C.OWN


@gluon.jit
def key_steps_of(batch, head, column, lists, sizes, C: gl.constexpr):
    """First entry of a head's list, steps without a mask, and steps."""
    entry = batch.to(gl.int64) * sizes[4] + head.to(gl.int64) * sizes[5] + column
    n_full = gl.load(lists[1] + entry)
    n = n_full + gl.load(lists[2] + entry)
    return gl.load(lists[0] + entry), n_full * C.SPLIT, n * C.SPLIT


@gluon.jit
def key_producer(tensors, buffers, barriers, lists, tables, sizes, scale, log2, C: gl.constexpr):
    """The warp that loads."""
    k_buf, k_more, v_buf, v_more, q_buf, q_more, do_buf, do_more, levels, deltas = buffers[:10]
    own_full, full, empty = barriers
    batch, lead, column, k_at = key_tile(lists, sizes, C)
    kv_head = lead // C.GROUP
    mbarrier.expect(own_full, 2 * C.OWN * C.ROW_BYTES)
    CONSUMERS: gl.constexpr = C.CONSUMERS
    for wg in gl.static_range(CONSUMERS):
        at = k_at + wg * 64
        fetch(tensors[2], tensors[3], batch, kv_head, at, own_full, k_buf.index(wg),
              k_more.index(wg), C)  # fmt: skip
        fetch(tensors[4], tensors[5], batch, kv_head, at, own_full, v_buf.index(wg),
              v_more.index(wg), C)  # fmt: skip
    qi = 0
    qp = 1
    for member in range(C.GROUP):
        head = lead + member
        steps = key_steps_of(batch, head, column, lists, sizes, C)
        first, n = steps[0], steps[2]
        line = batch * sizes[0] + head
        row = listed(0, n, first, lists, C)
        for i in range(n):
            at = row * C.MASK_STEP + i % C.SPLIT * C.STEP
            row = listed(i + 1, n, first, lists, C)
            mbarrier.wait(empty.index(qi), qp)
            bar = full.index(qi)
            mbarrier.expect(bar, 2 * C.STEP * (C.ROW_BYTES + 4))
            fetch(tensors[0], tensors[1], batch, head, at, bar, q_buf.index(qi),
                  q_more.index(qi), C)  # fmt: skip
            tma.async_copy_global_to_shared(tensors[12], [line, at], bar, levels.index(qi))
            fetch(tensors[6], tensors[7], batch, head, at, bar, do_buf.index(qi),
                  do_more.index(qi), C)  # fmt: skip
            tma.async_copy_global_to_shared(tensors[13], [line, at], bar, deltas.index(qi))
            qi, qp = advance(qi, qp, C.STAGES)


@gluon.jit
def hand_over(ds, ds_buf, ds_more, di, WG: gl.constexpr, C: gl.constexpr):
    """Gradients of scores [64 keys, STEP queries] to where both warpgroups read them."""
    at = di * C.CONSUMERS + WG
    if C.HALVES == 1:
        ds_buf.index(at).store(ds)
    else:
        low, high = ds.reshape([64, 2, 64]).permute([0, 2, 1]).split()
        ds_buf.index(at).store(low)
        ds_more.index(at).store(high)
    fence_async_shared()


@gluon.jit
def query_half(ds_buf, ds_more, di, k_buf, k_more, first, WG: gl.constexpr, C: gl.constexpr):
    """A warpgroup's half of dS K for 64 queries, started: one product for each 64 keys."""
    WIDTH: gl.constexpr = half_width(C, WG)
    L: gl.constexpr = accumulator_layout(WIDTH)
    dq = gl.full([64, WIDTH], 0.0, gl.float32, L)
    if C.HALVES == 1 and WG == 1:
        keys = k_more
    else:
        keys = k_buf
    if C.HALVES == 2 and WG == 1:
        pieces = ds_more
    else:
        pieces = ds_buf
    CONSUMERS: gl.constexpr = C.CONSUMERS
    for wg in gl.static_range(CONSUMERS):
        piece = pieces.index(di * C.CONSUMERS + wg).permute([1, 0])
        dq = warpgroup_mma(
            piece, keys.index(first + wg).reshape([64, WIDTH]), dq, use_acc=wg > 0, is_async=True
        )
    return dq


@gluon.jit
def spread_half(dq, sums, line, at, sizes, WG: gl.constexpr, C: gl.constexpr):
    """Add a warpgroup's half of dS K to the sums of its queries: 16 bytes an instruction a thread.

    Sums lie as the product's registers do (`flat_layout`), step by step, half by half.
    """
    WIDTH: gl.constexpr = half_width(C, WG)
    L: gl.constexpr = flat_layout(WIDTH)
    D: gl.constexpr = C.D0 + C.D1
    start = (line.to(gl.int64) * sizes[6] + at // C.STEP) * (C.STEP * D) + WG * 64 * C.D0
    to = (sums + start) + gl.arange(0, 64 * WIDTH, layout=L)
    gl.inline_asm_elementwise(
        "red.relaxed.gpu.global.add.v4.f32 [$4], {$8, $9, $10, $11};",
        "=r,=r,=r,=r,l,l,l,l,f,f,f,f", [to.to(gl.int64), flattened(dq, WIDTH)],
        dtype=gl.int32, is_pure=False, pack=4,
    )  # fmt: skip


@gluon.jit
def key_steps(
    lo, hi, n, first, dk, dk_more, dv, dv_more, ring, place, WG: gl.constexpr, MASKED: gl.constexpr,
    tensors, buffers, barriers, lists, tables, sizes, log2, C: gl.constexpr,
):  # fmt: skip
    """What steps lo to hi of a head's queries add."""
    k_buf, k_more, v_buf, v_more, q_buf, q_more, do_buf, do_more, levels, deltas = buffers[:10]
    ds_buf, ds_more = buffers[10], buffers[11]
    _, full, empty = barriers
    batch, head, column, k_at = place
    qi, qp, di = ring
    PARTS: gl.constexpr = 2 if C.D1 else 1
    for i in range(lo, hi):
        # Looked up while the step's tiles are on their way.
        if MASKED or C.SPREAD:
            row = gl.load(lists[3] + first + i // C.SPLIT)
            at = row * C.MASK_STEP + i % C.SPLIT * C.STEP
        if MASKED:
            known = tile_facts(row, column, head, batch, tables)
        mbarrier.wait(full.index(qi), qp)
        own = fresh(WG, i)
        zero = gl.full([64, C.STEP], 0.0, gl.float32, C.SCORES)
        if not MASKED:
            delta = deltas.index(qi).reshape([C.STEP]).load(gl.SliceLayout(0, C.SCORES))
            below = less(delta, zero)
        s_run = against(
            k_buf.index(own), k_more.index(own), q_buf.index(qi), q_more.index(qi), zero, False, C
        )
        if MASKED:
            # Registers of dP are free for the mask meanwhile.
            s = warpgroup_mma_wait(0, [s_run])
            s = hide_pairs(
                s, at, k_at + WG * 64, row, column, known, head, batch, tables, sizes, True, C
            )
            delta = deltas.index(qi).reshape([C.STEP]).load(gl.SliceLayout(0, C.SCORES))
            below = less(delta, zero)
        dp_run = against(
            v_buf.index(own), v_more.index(own), do_buf.index(qi), do_more.index(qi), below, True, C
        )
        if not MASKED:
            s = warpgroup_mma_wait(PARTS, [s_run])
        level = levels.index(qi).reshape([C.STEP]).load(gl.SliceLayout(0, C.SCORES))
        p = power(s * log2 - gl.expand_dims(level, 0))
        # The spin keeps ptxas from moving the wait below above the exponentials.
        mbarrier.wait(full.index(qi), qp)
        dp = warpgroup_mma_wait(0, [dp_run])
        ds = (p * dp).to(q_buf.dtype)
        # Operands are made while no product runs: ptxas would serialise the products.
        weight = operands(p.to(q_buf.dtype), C)
        slope = operands(ds, C)
        if C.SPREAD:
            hand_over(ds, ds_buf, ds_more, di, WG, C)
        dv_run, dv_run_more = add(weight, do_buf.index(qi), do_more.index(qi), dv, dv_more, C)
        if C.SPREAD:
            named("sync", 8, 256, i)
            dq_run = query_half(ds_buf, ds_more, di, k_buf, k_more, fresh(0, i), WG, C)
        dk_run, dk_run_more = add(slope, q_buf.index(qi), q_more.index(qi), dk, dk_more, C)
        if C.SPREAD:
            dq = warpgroup_mma_wait(PARTS, [dq_run])
            spread_half(dq, tensors[14], batch * sizes[0] + head, at, sizes, WG, C)
        if C.D1:
            dk, dk_more, dv, dv_more = warpgroup_mma_wait(
                0, [dk_run, dk_run_more, dv_run, dv_run_more]
            )
        else:
            dk, dv = warpgroup_mma_wait(0, [dk_run, dv_run])
        mbarrier.arrive(empty.index(qi), count=1)
        qi, qp = advance(qi, qp, C.STAGES)
        di = di ^ 1
    return dk, dk_more, dv, dv_more, (qi, qp, di)


@gluon.jit
def key_consumer(
    WG: gl.constexpr, tensors, buffers, barriers, lists, tables, sizes, scale, log2,
    C: gl.constexpr,
):  # fmt: skip
    """A warpgroup that computes the gradients of 64 keys."""
    batch, lead, column, k_at = key_tile(lists, sizes, C)
    dk = gl.full([64, C.D0], 0.0, gl.float32, C.HEAD)
    dv = gl.full([64, C.D0], 0.0, gl.float32, C.HEAD)
    dk_more = gl.full([64, C.TAIL.instr_shape[1]], 0.0, gl.float32, C.TAIL)
    dv_more = gl.full([64, C.TAIL.instr_shape[1]], 0.0, gl.float32, C.TAIL)
    ring = (0, 0, 0)
    mbarrier.wait(barriers[0], 0)
    for member in range(C.GROUP):
        head = lead + member
        first, n_full, n = key_steps_of(batch, head, column, lists, sizes, C)
        # A key past the end has weights too, which need not be finite: all its steps are masked.
        n_full = gl.where(k_at + C.OWN > sizes[3], 0, n_full)
        place = (batch, head, column, k_at)
        dk, dk_more, dv, dv_more, ring = key_steps(
            0, n_full, n, first, dk, dk_more, dv, dv_more, ring, place, WG, False,
            tensors, buffers, barriers, lists, tables, sizes, log2, C,
        )  # fmt: skip
        dk, dk_more, dv, dv_more, ring = key_steps(
            n_full, n, n, first, dk, dk_more, dv, dv_more, ring, place, WG, True,
            tensors, buffers, barriers, lists, tables, sizes, log2, C,
        )  # fmt: skip
    # Looked up again, where it was: it held no registers meanwhile.
    batch, lead, column, k_at = key_tile(lists, sizes, C)
    kv_head = lead // C.GROUP
    at = k_at + WG * 64
    k_out, k_out_more = buffers[0].index(WG), buffers[1].index(WG)
    v_out, v_out_more = buffers[2].index(WG), buffers[3].index(WG)
    v_out.reshape([64, C.D0]).store(dv.to(v_out.dtype))
    if C.D1:
        v_out_more.reshape([64, C.D1]).store(dv_more.to(v_out.dtype))
    if C.SPREAD:
        # The other warpgroup has read these keys for the last time.
        named("sync", 8, 256, at)
    k_out.reshape([64, C.D0]).store((dk * scale).to(k_out.dtype))
    if C.D1:
        k_out_more.reshape([64, C.D1]).store((dk_more * scale).to(k_out.dtype))
    fence_async_shared()
    # Rows past the end stay out.
    tma.async_copy_shared_to_global(tensors[8], [batch, kv_head, at, 0], k_out)
    tma.async_copy_shared_to_global(tensors[10], [batch, kv_head, at, 0], v_out)
    if C.D1:
        tma.async_copy_shared_to_global(tensors[9], [batch, kv_head, at, C.D0], k_out_more)
        tma.async_copy_shared_to_global(tensors[11], [batch, kv_head, at, C.D0], v_out_more)
    tma.store_wait(0)


@gluon.jit
def attention_backward_keys(
    q, k, v, do, dk, dv, level, delta, sums,
    q_tail, k_tail, v_tail, do_tail, dk_tail, dv_tail,
    start, full, partial, index, tiles, tables,
    list_b, list_h, heads, columns, queries, keys, steps, scale, scale_log2,
    GROUP: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    MASK_OWN: gl.constexpr, MASK_STEP: gl.constexpr, STEP: gl.constexpr,
    CONSUMERS: gl.constexpr, STAGES: gl.constexpr, SPREAD: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch with ``batch * (heads // GROUP) * columns * (MASK_OWN // (64 * CONSUMERS))`` programs.

    q, k, v, do, dk, dv are descriptors over [batch, heads, tokens, head_dim] with tiles of D0
    columns (the tails: of D1), level and delta over [batch * heads, queries] with tiles of STEP.
    The lists are by key block and hold query blocks, ``tiles`` orders ``group * columns + column``.
    With SPREAD, ``sums`` is float32 zeros [batch * heads, steps, STEP * head_dim].
    """
    C: gl.constexpr = cut(
        D0, D1, GROUP, MASK_OWN, MASK_STEP, STEP, CONSUMERS, STAGES, SPREAD
    )  # fmt: skip
    k_buf = gl.allocate_shared_memory(k.dtype, [CONSUMERS, 1, 1, 64, D0], k.layout)
    v_buf = gl.allocate_shared_memory(k.dtype, [CONSUMERS, 1, 1, 64, D0], v.layout)
    q_buf = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, STEP, D0], q.layout)
    do_buf = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, STEP, D0], do.layout)
    if D1:
        k_more = gl.allocate_shared_memory(k.dtype, [CONSUMERS, 1, 1, 64, D1], k_tail.layout)
        v_more = gl.allocate_shared_memory(k.dtype, [CONSUMERS, 1, 1, 64, D1], v_tail.layout)
        q_more = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, STEP, D1], q_tail.layout)
        do_more = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, STEP, D1], do_tail.layout)
    else:
        k_more, v_more, q_more, do_more = k_buf, v_buf, q_buf, do_buf
    levels = gl.allocate_shared_memory(gl.float32, [STAGES, 1, STEP], level.layout)
    deltas = gl.allocate_shared_memory(gl.float32, [STAGES, 1, STEP], delta.layout)
    if SPREAD:
        piece: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        ds_buf = gl.allocate_shared_memory(k.dtype, [2 * CONSUMERS, 64, 64], piece)
    else:
        ds_buf = k_buf
    if SPREAD and STEP == 128:
        ds_more = gl.allocate_shared_memory(k.dtype, [2 * CONSUMERS, 64, 64], piece)
    else:
        ds_more = ds_buf
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    step_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    step_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(step_full.index(i), count=1)
        mbarrier.init(step_empty.index(i), count=CONSUMERS)
    fence_async_shared()
    tensors = (
        q, q_tail, k, k_tail, v, v_tail, do, do_tail, dk, dk_tail, dv, dv_tail, level, delta, sums
    )  # fmt: skip
    buffers = (
        k_buf, k_more, v_buf, v_more, q_buf, q_more, do_buf, do_more, levels, deltas, ds_buf,
        ds_more,
    )  # fmt: skip
    barriers = (own_full, step_full, step_empty)
    lists = (start, full, partial, index, tiles)
    sizes = (heads, columns, queries, keys, list_b, list_h, steps)
    gl.warp_specialize(
        [
            (
                key_consumer,
                (0, tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
            (
                key_consumer,
                (1, tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
            (
                key_producer,
                (tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
