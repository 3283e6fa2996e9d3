"""How far a kernel may be from the reference: bounds derived from dtype and length, not chosen.

Attention is ``out = sum(p_j v_j) / sum(p_j)`` with ``p_j = 2 ** (c s_j - top)``, where
``s_j = q . k_j`` and ``c = scale * log2(e)``.  Inputs are exact (the reference reads the same
16-bit numbers).  Rounding comes in at these places, ``u`` being half the distance of 1 to the next
number of a format:

1. *Scores.*  A float32 dot product of ``d`` terms errs by at most ``d * U_SUM * |q| |k_j|``
   (Cauchy-Schwarz over the terms' magnitudes).  ``c`` is rounded, the product with it and the
   difference to ``top`` are: four times ``u32`` of a number of at most ``S = scale |q| max|k|``.
   In natural units the exponent errs by ``S * (d * U_SUM + 4 * u32)``.
2. *exp2* is approximate by ``EXP2`` (2 ulp, CUDA's guarantee for ``ex2.approx``).  1 and 2 make the
   relative error of each weight; a common factor cancels between sum and sum.
3. *Rescaling.*  Each key tile multiplies older sums by ``2 ** (old - new)``: its exponent errs by
   ``2 * u32 * S``, itself by ``EXP2``, the products by ``u32`` each; there are ``tiles`` of them.
4. *Weights in the dtype.*  The product with ``v`` takes ``p`` rounded to the dtype: relative
   ``u``, and an absolute half of the smallest subnormal where ``p`` is that small.  The sum of
   weights takes ``p`` unrounded, so this error does not cancel.
5. *Sums* over the keys are float32: ``adds * U_SUM`` relative to the sum of magnitudes, where a
   tensor core adds eight or more products at a time and a multiply-add unit (float32) one.
6. *The quotient* costs two roundings, *the output* is rounded to the dtype.

With ``A = sum(w_j |v_j|)`` (weights normalised; the reference on ``|v|``) all of this is absolute,
per element: ``A * (2 * weight + rounding of p + sums) + ... + u |out|``.

Gradients come from ``p_ij = 2 ** (c s_ij - level_i)`` and ``ds_ij = p_ij (dp_ij - delta_i)``:

7. *Weights*: the score's error (1), the log-sum-exp's own (``lse_error``), and three roundings of a
   number of the size of level and score in the exponent; ``EXP2``.  Call it ``e_p``, relative.
8. *dp* is a float32 dot product: ``d * U_SUM * |dout| |v|``.  *delta* is one of ``dout`` with the
   output as the forward rounded it: ``sum(|dout| out_error) + d * U_SUM * sum(|dout| |out|)``, and
   a rounding where the gradient of the log-sum-exp is taken off.
9. *ds*: ``e_p |ds|`` plus ``p (1 + e_p)`` times the errors of 8, and two roundings; then rounded to
   the dtype, ``u`` relative and half a subnormal, as ``p`` is in dV (4).
10. *Sums* over keys (dQ) or over the queries of all heads of a group (dK, dV) as in 5, a rounding
    for the scale and one for partial sums of heads; the result is rounded to the dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.reference.attention import Head
from kdsl.reference.attention import attention as reference
from kdsl.reference.attention_backward import attention_backward as reference_backward
from kdsl.specs import Attention, as_array

Float = npt.NDArray[np.float64]

U32 = 2.0**-24
U_SUM = 2.0**-23
"""One float32 addition: tensor cores truncate, which costs twice what rounding does."""
EXP2 = 2.0**-22
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": U32}
"""Half the distance of 1 to the next number."""
SUBNORMAL = {"bfloat16": 2.0**-134, "float16": 2.0**-25, "float32": 2.0**-127}
"""Half the smallest positive number; float32 units may flush what is below the smallest normal."""


@dataclass(frozen=True)
class Expected:
    """What the reference says, and how far a kernel may be from it, element by element."""

    out: Float
    lse: Float
    out_error: Float
    lse_error: Float

    def check(self, out: Any, lse: Any | None = None) -> None:
        """AssertionError with the worst element if a result is farther off than it may be."""
        _check("out", as_array(out, np.float64), self.out, self.out_error)
        if lse is not None:
            _check("lse", as_array(lse, np.float64), self.lse, self.lse_error)


def expected(
    spec: Attention,
    q: Any,
    k: Any,
    v: Any,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    block_n: int = 16,
    rows: npt.NDArray[Any] | None = None,
) -> Expected:
    """Reference output and log-sum-exp, and their bounds.

    ``block_n`` is the kernel's tile of keys (the smallest one gives a bound for all), ``rows``
    picks query tokens.  NaN and infinity must come out as in the reference; where they go in, the
    other results are bounded with the largest finite ``|v|`` in place of ``A``.
    """
    q, k, v = (as_array(x, np.float64) for x in (q, k, v))
    out, lse = reference(spec, q, k, v, tables, rows=rows)
    if all(np.isfinite(x).all() for x in (q, k, v)):
        magnitude, _ = reference(spec, q, k, np.abs(v), tables, rows=rows)
    else:
        q, k, v = (np.where(np.isfinite(x), x, 0.0) for x in (q, k, v))
        magnitude = np.full_like(out, np.abs(v).max(initial=0.0))
    keys, tiles = k.shape[2], -(-k.shape[2] // block_n)

    if spec.stored:
        q = np.stack(
            [
                [item[h][Head(spec, h, b, tables).query_position] for h in range(spec.heads)]
                for b, item in enumerate(q)
            ]
        ).reshape(q.shape)
    picked = q if rows is None else q[:, :, rows]
    longest = np.linalg.norm(k, axis=3).max(2, initial=0.0).repeat(spec.group, axis=1)
    size = spec.softmax_scale * np.linalg.norm(picked, axis=3) * longest[:, :, None]

    unit, tiny = UNIT[spec.dtype], SUBNORMAL[spec.dtype]
    score = size * (spec.head_dim * U_SUM + 4 * U32)
    fade = tiles * (2 * U32 * size + EXP2 + U32)
    weight = np.expm1(score + fade + EXP2)
    adds = keys if spec.dtype == "float32" else keys / 8 + 8
    total = weight + adds * U_SUM
    relative = (2 * total + unit + 2 * U32)[..., None]
    lost = keys * tiny * np.abs(v).max((2, 3), initial=0.0).repeat(spec.group, axis=1)
    near = magnitude * relative + lost[:, :, None, None]
    out_error = near + unit * (np.where(np.isfinite(out), np.abs(out), 0.0) + near) + tiny
    # The sum in units of log2 and its conversion: three roundings of a number of that size.
    finite = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    lse_error = total + 4 * U32 * (finite + size + 1) + EXP2
    return Expected(out, lse, out_error, lse_error)


@dataclass(frozen=True)
class ExpectedGradients:
    """The reference's dQ, dK, dV, and how far a kernel's may be from them, element by element."""

    wanted: tuple[Float, Float, Float]
    errors: tuple[Float, Float, Float]

    def check(self, *found: Any) -> None:
        """AssertionError with the worst element if a gradient is farther off than it may be."""
        for name, x, y, allowed in zip(
            ("dq", "dk", "dv"), found, self.wanted, self.errors, strict=True
        ):
            _check(name, as_array(x, np.float64), y, allowed)


def expected_gradients(
    spec: Attention,
    q: Any,
    k: Any,
    v: Any,
    dout: Any,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    dlse: Any | None = None,
) -> ExpectedGradients:
    """Reference gradients and their bounds, for tiles of any size.

    NaN and infinity must come out as in the reference; where they go in, what stays finite must be
    within a bound from the inputs without them.
    """
    wanted = reference_backward(spec, q, k, v, dout, tables, dlse=dlse)
    q, k, v, dout = (as_array(x, np.float64) for x in (q, k, v, dout))
    q, k, v, dout = (np.where(np.isfinite(x), x, 0.0) for x in (q, k, v, dout))
    forward = expected(spec, q, k, v, tables)
    taken = np.zeros(q.shape[:3]) if dlse is None else np.abs(as_array(dlse, np.float64))
    errors: tuple[Float, Float, Float] = (np.zeros_like(q), np.zeros_like(k), np.zeros_like(v))
    for b in range(q.shape[0]):
        for h in range(spec.heads):
            at, shared = (b, h), (b, h // spec.group)
            sees = Head(spec, h, b, tables).mask(np.arange(q.shape[2]))
            of_head = _gradient_errors(
                spec, (q[at], k[shared], v[shared], dout[at]), sees,
                forward.out[at], forward.out_error[at], forward.lse[at], forward.lse_error[at],
                taken[at],
            )  # fmt: skip
            for total, error, place in zip(errors, of_head, (at, shared, shared), strict=True):
                total[place] += error
    unit, tiny = UNIT[spec.dtype], SUBNORMAL[spec.dtype]
    for total, gradient in zip(errors, wanted, strict=True):
        size = np.where(np.isfinite(gradient), np.abs(gradient), 0.0)
        # The scale, the sum over heads, and the rounding of what is stored.
        total *= 1 + 2 * U32
        total += (2 * U32 + unit) * (size + total) + tiny
    return ExpectedGradients(wanted, errors)


def _gradient_errors(
    spec: Attention,
    inputs: tuple[Float, Float, Float, Float],
    sees: npt.NDArray[np.bool_],
    out: Float,
    out_error: Float,
    lse: Float,
    lse_error: Float,
    taken: Float,
) -> tuple[Float, Float, Float]:
    """What one head's pairs add to the errors of dQ, dK, dV, before the last rounding."""
    q, k, v, dout = inputs
    unit, tiny, d = UNIT[spec.dtype], SUBNORMAL[spec.dtype], spec.head_dim
    scale, lengths = spec.softmax_scale, [np.linalg.norm(x, axis=1) for x in inputs]
    size = scale * lengths[0][:, None] * lengths[1][None, :]
    finite = np.where(np.isfinite(lse), lse, 0.0)
    level = np.where(np.isneginf(lse), np.inf, lse)
    p = np.exp(np.where(sees, scale * (q @ k.T), -np.inf) - level[:, None])
    exponent = size * d * U_SUM + lse_error[:, None] + 4 * U32 * (size + np.abs(finite)[:, None])
    of_p = np.expm1(exponent + EXP2)

    dots, absolute = dout @ v.T, (np.abs(dout) * np.abs(out)).sum(1)
    delta = (dout * out).sum(1)
    of_delta = (np.abs(dout) * out_error).sum(1) + d * U_SUM * absolute + U32 * (absolute + taken)
    of_dp = d * U_SUM * lengths[3][:, None] * lengths[2][None, :] + of_delta[:, None]
    largest = np.abs(dots - delta[:, None]) + taken[:, None]
    of_ds = p * (of_p * largest + (1 + of_p) * (of_dp + 3 * U32 * largest))
    ds = p * largest + of_ds
    of_ds = of_ds + unit * ds + tiny * sees
    rounded = p * of_p + unit * p * (1 + of_p) + tiny * sees

    def adds(n: int) -> float:
        return U_SUM * (n if spec.dtype == "float32" else n / 8 + 8)

    keys, queries = adds(len(k)), adds(len(q) * spec.group)
    dq = scale * ((of_ds + keys * ds) @ np.abs(k))
    dk = scale * ((of_ds + queries * ds).T @ np.abs(q))
    dv = (rounded + queries * (p + rounded)).T @ np.abs(dout)
    return dq, dk, dv


def _check(name: str, found: Float, wanted: Float, allowed: Float) -> None:
    assert found.shape == wanted.shape, f"{name}: shape {found.shape}, not {wanted.shape}"
    if not found.size:
        return
    with np.errstate(invalid="ignore"):
        off = np.abs(found - wanted)
        good = (found == wanted) | (off <= allowed) | (np.isnan(found) & np.isnan(wanted))
    if good.all():
        return
    ratio = np.where(good, 0.0, np.where(np.isnan(off), np.inf, off / allowed))
    at = tuple(int(i) for i in np.unravel_index(np.argmax(ratio), ratio.shape))
    raise AssertionError(
        f"{name}{list(at)} is {found[at]!r}, the reference {wanted[at]!r}: off by {off[at]:.3g}, "
        f"allowed {allowed[at]:.3g}; {int((~good).sum())} of {good.size} are wrong"
    )
