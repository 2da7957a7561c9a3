"""Feature acquisition: streams on which a model decides what to measure next, and what that costs.

A method gives the task a :class:`~atlas.tasks.feature_acquisition.learner.Learner`: phases of training, and predictions on
hard gates. The task holds the streams, the loop, the choice of the gates' mode on validation data, and every measurement.
"""
