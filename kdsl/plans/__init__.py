"""Plans: what a calibration found for one model, as one file."""

from kdsl.plans.attention import AttentionPlan, attention_plan
from kdsl.plans.container import DTYPES, KINDS, VERSION, Payload, Plan, load
from kdsl.plans.quantization import LayerPlan, QuantizationPlan

__all__ = [
    "DTYPES",
    "KINDS",
    "VERSION",
    "AttentionPlan",
    "LayerPlan",
    "Payload",
    "Plan",
    "QuantizationPlan",
    "attention_plan",
    "load",
]
