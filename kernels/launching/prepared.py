"""Launches that were made before: what a call like one of them has left to do.

Triton's own launch binds, specialises and looks up some fifty arguments each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kdsl.kernels.launching.direct import Direct, direct
from kdsl.kernels.launching.place import stream_of

if TYPE_CHECKING:
    from torch import Tensor

KEPT_LAUNCHES = 64
"""Prepared launches of one set of lists: they differ in batch, strides and alignment."""


@dataclass(frozen=True)
class Prepared:
    """A compiled kernel with all arguments of a call but the tensors that change from one to the
    next: what a call like it has left to do is a few microseconds, where Triton's own takes tens.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    moving: tuple[tuple[int, str], ...]
    """Places of the arguments that change, and the tensors they are or describe."""
    held: tuple[tuple[int, str], ...]
    """Places of the lists."""
    tables: int | None
    """Place of the tables, if it takes any."""
    direct: Direct | None
    """The same past Triton's launcher; None where only that knows how."""

    @staticmethod
    def of(
        kernel: Any,
        names: Sequence[str],
        values: Mapping[str, Any],
        programs: int,
        moving: Mapping[str, str],
        listed: Collection[str] = (),
    ) -> Prepared:
        """Of a call that was made: `values` by name, `names` in the order the kernel takes them.

        ``moving`` says of arguments that change which tensors they are or describe; those that are
        ``listed`` are the lists'.
        """
        there = [(i, moving[n]) for i, n in enumerate(names) if n in moving]
        changed = tuple((i, role) for i, role in there if values[names[i]] is not None)
        held = tuple((i, n) for i, n in enumerate(names) if n in listed)
        roles = {names[i]: role for i, role in (*changed, *held)}
        made = direct(kernel, names, values, programs, roles, listed)
        arguments = [values[n] for n in names]
        tables = names.index("tables") if "tables" in names else None
        for i in (*(i for i, _ in (*changed, *held)), *(() if tables is None else (tables,))):
            # The tensors themselves are the caller's, to be freed when he lets go of them.
            arguments[i] = over(arguments[i], None) if hasattr(arguments[i], "base") else None
        return Prepared(kernel, programs, tuple(arguments), changed, held, tables, made)

    def __call__(
        self, tensors: Mapping[str, Tensor], lists: Any, tables: tuple[Tensor, ...], stream: int
    ) -> None:
        """Launch on other tensors, lists and tables of the same shapes, strides and alignment."""
        direct = self.direct
        if direct is not None and not heard():
            moving = tuple([tensors[role].data_ptr() for role in direct.roles])
            direct(moving, direct.fixed_of(lists, tables), stream)
            return
        arguments = list(self.arguments)
        for place, role in self.moving:
            held = arguments[place]
            arguments[place] = over(held, tensors[role]) if hasattr(held, "base") else tensors[role]
        for place, role in self.held:
            arguments[place] = getattr(lists, role)
        if self.tables is not None:
            arguments[self.tables] = tables
        kernel, grid = self.kernel, (self.programs, 1, 1)
        kernel.run(
            *grid,
            stream,
            kernel.function,
            kernel.packed_metadata,
            kernel.launch_metadata(grid, stream, *arguments),
            *hooks(),
            *arguments,
        )


@cache
def _runtime_knobs() -> Any:
    from triton import knobs

    return knobs.runtime


def hooks() -> tuple[Any, Any]:
    """What Triton calls before and after a launch."""
    knobs = _runtime_knobs()
    return knobs.launch_enter_hook, knobs.launch_exit_hook


def heard() -> bool:
    """Whether somebody profiles launches through Triton, who shall hear of ours too."""
    before, after = hooks()
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def kind_of(tensors: Sequence[Any]) -> Any:
    """All of a call's tensors that a launch depends on, but not where they lie."""
    return tuple((x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16) for x in tensors)


def over(descriptor: Any, x: Tensor | None) -> Any:
    """A descriptor of another tensor with the same shape and strides."""
    made = object.__new__(type(descriptor))
    made.__dict__.update(descriptor.__dict__)
    made.base = x
    return made


def keep(
    prepared: dict[Any, Prepared],
    key: Any,
    kernel: Any,
    names: Sequence[str],
    values: Mapping[str, Any],
    programs: int,
    moving: Mapping[str, str],
    listed: Collection[str] = (),
) -> None:
    """Prepare a launch that was just made, see `Prepared.of`; ``kernel`` is what it returned.

    In the interpreter there is no kernel, and nothing is kept.
    """
    if hasattr(kernel, "run") and hasattr(kernel, "packed_metadata"):
        if len(prepared) >= KEPT_LAUNCHES:
            prepared.clear()
        prepared[key] = Prepared.of(kernel, names, values, programs, moving, listed)


def launch(
    fn: Any,
    programs: int,
    key: Any,
    prepared: dict[Any, Prepared],
    moving: Mapping[str, Tensor],
    values: Callable[[], dict[str, Any]],
    options: Mapping[str, Any],
    lists: Any = None,
    tables: tuple[Tensor, ...] = (),
    listed: Collection[str] = (),
) -> None:
    """Launch a Triton kernel, as before if one was launched under this ``key``.

    ``moving`` are the tensors that change from call to call; arguments of their names, with
    ``_tail`` or without, take or describe them.  ``values`` makes all arguments by name, where no
    launch was like this one: the key holds what they depend on but for where tensors lie.  Under
    None nothing is kept.
    """
    ready = None if key is None else prepared.get(key)
    if ready is not None:
        device = next(iter(moving.values())).device
        ready(moving, lists, tables, stream_of(device))
        return
    made = values()
    kernel = fn[(programs,)](**made, **options)
    if key is not None:
        roles = {n: n for n in moving} | {f"{n}_tail": n for n in moving}
        keep(prepared, key, kernel, fn.arg_names, made, programs, roles, listed)
