"""`colocate calibrate` for real, in miniature: what it puts back, and what it refuses."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from colocate import calibrate
from colocate.calibrate import CalibrationSettings, calibrator
from colocate.load import scan as scans
from colocate.policy import load_policy
from colocate.sim.run import simulate
from colocate.simulation import SimSettings, graded, setup
from tests.live import catalogue, colocate, masks
from tests.memcached_fixture import eventually, running_memcached

pytestmark = pytest.mark.live


@pytest.fixture
def server():
    with running_memcached() as made:
        yield made


@pytest.fixture
def jobs(tmp_path, behave_binary):
    """A job of three seconds, as a plain process."""
    return str(catalogue(tmp_path / "jobs.toml", "none", {"one": "./behave exit 0 3000"}, behave_binary.parent))


def test_a_real_one_in_miniature_loads_and_simulates(tmp_path, server, jobs, monkeypatch):
    monkeypatch.setattr(scans, "STEP_S", 0.1)
    monkeypatch.setattr(scans, "late_reason", lambda _interval: "")  # a busy machine's points will do here
    monkeypatch.setattr(calibrate, "_QUIET_CORES", 1e9)
    monkeypatch.setattr(calibrate, "_NOTICES", 2)
    monkeypatch.setattr(calibrate, "_MOVES", 4)
    before = masks(server.pid)
    settings = CalibrationSettings(server.ip, server.port, None, jobs, "process", quick=True, state_dir=tmp_path)
    with calibrator(settings) as made:
        made.plan = replace(made.plan, interval_s=0.2, widths=(1,), loads=(0.05, 0.2, 0.5))
        text = made.run(lambda _what, _share: None)
    assert masks(server.pid) == before
    path = tmp_path / "this-machine.toml"
    path.write_text(text)
    chosen = setup(SimSettings(scenario=str(path), seed=1))
    run = simulate(chosen, load_policy("reactive"), tmp_path / "logs")
    assert graded(run, chosen.slo).complete
    assert 2.9 < chosen.calibration.jobs["one"].alone_s < 20.0


def test_ctrl_c_puts_memcached_back(tmp_path, server, jobs):
    before = masks(server.pid)
    argv = [
        sys.executable, "-m", "colocate", "calibrate", "--memcached-ip", server.ip, "--port", str(server.port),
        "--jobs", jobs, "--runtime", "process", "--state-dir", str(tmp_path / "state"), "--quick",
    ]  # fmt: skip
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: process.poll() is not None or masks(server.pid) != before, "memcached is pinned")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert masks(server.pid) == before
    assert not (tmp_path / "this-machine.toml").exists()
    assert not (tmp_path / "state/state.json").exists()


def test_a_memcached_with_a_load_is_refused(tmp_path, server):
    load = subprocess.Popen(
        [sys.executable, "-m", "colocate", "load", "-s", f"{server.ip}:{server.port}", "-t", "60", "--qps-min", "500",
         "--qps-max", "500", "--output", str(tmp_path / "load.txt")], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: (tmp_path / "load.txt").exists() and os.path.getsize(tmp_path / "load.txt"), "a load")  # noqa: PTH202
        done = colocate("calibrate", "--memcached-ip", server.ip, "--port", str(server.port), "--jobs", "demo",
                        "--state-dir", str(tmp_path / "state"), cwd=tmp_path)  # fmt: skip
    finally:
        load.terminate()
        load.wait(30)
    assert done.returncode == 2, done.stderr
    assert "requests a second" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "this-machine.toml").exists()
