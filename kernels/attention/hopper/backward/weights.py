"""Weights and their gradients in registers, and products of tiles that come in two parts."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma, warpgroup_mma

from kdsl.kernels.attention.hopper.leaves import key_index, mask, query_index

# --- template ---


@gluon.jit
def fetch(x, x_more, batch, head, at, bar, buf, buf_more, C: gl.constexpr):
    """Start to load rows from position `at`; rows past the end arrive as 0."""
    tma.async_copy_global_to_shared(x, [batch, head, at, 0], bar, buf)
    if C.D1:
        tma.async_copy_global_to_shared(x_more, [batch, head, at, C.D0], bar, buf_more)


@gluon.jit
def against(own, own_more, step, step_more, start, ADD: gl.constexpr, C: gl.constexpr):
    """Own rows times those of a step, transposed, started: one product a part.

    With ADD what stands in ``start`` is added.
    """
    turned = step.reshape([C.STEP, C.D0]).permute([1, 0])
    s = warpgroup_mma(own.reshape([64, C.D0]), turned, start, use_acc=ADD, is_async=True)
    if C.D1:
        turned = step_more.reshape([C.STEP, C.D1]).permute([1, 0])
        s = warpgroup_mma(own_more.reshape([64, C.D1]), turned, s, use_acc=True, is_async=True)
    return s


@gluon.jit
def add(weight, step, step_more, total, total_more, C: gl.constexpr):
    """Sums plus weights times a step's rows, started: one product a part."""
    total = warpgroup_mma(
        weight[0], step.reshape([C.STEP, C.D0]), total, use_acc=True, is_async=True
    )
    if C.D1:
        total_more = warpgroup_mma(
            weight[1], step_more.reshape([C.STEP, C.D1]), total_more, use_acc=True, is_async=True
        )
    return total, total_more


@gluon.jit
def operands(w, C: gl.constexpr):
    """Weights of 16 bits as register operands of `add`: made before any product starts."""
    head = gl.convert_layout(w, gl.DotOperandLayout(0, C.HEAD, 2), assert_trivial=True)
    if C.D1:
        tail = gl.convert_layout(w, gl.DotOperandLayout(0, C.TAIL, 2), assert_trivial=True)
    else:
        tail = head
    return head, tail


@gluon.jit
def less(rows, like):
    """Minus a value a column, as what a product starts from.

    Each register is written here, before any product runs, and none is shared: a copy that the
    compiler made later would serialise them.
    """
    x, like = gl.broadcast(gl.expand_dims(rows, 0), like)
    return gl.inline_asm_elementwise(
        "neg.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def power(x):
    """2 ** x."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def listed(step, n, first, lists, C: gl.constexpr):
    """The mask block that a step works in; 0 past the end."""
    return gl.load(lists[3] + first + step // C.SPLIT, mask=step < n, other=0)


@gluon.jit
def hide_pairs(
    s, q_at, k_at, row, column, known, head, batch, tables, sizes, KEYS: gl.constexpr,
    C: gl.constexpr,
):  # fmt: skip
    """Scores with what the mask drops, and what is past the end, at minus infinity.

    With KEYS own tokens are keys, else queries.
    """
    Q: gl.constexpr = 0 if KEYS else 1
    K: gl.constexpr = 1 if KEYS else 0
    Q_COUNT: gl.constexpr = C.STEP if KEYS else 64
    K_COUNT: gl.constexpr = 64 if KEYS else C.STEP
    qs = q_at + gl.arange(0, Q_COUNT, layout=gl.SliceLayout(Q, C.SCORES))
    ks = k_at + gl.arange(0, K_COUNT, layout=gl.SliceLayout(K, C.SCORES))
    inside, near = qs < sizes[2], ks < sizes[3]
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    seen = mask(
        gl.expand_dims(query_index(gl.minimum(qs, sizes[2] - 1), head, tables), Q),
        gl.expand_dims(key_index(gl.minimum(ks, sizes[3] - 1), head, tables), K),
        gl.expand_dims(qs, Q), gl.expand_dims(ks, K), row, column, known, head, batch, tables,
    )  # fmt: skip
    seen = seen & gl.expand_dims(inside, Q) & gl.expand_dims(near, K)
    return gl.where(seen, s, -float("inf"))
