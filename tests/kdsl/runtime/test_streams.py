"""Several devices and streams, told by stand-ins: whose memory, whose stream, whose lists."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kdsl import masks
from kdsl.runtime import bound as runtime_bound
from kdsl.runtime.bound import Bound
from kdsl.specs import Attention

torch = pytest.importorskip("torch")


class Place:
    """A CUDA device that is none."""

    type = "cuda"

    def __init__(self, index: int) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and other.index == self.index

    def __hash__(self) -> int:
        return hash(self.index)


class Memory:
    """A tensor that remembers which streams it was used on."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def record_stream(self, stream: Any) -> None:
        """As torch's tensors have it."""
        self.streams.append(stream.cuda_stream)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two devices, each with a current stream; uploads make memory that remembers."""
    from kdsl.kernels.attention import launch
    from kdsl.kernels.attention.backward import launch as backward

    current = {0: 0, 1: 0}
    made: list[tuple[int, Any]] = []

    def lists(device: Any) -> Any:
        held = SimpleNamespace(tensors=[Memory() for _ in range(5)])
        made.append((device.index, held))
        return held

    monkeypatch.setattr(launch, "lists", lambda blocks, heads, device: lists(device))
    monkeypatch.setattr(launch, "table_tensors", lambda spec, tables, device: (Memory(),))
    monkeypatch.setattr(backward, "inverted", lambda blocks, spec, device: lists(device))
    monkeypatch.setattr(runtime_bound, "stream_of", lambda device: current[device.index])
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device: SimpleNamespace(cuda_stream=current[device.index]),
    )
    return SimpleNamespace(current=current, made=made)


def bound() -> Bound:
    """Rows of one small spec."""
    spec = Attention(tokens=64, heads=1, head_dim=64, mask=masks.causal(), block=(16, 16))
    return Bound(spec, {}, 1, ("portable",))


def test_lists_are_known_to_every_stream_that_reads_them(machine: Any) -> None:
    """Each stream is recorded once for lists and tables, so that memory which is let go of is not
    handed out under a kernel of another stream."""
    rows, place = bound(), Place(0)
    for stream in (0, 7, 7, 0, 9):
        machine.current[0] = stream
        held, tables = rows.upload(place)
    assert len(machine.made) == 1
    for memory in (*held.tensors, *tables):
        assert memory.streams == [0, 7, 9]


def test_inverted_lists_too(machine: Any) -> None:
    """What the backward reads is recorded as well, each time on the stream of the call."""
    rows, place = bound(), Place(0)
    for stream in (3, 4, 4):
        machine.current[0] = stream
        lists, _ = rows.operands(place, True)
    assert len(lists) == 10
    for memory in lists:
        assert {3, 4} <= set(memory.streams)
    assert all(memory.streams == [3, 4] for memory in lists[5:])


def test_devices_have_lists_of_their_own(machine: Any) -> None:
    """A device's lists are uploaded there, and its streams are not another device's, though they
    bear the same number."""
    rows = bound()
    held = [rows.upload(Place(i))[0] for i in (0, 1, 0, 1)]
    assert [index for index, _ in machine.made] == [0, 1]
    assert held[0] is held[2]
    assert held[1] is held[3]
    assert held[0] is not held[1]
    assert all(memory.streams == [0] for h in held for memory in h.tensors)
