import enum
import resource
import signal
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.eventlog import IllegalEvent, SchedulerLogger, check, parse, violations

EXAMPLE = """\
2023-04-12T11:13:46.591828 start scheduler
2023-04-12T11:13:46.591857 start memcached [0] 3
2023-04-12T11:14:31.663978 start canneal [1,2,3] 8
2023-04-12T11:14:40.976039 pause canneal
2023-04-12T11:15:12.245838 update_cores memcached [2,3]
2023-04-12T11:15:23.687179 update_cores canneal [0,1,2,3]
2023-04-12T11:15:25.899373 custom canneal This+is+a+custom+event.+You+can+write+whatever+you+want%21
2023-04-12T11:15:33.671561 unpause canneal
2023-04-12T11:15:44.636126 end canneal
2023-04-12T11:15:49.006639 end scheduler
"""
WALL = datetime(2026, 4, 12, 11, 13, 46, 591828)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def logger(directory, clock=None, wall=WALL):
    return SchedulerLogger(directory, lambda: wall, clock or Clock())


def started(directory, clock=None):
    log = logger(directory, clock)
    log.job_start("memcached", {0}, 2)
    return log


def test_the_formats_own_example_is_written_byte_for_byte(tmp_path):
    times = [datetime.fromisoformat(line.split()[0]) for line in EXAMPLE.splitlines()]
    clock = Clock()
    log = logger(tmp_path, clock, times[0])
    calls = [
        lambda: log.job_start("memcached", [0], 3),
        lambda: log.job_start("canneal", [3, 2, 1], 8),
        lambda: log.job_pause("canneal"),
        lambda: log.update_cores("memcached", {2, 3}),
        lambda: log.update_cores("canneal", range(4)),
        lambda: log.custom_event("canneal", "This is a custom event. You can write whatever you want!"),
        lambda: log.job_unpause("canneal"),
        lambda: log.job_end("canneal"),
        log.end,
    ]
    for time, call in zip(times[1:], calls, strict=True):
        clock.now_s = 100.0 + (time - times[0]).total_seconds()
        call()
    assert log.path.read_text() == EXAMPLE
    assert log.path.name == "log20230412_111346.txt"
    assert violations(EXAMPLE) == []
    assert parse(EXAMPLE).deviations == ()
    assert check(parse(EXAMPLE)) == []


def test_nothing_is_overwritten_and_the_directory_is_made(tmp_path):
    names = [logger(tmp_path / "a/b").path.name for _ in range(3)]
    assert names == ["log20260412_111346.txt", "log20260412_111346_2.txt", "log20260412_111346_3.txt"]


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        logger(tmp_path / "file")


def test_each_line_is_in_the_file_as_it_is_written(tmp_path):
    log = logger(tmp_path)
    assert log.path.read_text().endswith(" start scheduler\n")
    log.job_start("memcached", {1, 0}, 1)
    assert log.path.read_text().endswith(" start memcached [0,1] 1\n")


def test_the_real_clocks_are_the_default(tmp_path):
    before = datetime.now() - timedelta(seconds=1)
    log = SchedulerLogger(tmp_path)
    log.end()
    times = [event.time for event in parse(log.path.read_text()).events]
    assert before <= times[0] <= times[1] <= datetime.now() + timedelta(seconds=1)


def test_time_never_goes_back(tmp_path):
    clock = Clock()
    log = started(tmp_path, clock)
    for now_s in (101.0, 99.0, 101.5):
        clock.now_s = now_s
        log.custom_event("scheduler", f"at {now_s}")
    log.end()
    assert violations(log.path.read_text()) == []
    seconds = [(event.time - WALL).total_seconds() for event in parse(log.path.read_text()).events]
    assert seconds == [0, 0, 1.0, 1.0, 1.5, 1.5]


def test_an_unchanged_set_leaves_no_line(tmp_path):
    log = started(tmp_path)
    log.update_cores("memcached", [0])
    log.update_cores("memcached", [1, 0])
    log.update_cores("memcached", (0, 1))
    assert log.path.read_text().count("update_cores") == 1


def test_names_may_come_from_an_enumeration(tmp_path):
    job = enum.Enum("Job", {"CANNEAL": "canneal"})
    log = started(tmp_path)
    log.job_start(job.CANNEAL, [1], 2)
    assert log.path.read_text().endswith(" start canneal [1] 2\n")


START = ("job_start", "canneal", [1], 1)
ILLEGAL = {
    "pause before start": [("job_pause", "canneal")],
    "unpause before start": [("job_unpause", "canneal")],
    "end before start": [("job_end", "canneal")],
    "update before start": [("update_cores", "canneal", [1])],
    "start twice": [START, START],
    "start after the end": [START, ("job_end", "canneal"), START],
    "unpause while running": [START, ("job_unpause", "canneal")],
    "pause twice": [START, ("job_pause", "canneal"), ("job_pause", "canneal")],
    "end while paused": [START, ("job_pause", "canneal"), ("job_end", "canneal")],
    "end twice": [START, ("job_end", "canneal"), ("job_end", "canneal")],
    "update after the end": [START, ("job_end", "canneal"), ("update_cores", "canneal", [2])],
    "no cores": [START, ("update_cores", "canneal", [])],
    "a negative core": [START, ("update_cores", "canneal", [-1])],
    "no threads": [("job_start", "canneal", [1], 0)],
    "bad name": [("job_start", "Canneal", [1], 1)],
    "no name": [("custom_event", 7, "x")],
    "memcached twice": [("job_start", "memcached", [1], 1)],
    "memcached pauses": [("job_pause", "memcached")],
    "memcached ends": [("job_end", "memcached")],
    "scheduler starts": [("job_start", "scheduler", [1], 1)],
    "scheduler pauses": [("job_pause", "scheduler")],
    "says nothing": [("custom_event", "scheduler", " \n")],
    "after the end": [("end",), ("custom_event", "scheduler", "late")],
    "the end twice": [("end",), ("end",)],
}


@pytest.mark.parametrize("calls", ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_event_raises_and_changes_nothing(tmp_path, calls):
    log = started(tmp_path)
    for method, *arguments in calls[:-1]:
        getattr(log, method)(*arguments)
    before = log.path.read_text()
    for _ in range(2):
        with pytest.raises(IllegalEvent):
            getattr(log, calls[-1][0])(*calls[-1][1:])
    assert log.path.read_text() == before


def test_no_job_starts_before_memcached(tmp_path):
    log = logger(tmp_path)
    log.custom_event("canneal", "its image is missing")
    with pytest.raises(IllegalEvent, match="no-start-memcached"):
        log.job_start("canneal", [1], 1)
    with pytest.raises(IllegalEvent, match="before-start"):
        log.update_cores("memcached", [1])


def test_a_retry_is_told_and_not_started_again(tmp_path):
    log = started(tmp_path)
    log.job_start("canneal", [1], 1)
    log.custom_event("canneal", "failed with exit code 1, retry 1 of 1")
    log.update_cores("canneal", [1, 2])
    log.job_end("canneal")
    log.end()
    assert violations(log.path.read_text()) == []


def test_a_full_disk_does_not_stop_the_run(tmp_path):
    log = logger(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 20, limits[1]))
        log.job_start("memcached", {0}, 2)
        log.custom_event("scheduler", "in memory")
        assert log.lost_lines == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    log.end()
    assert log.lost_lines == 0
    text = log.path.read_text()
    assert violations(text) == []
    assert [event.comment for event in parse(text).events if event.comment] == ["in memory"]


names = st.sampled_from(["canneal", "vips", "my-job_2"])
cores = st.frozensets(st.integers(0, 9) | st.integers(0, 8191), min_size=1, max_size=5)
calls = st.one_of(
    st.tuples(st.just("job_start"), names, cores, st.integers(1, 64)),
    st.tuples(st.just("update_cores"), names | st.just("memcached"), cores),
    st.tuples(st.sampled_from(["job_pause", "job_unpause", "job_end"]), names),
    st.tuples(st.just("custom_event"), names | st.sampled_from(["scheduler", "memcached"]), st.text()),
)
EVENT = {"job_start": "start", "job_pause": "pause", "job_unpause": "unpause", "job_end": "end"}


@given(st.lists(st.tuples(calls, st.floats(-1, 3600)), max_size=40))
def test_what_is_written_is_legal_and_read_back_exactly(tmp_path_factory, story):
    clock = Clock()
    log = started(tmp_path_factory.mktemp("log"), clock)
    held = {"memcached": frozenset({0})}
    kept = [("start", "scheduler", frozenset(), None, ""), ("start", "memcached", frozenset({0}), 2, "")]
    for (method, job, *rest), step_s in story:
        clock.now_s += step_s
        try:
            getattr(log, method)(job, *rest)
        except IllegalEvent:
            continue
        if method == "custom_event":
            kept.append(("custom", job, frozenset(), None, rest[0]))
        elif method == "update_cores":
            if held[job] != rest[0]:
                kept.append(("update_cores", job, rest[0], None, ""))
            held[job] = rest[0]
        elif method == "job_start":
            held[job] = rest[0]
            kept.append(("start", job, rest[0], rest[1], ""))
        else:
            kept.append((EVENT[method], job, frozenset(), None, ""))
    log.end()
    kept.append(("end", "scheduler", frozenset(), None, ""))
    text = log.path.read_text()
    assert violations(text) == []
    read = parse(text)
    assert read.deviations == ()
    assert [(e.event, e.job, e.cores, e.threads, e.comment) for e in read.events] == kept
    assert "".join(f"{event}\n" for event in read.events) == text
    assert [e.line_number for e in read.events] == list(range(1, len(kept) + 1))


def test_text_that_is_no_unicode_is_still_written(tmp_path):
    log = logger(tmp_path)
    log.custom_event("scheduler", "/tmp/\udcff")  # noqa: S108 -- such names come from the file system
    log.end()
    assert violations(log.path.read_text()) == []


AT = "2023-04-12T11:14:31.663978"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (f"{AT} start vips [2,1] 8", "grammar"),
        (f"{AT} start vips [1,1] 8", "grammar"),
        (f"{AT} start vips [] 8", "grammar"),
        (f"{AT} start vips [0-1] 8", "grammar"),
        (f"{AT} start vips [01] 8", "grammar"),
        (f"{AT} start vips [0, 1] 8", "grammar"),
        (f"{AT} start vips [1]", "grammar"),
        (f"{AT} start vips [1] 0", "grammar"),
        (f"{AT} start Vips [1] 1", "grammar"),
        (f"{AT} start parsec_vips [1] 1", "grammar"),
        (f"{AT} start parsec/vips [1] 1", "grammar"),
        (f"{AT} updated_cores canneal [1]", "grammar"),
        (f"{AT} pause canneal\r", "grammar"),
        (f"{AT} pause canneal ", "grammar"),
        (f"{AT} pause canneal [1]", "grammar"),
        (f"{AT}  pause canneal", "grammar"),
        (f"{AT}Z pause canneal", "grammar"),
        ("2023-04-12T11:14:31 pause canneal", "grammar"),
        ("2023-04-31T11:14:31.663978 pause canneal", "grammar"),
        (f"{AT} custom canneal two words", "grammar"),
        (f"{AT} custom canneal ", "grammar"),
        (f"{AT} custom canneal +", "grammar"),
        (f"{AT} custom canneal 83%", "grammar"),
        ("", "grammar"),
        (f"{AT} pause vips", "before-start"),
        (f"{AT} start canneal [1] 1", "start-twice"),
        (f"{AT} start memcached [1] 1", "start-twice"),
        (f"{AT} update_cores canneal [1,2,3]", "cores-unchanged"),
        (f"{AT} unpause canneal", "unpause-while-running"),
        (f"{AT} end memcached", "not-for-memcached"),
        (f"{AT} pause scheduler", "not-for-scheduler"),
        (f"{AT} start scheduler", "second-run"),
        ("2023-04-12T11:14:30.663978 update_cores canneal [1]", "time-goes-back"),
    ],
)
def test_every_broken_rule_is_found(line, wrong):
    lines = EXAMPLE.splitlines()
    lines.insert(3, line)
    found = violations("\n".join(lines) + "\n")
    assert found[0].startswith("line 4: ")
    assert wrong in found[0]


def test_a_log_has_a_first_and_a_last_line():
    lines = EXAMPLE.splitlines()
    assert "the first line is not `start scheduler`" in violations("\n".join(lines[1:]) + "\n")
    assert violations("\n".join(lines[:-1]) + "\n") == ["the last line is not `end scheduler`"]
    assert violations("\n".join([*lines, f"{lines[-1][:26]} pause canneal"]) + "\n")[0].startswith("line 11")
    assert violations(EXAMPLE[:-1])[0] == "line 10: does not end with a line feed"
    assert len(violations("")) == 2


def events_of(log):
    return [(e.event, e.job, sorted(e.cores), e.threads, e.comment) for e in log.events]


def codes_of(log):
    return [(deviation.line_number, deviation.code) for deviation in log.deviations]


@pytest.mark.parametrize(
    ("line", "codes", "event"),
    [
        (f"{AT} updated_cores vips [1]", ["event-alias"], ("update_cores", "vips", [1], None, "")),
        (f"{AT} update_cores vips [0, 1]", ["core-list-form"], ("update_cores", "vips", [0, 1], None, "")),
        (f"{AT} update_cores vips [2,3,1]", ["core-list-order"], ("update_cores", "vips", [1, 2, 3], None, "")),
        (f"{AT} update_cores vips [1,1]", ["core-list-form"], ("update_cores", "vips", [1], None, "")),
        (f"{AT} update_cores vips 0-1", ["core-list-form"], ("update_cores", "vips", [0, 1], None, "")),
        (f'{AT} update_cores vips "[0,1]"', ["core-list-form"], ("update_cores", "vips", [0, 1], None, "")),
        (f"{AT} update_cores vips []", ["core-list-bad"], ("update_cores", "vips", [], None, "")),
        (f"{AT} update_cores vips [1] 2", ["extra-arguments"], ("update_cores", "vips", [1], None, "")),
        (f"{AT} update_cores vips", ["missing-arguments"], ("update_cores", "vips", [], None, "")),
        (f"{AT} update_cores vips [9]", ["cores-unchanged"], ("update_cores", "vips", [9], None, "")),
        (f"{AT} start splash2x_fft [1] 1", ["job-prefix"], ("start", "fft", [1], 1, "")),
        (f"{AT} start parsec-fft [1] 1", ["job-prefix"], ("start", "fft", [1], 1, "")),
        (f"{AT} start FFT [1] 1", ["job-name"], ("start", "fft", [1], 1, "")),
        (f"{AT} start fft [1]", ["missing-arguments"], ("start", "fft", [1], None, "")),
        (f"{AT} custom vips released CPU 1", ["custom-unquoted"], ("custom", "vips", [], None, "released CPU 1")),
        (f"{AT} custom vips", ["custom-empty"], ("custom", "vips", [], None, "")),
        (f"{AT} cpu memcached 83", ["unknown-event"], None),
        (f"{AT} warning vips Cannot update cores", ["unknown-event"], None),
        ("495457 (process ID) old priority 0, new priority -17", ["not-an-event"], None),
        ("CPU utilization: 83%", ["not-an-event"], None),
        ("pid 4321's current affinity list: 0-3", ["not-an-event"], None),
        ("2023-13-12T11:14:31.663978 pause vips", ["not-an-event"], None),
        ("", ["blank-line"], None),
        ("2023-04-12T11:14:31 pause vips", ["timestamp-fraction"], ("pause", "vips", [], None, "")),
        (f"{AT}Z pause vips", ["timestamp-zone"], ("pause", "vips", [], None, "")),
        (f"{AT}+02:00 pause vips", ["timestamp-zone"], ("pause", "vips", [], None, "")),
        ("2023-04-12T11:14:29.000000 pause vips", ["time-goes-back"], ("pause", "vips", [], None, "")),
        (f"{AT} pause vips  ", ["blanks"], ("pause", "vips", [], None, "")),
        (f"{AT} pause vips\r", ["crlf"], ("pause", "vips", [], None, "")),
        (f"{AT} unpause vips", ["unpause-while-running"], ("unpause", "vips", [], None, "")),
        (f"{AT} end memcached", ["not-for-memcached"], ("end", "memcached", [], None, "")),
        (f"{AT} start vips [1] 1", ["start-twice"], ("start", "vips", [1], 1, "")),
        (f"{AT} start scheduler", ["second-run"], ("start", "scheduler", [], None, "")),
    ],
)
def test_each_oddity_found_in_the_wild_has_a_name(line, codes, event):
    head = "2023-04-12T11:14:30.000000 start "
    log = parse(f"{head}scheduler\n{head}memcached [0] 2\n{head}vips [9] 1\n{line}\n")
    assert codes_of(log) == [(4, code) for code in codes]
    assert events_of(log)[3:] == ([event] if event else [])


def lines(*rest):
    return "".join(f"2023-04-12T11:14:{i:02}.000000 {line}\n" for i, line in enumerate(rest))


def test_a_core_of_many_digits():
    assert codes_of(parse(lines("start scheduler", f"update_cores memcached [{'9' * 9999}]"))) == [
        (2, "core-list-bad"),
        (2, "before-start"),
    ]


def test_memcached_that_is_moved_before_it_starts_or_never_starts():
    log = parse(lines("start scheduler", "update_cores memcached [0]", "start memcached [0] 2", "start a [1] 1"))
    assert codes_of(log) == [(2, "before-start")]
    log = parse(lines("start scheduler", "start a [1] 1", "update_cores memcached [0]", "start b [2] 1"))
    assert codes_of(log) == [(2, "no-start-memcached")], "told once"
    log = parse(lines("start scheduler", "start a [1] 1", "start memcached [0] 2"))
    assert codes_of(log) == [(2, "no-start-memcached"), (3, "memcached-late")]


def test_what_comes_after_an_end():
    story = ["start scheduler", "start memcached [0] 2", "start a [1] 1", "pause a", "end a", "update_cores a [2]"]
    assert codes_of(parse(lines(*story, "end a"))) == [(5, "end-while-paused"), (6, "after-end"), (7, "after-end")]
    assert codes_of(parse(lines("start scheduler", "end scheduler", "pause a"))) == [(3, "after-end-scheduler")]
    assert codes_of(parse(lines("pause a"))) == [(1, "before-start-scheduler")]


def test_a_file_without_a_last_line_feed_and_with_crlf():
    log = parse(EXAMPLE[:-1].replace("\n", "\r\n"))
    assert codes_of(log) == [(1, "crlf"), (10, "no-final-newline")]
    assert log.events == parse(EXAMPLE).events


def test_a_run_counts_if_every_job_starts_and_ends():
    assert check(parse("")) == ["no batch job"]
    assert check(parse(lines("start scheduler", "start memcached [0] 1", "end scheduler"))) == ["no batch job"]
    assert check(parse(lines("start a [1] 1", "start b [1] 1", "end a"))) == ["line 2: b starts and never ends"]
    assert check(parse(lines("end a"))) == ["line 1: a ends and never starts"]
