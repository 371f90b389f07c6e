"""What Prometheus may ask: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from studiolo.language.conversation import Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server. A label `model` has names of models that there are, never what a client
    wrote."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = self._gauge("requests_running", "Requests under way")
        self._requests = self._counter(
            "requests", "Requests answered", ("dialect", "route", "status", "model")
        )
        self._seconds = self._histogram(
            "request_seconds", "From request to end of answer", ("dialect", "route")
        )
        self._tokens = self._counter(
            "tokens", "Tokens by kind: prompt, cached (of the prompt), answer, thoughts", ("kind", "model")
        )
        self._dollars = self._counter("dollars", "What answers cost, in US dollars", ("model",))
        self.waiting = self._gauge("queue_length", "Requests that wait for their first token", ("model",))
        self.first_token = self._histogram(
            "first_token_seconds", "From asking to the first token", ("model",)
        )
        self._images = self._histogram("image_seconds", "Seconds per image", ("model",))

    def answered(self, dialect: str, route: str, status: int, model: str, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(dialect, route, str(status), model).inc()
        self._seconds.labels(dialect, route).observe(seconds)

    def used(self, model: str, usage: Usage, dollars: float) -> None:
        """An answer has taken that much."""
        for kind in ("prompt", "cached", "answer"):
            self._tokens.labels(kind, model).inc(getattr(usage, kind))
        self._tokens.labels("thoughts", model).inc(usage.thoughts + usage.summaries)
        self._dollars.labels(model).inc(dollars)

    def drawn(self, model: str, seconds: float, images: int = 1) -> None:
        """So many images took that long together."""
        for _ in range(images):
            self._images.labels(model).observe(seconds / images)

    def watch(self, loaded: Callable[[], Mapping[str, int]]) -> None:
        """`loaded` tells the models that are loaded, and the bytes that each takes; asked at each look."""
        self.registry.register(_Now(loaded))

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, told: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"studiolo_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"studiolo_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"studiolo_{name}", told, labels, registry=self.registry, buckets=SECONDS)


class _Now(Collector):
    """What is looked up when it is asked for."""

    def __init__(self, loaded: Callable[[], Mapping[str, int]]) -> None:
        self._loaded = loaded

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        memory = GaugeMetricFamily("studiolo_memory_bytes", "Memory of this process that is resident")
        memory.add_metric((), resident())
        models = GaugeMetricFamily(
            "studiolo_model_bytes", "Memory of the models that are loaded, about", labels=("model",)
        )
        for name, size in self._loaded().items():
            models.add_metric((name,), size)
        return memory, models


def resident() -> int:
    """Bytes of memory that this process holds now (where that is not told: has held at most)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
