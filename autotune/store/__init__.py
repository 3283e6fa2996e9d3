"""The writing side of the tuning database; reading is ``kdsl.runtime.records``."""

from kdsl.autotune.store.database import ImportReport, Store
from kdsl.autotune.store.exchange import Exported, export_jsonl, import_jsonl, merge, reading
from kdsl.autotune.store.scrub import mask_passwords, scrub

__all__ = [
    "Exported",
    "ImportReport",
    "Store",
    "export_jsonl",
    "import_jsonl",
    "mask_passwords",
    "merge",
    "reading",
    "scrub",
]
