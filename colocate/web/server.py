"""The dashboard as a process of its own, so that what watches a run does not disturb it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colocate.errors import UserError, needs
from colocate.web.address import Address

_NICENESS = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_S = 60.0
_END_S = 5.0
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def serve(directory: Path, address: Address, state_dir: Path, *, child: bool = False) -> None:
    """Serve the runs of a folder until a signal ends it.

    Args:
        directory: where event logs lie.
        address: where to listen.
        state_dir: where the run in progress answers.
        child: whether a run has started it: its address goes to standard output, and it does not outlive that run.

    Raises:
        UserError: a package is missing, or the address cannot be had.
    """
    with needs("web"):
        import uvicorn

        from colocate.web.app import make_app
    if child:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.nice(_NICENESS)
    with address.listen() as listener:
        hosts = {*_LOCAL_NAMES, address.host, address.ip} if address.loopback else None
        config = uvicorn.Config(
            make_app(directory, state_dir, hosts),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=4,
        )
        bound = Address(address.host, address.ip, listener.getsockname()[1])
        out = sys.stdout if child else sys.stderr
        out.write(f"{bound.url}\n" if child else f"colocate: {directory} is shown at {bound.url} (Ctrl-C ends it)\n")
        out.flush()
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def serving(directory: Path, address: Address, state_dir: Path) -> Iterator[str]:
    """`colocate serve` as a child for the time of a run; gives its URL.

    Raises:
        UserError: it did not start; in its words.
    """
    argv = [sys.executable, "-P", "-m", "colocate", "serve", str(directory), "--web", str(address), "--child"]
    argv += ["--state-dir", str(state_dir)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # the terminal's Ctrl-C is the run's
        )
        try:
            assert process.stdout is not None  # noqa: S101 -- by stdout=PIPE
            ready, _, _ = select.select([process.stdout], [], [], _START_S)
            url = process.stdout.readline().decode().strip() if ready else ""
            if not url:
                process.kill()
                said.seek(0)
                words = said.read().decode(errors="replace").strip().splitlines()
                what = words[-1].removeprefix("colocate: ") if words else "it said nothing"
                raise UserError(what if process.wait() == 2 else f"the dashboard did not start: {what}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
