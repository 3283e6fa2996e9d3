"""The blocks that a mask chooses in a call, on the device, on the current stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdsl.kernels.lists import call, selection
from kdsl.orders import Order
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor


def pooled_orders(spec: Attention) -> tuple[Order | None, Order | None]:
    """Orders by which queries and keys are gathered before they are pooled; None: as they are."""
    sides = (spec.query_order, spec.kv_order)
    return tuple(None if spec.stored or o.is_identity else o for o in sides)  # type: ignore[return-value]


def any_block(spec: Attention) -> bool:
    """Whether every block is open to the choice."""
    return all(e.value == 1 for e in spec.candidates.mask.variants)


def classified_in_call(spec: Attention) -> bool:
    """Whether what is open to the choice depends on the call: on tables, or on the batch."""
    left = spec.candidates
    spoken = any("batch" in e.variables() for e in left.mask.variants)
    return bool(left.open_tables) or spoken


def of_call(spec: Attention, module: Any, q: Tensor, k: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Chosen blocks, uint8 ``[batch * heads, rows, columns]``, as the mask's leaf reads them.

    ``tables`` are the stored orders of queries and of keys, where they are gathered (int32 ``[1 or
    heads, tokens]``); then, unless all blocks are open to the choice, the map of those that are
    (``[1, heads or 1, rows, columns]``), or where that depends on the call the tables of the leaves
    of `Attention.candidates`, whose generated file ``module`` is.
    """
    import torch

    choice = spec.mask.choice
    assert choice is not None
    rest = list(tables)
    taken = (None if o is None else rest.pop(0) for o in pooled_orders(spec))
    indices = tuple(None if x is None else x.view(-1, x.shape[-1]) for x in taken)
    allowed = None
    if classified_in_call(spec):
        call.check_shapes(spec.candidates, rest)
        allowed = call.classified(spec.candidates, module, rest, q.shape[0])
    elif not any_block(spec):
        allowed = rest.pop(0)
    score = selection.scores(q, k, choice.block, spec.softmax_scale, indices)  # type: ignore[arg-type]
    if choice.rule == "topk":
        kept = selection.topk(score, int(choice.amount), allowed=allowed)
    else:
        kept = selection.topp(score, float(choice.amount), allowed=allowed)
    return kept.view(torch.uint8).view(-1, *kept.shape[2:])
