"""Distillation from the dense model: L = (1 − α) CE + α KD (Hinton et al., 2015), either normalisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from atlas.methods.uvc.settings import DistillSettings, Norm

DEFAULTS = DistillSettings()


def class_logits(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What a model predicts with, (batch, classes): of the two heads of a model in distilled training, their mean."""
    return output if isinstance(output, Tensor) else (output[0] + output[1]) / 2


def kd_term(
    student: Tensor,
    teacher: Tensor,
    T: float = DEFAULTS.temperature,
    norm: Norm = DEFAULTS.kd_norm,
    hard: bool = DEFAULTS.hard,
) -> Tensor:
    """T² Σ p_t (log p_t − log p_s) / norm with p = softmax(logits / T); or, ``hard``, cross-entropy with the teacher's class.

    Parameters
    ----------
    student, teacher : Tensor
        (batch, classes) logits; no gradient reaches the teacher's.
    T : float
        Temperature, above 0.
    norm : {"batch", "elements"}
        Divide by the batch, or by batch × classes as the authors' code does: at 1,000 classes a thousand times weaker.

    Raises
    ------
    ValueError
        Another number of classes, T not above 0, or an unknown ``norm``.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"the teacher's logits are {tuple(teacher.shape)}, the student's {tuple(student.shape)}")
    if not T > 0:
        raise ValueError(f"T must be above 0, not {T}")
    if norm not in ("batch", "elements"):
        raise ValueError(f"norm must be 'batch' or 'elements', not {norm!r}")
    student, teacher = student.float() if student.dtype.itemsize < 4 else student, teacher.detach()
    if hard:
        return functional.cross_entropy(student, teacher.argmax(-1))
    target = functional.log_softmax(teacher.to(student.dtype) / T, -1)
    predicted = functional.log_softmax(student / T, -1)
    size = len(student) if norm == "batch" else student.numel()
    return T**2 * functional.kl_div(predicted, target, reduction="sum", log_target=True) / size


def kd_loss(
    student: Tensor | tuple[Tensor, Tensor],
    teacher: Tensor,
    targets: Tensor,
    alpha: float,
    T: float,
    norm: Norm = DEFAULTS.kd_norm,
    hard: bool = DEFAULTS.hard,
) -> Tensor:
    """(1 − α) · cross-entropy with the targets + α · distillation.

    Parameters
    ----------
    student : Tensor, or (class logits, distillation logits)
        (batch, classes). With a distillation token the targets teach the class token and the teacher the other one.
    teacher : Tensor
        (batch, classes) logits of the dense model on the same images.
    targets : Tensor
        (batch,) classes or (batch, classes) probabilities.
    alpha : float
        α in [0, 1].
    T, norm, hard
        See :func:`kd_term`.

    Raises
    ------
    ValueError
        As :func:`kd_term`, or α outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    classified, distilled = student if isinstance(student, tuple) else (student, student)
    term = kd_term(distilled, teacher, T, norm, hard)
    logits = classified.float() if classified.dtype.itemsize < 4 else classified
    targets = targets if targets.is_floating_point() else targets.long()
    return (1 - alpha) * functional.cross_entropy(logits, targets) + alpha * term
