"""What the app counts of itself, and the bounds of its load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from perdure.errors import RateLimited
from perdure.observe.metrics import FAST, OTHER, Histogram, Reading

METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


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
        self._seconds = Histogram(FAST)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer; `seconds` is the time until it began."""
        self._answers[method if method in METHODS else OTHER, route, status] += 1
        self._seconds.observe(seconds)

    def readings(self) -> Iterator[Reading]:
        """All of it."""
        for answer, count in self._answers.items():
            method, route, status = answer
            yield "perdure_http_responses_total", (method, route, str(status)), count
        yield "perdure_http_response_seconds", (), self._seconds
        yield "perdure_http_requests_open", (), self._load.requests
        yield "perdure_http_streams_open", (), self._load.streams
        yield "perdure_http_shed_total", (), self._load.shed
