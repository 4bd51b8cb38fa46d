"""The dashboard's routes: GET and HEAD only, nothing but a log folder's runs, nothing from another host."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from colocate.errors import UserError
from colocate.host.control import ask
from colocate.report.page import page
from colocate.report.record import load_record
from colocate.web.feed import Feed
from colocate.web.prometheus import exposition
from colocate.web.runs import Run, Runs

_STATIC = Path(__file__).parent / "static"
_PLOTLY = Path(str(files("plotly"))) / "package_data" / "plotly.min.js"
_PERIOD_S = 0.5
_ASK_S = 1.0  # a run that takes longer to answer is told of by its files
_RETRY_MS = 1000  # a browser waits so long before it connects again
_FEEDS = 16  # so many runs are kept in memory
_GRACE_S = 2.0  # so long a stream has for its last words when the server ends
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REPORT_CSP = (  # it is one file, with its scripts in it
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)


def make_app(directory: Path, state_dir: Path, hosts: Iterable[str] | None) -> Starlette:
    """The dashboard of a log folder.

    Args:
        directory: where event logs lie; it may come into being later.
        state_dir: where the run in progress, if any, answers.
        hosts: the names under which it may be asked for, as a stranger's page could name this machine by another one
            and read along (DNS rebinding); None for any.
    """
    dashboard = _Dashboard(directory, state_dir)
    return Starlette(
        routes=[
            Route("/", dashboard.index),
            Route("/api/runs", dashboard.runs),
            Route("/runs/{name}/events", dashboard.events),
            Route("/runs/{name}/report", dashboard.report),
            Route("/plotly.min.js", dashboard.plotly),
            Route("/metrics", dashboard.metrics),
            Route("/healthz", dashboard.health),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if hosts is None else list(hosts))],
    )


class _Dashboard:
    def __init__(self, directory: Path, state_dir: Path) -> None:
        self._runs = Runs(directory)
        self._state_dir = state_dir
        self._feeds: OrderedDict[str, Feed] = OrderedDict()
        self._asking = anyio.Lock()
        self._asked_s = float("-inf")
        self._answer: Mapping[str, Any] | None = None

    async def index(self, _: Request) -> Response:
        return FileResponse(_STATIC / "index.html", headers={**_HEADERS, "Cache-Control": "no-cache"})

    async def runs(self, _: Request) -> Response:
        runs = await run_sync(self._runs.list, _log(await self._status()))
        return JSONResponse([run.document() for run in runs], headers={**_HEADERS, "Cache-Control": "no-store"})

    async def plotly(self, _: Request) -> Response:
        return FileResponse(_PLOTLY, headers={**_HEADERS, "Cache-Control": "public, max-age=604800"})

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("ok\n", headers=_HEADERS)

    async def metrics(self, _: Request) -> Response:
        text, kind = exposition(await self._ask("figures"))
        return Response(text, media_type=kind, headers={**_HEADERS, "Cache-Control": "no-store"})

    async def report(self, request: Request) -> Response:
        run = await self._find(request)
        try:
            text = await run_sync(lambda: page([load_record(run.path)]))
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": _REPORT_CSP})

    async def events(self, request: Request) -> Response:
        run = await self._find(request)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        closing = anyio.Event()
        return EventSourceResponse(
            self._stream(run, after, closing),
            headers=_HEADERS,
            shutdown_event=closing,
            shutdown_grace_period=_GRACE_S,
        )

    async def _stream(self, run: Run, after: int, closing: anyio.Event) -> AsyncIterator[ServerSentEvent]:
        """What is new of a run, twice a second, until it is over; a last time when the server ends."""
        feed = self._feed(run)
        seen = dict.fromkeys(feed.latest, 0)
        told = 0
        yield ServerSentEvent(retry=_RETRY_MS)
        while True:
            last = closing.is_set()
            status = await self._status()
            ours = status if _log(status) == run.path.absolute() else None
            await run_sync(feed.refresh, ours)
            complete, changes = feed.complete, feed.changes[told:]
            for name, message in feed.latest.items():
                if message.version > seen[name]:
                    seen[name] = message.version
                    yield ServerSentEvent(message.data, event=name)
            for number, data in changes:
                if number > after:
                    yield ServerSentEvent(data, event="change", id=str(number))
            told += len(changes)
            if complete:
                yield ServerSentEvent("{}", event="end")
            if complete or last:
                return
            with anyio.move_on_after(_PERIOD_S):
                await closing.wait()

    def _feed(self, run: Run) -> Feed:
        feed = self._feeds.pop(run.name, None)
        if feed is None or (feed.complete and feed.run != run):  # it was thought to be over
            feed = Feed(run)
        self._feeds[run.name] = feed
        while len(self._feeds) > _FEEDS:
            self._feeds.popitem(last=False)
        return feed

    async def _find(self, request: Request) -> Run:
        """The run that a path names: one of the listing, whatever the name looks like."""
        run = await run_sync(self._runs.find, request.path_params["name"], _log(await self._status()))
        if run is None:
            raise HTTPException(404, "no such run")
        return run

    async def _status(self) -> Mapping[str, Any] | None:
        """What the run in progress says of itself, asked twice a second however many watch."""
        async with self._asking:
            if time.monotonic() - self._asked_s >= 0.8 * _PERIOD_S:
                self._answer = await self._ask("status")
                self._asked_s = time.monotonic()
            return self._answer

    async def _ask(self, what: str) -> Mapping[str, Any] | None:
        try:
            return await run_sync(partial(ask, self._state_dir, {"request": what}, patience_s=_ASK_S))
        except UserError:  # no run, another user's, or one that does not answer
            return None


def _log(status: Mapping[str, Any] | None) -> Path | None:
    log = (status or {}).get("log")
    return Path(log) if isinstance(log, str) else None
