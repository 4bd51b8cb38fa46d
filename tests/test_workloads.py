from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import colocate_workloads
import docker
import psutil
import pytest
from colocate_workloads import IMAGE, SOURCES, BuildError, binaries
from colocate_workloads.image import LABEL, build_image, image_archive, image_is_current
from docker.models.containers import Container
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

PATIENCE_S = 240  # also on an emulated machine
SPLASH2X = {"barnes", "fft", "radix"}
POWER_OF_TWO = {"fft", "radix"}
GOLDEN = {  # checksums of the input `test`
    "barnes": "ab0c89d0fe6600c6",
    "blackscholes": "434c5d6eec94403a",
    "canneal": "9722679f16a2d433",
    "dedup": "01cc3d904f6b359b",
    "ferret": "e1980184aa889245",
    "fft": "622838cebe24525f",
    "freqmine": "bdd250a1dc42981f",
    "radix": "1342a342d94ad1f8",
    "streamcluster": "c1d9eae768b485fd",
    "vips": "586547e73cfa65b8",
}


def suite(kernel: str) -> str:
    return "splash2x" if kernel in SPLASH2X else "parsec"


def command(kernel: str, size: str, threads: int | str) -> list[str]:
    return ["./run", "-a", "run", "-S", suite(kernel), "-p", kernel, "-i", size, "-n", str(threads)]


def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]  # options are passed through
        argv, cwd=binaries(), capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options
    )


def checksum(output: str) -> str:
    found = re.search(r"^checksum ([0-9a-f]{16})$", output, re.MULTILINE)
    assert found, output
    return found[1]


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=PATIENCE_S)
    yield client
    client.close()


@pytest.fixture
def container(client: docker.DockerClient, request: pytest.FixtureRequest) -> Iterator[Container]:
    kernel, size = request.param
    build_image(client)
    made = client.containers.create(
        IMAGE, command(kernel, size, 2), network_mode="none", name=f"workloads-test-{uuid.uuid4().hex}"
    )
    yield made
    made.remove(force=True)


@pytest.fixture
def other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one kernel and an empty cache, for tests that change either."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("common.h", "blackscholes.c"):
        shutil.copy(SOURCES / name, sources)
    monkeypatch.setattr(colocate_workloads, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sources


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", sorted(GOLDEN))
def test_the_checksum_is_the_same_for_every_thread_count(kernel: str, threads: int) -> None:
    done = run(command(kernel, "test", threads))
    if threads == 3 and kernel in POWER_OF_TWO:
        assert done.returncode == 2
        assert done.stderr.splitlines() == [f"{kernel}: -n 3: the number of threads must be a power of two"]
    else:
        assert done.returncode == 0, done.stderr
        assert checksum(done.stdout) == GOLDEN[kernel]


def test_every_kernel_is_tested() -> None:
    assert {path.stem for path in SOURCES.glob("*.c")} - {"run", "loadgen"} == set(GOLDEN)


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (["./run"], "usage"),
        (["./run", "-a", "run", "-S", "parsec", "-p", "canneal", "-i", "test"], "usage"),
        (["./run", "-x"], "usage"),
        ([*command("canneal", "test", 1), "more"], "usage"),
        (["./run", "-a", "build", *command("canneal", "test", 1)[3:]], "-a build"),
        (["./run", "-a", "run", "-S", "spec", *command("canneal", "test", 1)[5:]], "-S spec"),
        (["./run", "-a", "run", "-S", "parsec", *command("radix", "test", 1)[5:]], "give -S splash2x"),
        (command("x264", "test", 1), "-p x264"),
        (command("nosuch", "test", 1), "there is no such kernel"),
        (command("run", "test", 1), "-p run"),
        (command("../run", "test", 1), "-p ../run"),
        (command("canneal", "huge", 1), "-i huge"),
        (command("canneal", "test", 0), "-n 0"),
        (command("canneal", "test", "two"), "-n two"),
        (command("canneal", "test", 100_000), "-n 100000"),
        (["./canneal"], "usage"),
        (["./canneal", "-n", "2"], "usage"),
    ],
)
def test_bad_arguments_get_one_line(argv: list[str], culprit: str) -> None:
    done = run(argv)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert culprit in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("kernel", ["canneal", "radix", "freqmine"])
def test_a_lack_of_memory_gets_one_line(kernel: str) -> None:
    few = 16 << 20
    done = run(command(kernel, "simlarge", 1), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (few, few)))
    assert done.returncode == 1
    assert re.fullmatch(rf"{kernel}: out of memory \(.*\)\n", done.stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_kernel_at_any_moment(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(command("blackscholes", "native", 2), cwd=binaries(), stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_it_is("blackscholes", process.pid)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == code
        finally:
            process.kill()


@retry(retry=retry_if_result(lambda ready: not ready), wait=wait_fixed(0.002), stop=stop_after_delay(PATIENCE_S))
def wait_until_it_is(name: str, pid: int) -> bool:
    return psutil.Process(pid).name() == name


@pytest.mark.parametrize("container", [("blackscholes", "test"), ("radix", "test")], indirect=True)
def test_the_image_runs_without_a_network(container: Container) -> None:
    container.start()
    assert container.wait(timeout=PATIENCE_S)["StatusCode"] == 0
    output = container.logs().decode()
    assert checksum(output) == GOLDEN[output.split()[0]]


@pytest.mark.parametrize("container", [("blackscholes", "native")], indirect=True)
def test_process_1_of_a_container_dies_on_sigterm(container: Container) -> None:
    container.start()
    wait_until_the_launcher_is_gone(container)  # the handler need not stand yet: the launcher blocked the signal
    container.kill(signal="SIGTERM")
    assert container.wait(timeout=PATIENCE_S)["StatusCode"] == 143


@retry(retry=retry_if_result(lambda ready: not ready), wait=wait_fixed(0.002), stop=stop_after_delay(PATIENCE_S))
def wait_until_the_launcher_is_gone(container: Container) -> bool:
    commands = [process[-1] for process in container.top(ps_args="-o pid,args")["Processes"]]
    return all(command.startswith("/parsec/") for command in commands)


def test_the_image_is_made_once(client: docker.DockerClient, other_sources: Path) -> None:
    assert not image_is_current(client)  # made from other sources, or not made
    assert not any((other_sources.parent / "cache").glob("*/*"))


def test_the_image_stays_while_its_sources_do(client: docker.DockerClient) -> None:
    first = build_image(client)
    assert image_is_current(client)
    assert build_image(client) == first
    assert client.images.get(IMAGE).labels[LABEL]


def test_the_image_holds_the_kernels_and_no_more() -> None:
    with tarfile.open(fileobj=io.BytesIO(image_archive())) as archive:
        members = {member.name: member for member in archive.getmembers()}
    assert set(members) == {"parsec", "tmp", "parsec/run"} | {f"parsec/{kernel}" for kernel in GOLDEN}
    assert members["tmp"].mode == 0o1777
    assert members["parsec/run"].mode == 0o755


def test_a_change_of_the_sources_makes_a_new_directory(other_sources: Path) -> None:
    first = binaries()
    assert binaries() == first
    assert [path.name for path in first.iterdir()] == ["blackscholes"]
    with (other_sources / "common.h").open("a") as header:
        header.write("\n")
    second = binaries()
    assert second != first
    assert os.access(second / "blackscholes", os.X_OK)


def build_elsewhere(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "colocate_workloads"],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_may_build_at_once(tmp_path: Path) -> None:
    processes = [build_elsewhere({"XDG_CACHE_HOME": str(tmp_path)}) for _ in range(2)]
    outputs = {process.communicate(timeout=PATIENCE_S)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(outputs) == 1
    assert len(list((tmp_path / "colocate").iterdir())) == 1


def test_where_the_cache_cannot_be_written_the_temporary_directory_serves(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    process = build_elsewhere({"XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)})
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert output.startswith(f"kernels: {tmp_path}/colocate-{os.getuid()}/")


def test_a_temporary_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    blocked, foreign = tmp_path / "file", tmp_path / "foreign"
    blocked.touch()
    foreign.mkdir()
    (tmp_path / f"colocate-{os.getuid()}").symlink_to(foreign)
    process = build_elsewhere({"XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)})
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "belongs to somebody else" in errors
    assert len(errors.splitlines()) == 1
    assert not any(foreign.iterdir())


@pytest.mark.usefixtures("other_sources")
def test_without_a_compiler_the_error_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt-get install gcc"):
        binaries()


def test_a_source_that_does_not_compile_is_named_and_leaves_nothing(other_sources: Path, tmp_path: Path) -> None:
    (other_sources / "broken.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BuildError, match=r"^broken\.c does not compile .*nothing"):
        binaries()
    assert not any((tmp_path / "cache" / "colocate").iterdir())
