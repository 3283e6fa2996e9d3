"""How a tile leaves: output through shared memory, log-sum-exp from registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from kdsl.kernels.attention.hopper.choices import named, part_width, stored_layout
from kdsl.kernels.attention.hopper.leaves import query_index

# --- template ---


@gluon.jit
def leave(o, out, buf, place, tables, sizes, WG: gl.constexpr, TAIL: gl.constexpr, C: gl.constexpr):
    """Send out one part of a tile's output through shared memory; rows past the end stay out."""
    WIDTH: gl.constexpr = part_width(C, TAIL)
    AT: gl.constexpr = C.D0 if TAIL else 0
    batch, head, _, q_at, _ = place
    rows = buf.reshape([64, WIDTH])
    rows.store(o.to(buf.dtype))
    if C.DESCRIBED:
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [batch, head, q_at, AT], buf)
    else:
        named("sync", 10 + WG, 128, q_at)
        L: gl.constexpr = stored_layout(WIDTH)
        x = rows.load(L)
        qs = q_at + gl.arange(0, 64, layout=gl.SliceLayout(1, L))
        inside = gl.expand_dims(qs < sizes[2], 1)
        token = query_index(gl.minimum(qs, sizes[2] - 1), head, tables)
        at = out + (batch.to(gl.int64) * sizes[7] + head.to(gl.int64) * sizes[8])
        at = at + gl.expand_dims(token.to(gl.int64) * sizes[9], 1)
        columns = AT + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, L))
        gl.store(at + gl.expand_dims(columns, 0), x, mask=inside)


@gluon.jit
def finish(
    o,
    o_more,
    top,
    total,
    slot,
    place,
    tensors,
    buffers,
    tables,
    sizes,
    WG: gl.constexpr,
    C: gl.constexpr,
):
    """Output and log-sum-exp of a tile."""
    batch, head, _, q_at, _ = place
    total = gl.sum(total, 1)
    nothing = total == 0
    share = 1.0 / gl.where(nothing, 1.0, total)
    by = gl.expand_dims(gl.convert_layout(share, gl.SliceLayout(1, C.OUT)), 1)
    none = gl.expand_dims(gl.convert_layout(nothing, gl.SliceLayout(1, C.OUT)), 1)
    # A value that is not finite must not show through a weight of zero.
    o = gl.where(none, 0.0, o * by)
    leave(o, tensors[6], buffers[0].index(slot), place, tables, sizes, WG, False, C)
    if C.D1:
        by = gl.expand_dims(gl.convert_layout(share, gl.SliceLayout(1, C.TAIL)), 1)
        none = gl.expand_dims(gl.convert_layout(nothing, gl.SliceLayout(1, C.TAIL)), 1)
        o_more = gl.where(none, 0.0, o_more * by)
        out = tensors[7] if C.DESCRIBED else tensors[6]
        leave(o_more, out, buffers[1].index(slot), place, tables, sizes, WG, True, C)
    if C.LSE:
        LN2: gl.constexpr = 0.6931471805599453
        value = (gl.max(top, 1) + gl.log2(total)) * LN2
        value = gl.where(nothing, -float("inf"), value)
        qs = q_at + gl.arange(0, 64, layout=gl.SliceLayout(1, C.ROWS))
        token = query_index(gl.minimum(qs, sizes[2] - 1), head, tables)
        lse = tensors[8] + (batch * sizes[0] + head).to(gl.int64) * sizes[2]
        gl.store(lse + token, value, mask=qs < sizes[2])
