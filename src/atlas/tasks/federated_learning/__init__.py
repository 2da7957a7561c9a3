"""Federated learning: clients with data, domains and capacities of their own; rounds of local training and aggregation.

A method is a :class:`~atlas.tasks.federated_learning.federation.Federation`: it runs rounds, and deploys a model of any width and
robustness that it serves. Accuracy is a mean over clients of their accuracies.
"""
