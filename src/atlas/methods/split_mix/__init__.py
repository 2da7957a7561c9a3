"""Split-Mix: one federated training, every width and robustness on demand.

J. Hong, H. Wang, Z. Wang, J. Zhou, *Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization*, ICLR 2022,
arXiv 2203.09747.

A wide network is replaced by narrow ones of one shape; a client trains as many as its budget holds, the server averages each
over the clients that trained it, and a model of any width is the mean of the logits of some of them. Dual batch norms and
adversarial training add a knob between accuracy and robustness.

>>> from atlas.methods.split_mix import MLP, Client, FedTrainer
>>> trainer = FedTrainer("split-mix", MLP, rounds=60, lr=0.1, schedule="cosine")
>>> model = trainer.fit([Client(images, labels, budget=0.125), ...]).model  # doctest: +SKIP
>>> small = model.customize(0.25)                                           # doctest: +SKIP
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
