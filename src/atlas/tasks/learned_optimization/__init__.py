"""Learned optimization: optimizers compete, hand-made and learned, on problems that the learned ones were not trained on.

A row is an optimizer. What is learned or tuned sees the meta-training half of the data only; every optimizer then trains the same
networks from the same starts on the other half, and is judged by what these reach on held-out examples.
"""
