"""The process that compiles: one kernel after the other."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from kdsl.errors import KdslError, StoreError, UnsupportedError


@dataclass(frozen=True)
class Built:
    """What became of compiling a candidate; sizes in bytes, the binary itself stays behind.

    ``status`` is ``ok``, ``compile_error`` or ``compile_timeout``.
    """

    status: str
    reason: str = ""
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    stack_bytes: int | None = None
    warps: int = 0
    binary_hash: str = ""
    seconds: float = 0.0


def serve(link: Connection[Any, Any]) -> None:
    """Say whether there is a compiler ("" or the reason why not), then compile what comes."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        link.send(str(error) or "triton cannot be imported")
        return
    link.send("")
    while True:
        what, target = link.recv()
        link.send(build(what, target))


def build(what: Any, target: Any) -> Built | KdslError:
    """Compile one kernel.

    An error instead, where this machine is at fault and not the kernel: no room, a missing tool.
    """
    from kdsl.runtime.aot import compile_ahead

    try:
        made = compile_ahead(what, target)
    except (StoreError, UnsupportedError) as error:
        return error
    except KdslError as error:
        return Built("compile_error", " ".join(error.what.split())[:500])
    return Built(
        "ok",
        registers=made.registers,
        spill_bytes=made.spill_bytes,
        shared_bytes=made.shared_bytes,
        stack_bytes=made.stack_bytes,
        warps=made.warps,
        binary_hash=made.binary_hash,
        seconds=made.seconds,
    )
