"""Adding selection to a GRU that is trained already."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from atlas.methods.vfds.model import SelectiveGRU


def replace_rnn(rnn: nn.GRU, n_outputs: int | None = None, *, output: nn.Linear | None = None, **options: Any) -> SelectiveGRU:
    """Turn a trained ``nn.GRU`` into a :class:`SelectiveGRU` with the same recurrence; with all gates on it computes the same.

    Weights that are frozen stay frozen.

    Parameters
    ----------
    n_outputs : int, optional
        Outputs of a new linear head; without it and without ``output`` the logits are the hidden states themselves.
    output : nn.Linear, optional
        A trained head to copy.
    options
        Of :class:`SelectiveGRU`.

    Raises
    ------
    TypeError
        It is no GRU.
    ValueError
        The GRU is bidirectional, has no biases, projects, or drops out between layers; or the head does not fit.
    """
    if not isinstance(rnn, nn.GRU):
        raise TypeError(f"{type(rnn).__name__} is no nn.GRU, whose recurrence a SelectiveGRU has")
    if rnn.bidirectional or not rnn.bias or rnn.dropout or getattr(rnn, "proj_size", 0):
        raise ValueError("only GRUs of one direction, with biases and without dropout can choose what to acquire")
    if output is not None and output.in_features != rnn.hidden_size:
        raise ValueError(f"the head takes {output.in_features} features, the GRU gives {rnn.hidden_size}")
    count = n_outputs or (output.out_features if output is not None else rnn.hidden_size)
    model = SelectiveGRU(rnn.input_size, rnn.hidden_size, count, n_layers=rnn.num_layers, **options)
    model.to(cast(Tensor, rnn.weight_ih_l0))
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            own = getattr(model, name)
            own[:, : parameter.shape[1]].copy_(parameter) if parameter.ndim == 2 else own.copy_(parameter)
            if parameter.shape != own.shape:
                own[:, parameter.shape[1] :].zero_()  # gates as inputs start without influence
            own.requires_grad_(parameter.requires_grad)
        if output is not None:
            model.output.load_state_dict(
                {"weight": output.weight, "bias": torch.zeros(count) if output.bias is None else output.bias}
            )
            model.output.weight.requires_grad_(output.weight.requires_grad)
            model.output.bias.requires_grad_(output.weight.requires_grad if output.bias is None else output.bias.requires_grad)
        elif n_outputs is None:
            model.output.weight.copy_(torch.eye(count))
            model.output.bias.zero_()
    return model
