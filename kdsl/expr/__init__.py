"""The one expression tree, and its readers.

`nodes` holds the tree and `index` the tokens' coordinates; `evaluate` reads it with NumPy, `bounds`
with ranges, `triton_source` and `cuda_source` print it as a leaf function (made plain by `lower`),
`text` prints it for people, `serial` writes it as JSON.
"""

from kdsl.expr.index import Index
from kdsl.expr.nodes import Expr, as_expr, const, maximum, minimum, where
from kdsl.expr.tables import Table, table

__all__ = ["Expr", "Index", "Table", "as_expr", "const", "maximum", "minimum", "table", "where"]
