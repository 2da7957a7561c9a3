"""The oracle of the synthetic stream: an exact filter, which is not trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas.errors import UserError
from atlas.harness.run import Run
from atlas.tasks.feature_acquisition.evaluate import selection_metrics, write_profile, write_session
from atlas.tasks.feature_acquisition.learner import Prediction
from atlas.tasks.feature_acquisition.scores import score
from atlas.tasks.feature_acquisition.streams import BEACON_NOISE, Sequences, beacon_code
from atlas.tasks.feature_acquisition.training import make_bench


def train_oracle(run: Run) -> dict[str, Any]:
    """Check that the stream is the synthetic one: there is nothing to learn, since the filter knows how that is made."""
    if run.protocol_model().stream.kind != "synthetic":
        raise UserError(f"{run.cell}: the oracle knows the synthetic stream only")
    return {}


def evaluate_oracle(run: Run) -> dict[str, float]:
    """Score the filter that sees the beacons and the block of the context that it expects."""
    bench = make_bench(run)
    layout, switch = bench.streams.layout, bench.protocol.stream.switch
    decided = {}
    for name in ("test", "long"):
        split = bench.streams.splits[name]
        logits, gates = bayes_filter(split, bench.protocol.stream.contexts, switch)
        decided[name] = Prediction(logits[None], gates[None])
    split, (logits, gates) = bench.streams.splits["test"], decided["test"]
    write_profile(run.results, gates[0], split, layout)
    write_session(run.results, logits[0], gates[0], split, layout)
    return {
        **score(decided["test"], 0, split, layout),
        "long_accuracy": score(decided["long"], 0, bench.streams.splits["long"], layout)["accuracy"],
        **selection_metrics(gates[0], gates[0], split, layout),
        "parameters": 0,
        "step_flops": 0,
    }


def bayes_filter(split: Sequences, contexts: int, switch: float, blocks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact posterior of context and bit from the beacons of all steps and the blocks that are seen.

    Decoys are independent of everything, so blocks say nothing about the context, and the present one's alone tells the bit.

    Parameters
    ----------
    blocks : Tensor, optional
        (contexts,) booleans of blocks that are seen after the first step, which shows all; by default the block of the context
        that the past makes most likely.

    Returns
    -------
    logits, gates : Tensor
        (N, T, 2 · contexts) log-probabilities of label 2c + a, and (N, T, D) of what was seen.
    """
    x = split.x.cpu().double()
    count, steps, features = x.shape
    code = torch.from_numpy(beacon_code(contexts))
    bits = code.shape[1]
    stay = torch.full((contexts, contexts), switch / (contexts - 1), dtype=torch.double)
    stay.fill_diagonal_(1 - switch)
    belief = torch.full((count, contexts), 1 / contexts, dtype=torch.double)
    logits = torch.empty(count, steps, 2 * contexts, dtype=torch.double)
    gates = torch.zeros(count, steps, features)
    for step in range(steps):
        if step:
            belief = belief @ stay
        if step == 0:
            seen = torch.ones(count, contexts, dtype=torch.bool)
        elif blocks is not None:
            seen = blocks.expand(count, contexts)
        else:
            seen = torch.nn.functional.one_hot(belief.argmax(1), contexts).bool()
        gates[:, step, :bits] = 1
        gates[:, step, bits : bits + 2 * contexts] = seen.repeat_interleave(2, 1).float()
        likelihood = (-((x[:, step, None, :bits] - code) ** 2) / (2 * BEACON_NOISE**2)).sum(-1)
        belief = (belief.log() + likelihood).softmax(1)
        level = x[:, step, bits : bits + 2 * contexts].view(count, contexts, 2).sum(-1) * 2 / BEACON_NOISE**2
        of_one = torch.where(seen, level, 0)  # log-odds of the bit, if this is the context
        both = torch.stack([torch.nn.functional.logsigmoid(-of_one), torch.nn.functional.logsigmoid(of_one)], -1)
        logits[:, step] = (belief.clamp(min=1e-300).log()[..., None] + both).flatten(1)
    gates[:, 0] = 1
    return logits.float(), gates
