"""The producer warp of the Hopper template."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from kdsl.kernels.attention.hopper.bits import first_bits
from kdsl.kernels.attention.hopper.choices import advance
from kdsl.kernels.attention.hopper.work import claim, look_up, place_of, write_note

# --- template ---


@gluon.jit
def fetch(x, x_more, batch, head, at, bar, buf, buf_more, C: gl.constexpr):
    """Start to load rows from position `at`; rows past the end arrive as 0."""
    tma.async_copy_global_to_shared(x, [batch, head, at, 0], bar, buf)
    if C.D1:
        tma.async_copy_global_to_shared(x_more, [batch, head, at, C.D0], bar, buf_more)


@gluon.jit
def feed(
    lo, hi, first, batch, head, held, state, tensors, buffers, barriers, lists, C: gl.constexpr
):
    """Load the keys of steps lo to hi, and behind each the values of the step before."""
    k, k_more, v, v_more = tensors[2], tensors[3], tensors[4], tensors[5]
    k_buf, k_buf_more, v_buf, v_buf_more = buffers[2], buffers[3], buffers[4], buffers[5]
    k_full, k_empty, v_full, v_empty = barriers[2], barriers[3], barriers[4], barriers[5]
    any_before, v_batch, v_head, v_at = held
    ki, kp, vi, vp = state
    for i in range(lo, hi):
        column = gl.load(lists[3] + gl.maximum(first, 0) + i // C.SPLIT_N, mask=first >= 0, other=0)
        at = column * C.MASK_N + i % C.SPLIT_N * C.BLOCK_N
        mbarrier.wait(k_empty.index(ki), kp)
        mbarrier.expect(k_full.index(ki), C.BLOCK_N * C.ROW_BYTES)
        fetch(
            k, k_more, batch, head, at, k_full.index(ki), k_buf.index(ki), k_buf_more.index(ki), C
        )
        ki, kp = advance(ki, kp, C.K_STAGES)
        if any_before > 0:
            mbarrier.wait(v_empty.index(vi), vp)
            mbarrier.expect(v_full.index(vi), C.BLOCK_N * C.ROW_BYTES)
            fetch(
                v, v_more, v_batch, v_head, v_at,
                v_full.index(vi), v_buf.index(vi), v_buf_more.index(vi), C,
            )  # fmt: skip
            vi, vp = advance(vi, vp, C.V_STAGES)
        any_before = 1
        v_batch = batch + 0
        v_head = head + 0
        v_at = at
    return (any_before, v_batch, v_head, v_at), (ki, kp, vi, vp)


@gluon.jit
def producer(tensors, buffers, barriers, lists, tables, sizes, scale, C: gl.constexpr):
    """The warp that loads, and that says which tile comes next."""
    q, q_more, v, v_more = tensors[0], tensors[1], tensors[4], tensors[5]
    q_buf, q_buf_more, v_buf, v_buf_more = buffers[0], buffers[1], buffers[4], buffers[5]
    q_full, q_empty, v_full, v_empty = barriers[0], barriers[1], barriers[4], barriers[5]
    note_full, note_empty = barriers[6], barriers[7]
    notes = buffers[6]
    qi = 0
    qp = 1
    ki = 0
    kp = 1
    vi = 0
    vp = 1
    at = 0
    phase = 1
    any_before = 0
    v_batch = 0
    v_head = 0
    v_at = 0
    tile, n_full, n, first = look_up(gl.program_id(0), lists, sizes, C)
    if C.BITS:
        noted = first_bits(tile, n_full, first, tables, sizes, C)
    else:
        noted = first
    write_note(notes, note_full, note_empty, at, phase, tile, n_full, n, noted)
    at, phase = advance(at, phase, 2)
    while n > 0:
        batch, head, _, q_at, _ = place_of(tile, first, 0, sizes, C)
        kv_head = head // C.GROUP
        mbarrier.wait(q_empty.index(qi), qp)
        mbarrier.expect(q_full.index(qi), C.BLOCK_M * C.ROW_BYTES)
        CONSUMERS: gl.constexpr = C.CONSUMERS
        for wg in gl.static_range(CONSUMERS):
            slot = qi * C.CONSUMERS + wg
            fetch(
                q, q_more, batch, head, q_at + wg * 64,
                q_full.index(qi), q_buf.index(slot), q_buf_more.index(slot), C,
            )  # fmt: skip
        qi, qp = advance(qi, qp, 2)
        # The next tile is claimed as late as its look-up stays hidden behind the loads in flight;
        # but not before what the consumers need to finish the tile before is on its way.
        late = gl.maximum(n - 2, 1)
        held, state = feed(
            0, late, first, batch, kv_head, (any_before, v_batch, v_head, v_at), (ki, kp, vi, vp),
            tensors, buffers, barriers, lists, C,
        )  # fmt: skip
        if C.PERSISTENT:
            next_tile, next_full, next_n, next_first = look_up(
                claim(lists[5], sizes[4]), lists, sizes, C
            )
        else:
            next_tile, next_full, next_n, next_first = tile, n_full, 0, first
        if C.BITS:
            noted = first_bits(next_tile, next_full, next_first, tables, sizes, C)
        else:
            noted = next_first
        write_note(notes, note_full, note_empty, at, phase, next_tile, next_full, next_n, noted)
        at, phase = advance(at, phase, 2)
        held, state = feed(
            late, n, first, batch, kv_head, held, state, tensors, buffers, barriers, lists, C
        )
        any_before, v_batch, v_head, v_at = held
        ki, kp, vi, vp = state
        tile = next_tile + 0
        n = next_n + 0
        first = next_first + 0
    mbarrier.wait(v_empty.index(vi), vp)
    mbarrier.expect(v_full.index(vi), C.BLOCK_N * C.ROW_BYTES)
    fetch(
        v, v_more, v_batch, v_head, v_at,
        v_full.index(vi), v_buf.index(vi), v_buf_more.index(vi), C,
    )  # fmt: skip
