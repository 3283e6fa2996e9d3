"""What a quantize or matmul operation of torch runs, as a value: spec, backend, configuration.

A spec counts its rows, a network does not: a program answers for any number of them.  It is named
by canonical JSON, so that a graph which holds one can be run elsewhere.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from kdsl.errors import ConfigError, SpecError
from kdsl.reference.matmul import buffers_of, matmul, values
from kdsl.reference.quantize import quantize
from kdsl.runtime.arrays import like
from kdsl.runtime.builder import build, device_target
from kdsl.specs import Matmul, Quantize, as_array, canonical

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.layouts import Format
    from kdsl.runtime.matmul import MatmulOperator
    from kdsl.runtime.quantize import QuantizeOperator

KEPT_ROWS = 64
"""Numbers of rows whose operators a program remembers."""


@dataclass(frozen=True, eq=False)
class RowProgram:
    """One spec for any number of rows, by a kernel or by the reference (``backend``).

    ``config`` is taken for all of them; None chooses one for each power of two of rows, from which
    the numbers below it take theirs: a new number of rows is neither a look-up nor a compilation,
    beyond what Triton specialises sizes for.
    """

    spec: Quantize | Matmul
    backend: str | None = None
    config: Mapping[str, Any] | None = None
    mode: str = "predict"

    @cached_property
    def name(self) -> str:
        """Canonical JSON of the program."""
        config = None if self.config is None else dict(self.config)
        return canonical(
            {"backend": self.backend, "config": config, "mode": self.mode,
             "spec": self.spec.to_json()}
        )  # fmt: skip

    @staticmethod
    def from_name(name: str) -> RowProgram:
        """The program of a name."""
        value = json.loads(name)
        kinds: dict[str, Any] = {"quantize": Quantize, "matmul": Matmul}
        spec = kinds[value["spec"]["op"]].from_json(value["spec"])
        return RowProgram(spec, value["backend"], value["config"], value["mode"])

    @property
    def by_reference(self) -> bool:
        """Whether NumPy computes it: asked for, or for want of a GPU."""
        return self.backend == "reference" or (self.backend is None and device_target() is None)

    @cached_property
    def _operators(self) -> OrderedDict[int, Any]:
        return OrderedDict()

    @cached_property
    def _configs(self) -> dict[int, Mapping[str, Any]]:
        """By power of two of rows."""
        return {}

    @cached_property
    def _decoded(self) -> Any:
        """Weights as numbers, by their codes' tensor, while that lives: for the reference alone."""
        from torch.utils.weak import WeakTensorKeyDictionary

        return WeakTensorKeyDictionary()

    def at(self, rows: int) -> Any:
        """The operator for so many rows."""
        if rows in self._operators:
            self._operators.move_to_end(rows)
            return self._operators[rows]
        made = self._operators[rows] = self._built(rows)
        while len(self._operators) > KEPT_ROWS:
            self._operators.popitem(last=False)
        return made

    def _built(self, rows: int) -> Any:
        def of(count: int, config: Mapping[str, Any] | None) -> Any:
            spec = replace(self.spec, rows=count)
            return build(spec, backend=self.backend, config=config, mode=self.mode)

        if self.config is not None or self.by_reference:
            return of(rows, self.config)
        bucket = 1 << (rows - 1).bit_length()
        if bucket not in self._configs:
            self._configs[bucket] = of(bucket, None).config
        try:
            return of(rows, self._configs[bucket] or None)
        except ConfigError:  # what is legal for the power of two need not be for all below it
            return of(rows, None)

    def values(self, tables: Mapping[str, Any], device: Any) -> list[Tensor]:
        """A recipe's values as `quantize` takes them, on a device: folded for a kernel."""
        import torch

        spec = self.spec
        assert isinstance(spec, Quantize)
        held = {name: as_array(tables[name]) for name in spec.shapes if name in tables}
        recipe = spec.recipe.recipe(held, spec.columns)
        if self.by_reference:
            return [torch.from_numpy(held[name].copy()).to(device) for name in spec.shapes]
        from kdsl.kernels.quantize.arguments import Folded

        return list(Folded.of(spec, recipe, device).values.values())

    def quantize(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, given: Sequence[Tensor]
    ) -> list[Tensor]:
        """The buffers of ``x [rows, columns]`` or ``[batch, rows, columns]``."""
        if not x.numel():
            return self.empty_buffers(x, x.shape[-2])
        op = cast("QuantizeOperator", self.at(x.shape[-2]))
        if op.backend == "reference":
            tables = dict(zip(op.spec.shapes, given, strict=True))
            found = quantize(op.spec, x, scale, shift, tables)
            return [like(held, x, held.dtype) for held in found.values()]
        return list(op.launched(x, scale, shift, given).values())

    def empty_buffers(self, x: Tensor, rows: Any) -> list[Tensor]:
        """Memory for the buffers of a result; ``rows`` may be a symbol of torch's compiler."""
        import torch

        spec = self.spec
        assert isinstance(spec, Quantize)
        lead = tuple(x.shape[:-2])
        sizes = buffer_shapes(spec.format, rows, spec.columns)
        return [
            x.new_empty((*lead, *size), dtype=getattr(torch, buffer.word))
            for size, buffer in zip(sizes, spec.format.buffers, strict=True)
        ]

    def matmul(self, operands: Sequence[Tensor], sums: Tensor | None, rows: int) -> Tensor:
        """``[rows, columns]`` from the operands of the spec in their order."""
        import torch

        spec = self.spec
        assert isinstance(spec, Matmul)
        dtype = getattr(torch, spec.dtype)
        if not rows:
            return operands[0].new_empty((0, spec.columns), dtype=dtype)
        op = cast("MatmulOperator", self.at(rows))
        named = dict(zip(op.operands, operands, strict=True))
        if op.backend == "reference":
            found = matmul(op.spec, named, self._weight(op.spec, named))
            return torch.from_numpy(found).to(operands[0].device, dtype)
        given = named if sums is None else {**named, "weight_sums": sums}
        return cast("Tensor", op.launched(given))

    def sums(self, weight: Mapping[str, Tensor]) -> Tensor | None:
        """Sums of a weight's codes, which `matmul` takes where a kernel meets zero points of x.

        UnsupportedError where no kernel computes the spec.
        """
        from kdsl.kernels.matmul.facts import view
        from kdsl.kernels.matmul.launch import sums_of
        from kdsl.runtime.matmul import check_supported

        if self.by_reference:
            return None
        assert isinstance(self.spec, Matmul)
        check_supported(self.spec)
        if self.spec.x is None:
            return None
        held = view(self.spec)
        return sums_of(weight[f"weight_{held.weight.codes}"]) if held.zeros else None

    def _weight(self, spec: Matmul, named: Mapping[str, Tensor]) -> Any:
        """What the weight's buffers stand for, kept while they live and nobody writes to them."""
        held = [named[f"weight_{b.name}"] for b in spec.weight.buffers]
        state = tuple((t.data_ptr(), t._version) for t in held)
        found = self._decoded.get(held[0])
        if found is None or found[0] != state:
            buffers = buffers_of(spec.weight, "weight", named)
            found = self._decoded[held[0]] = state, values(spec.weight, buffers, spec.weight_shape)
        return found[1]


def buffer_shapes(fmt: Format, rows: Any, columns: int) -> list[tuple[Any, int]]:
    """Shapes of a format's buffers for so many rows, a number or a symbol.

    A symbol stays one where the buffers have a record a row, as those of activations do; otherwise
    it becomes a number, and each a graph of its own.
    """
    if not isinstance(rows, int):
        few = [_shapes(fmt, n, columns) for n in (1, 2, 3)]
        if all([r for r, _ in sizes] == [n] * len(sizes) for n, sizes in enumerate(few, 1)):
            return [(rows, words) for _, words in few[0]]
        rows = int(rows)
    if not rows:
        return [(0, words) for _, words in _shapes(fmt, 1, columns)]
    return _shapes(fmt, rows, columns)


def _shapes(fmt: Format, rows: int, columns: int) -> list[tuple[Any, int]]:
    try:
        return [fmt.buffer_shape(b, (rows, columns)) for b in fmt.buffers]
    except SpecError:
        return [(-1, 0) for _ in fmt.buffers]  # such rows there are not
