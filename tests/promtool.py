"""Prometheus' own checks of what we write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`promtool check ARGUMENTS`: of this machine, or as the setup script has put it into the virtual environment."""
    where = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])
    program = shutil.which("promtool", path=where)
    assert program, "promtool is missing: scripts/setup_scheduler.sh test fetches it"
    return subprocess.run([program, "check", *arguments], input=given, capture_output=True, check=False)
