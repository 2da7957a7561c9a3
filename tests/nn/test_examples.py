"""Data as people have it, as tensors: every form gives the same numbers, and what is none is told in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from atlas.nn.examples import as_loader, as_tensor, gathered

INPUTS, LABELS = torch.rand(7, 3), torch.arange(7) % 2
FORMS: list[Any] = [
    (INPUTS, LABELS),
    [INPUTS.numpy(), LABELS.numpy()],
    TensorDataset(INPUTS, LABELS),
    [(row, int(label)) for row, label in zip(INPUTS.numpy(), LABELS, strict=True)],
    DataLoader(TensorDataset(INPUTS, LABELS), batch_size=3),
]


@pytest.mark.parametrize("data", FORMS, ids=["tensors", "arrays", "dataset", "list", "loader"])
def test_every_form_is_gathered_alike(data: Any) -> None:
    inputs, labels = gathered(data)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize("data", [FORMS[0], FORMS[1], FORMS[2], FORMS[4]])
def test_every_form_is_passed_over_again_and_again(data: Any) -> None:
    loader = as_loader(data, batch_size=3, shuffle=False)
    for _ in range(2):
        assert torch.equal(torch.cat([inputs for inputs, _ in loader]), INPUTS)


def test_the_order_follows_from_the_seed() -> None:
    orders = [torch.cat([batch[1] for batch in as_loader((INPUTS, torch.arange(7)), 2, seed=seed)]) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0].sort().values, torch.arange(7))


def test_batches_that_are_there_stay_as_they_are() -> None:
    batches = [(INPUTS, LABELS)]
    assert as_loader(batches) is batches


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("images/", "data is a str; give a pair (inputs, labels)"),
        (INPUTS, "data must be made of pairs (inputs, labels), not of a Tensor"),
        ([(object(), 1)], "data's inputs is a object; a tensor or a NumPy array is needed"),
        ((np.array(["a"]), np.array([0])), "data's inputs is a ndarray that cannot become a tensor: can't convert"),
    ],
)
def test_what_is_no_data_is_told_in_one_line(data: Any, line: str) -> None:
    with pytest.raises(TypeError) as caught:
        gathered(data)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_entries_of_different_shapes_and_none_at_all() -> None:
    with pytest.raises(ValueError, match=r"data must be made of pairs \(inputs, labels\), not of 1 parts"):
        gathered([(INPUTS[0],)])
    with pytest.raises(ValueError, match=r"data has inputs of different shapes: \(2,\), \(3,\)"):
        gathered([(np.zeros(3), 0), (np.zeros(2), 0)])
    with pytest.raises(ValueError, match="data holds no examples"):
        gathered([])


def test_an_iterator_is_refused() -> None:
    with pytest.raises(TypeError, match="train_loader is a list_iterator, which can be passed over once only"):
        as_loader(iter([(INPUTS, LABELS)]), name="train_loader")
    with pytest.raises(TypeError, match="data is a Tensor; give"):
        as_loader(INPUTS)


def test_tensors_pass_through() -> None:
    assert as_tensor(INPUTS, "x") is INPUTS
    assert as_tensor([1, 2], "x").tolist() == [1, 2]
