"""What to try next."""

from kdsl.autotune.search.propose import Listed, Search, make_recorder, make_search
from kdsl.autotune.search.space import Space

__all__ = ["Listed", "Search", "Space", "make_recorder", "make_search"]
