"""`python -m colocate_workloads [--image]`: build the kernels, and the image of them; say where they are."""

from __future__ import annotations

import argparse
import sys

import docker
import docker.errors
from colocate_workloads import IMAGE, BuildError, binaries
from colocate_workloads.image import build_image, image_is_current


def main() -> int:
    """Build what is not there yet; exit code 2 with one line where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m colocate_workloads", description="Build the batch kernels.")
    parser.add_argument("--image", action="store_true", help=f"also import the image {IMAGE} into Docker")
    try:
        if parser.parse_args().image:
            client = docker.from_env()
            state = "is current" if image_is_current(client) else "made"
            line = f"image {IMAGE} {state}: {build_image(client)}"
        else:
            line = f"kernels: {binaries()}"
    except (BuildError, docker.errors.DockerException) as error:
        sys.stderr.write(f"colocate_workloads: {error}\n")
        return 2
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
