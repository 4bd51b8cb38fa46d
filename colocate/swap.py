"""The policy of a run in progress: told, and exchanged for another, by way of the control socket.

The request is `{"request": "policy"}`, with `name` (as `--policy` takes it, a path absolute) and `set` (a list of
`option=value`) where the policy is to change. The answer is what `described` gives; `before` is whom the new one
relieved.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from colocate.controller import Controller
from colocate.errors import UserError
from colocate.host.control import Answer, ControlServer, Handler, Waiting
from colocate.policy import Choice, choose, options

_LOOK_S = 0.1  # so often a waiting request looks whether it has become void
_SWITCH_S = 0.0002  # between threads, while a stranger's code is loaded


@dataclass(slots=True, eq=False)
class _Offer:
    choice: Choice
    taken: threading.Event = field(default_factory=threading.Event)
    before: str = ""


class PolicySwap:
    """Loads a policy on the thread that calls `handle`, and hands it to the loop, which takes it before a tick.

    Args:
        controller: the run's.
        ring: wakes the loop.
    """

    def __init__(self, controller: Controller, ring: Callable[[], None]) -> None:
        self._controller = controller
        self._ring = ring
        self._offers: deque[_Offer] = deque()  # appended to, and taken from, by two threads
        self._ended = threading.Event()

    def handle(self, request: Mapping[str, object], waiting: Waiting) -> Answer:
        """Tell which policy acts; where the request names one, after it has taken over.

        Raises:
            UserError: it cannot be loaded, an option is bad, or the run has ended; then nothing has changed.
        """
        name, settings = request.get("name"), request.get("set", [])
        if name is None:
            return described(self._controller)
        if not isinstance(name, str) or not isinstance(settings, list) or not all(isinstance(s, str) for s in settings):
            raise UserError("no policy's name, or no list of options", "write name as a text, set as a list of them")
        with _gently():
            offer = _Offer(choose(name, settings))
        self._offers.append(offer)
        self._ring()
        while not offer.taken.wait(_LOOK_S):
            if self._ended.is_set() or not waiting():
                try:
                    self._offers.remove(offer)  # who has gone away must not change a run that did not answer him
                except ValueError:  # the loop was quicker
                    continue
                raise UserError("the run has ended, its policy was not changed")
        return {**described(self._controller), "before": offer.before}

    def take(self) -> None:
        """For the loop, before a tick: let the policy that waits take over; never blocks."""
        try:
            offer = self._offers.popleft()
        except IndexError:
            return
        offer.before = self._controller.swap(offer.choice)
        offer.taken.set()

    def end(self) -> None:
        """The loop has ended and takes nothing more."""
        self._ended.set()


def described(controller: Controller) -> dict[str, object]:
    """Who decides, as the answer to a request.

    `policy` is its label; `chosen` is another one once the safe policy has taken over; then `options`, `strikes`, and
    the same of the `shadow`, with why it was `dropped`, or None.
    """
    regulator, shadow = controller.regulator, controller.shadow
    return {
        "policy": regulator.acting,
        "chosen": regulator.label,
        "options": _options(regulator.policy),
        "strikes": regulator.strikes,
        "shadow": {
            "policy": shadow.regulator.label,
            "options": _options(shadow.policy),
            "strikes": shadow.regulator.strikes,
            "dropped": shadow.dropped,
        }
        if shadow
        else None,
    }


@contextmanager
def controlled(
    directory: Path | None,
    controller: Controller,
    ring: Callable[[], None],
    others: Mapping[str, Handler] | None = None,
) -> Iterator[Callable[[], None]]:
    """Serve a run's control socket in its state directory; what the loop is to call before every tick.

    `others` are the handlers of further requests. Without a directory (a dry run, which holds no lock) there is no
    socket. Where it cannot be made the run goes on without, and says so.
    """
    swap = PolicySwap(controller, ring)
    server = None
    if directory is not None:
        try:
            server = ControlServer(directory, {"policy": swap.handle, **(others or {})})
        except OSError as error:
            sys.stderr.write(f"colocate: warning: no control socket in {directory}: {error.strerror}\n")
    try:
        yield swap.take
    finally:
        swap.end()
        if server is not None:
            server.close()


@contextmanager
def _gently() -> Iterator[None]:
    """Let the loop have the interpreter back soon: beside an import that computes, a tick begins 0.7 ms late, not 5."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def _options(policy: object) -> dict[str, object]:
    """Its options as JSON can hold them."""
    try:
        return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in options(policy).items()}
    except Exception:  # a stranger's annotations and attributes
        return {}
