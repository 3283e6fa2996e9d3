"""The softmax of the Hopper template, in registers: maxima, weights, rescaling, masks."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kdsl.kernels.attention.hopper.choices import part_layout, part_width
from kdsl.kernels.attention.hopper.leaves import key_index, mask, query_index

# --- template ---


@gluon.jit
def spread(rows, tile):
    """[64, 4] -> [64, 1, 4, 1] in the layout of a tile [64, n / 8, 4, 2]; no instruction."""
    L: gl.constexpr = tile.type.layout
    y = gl.convert_layout(rows, gl.SliceLayout(1, gl.SliceLayout(3, L)), assert_trivial=True)
    return gl.expand_dims(gl.expand_dims(y, 1), 3)


@gluon.constexpr_function
def maxima_code():
    """A thread's maxima of its two rows, the rows' old maxima, scale, slack -> new maxima, factors.

    A warp in which no score exceeds its row's old maximum by more than the slack keeps all its
    maxima: no shuffle.
    """
    reduced = "".join(
        f"shfl.sync.bfly.b32 y{i}, x{i}, {lane}, 0x1f, 0xffffffff; max.f32 x{i}, x{i}, y{i};"
        for lane in (1, 2)
        for i in (0, 1)
    )
    return (
        "{.reg .pred p, q; .reg .f32 x0, x1, y0, y1;"
        "mul.f32 x0, $4, $8; mul.f32 x1, $5, $9; add.f32 y0, $6, $10; add.f32 y1, $7, $11;"
        "setp.gt.f32 p, x0, y0; setp.gt.or.f32 p, x1, y1, p; vote.sync.any.pred q, p, 0xffffffff;"
        "mov.f32 $0, $6; mov.f32 $1, $7; mov.f32 $2, 0f3F800000; mov.f32 $3, 0f3F800000;"
        "@!q bra SKIP;" + reduced + "max.f32 $0, x0, $6; max.f32 $1, x1, $7;"
        "sub.f32 y0, $6, $0; sub.f32 y1, $7, $1;"
        "ex2.approx.ftz.f32 $2, y0; ex2.approx.ftz.f32 $3, y1; SKIP: }"
    )


@gluon.jit
def maxima(s, top, scale, C: gl.constexpr):
    """New row maxima, in units of log2, and what older sums shrink by."""
    tile = s.reshape([64, C.BLOCK_N // 8, 4, 2])
    mine = gl.convert_layout(gl.max(gl.max(tile, 3), 1), C.ROWS, assert_trivial=True)
    factor = gl.full([64, 4], 1.0, gl.float32, C.ROWS) * scale
    slack = gl.full([64, 4], C.SLACK, gl.float32, C.ROWS)
    return gl.inline_asm_elementwise(
        maxima_code(), "=&f,=&f,=&f,=&f,f,f,f,f,f,f,f,f", [mine, top, factor, slack],
        dtype=(gl.float32, gl.float32), is_pure=False, pack=2,
    )  # fmt: skip


@gluon.jit
def exponents(s, top, scale, C: gl.constexpr):
    """Scores over their row's maximum, a copy."""
    tile = s.reshape([64, C.BLOCK_N // 8, 4, 2])
    return tile * scale - spread(top, tile)


@gluon.constexpr_function
def pack_code(dtype):
    """Two weights rounded to 16 bits, the first one below."""
    name = "bf16x2" if dtype == gl.bfloat16 else "f16x2"
    return f"cvt.rn.{name}.f32 $0, $2, $1;"


@gluon.jit
def weigh(x, total, fade, C: gl.constexpr):
    """Weights, and row sums, which stay apart in the four lanes of a row."""
    p = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )
    mine = gl.convert_layout(gl.sum(gl.sum(p, 3), 1), C.ROWS, assert_trivial=True)
    return p, total * fade + mine


@gluon.jit
def pack(p, like, C: gl.constexpr):
    """Weights rounded to 16 bits, two in an int32.

    Once the product that reads the ones before is over: ptxas serialises products between which
    something defines their operands.  16-bit numbers that cross a loop's back edge would cost a
    permutation each; packed they do not.
    """
    low, high = p.split()
    packed = gl.inline_asm_elementwise(
        pack_code(like.dtype), "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
    ).reshape([64, C.BLOCK_N // 2])
    return gl.convert_layout(packed, C.PACKED, assert_trivial=True)


@gluon.jit
def operand(packed, like, TAIL: gl.constexpr, C: gl.constexpr):
    """Packed weights as the register operand of the second product; no instruction."""
    L: gl.constexpr = part_layout(C, TAIL)
    twice = gl.join(packed, packed).reshape([64, C.BLOCK_N])
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r,r",
        [gl.convert_layout(twice, gl.DotOperandLayout(0, L, 2), assert_trivial=True)],
        dtype=like.dtype, is_pure=True, pack=2,
    )  # fmt: skip


@gluon.constexpr_function
def rescale_code(n):
    """n accumulators times the factor of their row, skipped by a warp whose factors are all 1."""
    code = f"{{.reg .pred p, q; setp.neu.f32 p, ${2 * n}, 0f3F800000;"
    code += f"setp.neu.or.f32 p, ${2 * n + 2}, 0f3F800000, p; vote.sync.any.pred q, p, 0xffffffff;"
    code += "".join(f"mov.f32 ${i}, ${n + i};" for i in range(n)) + "@!q bra SKIP;"
    # Accumulators lie in pairs, by turns of one row and of the other.
    code += "".join(f"mul.f32 ${i}, ${n + i}, ${2 * n + (i // 2 % 2) * 2};" for i in range(n))
    return code + "SKIP: }"


@gluon.constexpr_function
def rescale_operands(n):
    """Constraints of `rescale_code`."""
    return ",".join(["=&f"] * n + ["f"] * (2 * n))


@gluon.jit
def rescale(o, fade, TAIL: gl.constexpr, C: gl.constexpr):
    """An output's part times the factors of its rows."""
    L: gl.constexpr = part_layout(C, TAIL)
    WIDTH: gl.constexpr = part_width(C, TAIL)
    N: gl.constexpr = min(WIDTH // 2, 64)
    tile = o.reshape([64, WIDTH // 8, 4, 2])
    factors, tile = gl.broadcast(spread(fade, tile), tile)
    factors = gl.convert_layout(factors.reshape([64, WIDTH]), L, assert_trivial=True)
    return gl.inline_asm_elementwise(
        rescale_code(N), rescale_operands(N), [o, factors], dtype=gl.float32, is_pure=False, pack=N
    )


@gluon.jit
def column_of(step, n, first, lists, C: gl.constexpr):
    """The mask block that a step of a tile works in; 0 past the end, and where there is none."""
    inside = (first >= 0) & (step < n)
    return gl.load(lists[3] + gl.maximum(first, 0) + step // C.SPLIT_N, mask=inside, other=0)


@gluon.jit
def hide(s, step, column, known, place, tables, sizes, C: gl.constexpr):
    """Scores of a step with what the mask drops, and what is past the end, at minus infinity."""
    batch, head, row, q_at, first = place
    keys = sizes[3]
    # A row without any block is one step that sees nothing.
    limit = gl.where(first < 0, 0, keys)
    qs = q_at + gl.arange(0, 64, layout=gl.SliceLayout(1, C.SCORES))
    ks = gl.arange(0, C.BLOCK_N, layout=gl.SliceLayout(0, C.SCORES))
    ks += column * C.MASK_N + step % C.SPLIT_N * C.BLOCK_N
    near = ks < limit
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    seen = mask(
        gl.expand_dims(query_index(gl.minimum(qs, sizes[2] - 1), head, tables), 1),
        gl.expand_dims(key_index(gl.minimum(ks, keys - 1), head, tables), 0),
        gl.expand_dims(qs, 1), gl.expand_dims(ks, 0), row, column, known, head, batch, tables,
    )  # fmt: skip
    return gl.where(seen & gl.expand_dims(near, 0), s, -float("inf"))
