"""Block-sparse attention on INT8 q, k and e4m3 v, forward: the Hopper template (sm_90), in Gluon.

The 16-bit Hopper template's division of work, barriers and order of steps, with codes: scores are
exact integers, each step's keys share a scale, weights become e4m3 in the registers of the thread
that computed them, and v lies transposed with its tokens in the order of those registers
(`v_stored="lanes"`).  Beside the softmax of a step run P V of the one before and, if EARLY, Q K^T
of the one after.  With identity leaves the
template runs as it stands; a generated file is its modules in a row, with other leaves.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.choices import advance, apart
from kdsl.kernels.attention.hopper.finish import finish
from kdsl.kernels.attention.hopper.leaves import tile_facts
from kdsl.kernels.attention.hopper.softmax import column_of, hide, maxima
from kdsl.kernels.attention.hopper.work import place_of, read_note
from kdsl.kernels.attention.quantized.hopper.codes import (
    code_weights,
    coded,
    coded_exponents,
    coded_weigh,
    factors,
    key_scale,
    no_sums,
    output_layout,
    query_scales,
    sums_by_lane,
)
from kdsl.kernels.attention.quantized.hopper.producer import coded_producer
from kdsl.kernels.attention.quantized.hopper.steps import (
    coded_early_steps,
    coded_gather,
    coded_operands,
    coded_scores,
    coded_steps,
)

# --- template ---


@gluon.jit
def coded_consumer(
    WG: gl.constexpr, tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2,
    C: gl.constexpr,
):  # fmt: skip
    """A warpgroup that computes 64 queries of each tile."""
    q_buf, k_buf, v_buf, notes, o_buf, one_buf = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, note_full, note_empty = barriers
    qi = 0
    qp = 0
    vi = 0
    vp = 0
    tile, n_full, n, first = read_note(notes, note_full, 0, 0)
    at = 1
    phase = 0
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    # Under a name of its own: what a loop assigns too is carried round it.
    first_s = coded_scores(q_buf.index(WG), k_buf.index(0), C)
    s = warpgroup_mma_wait(0, [first_s])
    mbarrier.arrive(k_empty.index(0), count=1)
    ki, kp = advance(0, 0, C.K_STAGES)
    before = 0
    while n > 0:
        place = place_of(tile, first, WG, sizes, C)
        full_end = gl.maximum(n_full, 1)
        q = q_buf.index(qi * C.CONSUMERS + WG)
        # The second loop's own.
        qi_then = apart(qi)
        q_then = q_buf.index(qi_then * C.CONSUMERS + WG)
        ones, ones_then = one_buf.index(qi), one_buf.index(qi_then)
        # Q's phase for the next tile: the other buffer's.
        qp_next = gl.where(qi == 1, qp ^ 1, qp)
        top = gl.full([64, 4], -3.4028234663852886e38, gl.float32, C.ROWS)
        total = no_sums(C)
        o = gl.full([64, C.D0], 0.0, gl.float32, C.OUT)
        rows = query_scales(scales[0], place, sizes, scale_log2, C)
        own = column_of(0, n, first, lists, C)
        factor = factors(rows, key_scale(scales[1], own, 0, place, sizes, C))
        by_key = key_scale(scales[1], column_of(1, n, first, lists, C), 1, place, sizes, C)
        keys = (by_key, column_of(2, n, first, lists, C))
        # The masks of the first partial steps, looked up before the full ones are computed.
        column = column_of(full_end, n, first, lists, C)
        ahead = column_of(full_end + 1, n, first, lists, C)
        known = tile_facts(place[2], column, place[1], place[0], tables)
        looked = (column, ahead, known)
        f = s.to(gl.float32)
        if n_full == 0:
            own_facts = tile_facts(place[2], own, place[1], place[0], tables)
            f = hide(f, 0, own, own_facts, place, tables, sizes, C)
        top, fade = maxima(f, top, factor, C)
        if C.EARLY:
            following = (tile, n_full, n, first)
            if n == 1:
                following = read_note(notes, note_full, at, phase)
            x = coded_exponents(f, top, factor, C)
            # The output of the tile before has left its buffer, and that tile's Q is free.
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(1 - qi), count=1, pred=before > 0)
            mbarrier.wait(q_full.index(1 - qi), qp_next, pred=(n == 1) & (following[2] > 0))
            mbarrier.wait(k_full.index(ki), kp, pred=(n > 1) | (following[2] > 0))
            next_slot = gl.where(n == 1, 1 - qi, qi) * C.CONSUMERS + WG
            started = coded_scores(q_buf.index(next_slot), k_buf.index(ki), C)
            weights, total = coded_weigh(x, total, fade, C)
            s = warpgroup_mma_wait(0, [started])
            mbarrier.arrive(k_empty.index(ki), count=1)
            ki, kp = advance(ki, kp, C.K_STAGES)
            p = code_weights(weights, C)
            following, s, p, o, top, total, rings, keys = coded_early_steps(
                1, full_end, n, looked, qi, qp_next, ones, following, (at, phase), s, p, o, top,
                total, (ki, kp, vi, vp), place, rows, keys, WG, False,
                buffers, barriers, lists, tables, sizes, scales, C,
            )  # fmt: skip
            following, s, p, o, top, total, rings, keys = coded_early_steps(
                full_end, n, n, looked, qi_then, qp_next, ones_then, following, (at, phase), s, p,
                o, top, total, rings, place, rows, keys, WG, True,
                buffers, barriers, lists, tables, sizes, scales, C,
            )  # fmt: skip
            ki, kp, vi, vp = rings
        else:
            weights, total = coded_weigh(coded_exponents(f, top, factor, C), total, fade, C)
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(1 - qi), count=1, pred=before > 0)
            p = code_weights(weights, C)
            mbarrier.wait(k_full.index(ki), kp, pred=n > 1)
            p, o, top, total, rings, keys = coded_steps(
                1, full_end, n, looked, q, ones, p, o, top, total, (ki, kp, vi, vp), place, rows,
                keys, False, buffers, barriers, lists, tables, sizes, scales, C,
            )  # fmt: skip
            p, o, top, total, rings, keys = coded_steps(
                full_end, n, n, looked, q_then, ones_then, p, o, top, total, rings, place, rows,
                keys, True, buffers, barriers, lists, tables, sizes, scales, C,
            )  # fmt: skip
            ki, kp, vi, vp = rings
            following = read_note(notes, note_full, at, phase)
        at, phase = advance(at, phase, 2)
        mbarrier.wait(v_full.index(vi), vp)
        weight, summed = coded_operands(p, C)
        # Behind both loops, its own again.
        ones_last = one_buf.index(apart(qi))
        if C.EARLY:
            running, summing = coded_gather(weight, summed, v_buf.index(vi), ones_last, o, C)
        else:
            mbarrier.wait(q_full.index(1 - qi), qp_next, pred=following[2] > 0)
            mbarrier.wait(k_full.index(ki), kp, pred=following[2] > 0)
            running, summing = coded_gather(weight, summed, v_buf.index(vi), ones_last, o, C)
            started = coded_scores(q_buf.index((1 - qi) * C.CONSUMERS + WG), k_buf.index(ki), C)
        AFTER: gl.constexpr = 0 if C.EARLY else 1
        if C.BY_PRODUCT:
            o, added = warpgroup_mma_wait(AFTER, [running, summing])
            total = sums_by_lane(total + added, C)
        else:
            o = warpgroup_mma_wait(AFTER, [running])
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        channels = gl.arange(0, C.D0, layout=gl.SliceLayout(0, C.OUT))
        kv = place[0] * (sizes[0] // C.GROUP) + place[1] // C.GROUP
        by_channel = gl.load(scales[2] + kv.to(gl.int64) * C.D0 + channels)
        o = o * gl.expand_dims(by_channel, 0)
        outputs = (o_buf, o_buf)
        finish(o, o, top - C.SHIFT, total, WG, place, tensors, outputs, tables, sizes, WG, C)
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


@gluon.jit
def attention_quantized(
    q, k, v, o, lse, q_scale, k_scale, v_scale,
    start, full, partial, index, tiles, counter, tables,
    o_b, o_h, o_n, list_b, list_h,
    heads, rows, queries, keys, total, q_groups, k_groups, scale_log2,
    D0: gl.constexpr, GROUP: gl.constexpr, MASK_M: gl.constexpr, MASK_N: gl.constexpr,
    BLOCK_N: gl.constexpr, CONSUMERS: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    EARLY: gl.constexpr, PERSISTENT: gl.constexpr, DESCRIBED: gl.constexpr, LSE: gl.constexpr,
    Q_SPAN: gl.constexpr, Q_PERIOD: gl.constexpr, Q_WIDTH: gl.constexpr, K_SPAN: gl.constexpr,
    SLACK: gl.constexpr, SHIFT: gl.constexpr, BY_PRODUCT: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Launch as the 16-bit Hopper template's `attention_forward`.

    q and k are descriptors over int8 [batch, heads, tokens, head_dim], v over e4m3 [batch, heads,
    head_dim, tokens]; o is one too with DESCRIBED, else a pointer.  Scales are contiguous,
    ``q_groups`` and ``k_groups`` a head, v's one a channel.
    """
    C: gl.constexpr = coded(
        D0, GROUP, MASK_M, MASK_N, BLOCK_N, CONSUMERS, K_STAGES, V_STAGES, EARLY, PERSISTENT,
        DESCRIBED, LSE, Q_SPAN, Q_PERIOD, Q_WIDTH, K_SPAN, SLACK, SHIFT, BY_PRODUCT,
    )  # fmt: skip
    OUT: gl.constexpr = output_layout(D0)
    q_buf = gl.allocate_shared_memory(q.dtype, [2 * CONSUMERS, 1, 1, 64, D0], q.layout)
    k_buf = gl.allocate_shared_memory(k.dtype, [K_STAGES, 1, 1, BLOCK_N, D0], k.layout)
    v_buf = gl.allocate_shared_memory(v.dtype, [V_STAGES, 1, 1, D0, BLOCK_N], v.layout)
    TYPE: gl.constexpr = o.dtype if DESCRIBED else o.dtype.element_ty
    o_buf = gl.allocate_shared_memory(TYPE, [CONSUMERS, 1, 1, 64, D0], OUT)
    if BY_PRODUCT:
        # The bits of 1.0: a converted constant came out wrong (ptxas 12.8).
        one = gl.full([8, BLOCK_N], 0x38, gl.int8, C.SPREAD).to(gl.float8e4nv, bitcast=True)
        # Twice, so that where they lie is nothing that ptxas knows: see `apart`.
        ones = gl.allocate_shared_memory(gl.float8e4nv, [2, 8, BLOCK_N], C.ONES)
        ones.index(0).store(one)
        ones.index(1).store(one)
    else:
        ones = o_buf
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
    # Output and log-sum-exp where `finish` looks for them.
    tensors = (q, k, v, v, v, v, o, o, lse)
    buffers = (q_buf, k_buf, v_buf, notes, o_buf, ones)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty, note_full, note_empty)
    lists = (start, full, partial, index, tiles, counter)
    sizes = (
        heads, rows, queries, keys, total, list_b, list_h, o_b, o_h, o_n, q_groups, k_groups,
    )  # fmt: skip
    scales = (q_scale, k_scale, v_scale)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (coded_consumer, (
                    0, tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2, C,
                )),
                (coded_consumer, (
                    1, tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2, C,
                )),
                (coded_producer, (
                    tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2, C,
                )),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (coded_consumer, (
                    0, tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2, C,
                )),
                (coded_producer, (
                    tensors, buffers, barriers, lists, tables, sizes, scales, scale_log2, C,
                )),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
