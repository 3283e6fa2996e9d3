"""Plans: what a calibration found for one model, as one file."""

from kdsl.plans.attention import AttentionPlan, attention_plan
from kdsl.plans.container import DTYPES, KINDS, VERSION, Payload, Plan, load

__all__ = [
    "DTYPES",
    "KINDS",
    "VERSION",
    "AttentionPlan",
    "Payload",
    "Plan",
    "attention_plan",
    "load",
]
