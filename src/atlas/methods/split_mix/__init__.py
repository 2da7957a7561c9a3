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

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adversary": ["PGD", "PGD3", "PGD4", "PGD20", "PGD100"],
        "average": ["average_bases", "prefix_average"],
        "costs": ["Complexity", "complexity"],
        "federation": ["Client", "FedTrainer", "FitResult"],
        "local": ["ClientBatches", "local_train", "masked_cross_entropy"],
        "model": ["PrefixModel", "SplitMix"],
        "networks": ["MLP", "AlexNet", "DigitCNN", "PreResNet18", "WidthFactory", "network"],
        "norms": ["BatchNorm", "DualNorm", "NormSpec", "post_statistics", "set_norm_mode", "set_robustness"],
        "partition": ["budgets", "partition_by_class", "partition_uniform"],
        "scheduler": ["BaseScheduler"],
        "stacks": ["ParamStack", "Runner"],
        "widths": ["Slicer"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.split_mix.adversary import PGD as PGD
    from atlas.methods.split_mix.average import average_bases as average_bases
    from atlas.methods.split_mix.average import prefix_average as prefix_average
    from atlas.methods.split_mix.costs import Complexity as Complexity
    from atlas.methods.split_mix.costs import complexity as complexity
    from atlas.methods.split_mix.federation import Client as Client
    from atlas.methods.split_mix.federation import FedTrainer as FedTrainer
    from atlas.methods.split_mix.federation import FitResult as FitResult
    from atlas.methods.split_mix.local import ClientBatches as ClientBatches
    from atlas.methods.split_mix.local import local_train as local_train
    from atlas.methods.split_mix.local import masked_cross_entropy as masked_cross_entropy
    from atlas.methods.split_mix.model import PrefixModel as PrefixModel
    from atlas.methods.split_mix.model import SplitMix as SplitMix
    from atlas.methods.split_mix.networks import MLP as MLP
    from atlas.methods.split_mix.networks import AlexNet as AlexNet
    from atlas.methods.split_mix.networks import DigitCNN as DigitCNN
    from atlas.methods.split_mix.networks import PreResNet18 as PreResNet18
    from atlas.methods.split_mix.networks import WidthFactory as WidthFactory
    from atlas.methods.split_mix.networks import network as network
    from atlas.methods.split_mix.norms import BatchNorm as BatchNorm
    from atlas.methods.split_mix.norms import DualNorm as DualNorm
    from atlas.methods.split_mix.norms import NormSpec as NormSpec
    from atlas.methods.split_mix.norms import post_statistics as post_statistics
    from atlas.methods.split_mix.norms import set_norm_mode as set_norm_mode
    from atlas.methods.split_mix.norms import set_robustness as set_robustness
    from atlas.methods.split_mix.partition import budgets as budgets
    from atlas.methods.split_mix.partition import partition_by_class as partition_by_class
    from atlas.methods.split_mix.partition import partition_uniform as partition_uniform
    from atlas.methods.split_mix.scheduler import BaseScheduler as BaseScheduler
    from atlas.methods.split_mix.stacks import ParamStack as ParamStack
    from atlas.methods.split_mix.stacks import Runner as Runner
    from atlas.methods.split_mix.widths import Slicer as Slicer
