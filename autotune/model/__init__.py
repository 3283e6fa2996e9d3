"""Fitting the cost model to recordings, and judging it on what it has not seen."""

from kdsl.autotune.model.fitting import Sample, fit, groups, samples_of
from kdsl.autotune.model.judging import Case, held_out, transferred

__all__ = ["Case", "Sample", "fit", "groups", "held_out", "samples_of", "transferred"]
