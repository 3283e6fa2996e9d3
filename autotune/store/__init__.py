"""The writing side of the tuning database; reading is ``kdsl.runtime.records``."""

from kdsl.autotune.store.database import ImportReport, Store
from kdsl.autotune.store.exchange import export_jsonl, import_jsonl, merge
from kdsl.autotune.store.scrub import scrub

__all__ = ["ImportReport", "Store", "export_jsonl", "import_jsonl", "merge", "scrub"]
