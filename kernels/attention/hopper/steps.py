"""The main loops of the Hopper template: products beside the softmax of another step."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.bits import keep_seen, known_of, looked_up
from kdsl.kernels.attention.hopper.choices import advance, named
from kdsl.kernels.attention.hopper.softmax import (
    exponents,
    maxima,
    operand,
    pack,
    rescale,
    weigh,
)
from kdsl.kernels.attention.hopper.work import read_note

# --- template ---


@gluon.jit
def scores(q, q_more, k, k_more, C: gl.constexpr):
    """Q K^T, started."""
    zero = gl.full([64, C.BLOCK_N], 0.0, gl.float32, C.SCORES)
    k = k.reshape([C.BLOCK_N, C.D0]).permute([1, 0])
    s = warpgroup_mma(q.reshape([64, C.D0]), k, zero, use_acc=False, is_async=True)
    if C.D1:
        k_more = k_more.reshape([C.BLOCK_N, C.D1]).permute([1, 0])
        s = warpgroup_mma(q_more.reshape([64, C.D1]), k_more, s, use_acc=True, is_async=True)
    return s


@gluon.jit
def operands(p, v, C: gl.constexpr):
    """The weights for the products with V's parts: made before any product starts.

    ptxas would serialise products between which something defines their registers.
    """
    head = operand(p, v, False, C)
    if C.D1:
        tail = operand(p, v, True, C)
    else:
        tail = head
    return head, tail


@gluon.jit
def gather(p, v, v_more, o, o_more, C: gl.constexpr):
    """O += P V, started."""
    o = warpgroup_mma(p[0], v.reshape([C.BLOCK_N, C.D0]), o, use_acc=True, is_async=True)
    if C.D1:
        v_more = v_more.reshape([C.BLOCK_N, C.D1])
        o_more = warpgroup_mma(p[1], v_more, o_more, use_acc=True, is_async=True)
    return o, o_more


@gluon.jit
def late_steps(
    lo, hi, n, looked, q, q_more, p, o, o_more, top, total, rings, place,
    WG: gl.constexpr, MASKED: gl.constexpr, buffers, barriers, lists, tables, sizes, scale,
    C: gl.constexpr,
):  # fmt: skip
    """Steps in which Q K^T of a step runs beside P V of the one before, then the softmax."""
    k_buf, k_buf_more, v_buf, v_buf_more = buffers[2], buffers[3], buffers[4], buffers[5]
    k_full, k_empty, v_full, v_empty = barriers[2], barriers[3], barriers[4], barriers[5]
    ki, kp, vi, vp = rings
    if MASKED:
        column, ahead, known = looked
    for i in range(lo, hi):
        weight = operands(p, v_buf, C)
        if C.PINGPONG:
            named("sync", 8 + WG, 256, i)
        started = scores(q, q_more, k_buf.index(ki), k_buf_more.index(ki), C)
        mbarrier.wait(v_full.index(vi), vp)
        running, running_more = gather(weight, v_buf.index(vi), v_buf_more.index(vi), o, o_more, C)
        if C.PINGPONG:
            named("arrive", 9 - WG, 256, i)
        s = warpgroup_mma_wait(2 if C.D1 else 1, [started])
        mbarrier.arrive(k_empty.index(ki), count=1)
        ki, kp = advance(ki, kp, C.K_STAGES)
        if MASKED:
            s = keep_seen(s, i, column, known, place, tables, sizes, C)
            # Looked up ahead: the tile's own loads do not wait for them.
            column = ahead
            known = known_of(column, i + 1, place, tables, C)
            ahead = looked_up(i + 2, n, place[4], lists, tables, C)
        top, fade = maxima(s, top, scale, C)
        weights, total = weigh(exponents(s, top, scale, C), total, fade, C)
        # The spin also keeps ptxas from moving the wait for the products above the softmax.
        mbarrier.wait(k_full.index(ki), kp, pred=i + 1 < n)
        if C.D1:
            o, o_more, p = warpgroup_mma_wait(0, [running, running_more, p])
        else:
            o, p = warpgroup_mma_wait(0, [running, p])
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        o = rescale(o, fade, False, C)
        if C.D1:
            o_more = rescale(o_more, fade, True, C)
        p = pack(weights, q, C)
    return p, o, o_more, top, total, (ki, kp, vi, vp)


@gluon.jit
def early_steps(
    lo, hi, n, looked, q, q_more, qi, qp, following, note, s, p, o, o_more, top, total, rings,
    place,
    WG: gl.constexpr, MASKED: gl.constexpr, buffers, barriers, lists, tables, sizes, scale,
    C: gl.constexpr,
):  # fmt: skip
    """Steps in which Q K^T of the next step and P V of the one before run beside the softmax."""
    q_buf, q_buf_more, k_buf, k_buf_more = buffers[0], buffers[1], buffers[2], buffers[3]
    v_buf, v_buf_more = buffers[4], buffers[5]
    k_full, k_empty, v_full, v_empty = barriers[2], barriers[3], barriers[4], barriers[5]
    ki, kp, vi, vp = rings
    tile_next, full_next, n_next, first_next = following
    if MASKED:
        column, ahead, known = looked
    for i in range(lo, hi):
        last = i == n - 1
        if last:
            tile_next, full_next, n_next, first_next = read_note(
                buffers[6], barriers[6], note[0], note[1]
            )
        if MASKED:
            s = keep_seen(s, i, column, known, place, tables, sizes, C)
            # Looked up ahead: the tile's own loads do not wait for them.
            column = ahead
            known = known_of(column, i + 1, place, tables, C)
            ahead = looked_up(i + 2, n, place[4], lists, tables, C)
        top, fade = maxima(s, top, scale, C)
        x = exponents(s, top, scale, C)
        mbarrier.wait(barriers[0].index(1 - qi), qp, pred=last & (n_next > 0))
        mbarrier.wait(k_full.index(ki), kp, pred=(i + 1 < n) | (n_next > 0))
        mbarrier.wait(v_full.index(vi), vp)
        slot = gl.where(last, 1 - qi, qi) * C.CONSUMERS + WG
        weight = operands(p, v_buf, C)
        if C.PINGPONG:
            named("sync", 8 + WG, 256, i)
        started = scores(
            q_buf.index(slot), q_buf_more.index(slot), k_buf.index(ki), k_buf_more.index(ki), C
        )
        running, running_more = gather(weight, v_buf.index(vi), v_buf_more.index(vi), o, o_more, C)
        if C.PINGPONG:
            named("arrive", 9 - WG, 256, i)
        weights, total = weigh(x, total, fade, C)
        # Waited on again: the spin keeps ptxas from moving the wait below above the exponentials.
        mbarrier.wait(v_full.index(vi), vp)
        if C.D1:
            o, o_more, s, p = warpgroup_mma_wait(0, [running, running_more, started, p])
        else:
            o, s, p = warpgroup_mma_wait(0, [running, started, p])
        mbarrier.arrive(k_empty.index(ki), count=1)
        ki, kp = advance(ki, kp, C.K_STAGES)
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        o = rescale(o, fade, False, C)
        if C.D1:
            o_more = rescale(o_more, fade, True, C)
        p = pack(weights, q, C)
    following = (tile_next, full_next, n_next, first_next)
    return following, s, p, o, o_more, top, total, (ki, kp, vi, vp)
