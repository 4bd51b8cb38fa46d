"""Small multi-threaded batch kernels in C: built once a machine, and made into one image (`image.py`).

The kernels have the names and the command line of the PARSEC images (`run.c`), so that moving to those changes only
the image's name. This package knows nothing of colocate.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
IMAGE = "colocate/workloads"
FLAGS = ("-O2", "-std=gnu11", "-ffp-contract=off", "-pthread", "-static", "-Wall", "-Wextra", "-Werror=implicit")


class BuildError(Exception):
    """The kernels cannot be built; one line that names the cure."""


def binaries() -> Path:
    """A directory with every executable, one for each `*.c`; built on the first call after a change of the sources.

    It lies in `${XDG_CACHE_HOME:-~/.cache}/colocate/<hash of the sources>`, or in the temporary directory where that
    cannot be written. Two processes may call at once.

    Raises:
        BuildError: there is no compiler, no static C library, or no place to build in.
    """
    sources = kernel_sources()
    digest = digest_of(sources)
    reasons = []
    for cache in (_user_cache, _temporary_cache):
        try:
            ready = cache() / digest
            if not ready.is_dir():
                _build(sources, ready)
        except OSError as error:
            reasons.append(f"{error.filename or 'cache'}: {error.strerror or error}")
        else:
            return ready
    raise BuildError(f"nowhere to build the kernels ({', '.join(reasons)}); set XDG_CACHE_HOME to a writable directory")


def kernel_sources() -> list[Path]:
    """One file for each kernel."""
    return sorted(SOURCES.glob("*.c"))


def digest_of(sources: Iterable[Path]) -> str:
    """A name for what these sources make: they, the headers, the flags and the kind of machine."""
    digest = hashlib.sha256(repr((platform.machine(), FLAGS)).encode())
    for path in (*sources, *sorted(SOURCES.glob("*.h"))):
        data = path.read_bytes()
        digest.update(f"{path.name}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path in XDG_CACHE_HOME is to be ignored.
    cache = (Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()) / "colocate"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _temporary_cache() -> Path:
    """A directory of our own where everybody may make one: what lies there is run, so it must be ours alone."""
    cache = Path(tempfile.gettempdir()) / f"colocate-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    found = cache.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(0, "belongs to somebody else", str(cache))
    return cache


def _build(sources: Iterable[Path], ready: Path) -> None:
    """Compile into a directory beside `ready` and move it there: half a build is never seen."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BuildError("no C compiler to build the kernels with; install one, as with: apt-get install gcc libc6-dev")
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=ready.parent))
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: _compile(compiler, source, building / source.stem), sources))
        building.chmod(0o755)
        try:
            building.rename(ready)
        except OSError:
            if not ready.is_dir():  # else another process was first, with the same result
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _compile(compiler: str, source: Path, target: Path) -> None:
    done = subprocess.run(
        [compiler, *FLAGS, "-o", str(target), str(source), "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        signs = ("error:", "undefined reference", "cannot find")
        lines = [line for line in done.stderr.splitlines() if any(sign in line for sign in signs)]
        raise BuildError(
            f"{source.name} does not compile ({lines[0] if lines else f'exit code {done.returncode}'}); "
            "the compiler and the static C library must be there (gcc, libc6-dev)"
        )
