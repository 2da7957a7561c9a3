"""Atlas: ten methods for learning efficiently and robustly, under one protocol and in one workflow.

Importing :mod:`atlas` is free: nothing heavy loads until a method is used. A method is a package of its own,
:mod:`atlas.methods.<paper>`, and needs nothing of the harness.
"""

__version__ = "0.1.0"
