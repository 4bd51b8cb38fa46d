import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from colocate.errors import UserError
from colocate.host.state import Lock, Saved, StateFile, boot_id

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


def test_a_file_of_before_there_were_groups_is_read(tmp_path):
    state = StateFile(tmp_path)
    state.write(replace(SAVED, groups=("/sys/fs/cgroup/cpu/colocate-run1",)))
    assert state.read().groups == ("/sys/fs/cgroup/cpu/colocate-run1",)
    old = json.loads(state.path.read_text())
    del old["groups"]
    state.path.write_text(json.dumps(old))
    assert state.read() == SAVED


CORRUPT = ["", "{", "[]", "null", '{"version": 99}', '{"version": 1}', '{"version": 1, "run": 2']


@pytest.mark.parametrize("text", CORRUPT)
def test_a_corrupt_file_is_set_aside_with_a_warning(tmp_path, capsys, text):
    state = StateFile(tmp_path)
    state.path.write_text(text)
    assert state.read() is None
    assert not state.path.exists()
    assert state.path.with_suffix(".corrupt").read_text() == text
    assert "set aside" in capsys.readouterr().err


def test_what_was_before_a_reboot_is_not_true_any_more(tmp_path):
    state = StateFile(tmp_path)
    state.write(Saved("run1", "another boot", "docker", "", {}))
    assert state.read() is None
    assert not state.path.exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--state-dir"):
        StateFile(tmp_path / "file/dir").write(SAVED)


def test_one_controller_a_machine(tmp_path):
    path = tmp_path / "lock"
    hold = "import sys, pathlib; from colocate.host.state import Lock; Lock(pathlib.Path(sys.argv[1])).acquire()"
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
    lock.release()
    lock.release()
