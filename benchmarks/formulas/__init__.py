"""What whole trainings of the paper study compute, as sums over layer sizes and protocols.

Theory: a matrix product of (m, k) with (k, n) takes 2·m·k·n operations, a convolution two for every weight at every place of its
output. A training step takes three such passes (one forward, one for the gradient of the inputs, one for that of the weights),
less what needs no gradient, such as the pixels. What a method adds is what its paper's algorithm computes. The formulas share no
code with the meter (:mod:`atlas.nn.counts`).
"""

OPERATIONS = 2
"""Of a multiply-accumulate."""
TRAINING = 3
"""Passes of a training step."""
