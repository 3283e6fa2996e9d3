"""The interval reader: sort blocks of a mask into full, partial and empty without evaluating it.

`boxes` turns runs of stored tokens into boxes of coordinates, `reader` reads an expression over
boxes, `hierarchy` refines what is undecided, `classify` gives the rows of blocks.
"""

from kdsl.intervals.classify import classify

__all__ = ["classify"]
