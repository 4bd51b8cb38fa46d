import errno
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from colocate.errors import UserError
from colocate.host.lock import Lock, goes_on, lock_for
from colocate.host.state import CorruptStateError, Saved, StateFile, boot_id

SAVED = Saved("run1", boot_id(), "docker", "logs/log1.txt", {"pid": 7, "start_ticks": 9, "masks": {"7": "0-3"}})


def test_what_is_saved_is_read_again(tmp_path):
    state = StateFile(tmp_path / "deep/er")
    assert state.read() is None
    state.write(SAVED)
    assert state.read() == SAVED
    assert list(state.path.parent.iterdir()) == [state.path], "no temporary file is left"
    state.clear()
    state.clear()
    assert state.read() is None


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_whatever_the_umask_the_file_is_of_its_owner_alone_and_read_again(tmp_path, umask):
    state = StateFile(tmp_path)
    state.path.with_suffix(".new").write_text("left by a crash")
    before = os.umask(umask)
    try:
        state.write(SAVED)
    finally:
        os.umask(before)
    assert state.path.stat().st_mode & 0o777 == 0o600
    assert state.read() == SAVED


def test_a_bit_that_flips_is_noticed_wherever_it_is(tmp_path, capsys):
    state = StateFile(tmp_path)
    state.write(replace(SAVED, groups=("/sys/fs/cgroup/cpu/colocate-run1",), keeps_jobs=True))
    written = state.path.read_bytes()
    assert state.read().keeps_jobs
    for bit in range(0, 8 * len(written), 3):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        state.path.write_bytes(flipped)
        assert state.read() is None, bytes(flipped)
    assert "checksum" in capsys.readouterr().err


def test_a_file_that_this_user_may_not_read_is_left_where_it_is(tmp_path, monkeypatch):
    state = StateFile(tmp_path)
    state.write(SAVED)
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(UserError, match="as root"):
        state.read()
    monkeypatch.undo()
    assert state.read() == SAVED


CORRUPT = ["", "{", "[]", "null", '{"version": 99}', '{"version": 2}', '{"version": 2, "run": 2']


@pytest.mark.parametrize("text", CORRUPT)
def test_a_corrupt_file_is_set_aside_with_a_warning(tmp_path, capsys, text):
    state = StateFile(tmp_path)
    state.path.write_text(text)
    assert state.read() is None
    assert not state.path.exists()
    assert state.path.with_suffix(".corrupt").read_text() == text
    assert "set aside" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_now_is_as_it_was_later(tmp_path):
    state = StateFile(tmp_path)
    state.write(SAVED)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UserError, match="Too many open files"):
            state.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert state.read() == SAVED


def test_groups_lie_below_any_mount_and_are_ours(tmp_path, monkeypatch):
    """A machine may have more mounts than the usual ones (Cilium and Calico make such)."""
    monkeypatch.setattr("colocate.host.state.hierarchies", lambda: [Path("/run/cilium/cgroupv2")])
    state = StateFile(tmp_path)
    good = replace(SAVED, groups=("/run/cilium/cgroupv2/colocate-run1",))
    state.write(good)
    assert state.read() == good
    for path in ("/run/cilium/cgroupv2/other", "/run/cilium/cgroupv2/../colocate-run1", "/home/colocate-run1"):
        with pytest.raises(ValueError, match="group"):
            state.write(replace(SAVED, groups=(path,)))
    assert state.read() == good


@pytest.mark.parametrize("text", CORRUPT)
def test_who_only_looks_changes_nothing(tmp_path, capsys, text):
    state = StateFile(tmp_path)
    state.path.write_text(text)
    with pytest.raises(CorruptStateError, match="colocate restore --all"):
        state.look()
    assert state.path.read_text() == text
    assert list(tmp_path.iterdir()) == [state.path]
    assert capsys.readouterr().err == ""


def test_what_was_before_a_reboot_is_not_true_any_more(tmp_path):
    state = StateFile(tmp_path)
    state.write(Saved("run1", "another boot", "docker", "", {}))
    assert state.look() is None
    assert state.path.exists()
    assert state.read() is None
    assert not state.path.exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--state-dir"):
        StateFile(tmp_path / "file/dir").write(SAVED)


def test_one_controller_a_machine(tmp_path):
    path = tmp_path / "lock"
    hold = "import sys, pathlib; from colocate.host.lock import Lock; Lock(pathlib.Path(sys.argv[1])).acquire()"
    hold += "; print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another colocate runs here .pid {other.pid}."):
            Lock(path).acquire()
    finally:
        other.kill()
        other.communicate()
    lock = Lock(path)
    lock.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    assert Lock(path).holder() == os.getpid()
    lock.release()
    lock.release()
    assert Lock(path).holder() is None


def test_what_a_controller_forks_does_not_hold_its_lock(tmp_path):
    script = (
        "import os, pathlib, sys, time\nfrom colocate.host.lock import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1]), 4714)\nlock.acquire()\nlock.claim_run('fork')\n"
        "child = os.fork()\n"
        "os.write(1, f'{child}\\n'.encode())\n"  # each its line, in one piece
        "time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as controller:
        said = {controller.stdout.readline().strip() for _ in range(2)}
        (child,) = said - {"0"}
        try:
            with pytest.raises(UserError, match="another colocate runs here"):
                Lock(tmp_path / "lock").acquire()
            controller.kill()
            controller.wait()
            lock = Lock(tmp_path / "lock", 4714)
            lock.acquire()
            lock.release()
            assert not goes_on("fork")
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_one_controller_a_memcached_wherever_their_state_lies(tmp_path):
    first, second = (lock_for(tmp_path / name, port) for name, port in (("one", 4711), ("two", 4711)))
    first.acquire()
    with pytest.raises(UserError, match="port 4711"):
        second.acquire()
    assert second.holder() is None, "what was taken on the way is given up"
    elsewhere = lock_for(tmp_path / "two", 4712)
    elsewhere.acquire()
    first.release()
    elsewhere.release()
    second.acquire()
    second.release()


def test_a_run_is_known_to_go_on_until_its_lock_is_released(tmp_path):
    lock = lock_for(tmp_path, 4713)
    lock.acquire()
    lock.claim_run("cafe")
    assert goes_on("cafe")
    assert not goes_on("beef")
    with pytest.raises(UserError, match="port 4713"):
        lock.claim_port(4713)
    assert not goes_on("cafe")
    lock.acquire()
    lock.release()
