"""Tables, figures, claim verdicts and the page: reads result files, runs no method, and needs no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
