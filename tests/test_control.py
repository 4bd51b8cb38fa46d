"""The control socket by itself: who is answered, and what no client can do to it."""

import json
import random
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from colocate.errors import UserError
from colocate.host.control import NAME, ControlServer, ask
from tests.memcached_fixture import eventually

RANDOM = random.Random(3)  # noqa: S311 -- no secret


def echo(request, _waiting):
    return {"said": request.get("text")}


def refuse(_request, _waiting):
    raise UserError("not like this", "do it otherwise")


def leave(_request, _waiting):
    raise SystemExit(7)


@pytest.fixture
def server(tmp_path):
    handlers = {"echo": echo, "refuse": refuse, "leave": leave}
    with closing(ControlServer(tmp_path / "state", handlers)):
        yield tmp_path / "state"


def connect(directory):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(str(directory / NAME))
    return client


def test_a_request_has_one_answer(server):
    assert ask(server, {"request": "echo", "text": "ä\n"}) == {"said": "ä\n"}
    assert ask(server, {"request": "echo"}) == {"said": None}


def test_a_refusal_reaches_the_client_in_the_runs_words(server):
    with pytest.raises(UserError, match="not like this; do it otherwise"):
        ask(server, {"request": "refuse"})
    with pytest.raises(UserError, match="knows no request 'fly'"):
        ask(server, {"request": "fly"})


def test_what_a_handler_raises_is_the_answer_and_the_server_goes_on(server):
    with pytest.raises(UserError, match="SystemExit: 7"):
        ask(server, {"request": "leave"})
    assert ask(server, {"request": "echo", "text": 1}) == {"said": 1}


def test_only_its_user_may_connect(server):
    assert (server / NAME).stat().st_mode & 0o777 == 0o600
    assert server.stat().st_mode & 0o777 == 0o700


GARBAGE = [
    b"\n", b"{}\n", b"[1]\n", b'"request"\n', b'{"request": [1]}\n', b"[" * 15000 + b"\n", b"\xff\xfe\0\n",
    b"x" * 100_000, RANDOM.randbytes(3000) + b"\n", b'{"request": "echo", "text": ',
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_refused_and_the_next_one_is_answered(server, garbage):
    with connect(server) as client:
        try:
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            answer = json.loads(client.makefile().readline())
        except (BrokenPipeError, ConnectionResetError):  # cut off while it was still talking
            answer = None
    assert answer is None or answer["error"]["what"]
    assert ask(server, {"request": "echo", "text": "next"}) == {"said": "next"}


def test_who_says_nothing_or_goes_away_holds_up_nobody_for_long(server):
    with connect(server), connect(server) as other:
        other.sendall(b'{"request"')
        other.close()
        assert ask(server, {"request": "echo", "text": "next"}) == {"said": "next"}


def test_a_handler_can_see_that_its_client_has_gone(tmp_path):
    here, gone, sees = threading.Event(), threading.Event(), []

    def patient(_request, waiting):
        sees.append(waiting())
        here.set()
        gone.wait(60)
        sees.append(waiting())
        return {}

    with closing(ControlServer(tmp_path, {"patient": patient})):
        with connect(tmp_path) as client:
            client.sendall(b'{"request": "patient"}\n')
            client.shutdown(socket.SHUT_WR)  # who has only said all he wants still waits
            here.wait(60)
        gone.set()
        eventually(lambda: len(sees) == 2, "asked twice")
    assert sees == [True, False]


def test_nobody_there(tmp_path):
    for directory in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no run in progress answers at"):
            ask(directory, {"request": "echo"})


def test_a_socket_that_was_left_behind_is_harmless_and_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / NAME))
    with pytest.raises(UserError, match="no run in progress answers at"):
        ask(tmp_path, {"request": "echo"})
    with closing(ControlServer(tmp_path, {"echo": echo})):
        assert ask(tmp_path, {"request": "echo", "text": 2}) == {"said": 2}
    assert not (tmp_path / NAME).exists()


def test_a_run_that_hangs_is_told_after_a_while(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / NAME))
        silent.listen()
        with pytest.raises(UserError, match=r"does not answer within 0\.2 s"):
            ask(tmp_path, {"request": "echo"}, patience_s=0.2)


def test_an_answer_that_is_none_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as strange:
        strange.bind(str(tmp_path / NAME))
        strange.listen()

        def answer():
            connection, _ = strange.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"no json\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="gives no answer"):
            ask(tmp_path, {"request": "echo"})
        thread.join()


def test_a_directory_may_have_a_long_name(tmp_path):
    deep = tmp_path / ("d" * 120)
    with closing(ControlServer(deep, {"echo": echo})):
        assert ask(deep, {"request": "echo", "text": 3}) == {"said": 3}


def test_its_thread_and_its_descriptors_end(tmp_path):
    def held():
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    ControlServer(tmp_path, {"echo": echo}).close()
    assert held() == before
