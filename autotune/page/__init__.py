"""One HTML file about what was measured, readable without a network."""

from kdsl.autotune.page.facts import Section, sections
from kdsl.autotune.page.write import page

__all__ = ["Section", "page", "sections"]
