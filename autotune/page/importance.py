"""Which settings matter: Optuna's own measure, on a study made of the rows."""

from __future__ import annotations

import math

from kdsl.autotune.recordings import Recording
from kdsl.autotune.search.guided import study_of

ENOUGH = 10
"""Sound candidates below which nothing is said."""


def importances(recording: Recording) -> dict[str, float]:
    """Share of each setting by PED-ANOVA, the most important first; empty with too few rows."""
    times = recording.times
    settings = {name for at in times for name, _ in at}
    choices = {
        name: tuple(sorted({dict(at)[name] for at in times if name in dict(at)}, key=repr))
        for name in sorted(settings)
    }
    whole = {at: us for at, us in times.items() if len(at) == len(choices)}
    if len(whole) < ENOUGH:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    costs = [(dict(at), math.log(us / recording.best_us)) for at, us in whole.items()]
    found = get_param_importances(
        study_of(choices, costs), evaluator=PedAnovaImportanceEvaluator(), normalize=True
    )
    return {name: float(share) for name, share in found.items()}
