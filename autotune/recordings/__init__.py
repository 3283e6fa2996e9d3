"""Measured rows as recordings: the evidence that searches and models are held against."""

from kdsl.autotune.recordings.files import Held, read
from kdsl.autotune.recordings.recording import Recording, recordings

__all__ = ["Held", "Recording", "read", "recordings"]
