"""Every error this library raises on purpose.

One root, few children. A message says what is wrong, where, why, and what would work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class KdslError(Exception):
    """Root of all errors raised by kdsl.

    ``what`` states the fault, ``where`` the part of the spec or the input it lies in, and ``hint``
    what would work instead.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        lines = [what]
        if where:
            lines.append(f"  in  {where}")
        if hint:
            lines.append(f"  try {hint}")
        super().__init__("\n".join(lines))


class SpecError(KdslError, ValueError):
    """A spec, mask, order or layout that describes nothing computable."""


class InputError(KdslError, ValueError):
    """Tensors or tables given to an operator that do not fit its spec."""


class UnsupportedError(KdslError, NotImplementedError):
    """A valid spec that no kernel here carries, or not on that GPU."""


class ConfigError(KdslError, ValueError):
    """A kernel configuration that is illegal for its spec and GPU."""


class ConfigNotFound(KdslError, LookupError):
    """``mode="strict"`` found no measured configuration for the workload."""


class DistributedError(KdslError, RuntimeError):
    """Ranks that disagree, or one that did not answer; or there are none to work with."""


class CompileError(KdslError, RuntimeError):
    """Generated code that the compiler refused."""


class StoreError(KdslError, RuntimeError):
    """A tuning database, cache or plan file that cannot be read or written, or no room to work."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what a JSON value of the wrong shape raises into a `SpecError`."""
    try:
        yield
    except KdslError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise SpecError(f"malformed {what}: {type(error).__name__}: {error}") from error
