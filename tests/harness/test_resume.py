"""Training that survives signals, kills and damaged files."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas.errors import Interrupted
from atlas.harness import resume
from atlas.harness.registry import load
from atlas.harness.resume import SLOTS, StateStore, Values, spent, training
from atlas.harness.run import Resources, Run


def test_values_go_to_the_devices_of_those_that_they_replace() -> None:
    elsewhere = torch.empty(2, device="meta")
    values = Values(mask={"weight": {"deep": elsewhere}, "bias": torch.zeros(2)}, total=elsewhere, flops=0.0)
    values.load_state_dict(
        {
            "mask": {"weight": {"deep": torch.ones(2), "new": torch.ones(2)}, "bias": torch.ones(2)},
            "total": torch.ones(2),
            "flops": 3.0,
        }
    )
    assert (values.total.device.type, values.mask["weight"]["deep"].device.type) == ("meta", "meta")
    assert (values.mask["weight"]["new"].tolist(), values.mask["bias"].tolist(), values.flops) == ([1, 1], [1, 1], 3.0)


def make_run(root: Path, save_minutes: float = 60.0) -> Run:
    return Run(
        "demo",
        "task",
        "data",
        "data",
        "method",
        ("method",),
        0,
        {},
        {},
        Resources(save_minutes=save_minutes),
        root=root,
        task_entry=load().task("image-classification"),
        method_entries=(),
    )


class Walk:
    """A random walk that draws from every generator that a training might use."""

    def __init__(self) -> None:
        self.position = torch.zeros(3, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(1)
        torch.manual_seed(2)
        np.random.seed(3)  # noqa: NPY002
        random.seed(4)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.position = state["position"]

    def advance(self) -> None:
        draws = [
            torch.randn((), generator=self.generator),
            torch.rand(()),
            torch.tensor(np.random.rand() + random.random()),  # noqa: NPY002
        ]
        self.position = self.position * 0.9 + torch.stack([draw.double() for draw in draws])


def walk(run: Run, steps: int, stop_at: int | None = None, number: int = signal.SIGTERM) -> Walk:
    state = Walk()
    loop = training(run, steps, {"walk": state, "generator": state.generator})
    for step in loop:
        state.advance()
        loop.log(value=float(state.position.sum()))
        if step == stop_at:
            os.kill(os.getpid(), number)
    return state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_interrupted_equals_uninterrupted(tmp_path: Path, number: int) -> None:
    whole = walk(make_run(tmp_path / "whole"), 12)
    run = make_run(tmp_path / "parts")
    with pytest.raises(Interrupted, match="after step 4 of 12") as caught:
        walk(run, 12, stop_at=3, number=number)
    assert caught.value.exit_code == 75
    with pytest.raises(Interrupted, match="after step 9 of 12"):
        walk(run, 12, stop_at=8, number=number)
    resumed = walk(run, 12)
    assert torch.equal(resumed.position, whole.position)
    assert run.history.read_bytes() == make_run(tmp_path / "whole").history.read_bytes()
    assert spent(run)["seconds"] > 0


class Clock:
    """Takes the place of the module ``time``; stands still until it is told how long something took."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(resume, "time", found)
    monkeypatch.setattr(resume, "cpu_seconds", lambda: found.now / 2)
    return found


def test_time_adds_up_over_interruptions(tmp_path: Path, clock: Clock) -> None:
    run = make_run(tmp_path)

    def work(stop_at: int | None = None) -> float:
        loop = training(run, 12, {"walk": Walk()})
        for step in loop:
            clock.now += 10
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return loop.seconds

    for stop, seconds in ((3, 40), (8, 90)):
        with pytest.raises(Interrupted):
            work(stop_at=stop)
        assert spent(run) == {"seconds": seconds, "cpu_seconds": seconds / 2}
        clock.now += 5000  # waiting for the next start is no training
    assert work() == 120
    assert spent(run)["seconds"] == 120
    assert work() == 120  # a finished phase takes no time, and remembers what it took
    loop = training(run, 3, {"walk": Walk()}, phase="second")
    for _ in loop:
        clock.now += 1
    assert loop.seconds == 3
    assert spent(run) == {"seconds": 123, "cpu_seconds": 61.5}


def test_state_is_saved_every_so_many_minutes(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    original = StateStore.save
    monkeypatch.setattr(StateStore, "save", lambda store, step, content: (saved.append(step), original(store, step, content)))
    for step in training(make_run(tmp_path, save_minutes=2.0), 10, {"walk": Walk()}):
        clock.now += 50 if step < 6 else 130 if step < 8 else 1
    # 120 s have passed after 3 and after 6 steps of 50 s, then after each step of 130 s; what ends is saved in any case
    assert saved == [3, 6, 7, 8, 10]


def test_finished_phase_yields_no_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = walk(run, 5)
    assert list(training(run, 5, {"walk": Walk()})) == []
    assert torch.equal(walk(run, 5).position, first.position)


def test_signal_after_last_step_is_not_an_interruption(tmp_path: Path) -> None:
    assert walk(make_run(tmp_path), 5, stop_at=4).position.abs().sum() > 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "half-header"])
def test_damaged_state_falls_back_to_the_one_before(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = StateStore(tmp_path, "f")
    for step in (1, 2):
        store.save(step, {"value": torch.full((100,), float(step))})
    newest = max(SLOTS, key=lambda slot: StateStore(tmp_path, "f")._read(slot)["step"])
    content = bytearray((tmp_path / newest).read_bytes())
    changed = {"truncate": content[:-200], "empty": b"", "half-header": content[:20]}.get(damage)
    if changed is None:
        content[len(content) // 2] ^= 1
        changed = content
    (tmp_path / newest).write_bytes(bytes(changed))
    step, restored = store.load()
    assert step == 1
    assert torch.equal(restored["value"], torch.ones(100))
    assert "is damaged; going on from the state before it" in capsys.readouterr().err


def test_both_states_damaged_starts_again(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "f")
    store.save(1, {})
    store.save(2, {})
    for slot in SLOTS:
        (tmp_path / slot).write_bytes(b"x" * 100)
    assert store.load() is None
    store.save(3, {"value": 3})
    assert store.load() == (3, {"value": 3})


def test_state_of_other_settings_is_ignored(tmp_path: Path) -> None:
    StateStore(tmp_path, "old").save(7, {"value": 1})
    assert StateStore(tmp_path, "new").load() is None


def test_saving_never_leaves_temporary_files(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "f")
    for step in range(5):
        store.save(step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SLOTS)
    assert store.load()[0] == 4


def test_state_refuses_code(tmp_path: Path) -> None:
    """A state is data: one that would run code on loading is refused, digest or not."""
    import hashlib
    import io

    class Attack:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (os.system, ("true",))

    buffer = io.BytesIO()
    torch.save({"fingerprint": "f", "step": 1, "content": Attack()}, buffer)
    payload = buffer.getvalue()
    (tmp_path / SLOTS[0]).write_bytes(hashlib.sha256(payload).hexdigest().encode() + payload)
    with pytest.raises(Exception, match="[Uu]nsupported|weights_only|Weights only"):
        StateStore(tmp_path, "f").load()


def test_an_interrupted_epoch_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    """Seven steps of epochs of three, stopped inside the second: the same batches and values as without the stop."""

    def fit(run: Run, stop_after: int | None = None) -> tuple[list[tuple[int, str]], list[int], float]:
        spent = Values(total=0.0, mask=torch.zeros(2))
        seen: list[tuple[int, str]] = []
        begun: list[int] = []

        def batches(epoch: int, first: int) -> Iterator[str]:
            return iter([f"epoch {epoch} batch {index}" for index in range(first, 3)])

        loop = training(run, 7, {"spent": spent})
        for step, batch in loop.over_epochs(3, batches, begun.append):
            spent.total += step
            spent.mask[step % 2] += 1
            seen.append((step, batch))
            if stop_after == step:
                loop.save(step + 1)
                break
        return seen, begun, spent.total + 100 * float(spent.mask[0])

    whole, begun, total = fit(make_run(tmp_path / "whole"))
    assert begun == [0, 3, 6]
    first, _, _ = fit(make_run(tmp_path / "cut"), stop_after=4)
    rest, begun, total_cut = fit(make_run(tmp_path / "cut"))
    assert first + rest == whole
    assert begun == [5, 6]
    assert total_cut == total == 21 + 400
