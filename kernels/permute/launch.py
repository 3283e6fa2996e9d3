"""Run the permute kernels through CuPy: no copies, the current stream, no synchronisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.expr.tables import Table
from kdsl.kernels.permute import generate, nvrtc
from kdsl.kernels.permute.arrays import Arrays, arrays_of
from kdsl.kernels.permute.config import Config, Sizes, fitting, problem
from kdsl.specs import Permute
from kdsl.targets import Target

COUNTERS = 32
"""32-bit words of scratch before the first unit's; see the template."""
MAX_BLOCKS = 2**31 - 1


@dataclass(frozen=True)
class Launch:
    """Thread blocks, threads of a block, and the arguments in order: addresses and integers."""

    blocks: int
    threads: int
    arguments: tuple[int, ...]


def scratch_words(sizes: Sizes, batch: int) -> int:
    """32-bit words of zeros that a call needs beside its outputs; 0 where it reads x once."""
    if sizes.method != "GROUPS":
        return 0
    units = batch * sizes.spec.heads * sizes.groups
    return COUNTERS + units * (1 + sizes.channel_groups)


def plan(
    sizes: Sizes,
    x: int,
    strides: Sequence[int],
    batch: int,
    outs: Sequence[int],
    scratch: int = 0,
    tables: Sequence[int] = (),
) -> Launch:
    """How to launch the kernel: everything but the kernel itself.

    ``x``, ``outs``, ``scratch`` and ``tables`` are addresses, ``strides`` the input's in bytes for
    batch, head and token.
    """
    spec = sizes.spec
    tokens, matrices = spec.grid.tokens, batch * spec.heads
    arguments = (x, *strides, spec.heads, tokens, *outs)
    if sizes.method == "GROUPS":
        units = matrices * sizes.groups
        blocks = 2 * units * sizes.unit_tiles
        arguments = (*arguments, scratch, units, min(sizes.config.lag, units))
    elif sizes.method == "BLOCKS":
        blocks = matrices * sizes.groups
    else:
        blocks = matrices * -(-tokens // sizes.tile)
    if blocks > MAX_BLOCKS:
        raise UnsupportedError(f"{blocks} thread blocks", hint="a smaller batch")
    return Launch(blocks, sizes.threads, (*arguments, *tables))


class Runner:
    """A compiled spec: call it with ``x [batch, heads, tokens, head_dim]`` on a GPU.

    Kernels are compiled when they are first needed on a device, or by `prepare`.  Inputs that are
    aligned to less than the configuration's loads get a kernel of their own.
    """

    def __init__(
        self, spec: Permute, config: Config, compiler: nvrtc.Compiler = nvrtc.cubin
    ) -> None:
        reason = problem(spec, config)
        if reason:
            raise ConfigError(f"illegal configuration: {reason}", where=repr(config))
        self.spec, self.config, self.compiler = spec, config, compiler
        self._sizes: dict[int, Sizes] = {}
        self._kernels: dict[tuple[Config, int], Any] = {}
        self._fixed_tables: dict[tuple[str, str, int], Any] = {}

    def prepare(self, x: Any) -> None:
        """Compile and upload all that a call with such an input needs, without calling."""
        arrays = arrays_of(x)
        self._check(x, arrays)
        self._kernel(self._fitting(x, arrays), arrays)
        for table in self.spec.tables:
            if table.values is not None:
                self._fixed(table, arrays)

    def __call__(self, x: Any, tables: Mapping[str, Any] | None = None, out: Any = None) -> Any:
        """The stored sequence, or (codes, scales) with a layout.

        ``x`` is a torch CUDA tensor or a CuPy array of any strides whose last axis is contiguous;
        ``tables`` gives open tables by name.  ``out`` takes contiguous results to write to.
        Launched on torch's (CuPy's) current stream; can be captured in a CUDA graph after a first
        call or `prepare`.
        """
        arrays = arrays_of(x)
        self._check(x, arrays)
        outs = self._outs(x, arrays, out)
        batch = int(x.shape[0])
        if batch * self.spec.grid.tokens:
            sizes = self._fitting(x, arrays)
            kernel = self._kernel(sizes, arrays)
            held = [self._table(t, tables or {}, arrays) for t in self.spec.tables]
            words = scratch_words(sizes, batch)
            scratch = arrays.zeros(words) if words else None
            launch = plan(
                sizes,
                arrays.address(x),
                _strides(x, arrays),
                batch,
                [arrays.address(o) for o in outs],
                arrays.address(scratch) if words else 0,
                [arrays.address(t) for t in held],
            )
            with arrays.stream():
                kernel((launch.blocks,), (launch.threads,), launch.arguments)
        return outs[0] if self.spec.layout is None else outs

    def _fitting(self, x: Any, arrays: Arrays) -> Sizes:
        alignment = math.gcd(16, arrays.address(x), *_strides(x, arrays))
        if alignment not in self._sizes:
            config = fitting(self.spec, self.config, alignment)
            self._sizes[alignment] = Sizes(self.spec, config)
        return self._sizes[alignment]

    def _kernel(self, sizes: Sizes, arrays: Arrays) -> Any:
        key = (sizes.config, arrays.device)
        if key not in self._kernels:
            arrays.refuse_capture("the kernel is not compiled yet")
            from cupy.cuda.function import Module

            entry = generate.entry(self.spec)
            source = generate.source(self.spec, sizes.config)
            module = Module()
            with arrays.stream():
                module.load(self.compiler(source, entry, arrays.capability()))
                self._kernels[key] = module.get_function(entry)
        return self._kernels[key]

    def _table(self, table: Table, given: Mapping[str, Any], arrays: Arrays) -> Any:
        if table.values is not None:
            return self._fixed(table, arrays)
        if table.name not in given:
            raise InputError(
                f"table {table.name!r} has no values",
                where=repr(table),
                hint=f"tables={{{table.name!r}: ...}} in the call",
            )
        values = given[table.name]
        if not arrays.owns(values):
            arrays.refuse_capture(f"table {table.name!r} is not on the GPU")
            return arrays.upload(table.checked(values), table.dtype)
        if tuple(values.shape) != table.shape:
            raise InputError(
                f"table {table.name!r} has shape {tuple(values.shape)}", hint=str(table.shape)
            )
        return arrays.upload(values, table.dtype)

    def _fixed(self, table: Table, arrays: Arrays) -> Any:
        key = (table.name, type(arrays).__name__, arrays.device)
        if key not in self._fixed_tables:
            arrays.refuse_capture(f"table {table.name!r} is not on the GPU yet")
            self._fixed_tables[key] = arrays.upload(table.values, table.dtype)
        return self._fixed_tables[key]

    def _check(self, x: Any, arrays: Arrays) -> None:
        spec = self.spec
        wanted = (spec.heads, spec.grid.tokens, spec.head_dim)
        if len(x.shape) != 4 or tuple(x.shape[1:]) != wanted:
            raise InputError(
                f"x has shape {tuple(x.shape)}",
                where="[batch, heads, tokens, head_dim]",
                hint=f"[batch, {', '.join(map(str, wanted))}]",
            )
        if arrays.dtype(x) != spec.dtype:
            raise InputError(f"x is {arrays.dtype(x)}, the spec says {spec.dtype}")
        read = x.shape[0] * spec.grid.tokens and spec.head_dim > 1
        if read and arrays.strides(x)[3] != arrays.item(x):
            raise InputError(
                f"the last axis of x has a stride of {arrays.strides(x)[3]} bytes",
                where="[batch, heads, tokens, head_dim]",
                hint="x.contiguous()",
            )

    def _outs(self, x: Any, arrays: Arrays, out: Any) -> tuple[Any, ...]:
        shapes = result_shapes(self.spec, int(x.shape[0]))
        if out is None:
            return tuple(arrays.empty(shape, dtype) for shape, dtype in shapes)
        outs = (out,) if self.spec.layout is None else tuple(out)
        for o, (shape, dtype) in zip(outs, shapes, strict=True):
            fits = arrays.owns(o) and tuple(o.shape) == shape and arrays.dtype(o) == dtype
            if not fits or not arrays.contiguous(o) or arrays.address(o) % 16:
                raise InputError(
                    f"out= of shape {tuple(o.shape)} and {o.dtype}",
                    hint=f"contiguous {dtype} of shape {shape} on the GPU of x",
                )
        return outs


def result_shapes(spec: Permute, batch: int) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the results."""
    lead, tokens = (batch, spec.heads), spec.grid.tokens
    whole = (*lead, tokens, spec.head_dim)
    if spec.layout is None:
        return [(whole, spec.dtype)]
    scales = (*lead, *spec.layout.scale_shape(tokens, spec.head_dim))
    return [(whole, "int8"), (scales, "float32")]


def _strides(x: Any, arrays: Arrays) -> tuple[int, ...]:
    """Of batch, head and token in bytes; 0 for an axis of one entry, which may have any."""
    steps = zip(x.shape[:3], arrays.strides(x)[:3], strict=True)
    return tuple(step if size > 1 else 0 for size, step in steps)


def make_runner(spec: Permute, config: Config, target: Target | None = None) -> Runner:
    """A runner; ConfigError where ``config`` is illegal for the spec or the GPU."""
    if target is not None and target.capability < (8, 0):
        raise ConfigError(f"{target.name} is below compute capability 8.0")
    return Runner(spec, config)


def run(spec: Permute, config: Config, x: Any, tables: Mapping[str, Any] | None = None) -> Any:
    """One call: the stored sequence, or (codes, scales).  Keep a `Runner` for more than one."""
    return Runner(spec, config)(x, tables)
