"""Compile a tunable's kernel for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.runtime import codecache
from kdsl.runtime.compiled import Compiled, compile_cuda, compile_triton
from kdsl.runtime.tunable import Tunable
from kdsl.targets import Target
from kdsl.work import AheadOfTime


def compile_for(tunable: Tunable, params: Mapping[str, Any], target: Target) -> Compiled:
    """The compiled kernel of one configuration; CompileError with the compiler's message."""
    return compile_ahead(tunable.ahead_of_time(params, target), target)


def compile_ahead(what: AheadOfTime, target: Target) -> Compiled:
    """Compile what a tunable describes; CompileError with the compiler's message."""
    if "nvrtc" in what.options:
        return compile_cuda(what.source, target, what.entry, options=what.options["nvrtc"])
    fn = getattr(codecache.load(what.source), what.entry)
    return compile_triton(
        fn, target, what.signature, what.constants, divisible=what.divisible, options=what.options
    )
