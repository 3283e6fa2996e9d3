"""Measured rows: ours and the peers', checked first, then timed interleaved in one run."""
