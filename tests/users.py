"""Throw-away users of this machine, and programs run as them: to try what a user of fewer rights can do.

Needs root, or `sudo -n`. Where Python or the project lies below a directory that is closed to others (`/root`), the
user gets a view of the file system of its own in which that directory shows the two and nothing else.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

AS_ROOT = () if os.geteuid() == 0 else ("sudo", "-n")
PROJECT = Path(__file__).resolve().parents[1]
# $1: the closed directory; then the places below it that stay to be seen, a word `--`, and a command.
_VIEW = """
closed=$1; shift; n=3
for place; do
  if [ "$place" = -- ]; then break; fi
  eval "exec $n<\\"\\$place\\""; n=$((n + 1))
done
mount -t tmpfs -o mode=755 none "$closed"; n=3
while [ "$1" != -- ]; do
  mkdir -p "$1"; mount --no-canonicalize --bind "/proc/self/fd/$n" "$1"; eval "exec $n<&-"; n=$((n + 1)); shift
done
shift; exec "$@"
"""


class User:
    """One such user; `home` is a directory of its own."""

    def __init__(self, *groups: str) -> None:
        self.name = f"colo{secrets.token_hex(4)}"
        self.home = Path("/home") / self.name
        _root(
            "useradd", "--create-home", "--user-group", *(["--groups", ",".join(groups)] if groups else []), self.name
        )
        _root("chmod", "755", str(self.home))
        self._sudoers = Path("/etc/sudoers.d") / self.name

    def remove(self) -> None:
        """Take the user away, with all that is its."""
        subprocess.run([*AS_ROOT, "pkill", "-KILL", "-u", self.name], check=False)  # nobody else's
        _root("rm", "-f", str(self._sudoers))
        _root("userdel", "--remove", "--force", self.name)

    def may_sudo(self, rule: str) -> None:
        """Let the user run something as root without a password (sudoers(5))."""
        line = f"{self.name} ALL=(root) NOPASSWD: {rule}\n"
        _root("install", "-m", "440", "/dev/stdin", str(self._sudoers), text=line)
        _root("visudo", "-cqf", str(self._sudoers))

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file of the user's own in its home."""
        place = self.home / name
        _root("install", "-m", f"{mode:o}", "-o", self.name, "-g", self.name, "/dev/stdin", str(place), text=text)
        return place

    def command(
        self, *argv: str, capabilities: Sequence[str] = (), inside: Mapping[str, str] | None = None
    ) -> list[str]:
        """What starts a program as that user, with no capabilities but these.

        Args:
            argv: the program.
            capabilities: kept through its start, and by what it starts (capabilities(7), ambient).
            inside: control groups to put it into first: hierarchy's mount -> group's directory.
        """
        kept = ",".join(f"+{name}" for name in capabilities)
        entered = "".join(f"echo $$ > {group}/cgroup.procs\n" for group in (inside or {}).values())
        enter = ["sh", "-ec", f'{entered}exec "$@"', "sh"] if entered else []
        dropped = [
            "setpriv", "--reuid", self.name, "--regid", self.name, "--init-groups",
            *(["--inh-caps", kept, "--ambient-caps", kept] if kept else ["--inh-caps", "-all"]),
        ]  # fmt: skip
        environment = [
            "env", "-i", f"--chdir={self.home}", f"HOME={self.home}", f"USER={self.name}",
            "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8",

        ]  # fmt: skip
        return [*AS_ROOT, *enter, *_view(), *dropped, *environment, *argv]

    def run(self, *argv: str, capabilities: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        command = self.command(*argv, capabilities=capabilities)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def colocate(self, *argv: str, capabilities: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end."""
        return self.run(sys.executable, "-m", "colocate", *argv, capabilities=capabilities)


@contextmanager
def throw_away_user(*groups: str) -> Iterator[User]:
    """A user for the time of a block."""
    user = User(*groups)
    try:
        yield user
    finally:
        user.remove()


def _root(*argv: str, text: str = "") -> str:
    done = subprocess.run([*AS_ROOT, *argv], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def _view() -> list[str]:
    """What lets others see Python and the project, where a directory above is closed to them."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), PROJECT]
    closed = {above for place in needed for above in place.parents if not above.stat().st_mode & 0o001}
    if not closed:
        return []
    top = min(closed, key=lambda above: len(above.parts))
    below = [str(place) for place in dict.fromkeys(needed) if top in place.parents]
    return ["unshare", "--mount", "sh", "-ec", _VIEW, "sh", str(top), *below, "--"]
