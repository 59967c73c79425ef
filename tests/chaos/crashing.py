"""`python -m tests.chaos.crashing K WORD...`: run `tuna WORD...` and die by SIGKILL at its K-th point.

A point lies before and after everything that outlives the process: a record written, a key stored, a provider
asked, a router started. K = 0 never dies and prints how many points there were.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tuna_nb.backends.local.backend import LocalBackend
from tuna_nb.deployments.router_hosts import process as router_process
from tuna_nb.frontends.terminal import main
from tuna_nb.secrets import Secrets
from tuna_nb.store.database import Database

die_at = int(sys.argv[1])
_lock = threading.Lock()
passed = 0


def point(where: str) -> None:
    global passed
    with _lock:
        passed += 1
        if passed == die_at:
            sys.stderr.write(f"dying at point {passed}: {where}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str) -> None:
    """Points before and after a method or coroutine method."""
    original: Callable[..., Any] = getattr(owner, name)
    if name in ("deploy", "destroy", "wake", "auth"):

        @functools.wraps(original)
        async def with_points(*args: Any, **kwargs: Any) -> Any:
            point(f"before {name}")
            result = await original(*args, **kwargs)
            point(f"after {name}")
            return result
    else:

        @functools.wraps(original)
        def with_points(*args: Any, **kwargs: Any) -> Any:
            point(f"before {name}")
            result = original(*args, **kwargs)
            point(f"after {name}")
            return result

    setattr(owner, name, with_points)


_write = Database.write


def _write_of_records(self: Database) -> AbstractContextManager[Any]:
    # The ledger's writes say nothing of what exists: dying there is dying between two of the others.
    ledger = sys._getframe(1).f_globals["__name__"] != "tuna_nb.store.store"
    return _write(self) if ledger else _write_with_points(self)


@contextmanager
def _write_with_points(self: Database) -> Iterator[Any]:
    with _write(self) as connection:
        yield connection
        point("before a record is committed")
    point("after a record is committed")


Database.write = _write_of_records  # type: ignore[method-assign]
for method in ("deploy", "destroy", "wake", "auth"):
    around(LocalBackend, method)
for method in ("put", "forget"):
    around(Secrets, method)
around(router_process.subprocess, "Popen")
around(router_process.ProcessHost, "_stop")

code = main(sys.argv[2:])
if die_at == 0:
    print(f"points: {passed}")
sys.exit(code)
