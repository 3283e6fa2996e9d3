"""One run on several GPUs: those of this machine, or those of a Ray cluster."""

from kdsl.autotune.fleet.share import Gathered, Share, Task, cut

__all__ = ["Gathered", "Share", "Task", "cut"]
