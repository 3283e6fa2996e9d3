"""The measuring process: one device, one candidate after the other."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from kdsl.autotune.measuring import faults
from kdsl.autotune.measuring.device import Card, Device, Finals, Opening, Order, Timing, Vitals
from kdsl.autotune.measuring.race import hopeless, race

WARM_UP = 3
THROTTLED = 0.95
"""Share of the clock below which times are taken again."""
RETRIES = 2
Say = Callable[[str], None]


def serve(link: Connection[Any, Any], card: Card) -> None:
    """Send the device's facts, then answer what comes; before each part of an order its name."""
    device = card.make()
    link.send(device.facts())
    while True:
        message = link.recv()
        if isinstance(message, Opening):
            link.send(_open(device, message))
        elif isinstance(message, Finals):
            link.send(finals(device, message, link.send))
        else:
            link.send(guarded(device, message, link.send))


def _open(device: Device, opening: Opening) -> str:
    """What is wrong, or nothing."""
    try:
        device.open(opening)
    except Exception as error:
        return faults.reason(error)
    return ""


def guarded(device: Device, order: Order, say: Say) -> Timing:
    """`measure`; an exception becomes the candidate's status."""
    try:
        return measure(device, order, say)
    except Exception as error:
        status, sticky = faults.classify(error)
        return Timing(status, faults.reason(error), sticky=sticky)


def measure(device: Device, order: Order, say: Say) -> Timing:
    """Right before it is timed, timed, and right afterwards; a wrong result ends it."""
    params = order.params
    say("compile")
    device.start(params)
    say("check")
    worst = 0.0
    for turn in (0, 1):
        check = device.check(params, turn)
        worst = max(worst, check.error)
        if not check.right:
            return _wrong(check.error, check.tolerance, check.reason, "before timing")
    say("time")
    samples, vitals = _timed(device, order)
    say("check")
    check = device.check(params, 2)
    if not check.right:
        return _wrong(check.error, check.tolerance, check.reason, "after timing")
    return Timing(
        "ok",
        samples=tuple(samples),
        error=max(worst, check.error),
        clock_mhz=vitals.clock_mhz,
        temp_c=vitals.temp_c,
    )


def _wrong(error: float, tolerance: float, reason: str, when: str) -> Timing:
    finite = error if error < float("inf") else None
    said = f"{reason or 'wrong result'} {when}: error {error:.2g}, tolerance {tolerance:.2g}"
    return Timing("wrong", said, error=finite)


def _timed(device: Device, order: Order) -> tuple[list[float], Vitals]:
    """Samples, again after a rest where the clock fell meanwhile."""
    for _ in range(RETRIES + 1):
        samples = device.sample(order.params, WARM_UP)
        before = device.vitals()
        if hopeless(samples, order.bar_us):
            return samples, before
        samples = race(lambda n: device.sample(order.params, n), order.bar_us)
        after = device.vitals()
        if not before.clock_mhz or not after.clock_mhz:
            break
        if after.clock_mhz >= THROTTLED * before.clock_mhz:
            break
        device.rest()
    return samples, after


def finals(device: Device, order: Finals, say: Say) -> list[list[float]] | Timing:
    """Samples of each candidate, taken by turns in a changing order, so that all share the heat."""
    out: list[list[float]] = [[] for _ in order.candidates]
    say("time")
    try:
        for params in order.candidates:
            device.sample(params, WARM_UP)
        for turn in range(order.rounds):
            numbers = list(range(len(out)))
            shift = turn % len(numbers)
            for i in numbers[shift:] + numbers[:shift]:
                out[i] += device.sample(order.candidates[i], 1)
            say("time")
    except Exception as error:
        status, sticky = faults.classify(error)
        return Timing(status, faults.reason(error), sticky=sticky)
    return out
