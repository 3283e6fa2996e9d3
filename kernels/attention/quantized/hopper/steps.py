"""The main loops of the quantized Hopper template: products beside the softmax of another step."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kdsl.kernels.attention.hopper.choices import advance
from kdsl.kernels.attention.hopper.leaves import tile_facts
from kdsl.kernels.attention.hopper.softmax import column_of, hide, maxima, rescale
from kdsl.kernels.attention.hopper.work import read_note
from kdsl.kernels.attention.quantized.hopper.codes import (
    add_sums,
    code_weights,
    coded_exponents,
    coded_weigh,
    factors,
    key_scale,
    weights_operand,
)

# --- template ---


@gluon.jit
def coded_scores(q, k, C: gl.constexpr):
    """Q K^T of codes, started."""
    zero = gl.full([64, C.BLOCK_N], 0, gl.int32, C.SCORES)
    k = k.reshape([C.BLOCK_N, C.D0]).permute([1, 0])
    return warpgroup_mma(q.reshape([64, C.D0]), k, zero, use_acc=False, is_async=True)


@gluon.jit
def coded_gather(weights, summed, v, ones, o, C: gl.constexpr):
    """O += P V, started, and behind it, if sums are made so, P times ones."""
    v = v.reshape([C.D0, C.BLOCK_N]).permute([1, 0])
    running = warpgroup_mma(weights, v, o, use_acc=True, is_async=True)
    if C.BY_PRODUCT:
        zero = gl.full([64, 8], 0.0, gl.float32, C.SUMS)
        summing = warpgroup_mma(summed, ones.permute([1, 0]), zero, use_acc=False, is_async=True)
    else:
        summing = running
    return running, summing


@gluon.jit
def coded_operands(p, C: gl.constexpr):
    """The weights for both products, made before any product starts."""
    weight = weights_operand(p, False, C)
    if C.BY_PRODUCT:
        summed = weights_operand(p, True, C)
    else:
        summed = weight
    return weight, summed


@gluon.jit
def coded_steps(
    lo, hi, n, looked, q, ones, p, o, top, total, rings, place, rows, keys,
    MASKED: gl.constexpr, buffers, barriers, lists, tables, sizes, scales, C: gl.constexpr,
):  # fmt: skip
    """Steps in which Q K^T of a step runs beside P V of the one before, then the softmax."""
    k_buf, v_buf = buffers[1], buffers[2]
    k_full, k_empty, v_full, v_empty = barriers[2], barriers[3], barriers[4], barriers[5]
    ki, kp, vi, vp = rings
    # The scale of the next step's keys, and the column of the step after it.
    by_key, later = keys
    if MASKED:
        column, ahead, known = looked
    for i in range(lo, hi):
        weight, summed = coded_operands(p, C)
        started = coded_scores(q, k_buf.index(ki), C)
        mbarrier.wait(v_full.index(vi), vp)
        running, summing = coded_gather(weight, summed, v_buf.index(vi), ones, o, C)
        factor = factors(rows, by_key)
        by_key = key_scale(scales[1], later, i + 1, place, sizes, C)
        later = column_of(i + 2, n, place[4], lists, C)
        s = warpgroup_mma_wait(2 if C.BY_PRODUCT else 1, [started])
        mbarrier.arrive(k_empty.index(ki), count=1)
        ki, kp = advance(ki, kp, C.K_STAGES)
        f = s.to(gl.float32)
        if MASKED:
            f = hide(f, i, column, known, place, tables, sizes, C)
            # Looked up ahead: the tile's own loads do not wait for them.
            column = ahead
            known = tile_facts(place[2], column, place[1], place[0], tables)
            ahead = column_of(i + 2, n, place[4], lists, C)
        top, fade = maxima(f, top, factor, C)
        weights, total = coded_weigh(coded_exponents(f, top, factor, C), total, fade, C)
        # The spin also keeps ptxas from moving the wait for the products above the softmax.
        mbarrier.wait(k_full.index(ki), kp, pred=i + 1 < n)
        if C.BY_PRODUCT:
            o, added, p = warpgroup_mma_wait(0, [running, summing, p])
            total = add_sums(total, added, fade)
        else:
            o, p = warpgroup_mma_wait(0, [running, p])
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        o = rescale(o, fade, False, C)
        p = code_weights(weights, C)
    return p, o, top, total, (ki, kp, vi, vp), (by_key, later)


@gluon.jit
def coded_early_steps(
    lo, hi, n, looked, qi, qp, ones, following, note, s, p, o, top, total, rings, place, rows, keys,
    WG: gl.constexpr, MASKED: gl.constexpr, buffers, barriers, lists, tables, sizes, scales,
    C: gl.constexpr,
):  # fmt: skip
    """Steps in which Q K^T of the next step and P V of the one before run beside the softmax."""
    q_buf, k_buf, v_buf = buffers[0], buffers[1], buffers[2]
    k_full, k_empty, v_full, v_empty = barriers[2], barriers[3], barriers[4], barriers[5]
    ki, kp, vi, vp = rings
    tile_next, full_next, n_next, first_next = following
    # The scale of this step's keys, and the column of the step after it.
    by_key, later = keys
    if MASKED:
        column, ahead, known = looked
    for i in range(lo, hi):
        last = i == n - 1
        if last:
            tile_next, full_next, n_next, first_next = read_note(
                buffers[3], barriers[6], note[0], note[1]
            )
        factor = factors(rows, by_key)
        by_key = key_scale(scales[1], later, i + 1, place, sizes, C)
        later = column_of(i + 2, n, place[4], lists, C)
        f = s.to(gl.float32)
        if MASKED:
            f = hide(f, i, column, known, place, tables, sizes, C)
            # Looked up ahead: the tile's own loads do not wait for them.
            column = ahead
            known = tile_facts(place[2], column, place[1], place[0], tables)
            ahead = column_of(i + 2, n, place[4], lists, C)
        top, fade = maxima(f, top, factor, C)
        x = coded_exponents(f, top, factor, C)
        mbarrier.wait(barriers[0].index(1 - qi), qp, pred=last & (n_next > 0))
        mbarrier.wait(k_full.index(ki), kp, pred=(i + 1 < n) | (n_next > 0))
        mbarrier.wait(v_full.index(vi), vp)
        slot = gl.where(last, 1 - qi, qi) * C.CONSUMERS + WG
        weight, summed = coded_operands(p, C)
        started = coded_scores(q_buf.index(slot), k_buf.index(ki), C)
        running, summing = coded_gather(weight, summed, v_buf.index(vi), ones, o, C)
        weights, total = coded_weigh(x, total, fade, C)
        # Waited on again: the spin keeps ptxas from moving the wait below above the exponentials.
        mbarrier.wait(v_full.index(vi), vp)
        if C.BY_PRODUCT:
            o, added, s, p = warpgroup_mma_wait(0, [running, summing, started, p])
            total = add_sums(total, added, fade)
        else:
            o, s, p = warpgroup_mma_wait(0, [running, started, p])
        mbarrier.arrive(k_empty.index(ki), count=1)
        ki, kp = advance(ki, kp, C.K_STAGES)
        mbarrier.arrive(v_empty.index(vi), count=1)
        vi, vp = advance(vi, vp, C.V_STAGES)
        o = rescale(o, fade, False, C)
        p = code_weights(weights, C)
    following = (tile_next, full_next, n_next, first_next)
    return following, s, p, o, top, total, (ki, kp, vi, vp), (by_key, later)
