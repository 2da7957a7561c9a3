"""Lengths, labels and gaps of padded sequences: what is refused, and what the one line says."""

from __future__ import annotations

import math

import pytest
import torch

from atlas.nn.sequences import check_complete, check_labels, check_lengths, labelled, valid_steps


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 4]), "3 numbers"),
        (torch.tensor([[1, 2, 3]]), "3 numbers"),
        (torch.tensor([3, 0, 4]), r"1 of another kind, the first is 0 at \[1\]"),
        (torch.tensor([3, 5, 9]), r"2 of another kind, the first is 5 at \[1\]"),
        (torch.tensor([3, 4, -1]), r"the first is -1 at \[2\]"),
        (torch.tensor([3.0, 2.5, 4.0]), r"the first is 2\.5 at \[1\]"),
        (torch.tensor([3.0, 2.0, math.nan]), r"the first is nan at \[2\]"),
        (torch.tensor([True, True, True]), "3 numbers"),
    ],
)
def test_lengths_that_no_sequence_has(lengths: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_lengths(lengths, 3, 4)
    assert "from 1 to 4" in str(error.value)
    assert "\n" not in str(error.value)


def test_lengths_that_fit() -> None:
    check_lengths(None, 3, 4)
    check_lengths(torch.tensor([1, 4, 2]), 3, 4)
    check_lengths(torch.tensor([1.0, 4.0, 2.0]), 3, 4)
    valid = valid_steps(torch.tensor([1, 3]), 3)
    assert valid is not None
    assert valid.tolist() == [[True, False, False], [True, True, True]]
    assert valid_steps(None, 3) is None


def test_gaps_are_told_with_their_number_and_the_first_place() -> None:
    values = torch.zeros(2, 3)
    check_complete("x", values)
    values[1, 2], values[0, 1] = math.nan, -math.inf
    with pytest.raises(ValueError, match=r"^x must hold no NaN.*there are 2, the first at \[0, 1\]"):
        check_complete("x", values)
    read = torch.tensor([[True, False, True], [True, True, True]])
    with pytest.raises(ValueError, match=r"there are 1, the first at \[1, 2\]: do$"):
        check_complete("x", values, read, remedy=": do")
    check_complete("x", values, read & values.isfinite())


def test_labels_of_one_kind() -> None:
    classes = torch.tensor([[0, 2, -1], [1, 7, 0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    known = labelled(classes, valid)
    assert known.tolist() == [[True, True, False], [True, False, False]]
    check_labels(classes, known, 3)
    check_labels(classes.double(), known, 3)
    check_labels((classes > 0), labelled(classes > 0, valid), 2)
    for wrong, shown in ((classes, "7"), (classes - 2, "-2"), (classes + 0.5, r"0\.5"), (classes * math.nan, "nan")):
        with pytest.raises(ValueError, match=rf"classes must lie from 0 to 2.*the first is {shown} at \[\d, \d\]"):
            check_labels(wrong, labelled(wrong, None), 3)
    assert int(labelled(torch.tensor([[-100, 1]]), None, -100).sum()) == 1


def test_labels_of_several_kinds() -> None:
    y = torch.tensor([[[0, 1], [-1, 1]]])
    check_labels(y, labelled(y, None), 2)
    check_labels(y.float(), labelled(y.float(), None), 2)
    assert int(labelled(y, torch.tensor([[False, True]])).sum()) == 1
    for value in (2, -2, 0.5, math.nan):
        wrong = y.float()
        wrong[0, 1, 1] = value
        with pytest.raises(ValueError, match=r"0 or 1.*the first is .* at \[0, 1, 1\]"):
            check_labels(wrong, labelled(wrong, None), 2)
