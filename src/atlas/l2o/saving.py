"""Trained policies as files: one safetensors file with the numbers, and in its header how the policy is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atlas.l2o.policies import Policy
from atlas.l2o.recurrent import L2ODM, RNNprop

POLICIES: dict[str, Callable[..., Policy]] = {"RNNprop": RNNprop, "L2ODM": L2ODM}


def save_policy(path: Path | str, policy: Policy) -> None:
    """Write a policy; see :func:`load_policy`."""
    from safetensors.torch import save_file

    numbers = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    made = {"policy": type(policy).__name__, "options": policy.options()}
    save_file(numbers, str(path), metadata={"made": json.dumps(made)})  # one entry: safetensors 0.8 puts several in any order


def load_policy(path: Path | str, known: Mapping[str, Callable[..., Policy]] = POLICIES) -> Policy:
    """Read a policy that :func:`save_policy` wrote.

    Parameters
    ----------
    known : mapping
        Name to constructor of the policies that may be made; nothing else in the file is called.

    Raises
    ------
    ValueError
        There is no such file, or it holds no policy, or one that is not known.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stream:
            made = _made(stream.metadata() or {})
            numbers = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    if made is None:
        raise ValueError(f"{path} holds no policy; known are {', '.join(known)}")
    if made["policy"] not in known:
        raise ValueError(f"{path} holds {made['policy']}; known are {', '.join(known)}")
    policy = known[made["policy"]](**made["options"])
    policy.load_state_dict(numbers)
    return policy.eval()


def _made(header: Mapping[str, str]) -> dict[str, Any] | None:
    """How the policy is made by a file's header; files of before had an entry for each part of that. None if it does not say."""
    try:
        made = json.loads(header["made"]) if "made" in header else {**header, "options": json.loads(header["options"])}
    except (ValueError, KeyError):
        return None
    told = isinstance(made, dict) and isinstance(made.get("policy"), str) and isinstance(made.get("options"), dict)
    return made if told else None
