"""What a call of attention takes beside q, k and v, while torch.compile traces it.

Apart from the operations, for it needs torch's tracer, which takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch._dynamo

from kdsl.runtime.attention import AttentionOperator


def known(batch: int) -> int:
    """A batch size as a number: where it decides the lists, each one makes a graph of its own."""
    n = 0
    while n != batch:
        n += 1
    return n


def constants(
    operator: AttentionOperator, tables: None, batch: int, device: Any, differentiated: bool
) -> Any:
    """Lists, tables and program of a call without tables: fixed while the graph is made."""
    return operator.operands(tables, batch, device, differentiated)


def sources(operator: AttentionOperator, tables: Any, device: Any, differentiated: bool) -> Any:
    """Where the tables of a call on the device come from, and the program that reads them."""
    return operator.sources(tuple(tables), device, differentiated)


# Methods: a function that is marked takes nothing but constants in torch 2.11, and no operator.
torch._dynamo.assume_constant_result(AttentionOperator.operands)  # type: ignore[no-untyped-call]
torch._dynamo.assume_constant_result(AttentionOperator.sources)  # type: ignore[no-untyped-call]


@torch._dynamo.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="tables of a call are read on the host; op = op.bind(tables) before it is compiled"
)
def read_tables(
    operator: AttentionOperator, tables: Any, batch: int, device: Any, differentiated: bool
) -> Any:
    """The same with tables of the call: outside of any graph."""
    return operator.operands(tables, batch, device, differentiated)
