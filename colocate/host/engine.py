"""The Docker Engine: reached, its images made ready, and what an earlier run left there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.utils
import requests
from colocate_workloads import IMAGE, BuildError
from colocate_workloads.image import build_image

from colocate.errors import UserError
from colocate.host.cgroup import JobCgroup
from colocate.host.runtime import Progress
from colocate.jobs import JobSpec

RUN_LABEL, JOB_LABEL = "colocate.run", "colocate.job"
CALL_TIMEOUT_S = 2.0  # ordinary calls take 1 to 40 ms, even on a busy machine
START_TIMEOUT_S = 10.0  # the same, where nothing waits for us: at the beginning and at the end of a run
LONG_TIMEOUT_S = 60.0  # create, start, remove and pull wait for disks

# Whatever a call can come back with: an answer (404, 409, 500), a time-out, a broken connection.
ENGINE_ERRORS = (docker.errors.DockerException, requests.RequestException, OSError)

_INIT = re.compile(r"^NSpid:.*\t1$", re.MULTILINE)  # proc_pid_status(5): the first of its pid namespace

ClientFactory = Callable[[float], docker.DockerClient]


def client_from_env(timeout_s: float) -> docker.DockerClient:
    """The engine that the environment names (`DOCKER_HOST`), the local socket by default."""
    return docker.from_env(timeout=timeout_s, max_pool_size=64)  # type: ignore[arg-type]  # the stub wants whole seconds


def connect(factory: ClientFactory, timeout_s: float) -> docker.DockerClient:
    """Reach the engine.

    Raises:
        UserError: it does not run, or we may not use it.
    """
    try:
        return factory(timeout_s)
    except ENGINE_ERRORS as error:
        if "Permission denied" in str(error):
            raise UserError(
                "no permission to use the Docker Engine",
                "join the docker group (sudo usermod -aG docker $USER; log in anew), use sudo, or --runtime process",
            ) from error
        raise UserError(
            "the Docker Engine does not answer", "start it (sudo systemctl start docker) or use --runtime process"
        ) from error


def cgroup_driver(factory: ClientFactory = client_from_env) -> str:
    """Who makes the containers' control groups: `cgroupfs` (the engine itself), `systemd`, or `none` (rootless).

    Raises:
        UserError: the engine does not run, or we may not use it.
    """
    client = connect(factory, START_TIMEOUT_S)
    try:
        return str(client.info().get("CgroupDriver", "none"))
    except ENGINE_ERRORS as error:
        raise UserError(f"the Docker Engine does not tell of itself ({reason(error)})") from error
    finally:
        client.close()


def absence() -> str:
    """Why the engine that the environment names cannot be used; empty where it answers."""
    try:
        connect(client_from_env, CALL_TIMEOUT_S).close()
    except UserError as error:
        return error.what
    return ""


def prepare_images(client: docker.DockerClient, jobs: Sequence[JobSpec], progress: Progress) -> None:
    """Make every image ready: ours is built, the others are pulled where they are missing.

    Raises:
        UserError: an image is missing and cannot be pulled or built; names it and its job.
    """
    first_user = {job.image: job.name for job in reversed(jobs)}
    for image, job in first_user.items():
        try:
            if image.removesuffix(":latest") == IMAGE:
                progress(f"image {image}", 0.0)
                build_image(client)
            elif not _present(client, image):
                for share in _pull(client, image):
                    progress(f"pull {image}", share)
            progress(f"image {image}", 1.0)
        except BuildError as error:
            raise UserError(f"image {image} of job {job} cannot be built: {error}") from error
        except ENGINE_ERRORS as error:
            raise UserError(
                f"image {image} of job {job} is missing and cannot be pulled ({reason(error)})",
                f"check its name and the network, or load it with: docker load / docker pull {image}",
            ) from error


def reason(error: BaseException) -> str:
    """The one line in an engine's error that says why."""
    if isinstance(error, docker.errors.APIError) and error.explanation:
        return str(error.explanation).strip()
    return " ".join(str(error).split()) or type(error).__name__


def is_missing(error: BaseException) -> bool:
    """Whether the engine says that there is no such container."""
    return isinstance(error, docker.errors.NotFound)


def is_conflict(error: BaseException) -> bool:
    """Whether the engine says that the container is not in the right state for that (not running, being removed)."""
    return isinstance(error, docker.errors.APIError) and error.status_code == 409


def is_absent(error: BaseException) -> bool:
    """Whether nothing was answered: the engine is stopped, starts anew, or hangs."""
    return isinstance(error, OSError) and not isinstance(error, docker.errors.APIError)


def _present(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _pull(client: docker.DockerClient, image: str) -> Iterator[float]:
    """Pull an image; yields the share of bytes that is here, never a smaller one than before.

    Raises:
        docker.errors.DockerException, OSError: it failed.
    """
    repository, tag = docker.utils.parse_repository_tag(image)
    layers: dict[str, tuple[int, int]] = {}
    share = 0.0
    for line in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
        if "error" in line:
            raise docker.errors.DockerException(line["error"])
        detail = line.get("progressDetail") or {}
        layer = line.get("id", "")
        if line.get("status") == "Downloading" and detail.get("total"):
            layers[layer] = (detail.get("current", 0), detail["total"])
        elif line.get("status") in ("Download complete", "Pull complete") and layer in layers:
            layers[layer] = (layers[layer][1],) * 2
        if layers:
            share = max(share, sum(now for now, _ in layers.values()) / sum(total for _, total in layers.values()))
        yield share


def containers_of(client: docker.DockerClient, run_id: str | None) -> list[Mapping[str, Any]]:
    """Containers of one run, or of every run, in any state, as the engine lists them.

    Raises:
        ENGINE_ERRORS: the engine does not answer.
    """
    label = RUN_LABEL if run_id is None else f"{RUN_LABEL}={run_id}"
    listed: list[Mapping[str, Any]] = client.api.containers(all=True, filters={"label": label})
    return listed


def leftover_runs(client: docker.DockerClient) -> dict[str, list[str]]:
    """The runs that have containers here, with the names of those.

    Raises:
        UserError: the engine does not answer.
    """
    runs: dict[str, list[str]] = {}
    try:
        for one in containers_of(client, None):
            runs.setdefault(one["Labels"][RUN_LABEL], []).append(_name(one))
    except ENGINE_ERRORS as error:
        raise UserError(f"the Docker Engine does not list its containers ({reason(error)})") from error
    return runs


def remove_leftovers(client: docker.DockerClient, run_id: str, root: Path = Path("/")) -> list[str]:
    """Remove the containers of one run; only what carries its label is touched.

    Returns:
        what could not be removed, one line each.
    """
    try:
        found = containers_of(client, run_id)
    except ENGINE_ERRORS as error:
        return [f"the Docker Engine does not list its containers ({reason(error)})"]
    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
            return [line for line in pool.map(lambda one: _remove(client, one, root), found) if line]
    except RuntimeError:  # no thread can be had: one after the other
        return [line for line in (_remove(client, one, root) for one in found) if line]


def _remove(client: docker.DockerClient, one: Mapping[str, Any], root: Path) -> str:
    try:
        pid = client.api.inspect_container(one["Id"])["State"]["Pid"] if one["State"] != "created" else 0
        if pid:
            thaw(pid, one["Id"], root)
        client.api.remove_container(one["Id"], force=True, v=True)
    except ENGINE_ERRORS as error:
        if is_missing(error) or is_conflict(error):  # gone, or somebody is removing it right now
            return ""
        return f"{_name(one)}: {reason(error)}"
    return ""


def thaw(pid: int, container_id: str, root: Path) -> None:
    """Thaw a container directly: one that is frozen behind the engine's back cannot be killed by it."""
    group = cgroup_of(pid, container_id, root)
    if group is not None:
        group.thaw()
        group.close()


def init_of(container_id: str, root: Path) -> int:
    """The first process of a container, without the engine's help; 0 where there is none that we can see."""
    for entry in os.scandir(root / "proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ends meanwhile
                place = Path(entry.path)
                if container_id in (place / "cgroup").read_text() and _INIT.search((place / "status").read_text()):
                    return int(entry.name)
    return 0


def cgroup_of(pid: int, container_id: str, root: Path) -> JobCgroup | None:
    """The groups of a container's init; None where the engine counts pids otherwise than we do (another machine or
    pid namespace), so that the process is somebody else's.
    """  # noqa: D205 -- the summary needs two lines
    try:
        ours = container_id in (root / "proc" / str(pid) / "cgroup").read_text()
    except OSError:
        return None
    return JobCgroup.of(pid, root) if ours else None


def _name(one: Mapping[str, Any]) -> str:
    return str(one["Names"][0]).lstrip("/") if one["Names"] else str(one["Id"][:12])
