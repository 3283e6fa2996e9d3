"""Gradients of queries: alone, without adding in memory, or from sums that the keys' kernel made.

A program of `attention_backward_queries` has 128 queries, 64 a warpgroup, and walks the key blocks
that they visit, as the forward does: dQ += dS K, where dS never leaves registers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.backward.choices import (
    cut,
    flat_layout,
    fresh,
    unflattened,
)
from kdsl.kernels.attention.hopper.backward.weights import (
    add,
    against,
    fetch,
    hide_pairs,
    operands,
    power,
)
from kdsl.kernels.attention.hopper.choices import advance, stored_layout
from kdsl.kernels.attention.hopper.leaves import tile_facts

# --- template ---


@gluon.jit
def query_tile(lists, sizes, C: gl.constexpr):
    """Batch item, head, row of blocks, first query of this program's tile; its list's first entry,
    full steps and steps."""
    SPLIT: gl.constexpr = C.MASK_OWN // C.OWN
    heads, rows = sizes[0], sizes[1]
    pid = gl.program_id(0)
    tile = gl.load(lists[4] + pid // SPLIT % (heads * rows))
    batch = pid // (SPLIT * heads * rows)
    head, row = tile // rows, tile % rows
    entry = batch.to(gl.int64) * sizes[4] + head.to(gl.int64) * sizes[5] + row
    n_full = gl.load(lists[1] + entry)
    n = n_full + gl.load(lists[2] + entry)
    at = row * C.MASK_OWN + pid % SPLIT * C.OWN
    return batch, head, row, at, gl.load(lists[0] + entry), n_full * C.SPLIT, n * C.SPLIT


@gluon.jit
def query_producer(tensors, buffers, barriers, lists, tables, sizes, scale, log2, C: gl.constexpr):
    """The warp that loads."""
    q_buf, q_more, do_buf, do_more, k_buf, k_more, v_buf, v_more = buffers
    own_full, full, empty = barriers
    tile = query_tile(lists, sizes, C)
    batch, head, q_at, first, n = tile[0], tile[1], tile[3], tile[4], tile[6]
    mbarrier.expect(own_full, 2 * C.OWN * C.ROW_BYTES)
    CONSUMERS: gl.constexpr = C.CONSUMERS
    for wg in gl.static_range(CONSUMERS):
        at = q_at + wg * 64
        fetch(tensors[0], tensors[1], batch, head, at, own_full, q_buf.index(wg),
              q_more.index(wg), C)  # fmt: skip
        fetch(tensors[6], tensors[7], batch, head, at, own_full, do_buf.index(wg),
              do_more.index(wg), C)  # fmt: skip
    ki = 0
    kp = 1
    kv_head = head // C.GROUP
    for i in range(n):
        column = gl.load(lists[3] + first + i // C.SPLIT)
        k_at = column * C.MASK_STEP + i % C.SPLIT * C.STEP
        mbarrier.wait(empty.index(ki), kp)
        bar = full.index(ki)
        mbarrier.expect(bar, 2 * C.STEP * C.ROW_BYTES)
        fetch(tensors[2], tensors[3], batch, kv_head, k_at, bar, k_buf.index(ki),
              k_more.index(ki), C)  # fmt: skip
        fetch(tensors[4], tensors[5], batch, kv_head, k_at, bar, v_buf.index(ki),
              v_more.index(ki), C)  # fmt: skip
        ki, kp = advance(ki, kp, C.STAGES)


@gluon.jit
def query_steps(
    lo, hi, dq, dq_more, ring, level, delta, place, WG: gl.constexpr, MASKED: gl.constexpr,
    buffers, barriers, lists, tables, sizes, log2, C: gl.constexpr,
):  # fmt: skip
    """What steps lo to hi add."""
    q_buf, q_more, do_buf, do_more, k_buf, k_more, v_buf, v_more = buffers
    full, empty = barriers[1], barriers[2]
    batch, head, row, q_at, first = place
    ki, kp = ring
    PARTS: gl.constexpr = 2 if C.D1 else 1
    for i in range(lo, hi):
        if MASKED:
            # Looked up while the step's tiles are on their way.
            column = gl.load(lists[3] + first + i // C.SPLIT)
            known = tile_facts(row, column, head, batch, tables)
        mbarrier.wait(full.index(ki), kp)
        own = fresh(WG, i)
        zero = gl.full([64, C.STEP], 0.0, gl.float32, C.SCORES)
        s_run = against(
            q_buf.index(own), q_more.index(own), k_buf.index(ki), k_more.index(ki), zero, False, C
        )
        if MASKED:
            # Registers of dP are free for the mask meanwhile.
            s = warpgroup_mma_wait(0, [s_run])
            k_at = column * C.MASK_STEP + i % C.SPLIT * C.STEP
            s = hide_pairs(
                s, q_at + WG * 64, k_at, row, column, known, head, batch, tables, sizes, False, C
            )
        dp_run = against(
            do_buf.index(own), do_more.index(own), v_buf.index(ki), v_more.index(ki), zero,
            False, C,
        )  # fmt: skip
        if not MASKED:
            s = warpgroup_mma_wait(PARTS, [s_run])
        p = power(s * log2 - gl.expand_dims(level, 1))
        # The spin keeps ptxas from moving the wait below above the exponentials.
        mbarrier.wait(full.index(ki), kp)
        dp = warpgroup_mma_wait(0, [dp_run])
        slope = operands((p * (dp - gl.expand_dims(delta, 1))).to(k_buf.dtype), C)
        dq_run, dq_run_more = add(slope, k_buf.index(ki), k_more.index(ki), dq, dq_more, C)
        if C.D1:
            dq, dq_more = warpgroup_mma_wait(0, [dq_run, dq_run_more])
        else:
            dq = warpgroup_mma_wait(0, [dq_run])
        mbarrier.arrive(empty.index(ki), count=1)
        ki, kp = advance(ki, kp, C.STAGES)
    return dq, dq_more, (ki, kp)


@gluon.jit
def query_consumer(
    WG: gl.constexpr, tensors, buffers, barriers, lists, tables, sizes, scale, log2,
    C: gl.constexpr,
):  # fmt: skip
    """A warpgroup that computes the gradients of 64 queries."""
    batch, head, row, q_at, first, n_full, n = query_tile(lists, sizes, C)
    qs = q_at + WG * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, C.SCORES))
    line = (batch * sizes[0] + head).to(gl.int64) * sizes[2]
    inside = qs < sizes[2]
    level = gl.load(tensors[10] + line + qs, mask=inside, other=float("inf"))
    delta = gl.load(tensors[11] + line + qs, mask=inside, other=0.0)
    dq = gl.full([64, C.D0], 0.0, gl.float32, C.HEAD)
    dq_more = gl.full([64, C.TAIL.instr_shape[1]], 0.0, gl.float32, C.TAIL)
    place = (batch, head, row, q_at, first)
    mbarrier.wait(barriers[0], 0)
    dq, dq_more, ring = query_steps(
        0, n_full, dq, dq_more, (0, 0), level, delta, place, WG, False,
        buffers, barriers, lists, tables, sizes, log2, C,
    )  # fmt: skip
    dq, dq_more, ring = query_steps(
        n_full, n, dq, dq_more, ring, level, delta, place, WG, True,
        buffers, barriers, lists, tables, sizes, log2, C,
    )  # fmt: skip
    # A query that sees nothing has gradient 0, also beside values that are not finite.
    nothing = level == float("inf")
    out, out_more = buffers[0].index(WG), buffers[1].index(WG)
    none = gl.expand_dims(gl.convert_layout(nothing, gl.SliceLayout(1, C.HEAD)), 1)
    out.reshape([64, C.D0]).store(gl.where(none, 0.0, dq * scale).to(out.dtype))
    if C.D1:
        none = gl.expand_dims(gl.convert_layout(nothing, gl.SliceLayout(1, C.TAIL)), 1)
        out_more.reshape([64, C.D1]).store(gl.where(none, 0.0, dq_more * scale).to(out.dtype))
    fence_async_shared()
    # Rows past the end stay out.
    at = q_at + WG * 64
    tma.async_copy_shared_to_global(tensors[8], [batch, head, at, 0], out)
    if C.D1:
        tma.async_copy_shared_to_global(tensors[9], [batch, head, at, C.D0], out_more)
    tma.store_wait(0)


@gluon.jit
def attention_backward_queries(
    q, k, v, do, dq, level, delta,
    q_tail, k_tail, v_tail, do_tail, dq_tail,
    start, full, partial, index, tiles, tables,
    list_b, list_h, heads, rows, queries, keys, scale, scale_log2,
    GROUP: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    MASK_OWN: gl.constexpr, MASK_STEP: gl.constexpr, STEP: gl.constexpr,
    CONSUMERS: gl.constexpr, STAGES: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch with ``batch * heads * rows * (MASK_OWN // (64 * CONSUMERS))`` programs.

    q, k, v, do, dq are descriptors over [batch, heads, tokens, head_dim] with tiles of D0 columns
    (the tails: of D1), level and delta float32 [batch, heads, queries]; lists as the forward's.
    """
    C: gl.constexpr = cut(
        D0, D1, GROUP, MASK_OWN, MASK_STEP, STEP, CONSUMERS, STAGES, False
    )  # fmt: skip
    q_buf = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, 64, D0], q.layout)
    do_buf = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, 64, D0], do.layout)
    k_buf = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, STEP, D0], k.layout)
    v_buf = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, STEP, D0], v.layout)
    if D1:
        q_more = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, 64, D1], q_tail.layout)
        do_more = gl.allocate_shared_memory(q.dtype, [CONSUMERS, 1, 1, 64, D1], do_tail.layout)
        k_more = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, STEP, D1], k_tail.layout)
        v_more = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, STEP, D1], v_tail.layout)
    else:
        q_more, do_more, k_more, v_more = q_buf, do_buf, k_buf, v_buf
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    step_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    step_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(step_full.index(i), count=1)
        mbarrier.init(step_empty.index(i), count=CONSUMERS)
    fence_async_shared()
    tensors = (q, q_tail, k, k_tail, v, v_tail, do, do_tail, dq, dq_tail, level, delta)
    buffers = (q_buf, q_more, do_buf, do_more, k_buf, k_more, v_buf, v_more)
    barriers = (own_full, step_full, step_empty)
    lists = (start, full, partial, index, tiles)
    sizes = (heads, rows, queries, keys, list_b, list_h)
    gl.warp_specialize(
        [
            (
                query_consumer,
                (0, tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
            (
                query_consumer,
                (1, tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
            (
                query_producer,
                (tensors, buffers, barriers, lists, tables, sizes, scale, scale_log2, C),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def settle_piece(sums, at, dq, level, scale, queries, dq_n, AT: gl.constexpr, WIDTH: gl.constexpr):
    """64 queries of some columns: from where `spread_half` added them to rows of the dtype."""
    FLAT: gl.constexpr = flat_layout(WIDTH)
    L: gl.constexpr = stored_layout(WIDTH)
    x = unflattened(gl.load(sums + gl.arange(0, 64 * WIDTH, layout=FLAT)), WIDTH)
    x = gl.convert_layout((x * scale).to(dq.dtype.element_ty), L)
    qs = at + gl.arange(0, 64, layout=gl.SliceLayout(1, L))
    inside = qs < queries
    # A query that sees nothing has gradient 0, also beside values that are not finite.
    nothing = gl.load(level + qs, mask=inside, other=0.0) == float("inf")
    x = gl.where(gl.expand_dims(nothing, 1), 0.0, x)
    columns = AT + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, L))
    to = dq + gl.expand_dims(qs.to(gl.int64) * dq_n, 1)
    gl.store(to + gl.expand_dims(columns, 0), x, mask=gl.expand_dims(inside, 1))


@gluon.jit
def attention_backward_settle(
    sums, level, dq, dq_b, dq_h, dq_n, heads, queries, steps, scale,
    D0: gl.constexpr, D1: gl.constexpr, STEP: gl.constexpr,
):  # fmt: skip
    """dQ of the sums that `attention_backward_keys` made, of a step's queries by each program.

    Launch with ``batch * heads * steps`` programs of four warps; level is [batch, heads, queries].
    """
    pid = gl.program_id(0)
    line = pid // steps
    at = pid % steps * STEP
    sums += pid.to(gl.int64) * (STEP * (D0 + D1))
    level += line.to(gl.int64) * queries
    dq += (line // heads).to(gl.int64) * dq_b + (line % heads).to(gl.int64) * dq_h
    settle_piece(sums, at, dq, level, scale, queries, dq_n, 0, D0)
    if D1:
        settle_piece(sums + 64 * D0, at, dq, level, scale, queries, dq_n, D0, D1)
    else:
        settle_piece(sums + 64 * D0, at + 64, dq, level, scale, queries, dq_n, 0, D0)
