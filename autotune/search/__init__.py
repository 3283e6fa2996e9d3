"""What to try next."""

from kdsl.autotune.search.propose import Listed, Search, StudyAt, make_recorder, make_search
from kdsl.autotune.search.space import Space

__all__ = ["Listed", "Search", "Space", "StudyAt", "make_recorder", "make_search"]
