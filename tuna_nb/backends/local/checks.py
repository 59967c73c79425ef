"""What the local cloud needs, each as a row. Looking creates nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tuna_nb.backends.base import Check, ServiceRequest
from tuna_nb.backends.local import prices, processes
from tuna_nb.backends.local import spec as specs
from tuna_nb.errors import BackendError, RequestError


def rows(folder: Path, request: ServiceRequest | None) -> list[Check]:
    """The machine's rows and, with a request, those that it adds."""
    found = [_system(), _folder(folder), _port()]
    if request is not None:
        found += [_gpu(request), _program(request)]
    return found


def _system() -> Check:
    if os.name == "posix":
        return Check("system", True, f"{sys.platform} has process groups and file locks")
    return Check("system", False, f"{sys.platform} has no process groups", "use Linux, macOS or WSL")


def _folder(folder: Path) -> Check:
    there = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check("folder", True, f"{folder} can be written")
    return Check("folder", False, f"{folder} can't be written", "export TUNA_LOCAL_FOLDER=<a folder of yours>")


def _port() -> Check:
    try:
        processes.free_port()
    except BackendError as exc:
        return Check("loopback port", False, exc.message, exc.hint)
    return Check("loopback port", True, "a port on 127.0.0.1 can be bound")


def _gpu(request: ServiceRequest) -> Check:
    try:
        usd = prices.price_per_hour_usd(request.gpu, request.kind)
    except RequestError as exc:
        return Check("gpu", False, exc.message, exc.hint)
    return Check("gpu", True, f"{request.gpu} at {usd:.2f} USD/h on the {request.kind} side (illustrative)")


def _program(request: ServiceRequest) -> Check:
    try:
        program, is_there = specs.program(request)
    except RequestError as exc:
        return Check("engine", False, exc.message, exc.hint)
    if request.engine.command is None:
        return Check("engine", True, "the built-in stand-in for vLLM")
    if is_there:
        return Check("engine", True, f"{program} is there")
    fix = "pip install vllm" if program == "vllm" else f"install {program}, or give its full path in --engine-cmd"
    return Check("engine", False, f"the engine's program {program!r} is not on PATH", fix)
