"""After a daemon that was killed: end the engines that it left, close their bill, forget them."""

from __future__ import annotations

import time

from tuna_nb.backends.local import processes
from tuna_nb.backends.local.instance import marker_of
from tuna_nb.backends.local.journal import Journal


def end_orphans(journal: Journal) -> None:
    """Returns when no engine of an earlier daemon runs. Called under the folder's lock, before anything starts.

    What still ran is billed to now, for it did run; what had ended meanwhile is billed to when it was last seen.
    """
    mine = journal.cloud_id + "/"
    for record in journal.replicas():
        ran = processes.end_orphan(record.pid, record.create_time, marker_of(journal.cloud_id, record.id))
        journal.close_interval(record.id, time.time() if ran else None)
        journal.remove_replica(record.id)
    # Engines that the journal has no line of, however that came about: the marker is proof enough.
    for marker in {carried for _, carried in processes.marked_processes() if carried.startswith(mine)}:
        processes.end_orphan(None, None, marker)
    for interval in journal.intervals():
        if interval.ended_at is None:
            journal.close_interval(interval.replica)
