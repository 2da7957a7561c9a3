"""Adversarial robustness: networks trained on attacked images, and what they keep of it on images that they have not seen.

One loop of adversarial training serves every row; a :class:`~atlas.tasks.adversarial_robustness.topology.Topology` decides
which weights of the network exist.
"""
