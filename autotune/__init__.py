"""The tuner; import it as ``kdsl.autotune``."""
