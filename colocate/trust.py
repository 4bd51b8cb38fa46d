"""Files that are obeyed (options, jobs, policies, figures, saved state): refused where somebody else can write them.

Who can write one decides what this user does, and with a policy runs any code as this user. So the file must belong to
this user, to root, or to the user who called sudo, and nobody else may be able to write it. A group may be where it is
its owner's private one: with the user-private groups of Debian (useradd(8), USERGROUPS_ENAB) the umask is 002, and
every file that a user makes is of mode 664. The directory that a file lies in does not matter, as whoever replaces the
file there owns the new one; that is also why a policy is never run from the `__pycache__` beside it.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from colocate.errors import UserError


def read_trusted(path: Path) -> bytes:
    """The content of a file that is obeyed; what is checked is what is read.

    Raises:
        UserError: somebody else can write it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if why := _distrust(os.fstat(file.fileno()), file.fileno()):
            raise UserError(f"{path}: {why[0]}, so it is not obeyed", f"{why[1]} {path}")
        return file.read()


def check_directory(path: Path) -> None:
    """Whether files of ours may lie in a directory; one that is not there yet is fine.

    Raises:
        UserError: somebody else can write in it, also where each may only remove what is his own (`/tmp`).
    """
    try:
        why = _distrust(path.stat(), path)
    except OSError:  # not there yet, or not to be seen: whoever uses it will say so
        return
    if why:
        raise UserError(f"{path}: {why[0]}", "give a directory of your own, or leave that to its default")


def _distrust(of: os.stat_result, file: int | Path) -> tuple[str, str] | None:
    """Why a file is not obeyed, and the command that mends it."""
    if of.st_uid not in _trusted():
        return f"it belongs to {_user(of.st_uid)}", f"check it, then chown {_user(os.geteuid())}"
    if of.st_mode & stat.S_IWOTH:
        return "everybody can write it", "check it, then chmod go-w"
    if of.st_mode & stat.S_IWGRP and _has_acl(file):  # then these bits are the list's mask (acl(5))
        return "its access control list may let others write it", "check it, then setfacl -b"
    if of.st_mode & stat.S_IWGRP and not _is_private(of.st_gid, of.st_uid):
        return f"the group {_group(of.st_gid)} can write it", "check it, then chmod go-w"
    return None


def _trusted() -> set[int]:
    """Who may tell us what to do: we ourselves, root, and the user for whom sudo(8) has made us root."""
    trusted = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdigit():
        trusted.add(int(caller))
    return trusted


def _has_acl(file: int | Path) -> bool:
    try:
        return bool(os.getxattr(file, "system.posix_acl_access"))
    except OSError:
        return False


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is one user's own: named as the user is, and nobody else is in it, or begins in it."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    members = {*group.gr_mem, *(other.pw_name for other in pwd.getpwall() if other.pw_gid == gid)}
    return (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name) and members <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
