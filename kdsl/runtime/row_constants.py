"""What a call of quantize or matmul takes beside its tensors, while torch.compile traces it.

Apart from the operations, for it needs torch's tracer, which takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch._dynamo

from kdsl.runtime.matmul import MatmulOperator
from kdsl.runtime.quantize import QuantizeOperator


def constants(operator: Any, device: Any) -> Any:
    """What is bound and the program's name: constants of the graph."""
    return operator.constants(device)


# Methods: a function that is marked takes nothing but constants in torch 2.11, and no operator.
torch._dynamo.assume_constant_result(QuantizeOperator.constants)  # type: ignore[no-untyped-call]
torch._dynamo.assume_constant_result(MatmulOperator.constants)  # type: ignore[no-untyped-call]
