import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.jobs import ENDED, NEXT, JobState, load_catalogue, parse_catalogue

GOOD = """
    description = "mine"
    [[job]]
    name = "sum-up"
    image = "registry.example:5000/team/sum@sha256:0f"
    command = "./sum -n {threads} --all"
    threads = 3
    runtime_s = { 1 = 20.5, 2 = 11 }
    sensitivity = { llc = 1.5 }
    [[job]]
    name = "other"
    image = "x"
    command = ["sh", "-c", "exit 3"]
    directory = "here"
"""


def test_a_users_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(textwrap.dedent(GOOD))
    first, second = load_catalogue(str(file))
    assert first.argv() == ["./sum", "-n", "3", "--all"]
    assert first.argv(8)[2] == "8"
    assert (first.runtime_s, first.sensitivity) == ({1: 20.5, 2: 11.0}, {"llc": 1.5})
    assert second.argv() == ["sh", "-c", "exit 3"]
    assert second.directory == tmp_path / "here"
    assert (second.threads, second.network) == (1, "none")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('name = "Sum"', "name"),
        ('name = "memcached"', "name"),
        ('name = "scheduler"', "name"),
        ("name = 3", "name"),
        ('name = "parsec_vips"', "name"),
        ('image = ""', "image"),
        ('image = "-v"', "image"),
        ('command = ""', "command"),
        ("command = [1]", "command"),
        ("threads = 0", "threads"),
        ("threads = true", "threads"),
        ('threads = "2"', "threads"),
        ("network = 1", "network"),
        ('name = "a/../../etc"', "name"),
        ('name = "a b"', "name"),
        ('name = "a;reboot"', "name"),
        ('name = "$(reboot)"', "name"),
        ('name = "-rf"', "name"),
        ('name = "a=b"', "name"),
        ('name = "a\\nstart other [0] 1"', "name"),
        ('name = "a\\u001b[31m"', "name"),
        ('name = "\\u0430"', "name"),  # looks like an a
        (f'name = "{65 * "a"}"', "name"),
        ('image = "x; reboot"', "image"),
        ('image = "x $(reboot)"', "image"),
        ('image = "x\\ny"', "image"),
        ('image = "--privileged"', "image"),
        ('image = "x\\u0000"', "image"),
        ('command = ["x", "\\u0000"]', "command"),
        ('network = "none; reboot"', "network"),
        ('network = "--privileged"', "network"),
        ('directory = "a\\u0000b"', "directory"),
        ('runtime_s = { "\\u00b2" = 1 }', "runtime_s"),
        (f"runtime_s = {{ 1 = {10**400} }}", "runtime_s"),
        ("runtime_s = 3", "runtime_s"),
        ("runtime_s = { one = 3 }", "runtime_s"),
        ("runtime_s = { 1 = -3 }", "runtime_s"),
        ("runtime_s = { 1 = nan }", "runtime_s"),
        ("sensitivity = { llc = true }", "sensitivity"),
        ("directory = 1", "directory"),
        ("colour = 'red'", "colour"),
    ],
)
def test_a_bad_job_is_refused_with_file_job_and_field(tmp_path, line, field):
    fields = {"name": 'name = "sum"', "image": 'image = "x"', "command": 'command = "x"', line.split()[0]: line}
    file = tmp_path / "mine.toml"
    file.write_text("[[job]]\n" + "\n".join(fields.values()))
    with pytest.raises(UserError) as caught:
        load_catalogue(str(file))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert f": {field}: " in str(caught.value)
    assert "job sum" in str(caught.value) or field == "name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no jobs"),
        ("job = 3", "no jobs"),
        ("job = [3]", "job 1: not a table"),
        ("jobs = []", "unknown key 'jobs'"),
        ("[[job", "not TOML"),
        ('[[job]]\nname="a"\nimage="x"\ncommand="x"\n' * 2, "job a: name: stands twice"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_catalogue(str(file))


def test_a_missing_file_names_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*cca-2023, cca-2026, demo"):
        load_catalogue(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_catalogue(str(tmp_path / "binary.toml"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), values=inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["name", "image", "command", "threads", "network", "runtime_s", "sensitivity", "directory"])


keys = st.sampled_from(["job", "description", "x"])


@given(st.dictionaries(keys, st.lists(st.dictionaries(fields, values)) | values))
def test_any_table_is_jobs_or_a_user_error(table):
    try:
        jobs = parse_catalogue(table, Path("any.toml"))
    except UserError:
        return
    assert jobs


def test_the_life_cycle_ends():
    assert all(NEXT[state] == frozenset() for state in ENDED)
    assert set(NEXT) == set(JobState)
