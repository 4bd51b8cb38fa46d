"""The terminal view of a run in progress: asks for the run's document again and again, and draws it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Footer, Static

from colocate.top.cores import cores_panel, grid
from colocate.top.feed import Document, Feed, Picture, Source
from colocate.top.panels import header, jobs_panel, moves_panel, service_panel

_WIDE = 160  # columns from which on there are two panels beside each other
_LEAST_SERVICE = 5  # rows: a title, one each for load and CPU, two for the latency
_LEAST_MOVES = 3
_PANELS = {"cores": cores_panel, "service": service_panel, "jobs": jobs_panel, "moves": moves_panel}
_HELP = """\
[b]CORES[/b]      one cell a core: who holds it, and how busy it was of late
           [b]M[/b] memcached, [b]a b c[/b] jobs by the letters in their table
           [b]Ma[/b] job a shares a core of memcached's at idle priority
           [b]M2[/b] two jobs do, [b]·[/b] nobody has it
           with very many cores: a letter on memcached's colour shares
[b]MEMCACHED[/b]  the last minute, the newest second on the right
           the line is the SLO; what reaches beyond breaks it
           12/60 s: in so many of the seconds told it was broken
[b]JOBS[/b]       progress and time left: CPU time against what the job takes
           alone, at the pace of the last 10 s; ? where not measured
[b]MOVES[/b]      the newest first: from which cores to which, and why

[b]q[/b] quit (the run goes on)   [b]p[/b] hold the picture   [b]?[/b] this help\
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of each panel, its title among them; `wide`: two columns of panels."""

    wide: bool
    header: int
    cores: int
    service: int
    jobs: int
    moves: int


def layout(document: Mapping[str, Any], width: int, height: int, *, remark: bool) -> Layout:
    """Share the rows of a terminal out; below the header and above the line of keys."""
    wide, top = width >= _WIDE, 2 + remark
    rows = height - top - 1
    ids = sorted(int(core) for core in document.get("cores", {}))
    laid = grid(ids, (width - 1) // 2 if wide else width, rows // 3 if wide else max(1, height // 6))
    cores = 1 + min(len(laid.rows), max(1, rows // 3 + 1))
    jobs = 1 + len(document.get("jobs", {}))
    if wide:
        jobs = min(jobs, rows - 8)
        return Layout(wide, top, cores, rows - cores, jobs, rows - jobs)
    jobs = max(2, min(jobs, rows - cores - _LEAST_SERVICE - _LEAST_MOVES))
    each = min(6, (rows - cores - jobs - 10) // 3)  # rows of a chart
    service = 1 + 3 * each if each > 1 else _LEAST_SERVICE
    return Layout(wide, top, cores, service, jobs, max(0, rows - cores - service - jobs))


class Panel(Widget):
    """A part of the screen, drawn anew for each picture."""

    document: Document | None = None

    def render(self) -> Text:
        """As large as it is."""
        if self.document is None or not self.size.height:
            return Text()
        return _PANELS[self.id or ""](self.document, self.size.width, self.size.height)


class Help(ModalScreen[None]):
    """What the panels show, and the keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss", "back")]

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(_HELP)


class TopApp(App[None]):
    """Watches a run; quitting leaves it alone.

    Args:
        source: gives the run's document, or raises; called on a thread, so it may block for a while.
        first: the document to begin with.
        every_s: between two questions.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "colocate top"
    CSS = """
    #header { height: 2; }
    #left, #right { width: 1fr; height: auto; }
    Horizontal { height: 1fr; }
    Help { align: center middle; }
    Help Static { width: 76; height: auto; padding: 1 2; background: $panel; border: solid #56B4E9; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit, the run goes on", key_display="q"),
        Binding("p", "pause", "hold the picture"),
        Binding("question_mark", "help", "help", key_display="?"),
    ]

    def __init__(self, source: Source, first: Document, every_s: float = 1.0) -> None:
        super().__init__()
        self._feed = Feed(source, first)
        self._every_s = every_s
        self._picture = Picture(first)
        self._held = False
        # Kept, and not looked up for each picture: one may come when the screen is about to go.
        self._head = Static(id="header")
        self._panels = {name: Panel(id=name) for name in _PANELS}
        self._right = Vertical(self._panels["jobs"], self._panels["moves"], id="right")
        self._body = Horizontal(Vertical(self._panels["cores"], self._panels["service"], id="left"), self._right)

    def compose(self) -> ComposeResult:
        """The panels; `layout` gives them their sizes."""
        yield self._head
        yield self._body
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        self._draw()
        self._watch()

    def on_resize(self, _event: events.Resize) -> None:
        """Share the room out anew."""
        self._draw()

    def action_pause(self) -> None:
        """Hold the picture, or let it go on."""
        self._held = not self._held
        self._draw()

    def action_help(self) -> None:
        """Show or leave the help."""
        self.push_screen(Help())

    @work
    async def _watch(self) -> None:
        while True:
            picture = await asyncio.to_thread(self._feed.look)
            if not self._held:
                self._picture = picture
                self._draw()
            await asyncio.sleep(self._every_s)

    def _draw(self) -> None:
        picture, (width, height) = self._picture, self.size
        room = layout(picture.document, width, height, remark=bool(picture.remark))
        self._head.styles.height = room.header
        self._head.update(header(picture, width, paused=self._held))
        self._body.styles.layout = "horizontal" if room.wide else "vertical"
        self._right.styles.padding = (0, 0, 0, int(room.wide))
        for name, panel in self._panels.items():
            panel.styles.height = getattr(room, name)
            panel.document = picture.document
            panel.refresh()
