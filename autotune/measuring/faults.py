"""What an exception in the measuring process means."""

from __future__ import annotations

_BY_CLASS = {
    "OutOfMemoryError": "oom",
    "OutOfResources": "smem",
    "CompilationError": "compile_error",
    "CompileTimeAssertionFailure": "compile_error",
    "UnsupportedLanguageConstruct": "compile_error",
    "PTXASError": "compile_error",
    "CompileError": "compile_error",
}
_IN_MESSAGE = {
    "out of memory": "oom",
    "out of resource": "smem",
    "PassManager::run failed": "compile_error",
}


def classify(error: BaseException) -> tuple[str, bool]:
    """Status of the candidate, and whether the process is lost with it.

    After an error that CUDA reports late (an illegal access and its like) every later call fails,
    and so may what nobody has foreseen: then the process must go.
    """
    for cls in type(error).__mro__:
        if cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__], False
    for text, status in _IN_MESSAGE.items():
        if text in str(error):
            return status, False
    return "crash", True


def reason(error: BaseException) -> str:
    """One line about an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500]
