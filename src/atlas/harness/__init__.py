"""What every run of every task shares: the registry of methods, the plan of a study, and the machinery of a run.

Nothing here imports torch until a run computes: reading a plan stays light.
"""
