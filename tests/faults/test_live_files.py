"""The files of a run: their disk is full or read-only, the state file is damaged, or from another boot or version."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.eventlog import violations
from colocate.host.state import StateFile
from tests.faults import policies
from tests.faults.stage import Stage
from tests.faults.watchman import OFTEN, times
from tests.live import colocate, masks
from tests.memcached_fixture import eventually

pytestmark = pytest.mark.live

SWAY = ("--policy", f"{policies.__file__}:Sway")


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of a megabyte there."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0755", "colocate-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> None:
    """Not a byte is left."""
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@contextmanager
def failing_disk(place: Path) -> Iterator[Path]:
    """A file system that turns read-only when `fail` says so, as the kernel does with one that it finds damaged."""
    place.mkdir(exist_ok=True)
    image = place.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fail(place: Path) -> None:
    """It is damaged from now on (ext4's trigger_fs_error)."""
    told = subprocess.run(["findmnt", "-n", "-o", "SOURCE", place], check=True, capture_output=True, text=True)
    (Path("/sys/fs/ext4") / Path(told.stdout.strip()).name / "trigger_fs_error").write_text("a test")


@pytest.mark.parametrize("where", ["logs", "state"])
def test_where_nothing_can_be_written_nothing_begins(process_stage: Stage, where: str) -> None:
    stage = process_stage
    server, before = stage.server, masks(stage.server.pid)
    arguments = stage.arguments({"spin": "spin 1"})
    with small_disk(stage.directory / where) as disk:
        for kind in ("full", "read-only"):
            if kind == "full":
                fill(disk)
            else:
                (disk / "filler").unlink()
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            with stage.watched() as watchman, stage.injected(18):
                done = colocate(
                    "run", "--memcached-ip", server.ip, "--port", str(server.port), "--log-dir",
                    str(stage.directory / "logs"), "--state-dir", str(stage.directory / "state"), *arguments,
                    cwd=stage.directory,
                )  # fmt: skip
                assert done.returncode == 2, (kind, done.stderr)
                assert done.stderr.splitlines()[-1].startswith("colocate: "), done.stderr
                assert "Traceback" not in done.stderr
                assert masks(server.pid) == before
                assert watchman.jobs() == []


def test_a_disk_that_fills_up_stops_no_run(stage: Stage) -> None:
    """What the log could not take in time, it takes once there is room."""
    with small_disk(stage.directory / "logs") as disk, stage.begin({"spin": "spin 1"}, *SWAY) as run:
        run.until("start spin")
        with stage.injected(18) as fault:
            fill(disk)
            moved = masks(stage.server.pid)
            eventually(lambda: masks(stage.server.pid) != moved, "cores move")
            eventually(lambda: masks(stage.server.pid) == moved, "and back")
            lines = run.log.count("\n")
            (disk / "filler").unlink()
            fault.over()
            eventually(lambda: run.log.count("\n") > lines + 1, "the log goes on")
            fault.recovered()
        assert run.end(signal.SIGTERM) == 143
        assert violations(run.log) == []
        assert stage.watchman.left() == []


def test_a_disk_that_stays_full_stops_no_run(process_stage: Stage) -> None:
    stage = process_stage
    with small_disk(stage.directory / "logs") as disk, stage.begin({"spin": "spin 1"}, *SWAY) as run:
        run.until("start spin")
        with stage.injected(18):
            fill(disk)
            assert run.end(signal.SIGTERM) == 143, run.errors
            assert "Traceback" not in run.errors
            assert stage.watchman.left() == []


@pytest.mark.parametrize("where", ["logs", "state"])
def test_a_disk_that_turns_read_only_stops_no_run(process_stage: Stage, where: str) -> None:
    """The state file is not written anew for a memcached that comes back, nor can it be removed: that is told."""
    stage = process_stage
    with failing_disk(stage.directory / where) as disk, stage.begin({"spin": "spin 1"}, *SWAY) as run:
        run.until("start spin")
        with stage.injected(18) as fault:
            fail(disk)
            with stage.watchman.excused():
                stage.server.restart()
                eventually(lambda: len(masks(stage.server.pid)[stage.server.pid]) == 1, "the new one is pinned")
            run.process.send_signal(signal.SIGTERM)
            fault.over()
            assert run.end() == (1 if where == "state" else 143), run.errors
            assert "Traceback" not in run.errors, run.errors
            eventually(lambda: not [line for line in stage.watchman.left() if "state.json" not in line], "all is back")
            fault.recovered()


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_guard_that_can_write_nothing_puts_everything_back(stage: Stage, kind: str) -> None:
    """Killed while the disk of the state directory takes nothing; only what cannot be removed from it stays."""
    disk_of = {"full": small_disk, "read-only": failing_disk}[kind]
    with disk_of(stage.directory / "state") as disk, stage.begin({"spin": "spin 1"}, *SWAY) as run:
        run.until("start spin")
        with stage.injected(18) as fault:
            (fill if kind == "full" else fail)(disk)
            run.process.kill()
            run.process.wait()
            fault.over()
            stays = "state.json" if kind == "read-only" else None
            eventually(
                lambda: [line for line in stage.watchman.left() if Path(line).name != stays] == [], "all is back"
            )
            fault.recovered()


def rebooted(data: bytes) -> bytes:
    """The same, of another boot."""
    with tempfile.TemporaryDirectory() as place:
        file = StateFile(Path(place))
        file.path.write_bytes(data)
        saved = file.read()
        assert saved is not None
        file.write(replace(saved, boot_id="another"))
        return file.path.read_bytes()


def flipped_in_a_mask(data: bytes) -> bytes:
    """Another core in the mask of a thread: what is as good a state file as before, but for a checksum."""
    at = data.index(b'": "', data.index(b'"masks"')) + 4
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def flipped_somewhere(seed: int) -> Callable[[bytes], bytes]:
    """One bit, at a place drawn from a seed."""

    def flipped(data: bytes) -> bytes:
        at, bit = divmod(random.Random(seed).randrange(8 * len(data)), 8)  # noqa: S311 -- a seed is wanted
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return flipped


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "before a reboot": rebooted,
    "bit-flipped in a mask": flipped_in_a_mask,
    **{f"bit-flipped, seed {seed}": flipped_somewhere(seed) for seed in range(times(1, 3))},
    "empty": lambda _: b"",
    "of a future version": lambda data: json.dumps({**json.loads(data), "version": 99}).encode(),
}


SOME = [*DAMAGE][: times(4, len(DAMAGE))]


@pytest.mark.parametrize("damage", SOME)
def test_a_state_file_that_cannot_be_believed_is_put_aside_and_the_next_run_begins(
    process_stage: Stage, damage: str
) -> None:
    stage, state = process_stage, process_stage.directory / "state/state.json"
    with stage.begin({"spin": "exit 0 30000"}, "--no-guard") as run:
        run.until("start spin")
        run.process.kill()
        run.process.wait()
    pids = stage.watchman.jobs()
    text = state.read_bytes()
    state.write_bytes(DAMAGE[damage](text))
    number = 17 if damage == "before a reboot" else 18
    try:
        # What is left of the first run, and maybe overlaps, is not this one's to judge: the file that named it is gone.
        with stage.begin({"short": "exit 0 10"}, watch=OFTEN) as run, stage.injected(number):
            assert run.end() == 0, run.errors
            assert not state.exists()
            assert state.with_suffix(".corrupt").exists() == (damage != "before a reboot")
            assert ("set aside" in run.errors) == (damage != "before a reboot")
    finally:
        state.write_bytes(text)  # so that the first run can be put back after all
        done = colocate("restore", "--state-dir", str(stage.directory / "state"), cwd=stage.directory)
    assert done.returncode == 0, done.stderr
    assert not set(pids) & set(stage.watchman.jobs())


@pytest.mark.parametrize("damage", SOME)
def test_a_guard_that_cannot_believe_the_state_file_ends_the_jobs_and_leaves_memcached_alone(
    process_stage: Stage, damage: str
) -> None:
    stage, state = process_stage, process_stage.directory / "state/state.json"
    with stage.begin({"spin": "spin 1"}) as run:
        run.until("start spin")
        text = state.read_bytes()
        with stage.injected(17 if damage == "before a reboot" else 18):
            before = masks(stage.server.pid)
            state.write_bytes(DAMAGE[damage](text))
            guard = guard_of(run.process.pid)
            assert guard is not None
            run.process.kill()
            run.process.wait()
            eventually(lambda: not Path(f"/proc/{guard}").exists(), "the guard has ended")
            assert masks(stage.server.pid) == before
            assert bool(stage.watchman.jobs()) == (damage == "before a reboot")
        state.write_bytes(text)
        done = colocate("restore", "--state-dir", str(stage.directory / "state"), cwd=stage.directory)
        assert done.returncode == 0, done.stderr
    assert stage.watchman.left() == []


def guard_of(pid: int) -> int | None:
    """The guard of a run."""
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in place.read_text().split():
            if b"colocate.host.guard" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None
