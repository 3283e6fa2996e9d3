"""An operator in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsl.runtime.attention import AttentionOperator


def explain_attention(op: AttentionOperator) -> str:
    """Backend, configuration and its source, mask and cost of an attention operator."""
    spec = op.spec
    shape = f"{spec.heads} heads x {spec.query_grid.tokens} queries x {spec.key_grid.tokens} keys"
    where = op.target.name if op.target else "no GPU: NumPy reference"
    lines = [
        f"attention  {shape} x head_dim {spec.head_dim}, {spec.dtype}",
        f"backend    {op.backend} ({where}{'' if op.here or not op.target else ', not here'})",
    ]
    if op.choice is not None:
        settings = ", ".join(f"{k}={v}" for k, v in op.choice.params.items())
        lines.append(f"config     {settings}")
        lines += [f"           {line}" for line in op.choice.lines]
    lines.append(f"program    {spec.program}")
    stats = op.tunable.statistics()
    if stats:
        full = 100 * (1 - stats["partial_share"])
        lines += [
            f"mask       density {stats['density']:.4f}, {full:.1f} % of kept blocks full",
            f"rows       longest {stats['row_max']:.2f}x the mean, in runs of "
            f"{stats['run_length']:.1f} blocks",
        ]
    else:
        names = ", ".join(t.name for t in spec.open_tables)
        lines.append(f"mask       known at the call (tables: {names}); op.bind(...) to see more")
    cost = op.cost()
    lines.append(f"work       {cost['flop'] / 1e12:.3f} TFLOP kept, {cost['bytes'] / 1e6:.1f} MB")
    if "predicted_us" in cost:
        known = op.choice.predicted_us if op.choice is not None else None
        lines.append(
            f"predicted  {op.predicted}" if known is None else f"predicted  {known:.0f} us"
        )
    if "measured_us" in cost:
        lines.append(f"measured   {cost['measured_us']:.1f} us")
    return "\n".join(lines)
