"""What else is counted beside the meter's books: why something was refused, tried again, moved, continued."""

from __future__ import annotations

from tuna_router.books.series import LATENCY_S, TOKEN_S, Histogram, Labelled


class Counts:
    """Counters of one router. All labels are short words of ours or names of backends."""

    def __init__(self) -> None:
        self.refused = Labelled()
        """(reason): requests that were answered here because of a limit, a key or their form."""
        self.retries = Labelled()
        """(backend, reason): attempts that failed, and why, each followed by another or by the end."""
        self.resumes = Labelled()
        """(outcome): streams that broke: continued (exact, ids, text, again), closed, refused, failed."""
        self.moves = Labelled()
        """(backend): streams moved away from it before it went."""
        self.preemptions = Labelled()
        """(backend): replicas that were taken away, with or without notice."""
        self.queue_wait = Histogram(LATENCY_S)
        """Seconds for which requests waited for a place and got it."""
        self.last_wait_s = 0.0
        """The wait of the one that got its place last."""
        self.tokens = 0
        """Of answers that ended: pieces of streams that could be continued, else completion tokens."""
        self._itl: dict[str, Histogram] = {}

    def itl(self, backend: str) -> Histogram:
        """Seconds between pieces of a stream of this backend. Look it up once for each stream."""
        found = self._itl.get(backend)
        if found is None:
            found = self._itl[backend] = Histogram(TOKEN_S)
        return found

    @property
    def inter_token(self) -> dict[str, Histogram]:
        """All of them by backend."""
        return self._itl

    def waited(self, seconds: float) -> None:
        """A request got its place after waiting for it."""
        self.queue_wait.add(seconds)
        self.last_wait_s = seconds
