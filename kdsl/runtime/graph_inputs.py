"""What a call of attention takes beside q, k and v, while torch.compile traces it.

Apart from the operations, for it needs torch's tracer, which takes a second to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch._dynamo

if TYPE_CHECKING:
    from kdsl.runtime.attention import AttentionOperator


def known(batch: int) -> int:
    """A batch size as a number: where it decides the lists, each one makes a graph of its own."""
    n = 0
    while n != batch:
        n += 1
    return n


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def constants(
    operator: AttentionOperator, tables: None, batch: int, device: Any, differentiated: bool
) -> Any:
    """Lists, tables and program of a call without tables: fixed while the graph is made."""
    return operator.operands(tables, batch, device, differentiated)


def sources(operator: AttentionOperator, tables: Any, device: Any, differentiated: bool) -> Any:
    """Where the tables of a call on the device come from, and the program that reads them."""
    return _sources(operator, tuple(tables), device, differentiated)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _sources(
    operator: AttentionOperator, names: tuple[str, ...], device: Any, differentiated: bool
) -> Any:
    return operator.on_device.sources(names, device), operator.program(differentiated).name


@torch._dynamo.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="tables of a call are read on the host; op = op.bind(tables) before it is compiled"
)
def read_tables(
    operator: AttentionOperator, tables: Any, batch: int, device: Any, differentiated: bool
) -> Any:
    """The same with tables of the call: outside of any graph."""
    return operator.operands(tables, batch, device, differentiated)
