"""A small readable rule from measured rows: the built-in default where there are any."""

from kdsl.autotune.distil.tree import Branch, Leaf, Rule, rules
from kdsl.autotune.distil.write import source

__all__ = ["Branch", "Leaf", "Rule", "rules", "source"]
