"""Q, K and V in the order their tokens are stored in: the Hopper template's first launch for specs
whose tensors come in the model's order.  TMA fetches rows that lie side by side."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kdsl.kernels.attention.hopper.choices import stored_layout
from kdsl.kernels.attention.hopper.leaves import key_index, query_index

# --- template ---


@gluon.jit
def copy_columns(
    x, out, token, s, inside, x_n, AT: gl.constexpr, WIDTH: gl.constexpr, D: gl.constexpr
):
    """Columns AT to AT + WIDTH of some tokens, to their stored positions s."""
    L: gl.constexpr = stored_layout(WIDTH)
    columns = gl.expand_dims(AT + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, L)), 0)
    token = gl.convert_layout(token, gl.SliceLayout(1, L))
    s = gl.convert_layout(s, gl.SliceLayout(1, L))
    inside = gl.expand_dims(gl.convert_layout(inside, gl.SliceLayout(1, L)), 1)
    rows = gl.expand_dims(token.to(gl.int64) * x_n, 1)
    values = gl.load(x + rows + columns, mask=inside, other=0.0)
    gl.store(out + gl.expand_dims(s.to(gl.int64) * D, 1) + columns, values, mask=inside)


@gluon.jit
def copy_rows(
    program, x, out, x_b, x_h, x_n, heads, tokens, tables,
    KEYS: gl.constexpr, GROUP: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    ROWS: gl.constexpr,
):  # fmt: skip
    """One program's share of a tensor [batch, heads, tokens, head_dim], ROWS tokens of a head."""
    blocks = gl.cdiv(tokens, ROWS)
    line = program // blocks
    batch, head = line // heads, line % heads
    L: gl.constexpr = gl.SliceLayout(1, stored_layout(D0))
    s = program % blocks * ROWS + gl.arange(0, ROWS, layout=L)
    inside = s < tokens
    # Positions past the end look up the last token, so that leaves stay inside their tables.
    at = gl.minimum(s, tokens - 1)
    if KEYS:
        token = key_index(at, head * GROUP, tables)
    else:
        token = query_index(at, head, tables)
    x += batch.to(gl.int64) * x_b + head.to(gl.int64) * x_h
    out += line.to(gl.int64) * tokens * (D0 + D1)
    copy_columns(x, out, token, s, inside, x_n, 0, D0, D0 + D1)
    if D1:
        copy_columns(x, out, token, s, inside, x_n, D0, D1, D0 + D1)


@gluon.jit
def attention_copy(
    q, k, v, q_stored, k_stored, v_stored, tables,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    heads, queries, keys, q_programs, k_programs,
    GROUP: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """Launch with ``q_programs + 2 * k_programs`` programs: a tensor has
    ``batch * heads * blocks`` of ROWS tokens, or none where it stays.

    Reads [batch, heads, tokens, head_dim] with unit columns, writes the same contiguous.
    """
    program = gl.program_id(0)
    kv_heads = heads // GROUP
    if program < q_programs:
        copy_rows(
            program, q, q_stored, q_b, q_h, q_n, heads, queries, tables, False, GROUP, D0, D1, ROWS
        )
    elif program < q_programs + k_programs:
        copy_rows(
            program - q_programs, k, k_stored, k_b, k_h, k_n, kv_heads, keys, tables, True,
            GROUP, D0, D1, ROWS,
        )  # fmt: skip
    else:
        copy_rows(
            program - q_programs - k_programs, v, v_stored, v_b, v_h, v_n, kv_heads, keys, tables,
            True, GROUP, D0, D1, ROWS,
        )  # fmt: skip
