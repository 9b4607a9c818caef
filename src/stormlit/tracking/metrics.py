"""Gathers metrics between two log steps without waiting for the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class MetricBuffer:
    """Means of scalar metrics since the last ``drain``.

    Tensors are summed on their own device, as one vector per set of keys: an ``add`` costs two small kernels however
    many metrics it brings, and nothing is copied to the host before ``drain``.

    >>> buffer = MetricBuffer()
    >>> buffer.add("agent", {"entropy": torch.tensor(1.0), "updates": 2})
    >>> buffer.add("agent", {"entropy": torch.tensor(2.0), "updates": 2})
    >>> buffer.drain()
    {'agent/updates': 2.0, 'agent/entropy': 1.5}
    """

    def __init__(self) -> None:
        self._on_host: dict[str, tuple[float, int]] = {}  # key -> sum, count
        self._on_device: dict[tuple[torch.device, tuple[str, ...]], tuple[Tensor, int]] = {}  # -> sums, count

    def add(self, prefix: str, metrics: Mapping[str, Tensor | float]) -> None:
        """Add one value per metric under the key ``prefix/name``; tensors have exactly one element, of any dtype."""
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in metrics.items():
            key = f"{prefix}/{name}" if prefix else name
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, {})[key] = value.detach().float().reshape(())
            else:
                total, count = self._on_host.get(key, (0.0, 0))
                self._on_host[key] = (total + float(value), count + 1)
        for device, values in by_device.items():
            group = (device, tuple(values))
            stacked = torch.stack(list(values.values()))
            if group in self._on_device:
                sums, count = self._on_device[group]
                # Not in place: the sums may have been made in inference mode, and state_dict hands them out.
                self._on_device[group] = (sums + stacked, count + 1)
            else:
                self._on_device[group] = (stacked, 1)

    def drain(self) -> dict[str, float]:
        """Return the mean of every metric added since the last drain, and forget them; one transfer per device."""
        totals = dict(self._on_host)
        for device in {device for device, _ in self._on_device}:
            groups = [(keys, entry) for (place, keys), entry in self._on_device.items() if place == device]
            values = torch.cat([sums for _, (sums, _) in groups]).tolist()
            counted = [(key, count) for keys, (_, count) in groups for key in keys]
            for (key, count), value in zip(counted, values, strict=True):
                total, seen = totals.get(key, (0.0, 0))
                totals[key] = (total + value, seen + count)
        self._on_host, self._on_device = {}, {}
        return {key: total / count for key, (total, count) in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """What has been added since the last drain."""
        return {
            "on_host": dict(self._on_host),
            "on_device": [(list(keys), sums, count) for (_, keys), (sums, count) in self._on_device.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by that of ``state_dict``; the sums may come back on another device."""
        self._on_host = {key: (total, count) for key, (total, count) in state["on_host"].items()}
        self._on_device = {(sums.device, tuple(keys)): (sums, count) for keys, sums, count in state["on_device"]}
