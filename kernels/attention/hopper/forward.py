"""Block-sparse attention, forward: the Hopper template (sm_90), in Gluon.

A producer warp fetches Q, K and V by TMA into rings; one or two consumer warpgroups of 64 queries
each compute.  Programs take tiles from a counter, longest first.  Per tile: full blocks, then
partial ones, where the leaf `mask` decides pair by pair, or bits that it made before.  A tile's
first product starts beside the last one of the tile before, whose output leaves through its own Q
buffer.  Scores and sums stay in float32, in units of log2.  With identity leaves the template runs
as it stands; a generated file is its modules in a row, with other leaves.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.bits import keep_seen, known_of, looked_up
from kdsl.kernels.attention.hopper.choices import advance, apart, chosen, named
from kdsl.kernels.attention.hopper.finish import finish
from kdsl.kernels.attention.hopper.producer import producer
from kdsl.kernels.attention.hopper.softmax import exponents, maxima, pack, weigh
from kdsl.kernels.attention.hopper.steps import early_steps, gather, late_steps, operands, scores
from kdsl.kernels.attention.hopper.work import place_of, read_note

# --- template ---


@gluon.jit
def consumer(
    WG: gl.constexpr, tensors, buffers, barriers, lists, tables, sizes, scale, C: gl.constexpr
):
    """A warpgroup that computes 64 queries of each tile."""
    q_buf, q_buf_more, k_buf, k_buf_more, v_buf, v_buf_more, notes = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, note_full, note_empty = barriers
    qi = 0
    qp = 0
    vi = 0
    vp = 0
    tile, n_full, n, first = read_note(notes, note_full, 0, 0)
    at = 1
    phase = 0
    if C.PINGPONG and WG == 1:
        named("arrive", 8, 256, n)
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    if C.PINGPONG:
        named("sync", 8 + WG, 256, n)
    # Under a name of its own: what a loop assigns too is carried round it.
    first_s = scores(q_buf.index(WG), q_buf_more.index(WG), k_buf.index(0), k_buf_more.index(0), C)
    if C.PINGPONG:
        named("arrive", 9 - WG, 256, n)
    s = warpgroup_mma_wait(0, [first_s])
    mbarrier.arrive(k_empty.index(0), count=1)
    ki, kp = advance(0, 0, C.K_STAGES)
    before = 0
    while n > 0:
        place = place_of(tile, first, WG, sizes, C)
        full_end = gl.maximum(n_full, 1)
        slot = qi * C.CONSUMERS + WG
        q = q_buf.index(slot)
        q_more = q_buf_more.index(slot)
        # The second loop's own.
        qi_then = apart(qi)
        q_then = q_buf.index(qi_then * C.CONSUMERS + WG)
        q_more_then = q_buf_more.index(qi_then * C.CONSUMERS + WG)
        # Q's phase for the next tile: the other buffer's.
        qp_next = gl.where(qi == 1, qp ^ 1, qp)
        top = gl.full([64, 4], -3.4028234663852886e38, gl.float32, C.ROWS)
        total = gl.full([64, 4], 0.0, gl.float32, C.ROWS)
        o = gl.full([64, C.D0], 0.0, gl.float32, C.OUT)
        o_more = gl.full([64, C.TAIL.instr_shape[1]], 0.0, gl.float32, C.TAIL)
        # The masks of the first partial steps, looked up before the full ones are computed.
        column = looked_up(full_end, n, first, lists, tables, C)
        ahead = looked_up(full_end + 1, n, first, lists, tables, C)
        known = known_of(column, full_end, place, tables, C)
        looked = (column, ahead, known)
        if n_full == 0:
            own = looked_up(0, n, first, lists, tables, C)
            own_facts = known_of(own, 0, place, tables, C)
            s = keep_seen(s, 0, own, own_facts, place, tables, sizes, C)
        top, fade = maxima(s, top, scale, C)
        if C.EARLY:
            following = (tile, n_full, n, first)
            if n == 1:
                following = read_note(notes, note_full, at, phase)
            x = exponents(s, top, scale, C)
            # The output of the tile before has left its Q buffer.
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(1 - qi), count=1, pred=before > 0)
            mbarrier.wait(q_full.index(1 - qi), qp_next, pred=(n == 1) & (following[2] > 0))
            mbarrier.wait(k_full.index(ki), kp, pred=(n > 1) | (following[2] > 0))
            next_slot = gl.where(n == 1, 1 - qi, qi) * C.CONSUMERS + WG
            started = scores(
                q_buf.index(next_slot), q_buf_more.index(next_slot),
                k_buf.index(ki), k_buf_more.index(ki), C,
            )  # fmt: skip
            weights, total = weigh(x, total, fade, C)
            s = warpgroup_mma_wait(0, [started])
            mbarrier.arrive(k_empty.index(ki), count=1)
            ki, kp = advance(ki, kp, C.K_STAGES)
            p = pack(weights, q, C)
            following, s, p, o, o_more, top, total, rings = early_steps(
                1, full_end, n, looked, q, q_more, qi, qp_next, following, (at, phase), s, p, o,
                o_more,
                top, total, (ki, kp, vi, vp), place, WG, False,
                buffers, barriers, lists, tables, sizes, scale, C,
            )  # fmt: skip
            following, s, p, o, o_more, top, total, rings = early_steps(
                full_end, n, n, looked, q_then, q_more_then, qi_then, qp_next, following,
                (at, phase), s, p, o, o_more, top, total, rings, place, WG, True,
                buffers, barriers, lists, tables, sizes, scale, C,
            )  # fmt: skip
            ki, kp, vi, vp = rings
        else:
            weights, total = weigh(exponents(s, top, scale, C), total, fade, C)
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(1 - qi), count=1, pred=before > 0)
            p = pack(weights, q, C)
            mbarrier.wait(k_full.index(ki), kp, pred=n > 1)
            p, o, o_more, top, total, rings = late_steps(
                1, full_end, n, looked, q, q_more, p, o, o_more, top, total, (ki, kp, vi, vp),
                place,
                WG, False, buffers, barriers, lists, tables, sizes, scale, C,
            )  # fmt: skip
            p, o, o_more, top, total, rings = late_steps(
                full_end, n, n, looked, q_then, q_more_then, p, o, o_more, top, total, rings, place,
                WG, True, buffers, barriers, lists, tables, sizes, scale, C,
            )  # fmt: skip
            ki, kp, vi, vp = rings
            following = read_note(notes, note_full, at, phase)
        at, phase = advance(at, phase, 2)
        mbarrier.wait(v_full.index(vi), vp)
        weight = operands(p, v_buf, C)
        if C.EARLY:
            running, running_more = gather(
                weight, v_buf.index(vi), v_buf_more.index(vi), o, o_more, C
            )
        else:
            mbarrier.wait(q_full.index(1 - qi), qp_next, pred=following[2] > 0)
            mbarrier.wait(k_full.index(ki), kp, pred=following[2] > 0)
            if C.PINGPONG:
                named("sync", 8 + WG, 256, n)
            running, running_more = gather(
                weight, v_buf.index(vi), v_buf_more.index(vi), o, o_more, C
            )
            next_slot = (1 - qi) * C.CONSUMERS + WG
            started = scores(
                q_buf.index(next_slot), q_buf_more.index(next_slot),
                k_buf.index(ki), k_buf_more.index(ki), C,
            )  # fmt: skip
            if C.PINGPONG:
                named("arrive", 9 - WG, 256, n)
        AFTER: gl.constexpr = 0 if C.EARLY else (2 if C.D1 else 1)
        if C.D1:
            o, o_more = warpgroup_mma_wait(AFTER, [running, running_more])
        else:
            o = warpgroup_mma_wait(AFTER, [running])
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        finish(o, o_more, top, total, slot, place, tensors, buffers, tables, sizes, WG, C)
        # Every warp has read its note: the output went through a barrier since.
        mbarrier.arrive(note_empty.index(at), count=1)
        if not C.EARLY:
            s = warpgroup_mma_wait(0, [started])
            mbarrier.arrive(k_empty.index(ki), count=1)
            ki, kp = advance(ki, kp, C.K_STAGES)
        qi, qp = advance(qi, qp, 2)
        tile = following[0] + 0
        n_full = following[1] + 0
        n = following[2] + 0
        first = following[3] + 0
        before = 1
    tma.store_wait(0)
    if C.PINGPONG and WG == 0:
        named("sync", 8, 256, qi)


@gluon.jit
def attention_forward(
    q, k, v, o, lse,
    q_tail, k_tail, v_tail, o_tail,
    start, full, partial, index, tiles, counter, tables,
    o_b, o_h, o_n, list_b, list_h,
    heads, rows, queries, keys, total, scale_log2,
    GROUP: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    MASK_M: gl.constexpr, MASK_N: gl.constexpr, BLOCK_N: gl.constexpr, CONSUMERS: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, EARLY: gl.constexpr, PINGPONG: gl.constexpr,
    PERSISTENT: gl.constexpr, DESCRIBED: gl.constexpr, LSE: gl.constexpr, SLACK: gl.constexpr,
    BITS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch with at most ``total`` programs, and just that many unless PERSISTENT.

    q, k, v are descriptors over [batch, heads, tokens, head_dim] with tiles of D0 columns (the
    tails: of D1), o one too with DESCRIBED, else a pointer.  ``start``, ``full``, ``partial`` hold
    one entry a row of mask blocks (strides list_b, list_h), ``index`` the columns; ``tiles`` orders
    ``head * rows + row``; ``counter`` holds 0, and again afterwards.  ``total`` counts tiles:
    ``batch * heads * rows * (MASK_M // (64 * CONSUMERS))``.
    """
    C: gl.constexpr = chosen(
        D0, D1, GROUP, MASK_M, MASK_N, BLOCK_N, CONSUMERS, K_STAGES, V_STAGES, EARLY, PINGPONG,
        PERSISTENT, DESCRIBED, LSE, SLACK, BITS,
    )  # fmt: skip
    q_buf = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 1, 1, 64, D0], q.layout)
    k_buf = gl.allocate_shared_memory(k.dtype, [K_STAGES, 1, 1, BLOCK_N, D0], k.layout)
    v_buf = gl.allocate_shared_memory(v.dtype, [V_STAGES, 1, 1, BLOCK_N, D0], v.layout)
    if D1:
        q_more = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 1, 1, 64, D1], q_tail.layout)
        k_more = gl.allocate_shared_memory(k.dtype, [K_STAGES, 1, 1, BLOCK_N, D1], k_tail.layout)
        v_more = gl.allocate_shared_memory(v.dtype, [V_STAGES, 1, 1, BLOCK_N, D1], v_tail.layout)
    else:
        q_more, k_more, v_more = q_buf, k_buf, v_buf
    notes = gl.allocate_shared_memory(gl.int32, [2, 4], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    note_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    note_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=CONSUMERS)
        mbarrier.init(note_full.index(i), count=1)
        mbarrier.init(note_empty.index(i), count=CONSUMERS)
    for i in gl.static_range(K_STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=CONSUMERS)
    for i in gl.static_range(V_STAGES):
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=CONSUMERS)
    fence_async_shared()
    tensors = (q, q_tail, k, k_tail, v, v_tail, o, o_tail, lse)
    buffers = (q_buf, q_more, k_buf, k_more, v_buf, v_more, notes)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty, note_full, note_empty)
    lists = (start, full, partial, index, tiles, counter)
    sizes = (heads, rows, queries, keys, total, list_b, list_h, o_b, o_h, o_n)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consumer, (0, tensors, buffers, barriers, lists, tables, sizes, scale_log2, C)),
                (consumer, (1, tensors, buffers, barriers, lists, tables, sizes, scale_log2, C)),
                (producer, (tensors, buffers, barriers, lists, tables, sizes, scale_log2, C)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consumer, (0, tensors, buffers, barriers, lists, tables, sizes, scale_log2, C)),
                (producer, (tensors, buffers, barriers, lists, tables, sizes, scale_log2, C)),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )
