"""A short soak of the simulated machine, and hundreds of jobs; `make soak` is the long one, and the live one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.eventlog import violations
from colocate.jobs import JobSpec, JobState
from colocate.policy import load_policy
from colocate.sim.run import simulate
from colocate.testing.schedule import Schedule
from tests.faults.ledger import Injection
from tests.faults.world import POLICIES, World

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
SECONDS = os.environ.get("SOAK_TEST_S", "60")  # so that `make test` stays short; CI takes five minutes


def test_nothing_grows_however_many_ticks_jobs_and_restarts_there_are(ledger, notes):
    argv = [sys.executable, SOAK, "--seconds", SECONDS]
    soaked = subprocess.run(argv, capture_output=True, text=True, check=False)
    samples = soaked.stdout.count("us a tick")
    ledger.append(Injection(24, "simulated", samples, held=soaked.returncode == 0))
    notes += [line for line in soaked.stdout.splitlines() if "MB an hour" in line]
    assert soaked.returncode == 0, soaked.stdout[-3000:] + soaked.stderr[-3000:]
    assert samples


@pytest.mark.live
@pytest.mark.parametrize("runtime", ["docker", "process"])
def test_the_live_soak_goes_on_to_its_end_whatever_dies_in_it(runtime):
    argv = [sys.executable, SOAK, "--live", "5", "--runtime", runtime]
    soaked = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "ended: duration" in soaked.stdout
    # Whether cores can be shared is measured beside a load, and may be taken for impossible on a busy machine.
    assert [line for line in soaked.stderr.splitlines() if "cannot share" not in line] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_hundreds_of_jobs_all_finish(policy, tmp_path, ledger):
    setup = World(1, Schedule(), tmp_path / "unused").setup
    jobs = tuple(JobSpec(f"job{number}", "nothing:1", ("./run",)) for number in range(300))
    figures = replace(setup.calibration.jobs["a"], alone_s=0.3)
    calibration = replace(setup.calibration, jobs={job.name: figures for job in jobs})
    done = simulate(replace(setup, calibration=calibration, jobs=jobs), load_policy(policy), tmp_path / "logs")
    held = done.ending.why == "done" and not violations(done.log_path.read_text())
    held = held and all(job.state is JobState.FINISHED for job in done.controller.jobs.values())
    ledger.append(Injection(24, "simulated", len(jobs), held))
    assert held
