"""Child processes that may hang, crash or be killed without harm to the tuner."""

from kdsl.autotune.children.link import Child, ChildDied, ChildHung

__all__ = ["Child", "ChildDied", "ChildHung"]
