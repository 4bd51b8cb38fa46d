"""The one image of the kernels: made here from their own binaries, so that nothing is pulled."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import docker
import docker.errors
from colocate_workloads import IMAGE, binaries, digest_of, kernel_sources
from docker.models.images import Image

LABEL = "colocate.workloads"  # on the image: the hash of the sources it was made from
_NOT_IN_IMAGE = frozenset({"loadgen"})  # no batch job


def image_archive() -> bytes:
    """The image's root file system as a tar archive: /parsec with `run` and the kernels, and /tmp.

    Raises:
        BuildError: as `binaries()`.
    """
    directory = binaries()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("parsec", 0o755), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for source in _image_sources():
            data = (directory / source.stem).read_bytes()
            entry = tarfile.TarInfo(f"parsec/{source.stem}")
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def image_is_current(client: docker.DockerClient) -> bool:
    """Whether the engine has the image, made from these very sources.

    Raises:
        docker.errors.DockerException: the engine cannot be reached or refuses.
    """
    image = _image(client)
    return image is not None and _is_current(image)


def build_image(client: docker.DockerClient) -> str:
    """Make the image unless it is current; returns its id. An older one goes, unless a container still uses it.

    Raises:
        BuildError: as `binaries()`.
        docker.errors.DockerException: the engine cannot be reached or refuses.
    """
    old = _image(client)
    if old is not None and _is_current(old):
        return str(old.id)
    changes = ["WORKDIR /parsec", f"LABEL {LABEL}={digest_of(_image_sources())}"]
    client.api.import_image_from_data(image_archive(), repository=IMAGE, tag="latest", changes=changes)
    if old is not None:
        with contextlib.suppress(docker.errors.APIError):  # in use, or gone already
            client.images.remove(str(old.id))
    return str(client.images.get(IMAGE).id)


def _image(client: docker.DockerClient) -> Image | None:
    try:
        return client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return None


def _is_current(image: Image) -> bool:
    return bool(image.labels.get(LABEL) == digest_of(_image_sources()))


def _image_sources() -> list[Path]:
    return [source for source in kernel_sources() if source.stem not in _NOT_IN_IMAGE]
