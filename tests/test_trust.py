"""What is obeyed is refused where somebody else can write it. Whose it may be is tried in `test_privileges.py`."""

import json
import os
import pwd
import py_compile
import struct
from pathlib import Path

import pytest

from colocate.errors import UserError
from colocate.host.state import Saved, StateFile, boot_id
from colocate.jobs import load_catalogue
from colocate.policy import load_policy
from colocate.sim.calibration import load_calibration
from colocate.trust import check_directory, read_trusted
from tests.live import colocate
from tests.memcached_fixture import running_memcached

JOBS = '[[job]]\nname = "one"\nimage = "x"\ncommand = "x"\n'
POLICY = "from colocate.policy import Plan\n\n\nclass Mine:\n    def decide(self, view):\n        return Plan({})\n"


def written(path: Path, text: str, mode: int) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644, 0o444, 0o755])
def test_what_only_its_owner_can_write_is_obeyed(tmp_path, mode):
    assert read_trusted(written(tmp_path / "file", "a = 1\n", mode)) == b"a = 1\n"


@pytest.mark.parametrize("mode", [0o602, 0o646, 0o666, 0o777])
def test_what_everybody_can_write_is_not(tmp_path, mode):
    with pytest.raises(UserError, match=r"file: everybody can write it.*chmod go-w .*file"):
        read_trusted(written(tmp_path / "file", "a = 1\n", mode))


def test_what_a_private_group_can_write_is_obeyed_and_what_an_access_control_list_adds_is_not(tmp_path):
    path = written(tmp_path / "file", "a = 1\n", 0o660)  # the tests' user is root, as is its group
    assert read_trusted(path) == b"a = 1\n"
    nobody, none = 65534, 0xFFFFFFFF
    entries = ((0x01, 6, none), (0x02, 6, nobody), (0x04, 0, none), (0x10, 6, none), (0x20, 0, none))  # acl(5)
    listed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", listed)
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(UserError, match=r"access control list .*setfacl -b .*file"):
        read_trusted(path)


def test_a_group_in_which_another_user_begins_is_not_private(tmp_path, monkeypatch):
    path = written(tmp_path / "file", "a = 1\n", 0o660)
    me = pwd.getpwuid(os.geteuid())
    other = pwd.struct_passwd(("other", "x", 4711, me.pw_gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [me, other])
    with pytest.raises(UserError, match=r"the group .* can write it"):
        read_trusted(path)


def test_a_link_is_as_good_as_what_it_leads_to(tmp_path):
    (tmp_path / "link").symlink_to(written(tmp_path / "file", "a = 1\n", 0o666))
    with pytest.raises(UserError, match="everybody can write it"):
        read_trusted(tmp_path / "link")
    (tmp_path / "file").chmod(0o644)
    assert read_trusted(tmp_path / "link") == b"a = 1\n"


def test_a_pipe_of_our_own_is_obeyed():
    """As bash makes it of `--config <(generate)`."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"a = 1\n")
    os.close(write_end)
    try:
        assert read_trusted(Path(f"/dev/fd/{read_end}")) == b"a = 1\n"
    finally:
        os.close(read_end)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703])
def test_a_directory_for_state_is_ours_alone_sticky_or_not(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match="everybody can write it; give a directory of your own"):
        check_directory(tmp_path)
    with pytest.raises(UserError):
        StateFile(tmp_path)


def test_a_directory_that_is_not_there_yet_is_fine(tmp_path):
    check_directory(tmp_path / "new/er")


LOADERS = {
    "jobs": (JOBS, ".toml", load_catalogue),
    "calibration": ("", ".toml", load_calibration),
    "policy": (POLICY, ".py", lambda path: load_policy(f"{path}:Mine")),
}


@pytest.mark.parametrize("what", LOADERS)
def test_every_loader_looks(tmp_path, what):
    text, suffix, load = LOADERS[what]
    path = written(tmp_path / f"mine{suffix}", text, 0o666)
    with pytest.raises(UserError, match=f"{path}: everybody can write it, so it is not obeyed; .*chmod go-w {path}"):
        load(str(path))


def test_a_saved_state_looks_and_stays_where_it_is(tmp_path):
    state = StateFile(tmp_path)
    state.write(Saved("run1", boot_id(), "docker", "", {}))
    state.path.chmod(0o666)
    with pytest.raises(UserError, match="everybody can write it"):
        state.read()
    assert json.loads(state.path.read_text())["run"] == "run1"


def test_a_policy_is_never_run_from_a_cache_beside_it(tmp_path):
    path = written(tmp_path / "mine.py", POLICY.replace("Plan({})", "None"), 0o644)
    cached = Path(py_compile.compile(str(path), doraise=True))
    evil = cached.read_bytes()
    path.write_text(POLICY.replace("Plan({})", "1234"))
    os.utime(path, ns=(path.stat().st_atime_ns, int.from_bytes(evil[8:12], "little") * 10**9))
    assert path.stat().st_size == int.from_bytes(evil[12:16], "little"), "Python would take the cached one for current"
    assert load_policy(f"{path}:Mine").decide(None) == 1234


COMMANDS = {
    "--config": ("mine.toml", 'policy = "static"\n', ["--config", "mine.toml"]),
    "colocate.toml": ("colocate.toml", 'policy = "static"\n', []),
    "this-machine.toml": ("this-machine.toml", "", []),
    "--jobs": ("mine.toml", JOBS, ["--jobs", "mine.toml"]),
    "--policy": ("mine.py", POLICY, ["--policy", "mine.py:Mine"]),
    "--shadow": ("mine.py", POLICY, ["--shadow", "mine.py:Mine"]),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_run_is_refused_in_one_line_before_anything_is_touched(tmp_path, what):
    name, text, arguments = COMMANDS[what]
    written(tmp_path / name, text, 0o646)
    with running_memcached() as server:
        done = colocate("run", "--memcached-ip", server.ip, "--port", str(server.port), *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{name}: everybody can write it" in line
    assert line.endswith(f"chmod go-w {name}")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("command", ["run", "restore", "status"])
def test_a_state_directory_of_everybody_is_refused(tmp_path, command):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o1777)
    with running_memcached() as server:
        where = ["--memcached-ip", server.ip, "--port", str(server.port)] if command == "run" else []
        done = colocate(command, *where, "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line == "colocate: state: everybody can write it; give a directory of your own, or leave that to its default"
