"""Timing candidates in one isolated process a GPU."""

from kdsl.autotune.measuring.bench import Bench, DeviceIll
from kdsl.autotune.measuring.device import Card, Device, Facts, Opening, Timing

__all__ = ["Bench", "Card", "Device", "DeviceIll", "Facts", "Opening", "Timing"]
