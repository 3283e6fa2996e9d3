"""Compiling candidates beside each other, in processes that can be killed."""

from kdsl.autotune.compiling.pool import CompilePool
from kdsl.autotune.compiling.worker import Built

__all__ = ["Built", "CompilePool"]
