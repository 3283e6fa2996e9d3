"""One run of the tuner: workloads, budget, evaluation, rows."""
