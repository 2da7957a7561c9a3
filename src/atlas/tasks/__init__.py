"""The tasks, one package each: protocol, training loop, evaluation, metrics and baselines."""
