"""Rows of attention maps."""

from __future__ import annotations

import numpy as np

from examples.clip.arrays import Floats


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis, in place; a row of -inf becomes 0."""
    top = scores.max(-1, keepdims=True)
    scores -= np.where(np.isfinite(top), top, 0)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    scores /= np.where(total > 0, total, 1)
    return scores
