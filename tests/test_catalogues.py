from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import colocate_workloads
import pytest

from colocate.jobs import JobSpec, load_catalogue

SPLASH2X = {"barnes", "fft", "radix"}
RESOURCES = {"cpu", "l1d", "l1i", "l2", "llc", "membw"}
JOBS = {
    "cca-2023": ["blackscholes", "canneal", "dedup", "ferret", "freqmine", "radix", "vips"],
    "cca-2026": ["barnes", "blackscholes", "canneal", "freqmine", "radix", "streamcluster", "vips"],
}
FACTS = Path(__file__).parents[1] / "benchmarks" / "catalogue_facts.py"


def real_jobs() -> list[JobSpec]:
    return [job for catalogue in JOBS for job in load_catalogue(catalogue)]


def text_of(catalogue: str) -> str:
    return (resources.files("colocate.catalogues") / f"{catalogue}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("catalogue", sorted(JOBS))
def test_a_catalogue_of_real_jobs_has_its_seven(catalogue: str) -> None:
    assert [job.name for job in load_catalogue(catalogue)] == JOBS[catalogue]


@pytest.mark.parametrize("job", real_jobs(), ids=lambda job: job.name)
def test_a_real_job_runs_its_public_image(job: JobSpec) -> None:
    suite = "splash2x" if job.name in SPLASH2X else "parsec"
    assert job.image == f"anakli/cca:{suite}_{job.name}"
    assert job.argv(5) == ["./run", "-a", "run", "-S", suite, "-p", job.name, "-i", "native", "-n", "5"]


@pytest.mark.parametrize("job", real_jobs(), ids=lambda job: job.name)
def test_the_facts_of_a_real_job_are_plausible(job: JobSpec) -> None:
    assert set(job.runtime_s) == {1, 2, 4}
    assert job.runtime_s[1] > job.runtime_s[2] > job.runtime_s[4] >= job.runtime_s[1] / 4 * 0.95
    assert set(job.sensitivity) == RESOURCES
    assert all(1 <= ratio < 4 for ratio in job.sensitivity.values())


@pytest.mark.parametrize("job", [*real_jobs(), *load_catalogue("demo")], ids=lambda job: job.name)
def test_radix_and_fft_get_a_power_of_two(job: JobSpec) -> None:
    assert job.name not in {"radix", "fft"} or job.threads in {1, 2, 4, 8}


@pytest.mark.parametrize("catalogue", sorted(JOBS))
def test_each_fact_names_its_source(catalogue: str) -> None:
    lines = text_of(catalogue).splitlines()
    facts = [number for number, line in enumerate(lines) if line.startswith(("runtime_s", "sensitivity"))]
    assert len(facts) == 2 * len(JOBS[catalogue])
    for number in facts:
        assert re.match(r"# parsec_\w+\.csv, \d groups \(g\d+( g\d+)*\)", lines[number - 2])
        assert lines[number - 1].startswith("# largest over smallest ")


def test_the_demo_is_about_a_minute_of_work_of_four_kinds() -> None:
    jobs = load_catalogue("demo")
    assert len(jobs) == 4
    assert {job.image for job in jobs} == {colocate_workloads.IMAGE}
    assert 50 <= sum(job.runtime_s[1] for job in jobs) <= 70


@pytest.mark.parametrize("job", load_catalogue("demo"), ids=lambda job: job.name)
def test_a_demo_job_runs_as_a_plain_process(job: JobSpec) -> None:
    small = ["test" if word == "simlarge" else word for word in job.argv()]
    assert small != job.argv()
    done = subprocess.run(small, cwd=colocate_workloads.binaries(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("checksum ")


def test_the_facts_are_medians_of_matching_years_without_impossible_rows(tmp_path: Path) -> None:
    (tmp_path / "parsec_runtime_by_threads.csv").write_text(
        "year,group,job,threads,real\n"
        "2021,g01,vips,1.0,999\n"
        "2023,g02,vips,1.0,10.5\n2023,g03,vips,1.0,12\n2024,g04,vips,1.0,30\n"
        "2023,g02,vips,8.0,3\n"
        "2026,g05,vips,2.0,5\n"
    )
    (tmp_path / "parsec_interference.csv").write_text(
        "year,group,job,none,cpu,l1d,l1i,l2,llc,membw,base_s\n"
        "2023,g02,vips,1.0,1.5,1.5,1.5,1.5,2.5,1.5,60\n"
        "2024,g03,vips,1.0,1.7,1.5,1.5,1.5,3.5,1.5,60\n"
        "2024,g04,vips,1.0,1.9,1.5,0.2,1.5,9.5,1.5,60\n"
        "2026,g05,vips,1.0,0.95,1,1,1,1,1,60\n"
    )
    command = [sys.executable, str(FACTS), "--calibration", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = printed.strip().split("\n\n")
    assert first.splitlines() == [
        "[cca-2023 vips]",
        "# parsec_runtime_by_threads.csv, 3 groups (g02 g03 g04);",
        "# largest over smallest 1: 2.86",
        "runtime_s = { 1 = 12.0 }",
        "# parsec_interference.csv, 2 groups (g02 g03), without g04;",
        "# largest over smallest cpu: 1.13, l1d: 1.00, l1i: 1.00, l2: 1.00, llc: 1.40, membw: 1.00",
        "sensitivity = { cpu = 1.60, l1d = 1.50, l1i = 1.50, l2 = 1.50, llc = 3.00, membw = 1.50 }",
    ]
    assert "runtime_s = { 2 = 5.0 }" in second
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "cca-2023.toml does not have: runtime_s = { 1 = 12.0 }" in checked.stderr
