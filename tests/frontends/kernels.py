"""A real ipykernel, spoken to as a frontend does."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jupyter_client.manager import KernelManager


class Kernel:
    """A real ipykernel, and what it publishes."""

    def __init__(self, manager: KernelManager, client: Any) -> None:
        self.manager, self.client = manager, client

    def run(self, code: str) -> str:
        """What a cell prints."""
        asked = self.client.execute(code)
        said = ""
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != asked:
                continue
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
            assert message["msg_type"] != "error", message["content"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return said

    def until(self, wanted: Callable[[dict[str, Any]], bool], within_s: float = 20) -> dict[str, Any]:
        """The next message on iopub of that kind."""
        end = time.monotonic() + within_s
        while (left := end - time.monotonic()) > 0:
            try:
                message: dict[str, Any] = self.client.get_iopub_msg(timeout=left)
            except queue.Empty:
                break
            if wanted(message):
                return message
        raise AssertionError(f"not within {within_s} s")

    def tell(self, comm_id: str, content: dict[str, Any]) -> None:
        """A custom message of a widget's page."""
        data = {"method": "custom", "content": content}
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        self.client.shell_channel.send(message)

    def shut_down(self, restart: bool = False) -> tuple[str, float]:
        """What a frontend sees on iopub after asking it to end, and how many seconds it took to answer."""
        began = time.monotonic()
        self.client.shutdown(restart=restart)
        self.client.get_control_msg(timeout=30)
        took, said = time.monotonic() - began, ""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=2)
            except queue.Empty:
                return said, took
            if message["msg_type"] == "stream":
                said += message["content"]["text"]


@contextmanager
def started(environ: Mapping[str, str] = os.environ) -> Iterator[Kernel]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=dict(environ))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
