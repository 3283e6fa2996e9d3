"""Token orders: bijections between stored positions and original tokens."""

from kdsl.orders.base import Chain, Inverse, Order, PerHead, chain_of, per_head
from kdsl.orders.closed import Axes, Cubes, axes, cubes, identity, windows
from kdsl.orders.listed import Listed, table
from kdsl.orders.names import by_name, name_of
from kdsl.orders.serial import from_json, to_json

__all__ = [
    "Axes",
    "Chain",
    "Cubes",
    "Inverse",
    "Listed",
    "Order",
    "PerHead",
    "axes",
    "by_name",
    "chain_of",
    "cubes",
    "from_json",
    "identity",
    "name_of",
    "per_head",
    "table",
    "to_json",
    "windows",
]
