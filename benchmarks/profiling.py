"""Profiles a few steps on a device with torch's profiler: the slowest kernels, launches, idle time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KERNELS = 25
COPIES = ("Memcpy", "Memset")


def profiled(device: torch.device, steps: int, step: Callable[[], object]) -> dict[str, Any]:
    r"""Calls ``step`` ``steps`` times under the profiler.

    On CUDA only the device is recorded, because recording the host slows it and the launches down. On a CPU operators
    replace the kernels. Returns: ``steps``; and per step: ``span_ms``, from the start of the first kernel to the end of
    the last; ``busy_ms``, the part of it that kernels and copies cover; ``idle_share``, the rest as a share of
    ``span_ms``; ``launches`` of kernels; ``copies``; ``kernels``: the 25 slowest, each with ``name``, ``count``,
    ``ms``, and its ``share`` of the total kernel time.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events()
        # The time of an operator includes the operators that it calls.
        if event.device_type == kind and event.cpu_parent is None and not event.is_user_annotation
    ]
    return summed(events, steps)


def summed(events: Iterable[tuple[str, float, float]], steps: int) -> dict[str, Any]:
    """Computes the result of :func:`profiled` from the name, start and end (in microseconds) of each event."""
    events = sorted(events, key=lambda event: event[1])
    busy, reached = 0.0, events[0][1] if events else 0.0
    first = reached
    times: dict[str, list[float]] = defaultdict(list)
    for name, start, end in events:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
        times[name].append(end - start)
    total, span = sum(map(sum, times.values())), reached - first
    copies = sum(len(found) for name, found in times.items() if name.startswith(COPIES))
    longest = sorted(times, key=lambda name: -sum(times[name]))[:KERNELS]
    kernels = [
        {
            "name": name,
            "count": len(times[name]) / steps,
            "ms": sum(times[name]) / 1e3 / steps,
            "share": sum(times[name]) / total if total else 0.0,
        }
        for name in longest
    ]
    out: dict[str, Any] = {"steps": steps, "span_ms": span / 1e3 / steps, "busy_ms": busy / 1e3 / steps}
    out |= {"idle_share": 1 - busy / span if span else 0.0}
    return out | {"launches": (len(events) - copies) / steps, "copies": copies / steps, "kernels": kernels}


def text(name: str, found: dict[str, Any]) -> str:
    """Returns a profile as text in 120 columns."""
    lines = [
        f"{name}: {found['launches']:,.0f} launches and {found['copies']:,.0f} copies a step, "
        f"{100 * found['idle_share']:.0f} % idle, {found['busy_ms']:.2f} of {found['span_ms']:.2f} ms busy:"
    ]
    for kernel in found["kernels"]:
        lines.append(
            f"{kernel['ms']:9.3f} ms {100 * kernel['share']:5.1f} % {kernel['count']:7.1f}× {kernel['name'][:88]}"
        )
    return "\n".join(lines)
