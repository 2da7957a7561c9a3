"""Learn from a table of measurements which sensors to read at each moment, and use the model step by step.

    python examples/choose_my_sensors.py [measurements.csv]

The table has a row per step, a column per sensor, a column `activity` with what is to be told, and a column `recording`. Without
one, a table is made up: a heater and a fan that matter in turn, a lamp that says which, and two sensors that say nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atlas.methods.vfds import FeatureGroups, SelectiveGRU, fit

COSTS = {"lamp": 0.2, "heater": 1.0, "fan": 1.0, "hum": 1.0, "glow": 1.0}
STEPS, WARM = 40, 1


def made_up(recordings: int = 60) -> pd.DataFrame:
    """A lamp says whether the heater's or the fan's sign tells the activity; the other is noise."""
    random = np.random.default_rng(0)
    parts = []
    for recording in range(recordings):
        lit = np.repeat(random.integers(0, 2, STEPS // 8), 8)
        busy = random.integers(0, 2, STEPS)
        signal = 2.0 * busy - 1 + 0.3 * random.normal(size=STEPS)
        noise = random.normal(size=(3, STEPS))
        table = {
            "lamp": lit + 0.1 * random.normal(size=STEPS),
            "heater": np.where(lit == 1, signal, noise[0]),
            "fan": np.where(lit == 1, noise[0], signal),
            "hum": noise[1],
            "glow": noise[2],
            "activity": np.where(busy == 1, "busy", "idle"),
            "recording": recording,
        }
        parts.append(pd.DataFrame(table))
    return pd.concat(parts, ignore_index=True)


def sequences(table: pd.DataFrame, sensors: list[str], classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Recordings of one length as x (N, T, D), standardised, and y (N, T)."""
    values = (table[sensors] - table[sensors].mean()) / table[sensors].std()
    length = int(table.groupby("recording").size().min())
    xs, ys = [], []
    for _, rows in values.assign(activity=table["activity"]).groupby(table["recording"]):
        xs.append(rows[sensors].to_numpy(np.float32)[:length])
        ys.append(np.array([classes.index(name) for name in rows["activity"][:length]]))
    return np.stack(xs), np.stack(ys)


def main() -> None:
    """Train at two prices, say what is read, and run the cheaper model as it would run on a device."""
    table = pd.read_csv(Path(sys.argv[1])) if len(sys.argv) > 1 else made_up()
    sensors = [name for name in table.columns if name not in ("activity", "recording")]
    classes = sorted(table["activity"].unique())
    x, y = sequences(table, sensors, classes)
    train, test = slice(0, 3 * len(x) // 4), slice(3 * len(x) // 4, None)
    cost = [COSTS.get(name, 1.0) for name in sensors]
    groups = FeatureGroups(groups=list(range(len(sensors))), cost=cost, names=sensors)

    for price in (0.0, 0.3):
        torch.manual_seed(0)
        model = SelectiveGRU(n_features=len(sensors), hidden=16, n_outputs=len(classes), groups=groups)
        fit(model, (x[train], y[train]), lam=price, steps=250)
        with torch.inference_mode():
            rollout = model(torch.from_numpy(x[test]), gates="threshold")
        right = float((rollout.logits.argmax(-1).numpy() == y[test]).mean())
        read = rollout.gates[:, WARM:].mean((0, 1))
        shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(sensors, read.tolist(), strict=True))
        print(f"price {price:g}: accuracy {right:.2f}; read {shares}")

    policy = model.stream()  # as on a device: it asks before a sensor is read
    asked = []
    for step in range(5):
        wanted = policy.request()
        asked.append([name for name, one in zip(sensors, wanted[0].tolist(), strict=True) if one])
        policy.observe(torch.where(groups.expand(wanted), torch.from_numpy(x[test][:1, step]), torch.nan))
    print(f"the first step reads {len(asked[0])} sensors, later ones {[len(names) for names in asked[1:]]}")


if __name__ == "__main__":
    main()
