"""``python -m autotune``: the tuner's command line, of this checkout or the installed package."""

from __future__ import annotations

import sys

from kdsl.autotune.cli import main

if __name__ == "__main__":
    sys.exit(main())
