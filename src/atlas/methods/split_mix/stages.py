"""The row that trains nothing: what the paper's networks cost, counted on their layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from atlas.harness.run import Run
from atlas.methods.split_mix.costs import complexity
from atlas.methods.split_mix.model import SplitMix
from atlas.methods.split_mix.networks import network
from atlas.methods.split_mix.norms import NormSpec


def count_networks(run: Run) -> dict[str, float]:
    """Count the network of the run's settings; see :func:`network_costs`."""
    settings = run.settings_model(run.recipe[0])
    return network_costs(settings.network, settings.shape, settings.atom)


def network_costs(name: str, shape: Sequence[int], atom: float) -> dict[str, float]:
    """Size and cost of a mixed network of width 1 beside the ordinary one, and of one base network; nothing is trained."""
    factory = network(name, **({"inputs": int(torch.Size(shape).numel())} if name == "mlp" else {}))
    wide = complexity(factory(1.0, norm=NormSpec()), shape)
    base = complexity(factory(atom, norm=NormSpec()), shape)
    mixed = complexity(SplitMix(factory, atom=atom).customize(1.0, form="ensemble"), shape)
    return {
        "parameters_ratio": mixed.parameters / wide.parameters,
        "macs_ratio": mixed.macs / wide.macs,
        "parameters": mixed.parameters,
        "forward_macs": mixed.macs,
        "wide_parameters": wide.parameters,
        "wide_macs": wide.macs,
        "base_parameters": base.parameters,
        "base_macs": base.macs,
    }
