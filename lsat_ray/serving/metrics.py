"""What a replica counts, in Prometheus' text; no title, history or user goes into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from lsat_ray.scoring.served import Served
from lsat_ray.scoring.states import StateCache

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOKENS = (64, 256, 1024, 4096, 16384, 65536)
DIFFERENCE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Metrics:
    """The counters of one replica, apart from those of Ray."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.registry = CollectorRegistry()
        self._seconds = self._histogram("request_seconds", "Time to answer a request.", SECONDS, "route")
        self._requests = self._counter("requests", "Requests by route and status.", "route", "status")
        self.tokens = self._histogram("batch_tokens", "Tokens of a batch.", TOKENS).labels(replica)
        self.targets = self._counter("targets", "Candidates that were scored.").labels(replica)
        self.swaps = self._histogram("swap_seconds", "Time to prepare a change of models.", SECONDS).labels(replica)
        self.waited = self._histogram("wait_seconds", "Time that an answered request waited.", SECONDS).labels(replica)
        self.waiting = self._gauge("waiting_tokens", "Tokens that wait to be scored.").labels(replica)
        self._version = self._gauge("version", "Version that is served.").labels(replica)
        self._period = self._gauge("model_period", "Period after which a served model was made.", "model")
        self.shadowed = self._counter("shadow_targets", "Candidates that the shadow scored too.").labels(replica)
        self.difference = self._histogram(
            "shadow_difference", "Distance between the shadow's P(like) and the answer.", DIFFERENCE
        ).labels(replica)
        self._hits = self._counter("prefix_hits", "Tokens of prefixes whose states were kept.").labels(replica)
        self._misses = self._counter("prefix_misses", "Tokens of prefixes that were computed.").labels(replica)
        self._bytes = self._gauge("prefix_bytes", "Bytes of prefix states that are kept.").labels(replica)
        self._counted = (0, 0)
        self._loss = self._gauge("log_loss", "Mean prequential log-loss on the periods tested so far.", "model", "role")
        self._tested = self._gauge("log_loss_periods", "Tested periods behind lsat_ray_log_loss.").labels(replica)

    def _names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return ("replica", *labels)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"lsat_ray_{name}", text, self._names(labels), registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"lsat_ray_{name}", text, self._names(labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"lsat_ray_{name}", text, self._names(labels), buckets=buckets, registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(self.replica, route, str(status)).inc()
        self._seconds.labels(self.replica, route).observe(seconds)

    def serving(self, served: Served) -> None:
        """Say what is served."""
        self._version.set(served.version)
        self._period.clear()
        for name, model in zip(served.names, served.models, strict=True):
            self._period.labels(self.replica, name).set(model.period)
        if served.candidate:
            self._period.labels(self.replica, f"candidate {served.candidate.strategy}").set(served.candidate.period)

    def losses(self, by_role: Mapping[str, tuple[str, float]], periods: int) -> None:
        """Say how what answers, and what is on trial, did on the periods that the run has tested.

        Args:
            by_role: (model, mean log-loss) of the `champion` and of the `candidate`; those that are known.
            periods: how many.
        """
        self._loss.clear()
        for role, (model, loss) in by_role.items():
            self._loss.labels(self.replica, model, role).set(loss)
        self._tested.set(periods)

    def prefixes(self, cache: StateCache) -> None:
        """Say what the prefix states saved so far."""
        hits, misses = self._counted
        self._hits.inc(cache.hits - hits)
        self._misses.inc(cache.misses - misses)
        self._counted = (cache.hits, cache.misses)
        self._bytes.set(cache.bytes)

    def text(self) -> str:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry).decode()


def merged(texts: Sequence[str]) -> str:
    """Return the texts of several replicas as one: samples of one metric stand together, under one header."""
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith("# HELP"):
                name = line.split()[2]
                headers[name], samples[name] = [line], samples.get(name, [])
            elif line.startswith("# TYPE"):
                headers[name].append(line)
            elif line:
                samples[name].append(line)
    return "".join(f"{line}\n" for name in headers for line in [*headers[name], *samples[name]])
