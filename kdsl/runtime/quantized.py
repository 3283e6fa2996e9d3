"""The operator of attention with a layout: quantized operands in, 16-bit output out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdsl.errors import UnsupportedError
from kdsl.kernels.attention.fallback import fitting
from kdsl.kernels.attention.quantized import launch
from kdsl.kernels.attention.quantized.tunable import tunable_of
from kdsl.kernels.layouts import in_torch
from kdsl.reference.attention_quantized import attention_quantized
from kdsl.runtime.arrays import interpreting, like, say_once, uploaded
from kdsl.runtime.attention import KEPT_CALLS, AttentionOperator
from kdsl.runtime.checks import check_finite, check_operands, check_tensors
from kdsl.runtime.choice import Choice
from kdsl.runtime.operator import Tables, array_tables
from kdsl.runtime.program import Program
from kdsl.runtime.with_torch import torch_ops


class QuantizedOperator(AttentionOperator):
    """Block-sparse attention on quantized operands, on one GPU or by the reference."""

    run = staticmethod(launch.launch)

    def __call__(self, *tensors: Any, tables: Tables | None = None, check: bool = False) -> Any:
        """Attention of the operands that ``spec.layout.operands`` names, as `quantize` makes them.

        Of 16-bit q, k and v too, which are quantized first.  The output has the queries' shape and
        the spec's dtype; with ``return_lse`` a pair with the natural log-sum-exp, float32.
        """
        if len(tensors) == 3:
            tensors = self.quantize(*tensors)
        if tables is None and not check and (found := self.warm(tensors)) is not None:
            return found
        kind = self._kind(tensors)
        if kind in self.known and not check:
            out, lse = self._launch(tensors, tables, self.known[kind], kind)
            return (out, lse) if self.spec.return_lse else out
        given = check_operands(self.spec, tensors)
        if check:
            check_finite({n: x for n, x in given.items() if n.endswith("_scale")})
            self._checked({**self.fixed, **array_tables(self.spec, tables)})
        if not isinstance(tensors[0], np.ndarray) and self.seen_by_torch(tensors):
            out, lse = torch_ops().attention(self, tensors, tables)
        elif self.backend == "reference":
            out, lse = self._by_reference(tensors, self._bound_for(tables, tensors[0].shape[0]))
        else:
            out, lse = self._by_kernel(tensors, tables, kind)
        if check:
            check_finite({"the output": out})
            if self.spec.mask.capacity is not None and hasattr(out, "is_cuda"):
                self._check_capacity((out, out, out), tables)
        return (out, lse) if self.spec.return_lse else out

    def quantize(self, q: Any, k: Any, v: Any) -> tuple[Any, ...]:
        """The operands of 16-bit ``[batch, heads, tokens, head_dim]``, in stored order.

        Torch tensors give torch tensors, on their device; arrays give arrays (float8 as its bits).
        """
        layout = self.spec.layout
        assert layout is not None
        q, k, v = check_tensors(self.spec, (q, k, v))
        if isinstance(q, np.ndarray):
            return layout.quantize(q, k, v)
        if _differentiated((q, k, v)):
            raise UnsupportedError("quantizing has no gradient", hint="torch.no_grad()")
        return in_torch.operands(layout, q, k, v)

    def reference(self, *tensors: Any, tables: Tables | None = None) -> Any:
        """The reference of the quantized arithmetic on operands, or on q, k, v quantized first.

        Float64 output, and the log-sum-exp if the spec asks for it.  The truth without a layout is
        that of the spec with ``layout=None``.
        """
        if len(tensors) == 3:
            tensors = self.quantize(*tensors)
        check_operands(self.spec, tensors)
        bound = self._bound_for(tables, tensors[0].shape[0])
        found = attention_quantized(self.spec, tensors, bound.tables)
        return (found.out, found.lse) if self.spec.return_lse else found.out

    @property
    def backward_choices(self) -> Mapping[str, Choice]:
        """None: what is quantized is not differentiated."""
        return {}

    @property
    def backward_source(self) -> str:
        """UnsupportedError: there is none."""
        raise UnsupportedError("quantized attention has no gradients", hint="layout=None")

    def program(self, differentiated: bool) -> Program:
        """What makes lists on the device."""
        if differentiated:
            raise UnsupportedError("quantized attention has no gradients", hint="layout=None")
        return super().program(False)

    def _by_reference(self, tensors: tuple[Any, ...], bound: Any) -> tuple[Any, Any]:
        if self.target is None:
            say_once()
        found = attention_quantized(self.spec, tensors, bound.tables)
        return self._typed(found.out, tensors[0]), like(found.lse, tensors[0], np.float32)

    def _typed(self, out: Any, model: Any) -> Any:
        """An output in the spec's dtype, bfloat16 as float32 where there are only arrays."""
        if isinstance(model, np.ndarray):
            return out.astype(np.float16 if self.spec.dtype == "float16" else np.float32)
        import torch

        return torch.from_numpy(out).to(model.device, getattr(torch, self.spec.dtype))

    def _by_kernel(
        self, tensors: tuple[Any, ...], tables: Tables | None, kind: Any = None
    ) -> tuple[Any, Any]:
        self.require_here()
        if isinstance(given := tensors[0], np.ndarray):
            out, lse = self._by_kernel(self._uploaded(tensors), tables)
            out = out.float() if self.spec.dtype == "bfloat16" else out
            return out.cpu().numpy(), like(lse, given, np.float32)
        device = given.device
        self._check_device(device)
        q, k, v = (tensors[self._at(name)] for name in "qkv")
        if not q.numel() or not k.shape[2]:
            self._bound_for(tables, q.shape[0])  # raises on what is wrong with them
            return self._nothing(q)
        config = self._config
        if config.loads != "pointer":
            config = fitting(config, (q, k, v), tunable_of(self.spec).legal)
        result = self._launch(tensors, tables, config, kind)
        if kind is not None and len(self.known) < KEPT_CALLS:
            self.known[kind] = config
        return result

    def _at(self, name: str) -> int:
        assert self.spec.layout is not None
        return self.spec.layout.operands.index(name)

    def _nothing(self, q: Any) -> tuple[Any, Any]:
        import torch

        out = torch.zeros(q.shape, dtype=getattr(torch, self.spec.dtype), device=q.device)
        return out, torch.full(q.shape[:3], -float("inf"), device=q.device)

    def _uploaded(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        import torch

        layout, place = self.spec.layout, "cpu" if interpreting() else "cuda"
        assert layout is not None
        out = []
        for name, x in zip(layout.operands, arrays, strict=True):
            dtype = self.spec.dtype if name == "v" and layout.v is None else str(x.dtype)
            held = uploaded(x, dtype, place)
            if name == "v" and layout.weights == "e4m3":
                held = held.view(torch.float8_e4m3fn)
            out.append(held)
        return tuple(out)


def _differentiated(tensors: tuple[Any, ...]) -> bool:
    import torch

    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
