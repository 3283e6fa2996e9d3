"""The one expression tree, and its readers.

`nodes` holds the tree; `evaluate` reads it with NumPy, `bounds` with intervals, `triton_source` and
`cuda_source` print it as a leaf function, `text` prints it for people.
"""

from kdsl.expr.nodes import Expr, Index, as_expr, const, maximum, minimum, where
from kdsl.expr.tables import Table, table

__all__ = ["Expr", "Index", "Table", "as_expr", "const", "maximum", "minimum", "table", "where"]
