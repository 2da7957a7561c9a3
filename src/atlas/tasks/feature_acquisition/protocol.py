"""The protocol of feature acquisition: the stream, the recurrent model, the optimiser. Defaults are the paper's on UCI HAR.

Official code of VFDS (Ardywibowo et al., AISTATS 2022), UCI HAR: segments of 200 windows, batch 10, one GRU layer of 5 · 561
units, RMSprop at 1e−4, 30,000 steps.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import model_validator

from atlas.settings import Fraction, Natural, Positive, Settings


class Stream(Settings):
    """Where sequences come from.

    ``recordings`` cuts segments of ``steps`` out of a dataset's recordings. The others are composed: ``synthetic`` has a known
    answer to what is informative when; ``sessions`` strings windows of real series together; ``handover`` does so for several
    devices of which one is worn at a time. Composed training and validation sequences follow from the run's seed, the test
    sequences are the same for all seeds.

    ``switch`` is the probability per step of another context (synthetic) or device (handover). ``gates`` says whether a gate
    opens one feature or a group. ``gyro_cost`` is the cost of a gyroscope's feature where an accelerometer's is 1, an assumption:
    gyroscopes draw several times the current. ``clip`` bounds standardised values of recordings.
    """

    kind: Literal["recordings", "synthetic", "sessions", "handover"] = "recordings"
    steps: Annotated[int, Ge(2)] = 200
    train_sequences: Natural = 256
    validation_sequences: Natural = 96
    test_sequences: Natural = 400
    switch: Fraction = 0.05
    contexts: Annotated[int, Ge(2)] = 4
    gates: Literal["feature", "group"] = "feature"
    gyro_cost: Positive = 3.0
    clip: Positive | None = None
    held_series: Natural = 2
    long_steps: Annotated[int, Ge(2)] = 200
    long_sequences: Natural = 40


class Protocol(Settings):
    """What every row of a table shares.

    ``logit_learning_rate`` is that of logits that belong to no layer, which hardly move at the weights' rate. λ rises linearly
    from 0 in the first ``warmup`` part of the steps. ``keep_best_every`` > 0 keeps the weights with the lowest validation loss,
    looked at that often; 0 keeps the last.
    """

    stream: Stream = Stream()
    hidden: Natural = 2805
    layers: Natural = 1
    optimizer: Literal["adam", "rmsprop"] = "rmsprop"
    learning_rate: Positive = 1e-4
    logit_learning_rate: Positive = 1e-4
    batch_size: Natural = 10
    steps: Natural = 30000
    clip_norm: Positive | None = None
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    keep_best_every: Annotated[int, Ge(0)] = 100
    evaluation_batch_size: Natural = 400
    log_every: Natural = 10

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.stream.kind == "synthetic" and self.stream.contexts & (self.stream.contexts - 1):
            raise ValueError(f"stream.contexts must be a power of two (beacons are a binary code), not {self.stream.contexts}")
        return self
