"""An operator in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsl.runtime.attention import AttentionOperator
    from kdsl.runtime.matmul import MatmulOperator
    from kdsl.runtime.operator import Operator
    from kdsl.runtime.permute import PermuteOperator
    from kdsl.runtime.prepass import PrepassOperator
    from kdsl.runtime.quantize import QuantizeOperator


def explain_attention(op: AttentionOperator) -> str:
    """Backend, configuration and its source, mask and cost of an attention operator."""
    spec = op.spec
    shape = f"{spec.heads} heads x {spec.query_grid.tokens} queries x {spec.key_grid.tokens} keys"
    lines = [f"attention  {shape} x head_dim {spec.head_dim}, {spec.dtype}", *_chosen(op)]
    for part, choice in op.backward_choices.items():
        settings = ", ".join(f"{k}={v}" for k, v in choice.params.items())
        name = {"keys": "dK, dV", "queries": "dQ", "all": "dQ, dK, dV"}[part]
        lines += [f"{name:<10} {settings}", *(f"           {line}" for line in choice.lines)]
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
    return "\n".join([*lines, *_times(op, cost)])


def explain_permute(op: PermuteOperator) -> str:
    """Backend, configuration and its source, and cost of a permute operator."""
    spec, cost = op.spec, op.cost()
    shape = f"{spec.heads} heads x {spec.grid.tokens} tokens x head_dim {spec.head_dim}"
    lines = [
        f"permute    {shape}, {spec.dtype}{f' to {spec.layout.code}' if spec.layout else ''}",
        f"order      {spec.order!r}",
        *_chosen(op),
        f"work       {cost['bytes'] / 1e6:.1f} MB",
    ]
    return "\n".join([*lines, *_times(op, cost)])


def explain_quantize(op: QuantizeOperator) -> str:
    """Backend, configuration and its source, steps and cost of a quantize operator."""
    spec, cost = op.spec, op.cost()
    steps = [s for s in (spec.norm, "modulate" if spec.modulate else None, spec.activation) if s]
    steps += [f"{kind} {block}" if block else kind for kind, block in spec.recipe.steps]
    lines = [
        f"quantize   {spec.rows} rows x {spec.columns} columns, {spec.dtype} to {spec.format.name}",
        f"steps      {', '.join(steps) or 'none'}",
        *_chosen(op),
        f"work       {cost['bytes'] / 1e6:.1f} MB",
    ]
    return "\n".join([*lines, *_times(op, cost)])


def explain_matmul(op: MatmulOperator) -> str:
    """Backend, configuration and its source, epilogue and cost of a matmul operator."""
    spec, cost = op.spec, op.cost()
    steps = ["scales", "bias" if spec.bias else "", spec.activation or ""]
    steps += ["residual" if spec.residual else ""]
    x = spec.dtype if spec.x is None else spec.x.name
    lines = [
        f"matmul     {spec.rows} x {spec.inner} x {spec.columns}, {x} by "
        f"{spec.weight.name} to {spec.dtype}",
        f"epilogue   {', '.join(s for s in steps if s)}",
        *_chosen(op),
        f"work       {cost['flop'] / 1e12:.3f} TFLOP, {cost['bytes'] / 1e6:.1f} MB",
    ]
    return "\n".join([*lines, *_times(op, cost)])


def explain_prepass(op: PrepassOperator) -> str:
    """Backend, configuration and its source, steps and cost of a pre-pass operator."""
    from kdsl.kernels.prepass.arguments import launches
    from kdsl.kernels.prepass.tunable import traffic

    spec, cost, held = op.spec, op.cost(), traffic(op.spec)
    kv = f" ({spec.group_heads} of k and v)" if spec.group > 1 else ""
    shape = f"{spec.heads} heads{kv} x {spec.grid.tokens} tokens x head_dim {spec.head_dim}"
    layout = spec.layout
    v = layout.v.code if layout.v is not None else spec.dtype
    steps = [f"norm {spec.norm}" if spec.norm else "", f"rope {spec.rope}" if spec.rope else ""]
    steps += ["order" if spec.moves else "", "k less its mean" if spec.smooth else ""]
    steps += [f"q and k to {layout.q.code}, v to {v} by {layout.v_stored}"]
    steps += [f"means of {spec.pool[0]} and {spec.pool[1]}" if spec.pool else ""]
    lines = [
        f"prepass    {shape}, {spec.dtype}",
        f"steps      {', '.join(s for s in steps if s)}",
        *_chosen(op),
        f"launches   {', '.join(launches(spec))}",
        f"work       {cost['bytes'] / 1e6:.1f} MB, {held.reread / 1e6:.1f} MB of them read again",
    ]
    return "\n".join([*lines, *_times(op, cost)])


def _chosen(op: Operator) -> list[str]:
    where = op.target.name if op.target else "no GPU: NumPy reference"
    lines = [f"backend    {op.backend} ({where}{'' if op.here or not op.target else ', not here'})"]
    if op.choice is not None:
        settings = ", ".join(f"{k}={v}" for k, v in op.choice.params.items())
        lines.append(f"config     {settings}")
        lines += [f"           {line}" for line in op.choice.lines]
    return lines


def _times(op: Operator, cost: Mapping[str, float]) -> list[str]:
    lines = []
    if "predicted_us" in cost:
        known = op.choice.predicted_us if op.choice is not None else None
        lines.append(
            f"predicted  {op.predicted}" if known is None else f"predicted  {known:.0f} us"
        )
    if "measured_us" in cost:
        lines.append(f"measured   {cost['measured_us']:.1f} us")
    return lines
