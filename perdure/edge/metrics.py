"""What the app counts of itself, in the text format that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from perdure.errors import RateLimited

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Load:
    """Requests under way, and the bounds past which a new one is refused."""

    def __init__(self, most_requests: int, most_streams: int, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0  # of bodies in memory
        self.most_requests = most_requests
        self.most_streams = most_streams
        self.requests = 0
        self.streams = 0
        self.shed = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within: a request that waits for a run, maybe for hours, counts as a stream. Raises `RateLimited`."""
        if self.streams >= self.most_streams:
            self.shed += 1
            raise RateLimited(f"{self.most_streams} runs are waited for already; come back later", retry_after=5.0)
        self.streams += 1
        self.requests -= 1
        try:
            yield
        finally:
            self.streams -= 1
            self.requests += 1


class Metrics:
    """Counts of answers by route; a route is its template, so that ids make no new series."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer; `seconds` is the time until it began."""
        self._answers[method, route, status] += 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HELP perdure_http_responses_total Answers by route and status."
        yield "# TYPE perdure_http_responses_total counter"
        for (method, route, status), count in sorted(self._answers.items()):
            labels = f'method="{method}",route="{_escaped(route)}",status="{status}"'
            yield f"perdure_http_responses_total{{{labels}}} {count}"
        yield "# HELP perdure_http_response_seconds Time until an answer began."
        yield "# TYPE perdure_http_response_seconds histogram"
        below = 0
        for bound, count in zip((*(f"{each:g}" for each in BUCKETS), "+Inf"), self._buckets, strict=True):
            below += count
            yield f'perdure_http_response_seconds_bucket{{le="{bound}"}} {below}'
        yield f"perdure_http_response_seconds_sum {self._seconds:.6f}"
        yield f"perdure_http_response_seconds_count {below}"
        for name, text, kind, value in (
            ("perdure_http_requests_open", "Requests under way.", "gauge", self._load.requests),
            ("perdure_http_streams_open", "Event streams that are read.", "gauge", self._load.streams),
            ("perdure_http_shed_total", "Requests refused at overload.", "counter", self._load.shed),
        ):
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
            yield f"{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
