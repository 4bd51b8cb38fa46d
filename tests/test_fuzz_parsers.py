"""Both parsers of files from outside, on what users have: logs and outputs as they are, and then damaged.

`tests.parsers` says what must hold; `tests.fuzz` looks for more, for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate import mcperf
from colocate.eventlog import Event, parse, violations
from colocate.report.grade import grade, reported_intervals
from tests.parsers import BEGIN_S, LOG, OUTPUT, judge_log, judge_output

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
HUGE = "1" + 400 * "0"
BEGIN = datetime.fromtimestamp(BEGIN_S)


def damaged(lines: st.SearchStrategy[list[str]], noise: Sequence[str]) -> st.SearchStrategy[str]:
    """Lines as files really have them: dropped, doubled, swapped, cut, wrapped, spoilt, in another encoding."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> str:
        text = draw(lines)
        for kind in draw(st.lists(st.sampled_from(sorted(DAMAGES)), max_size=6)):
            text = DAMAGES[kind](draw, text, noise)
        end = draw(st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\r", "\x85"]))
        whole = draw(st.sampled_from(["", "\ufeff", "user@host:~$ cat it\n"])) + end.join(text)
        whole += end if draw(st.booleans()) else ""
        whole = whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 3)) == 0 else whole
        wrote, read = draw(st.sampled_from([("utf-8", "utf-8")] * 3 + [("latin-1", "utf-8"), ("utf-16", "utf-8")]))
        return whole.encode(wrote, errors="replace").decode(read, errors="replace")

    return draw_one()


def _drop(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    first = draw(st.integers(0, len(text)))
    return text[:first] + text[first + draw(st.integers(1, 3)) :]


def _double(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return text[:last] + text[first:]


def _swap(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    place = draw(st.integers(0, len(text)))
    return text[:place] + text[place : place + 2][::-1] + text[place + 2 :]


def _insert(draw: st.DrawFn, text: list[str], noise: Sequence[str]) -> list[str]:
    place = draw(st.integers(0, len(text)))
    return [*text[:place], draw(st.sampled_from(noise) | st.text(max_size=20)), *text[place:]]


def _cut(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    place = draw(st.integers(0, max(0, len(text) - 1)))
    return [line[: draw(st.integers(0, len(line)))] if i == place else line for i, line in enumerate(text)]


def _wrap(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    width = draw(st.integers(20, 100))
    return [line[i : i + width] for line in text for i in range(0, max(1, len(line)), width)]


def _pad(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    blanks = draw(st.sampled_from([" ", "\t", "   ", 300 * " ", "\x1c", "\u3000"]))
    return [line + blanks for line in text]


def _space(_: st.DrawFn, text: list[str], __: Sequence[str]) -> list[str]:
    return [line.replace(",", ", ") for line in text]


def _spoil(draw: st.DrawFn, text: list[str], _: Sequence[str]) -> list[str]:
    old = draw(st.sampled_from(["2025", "05", "1", "0", ":", ".", "-", "[", "]", "T", " ", "read", "start"]))
    new = draw(
        st.sampled_from([HUGE, "nan", "-nan", "inf", "-1", "0000", "9999", "1e400", "", "\0", "٣", "é", "\udcff"])
    )
    return [line.replace(old, new, 1) for line in text]


DAMAGES = {
    "drop": _drop, "double": _double, "swap": _swap, "insert": _insert, "cut": _cut, "wrap": _wrap, "pad": _pad,
    "space": _space, "spoil": _spoil,
}  # fmt: skip

TIMES = st.one_of(
    st.floats(0, 3600).map(lambda s: (BEGIN + timedelta(seconds=s)).isoformat(timespec="microseconds")),
    st.datetimes().map(datetime.isoformat),
    st.sampled_from([
        "2025-05-14T12:22:01", "2025-05-14T12:22:01Z", "2025-05-14T12:22:01.5+02:00", "2025-05-14T12:22:01.123456789",
        "-001-05-14T12:22:01.000000", "0000-05-14T12:22:01.000000", "0001-01-01T00:00:00.000000",
        "9999-12-31T23:59:59.999999", "2025-13-14T12:22:01.000000", "2025-02-29T12:22:01.000000",
        "2025-05-14T25:61:61.000000", "2025-05-14T24:00:00.000000", f"{HUGE}-05-14T12:22:01", "1747218116063", "nan",
    ]),
)  # fmt: skip
JOBS = st.sampled_from([
    "scheduler", "memcached", "radix", "vips", "parsec_vips", "splash2x-radix", "parsec-parsec_vips", "Radix",
    "parsec_", "my-job_2", "PARSEC_scheduler", "7", "é", "\x1b[31m",
])  # fmt: skip
ARGUMENTS = st.sampled_from([
    "", "[0]", "[0] 2", "[0,1] 2", "[0, 1] 2", "[2,3,1]", "[1,1]", "0-3", '"[0,1]" 1', "[]", "[-1]", "[8191] 1",
    "[8192] 1", "0-8191", "8191-0", f"[{HUGE}] 1", f"[0] {HUGE}", "[nan] nan", "[0] -1", "[0] 0", "[0", "0]",
    "load+rose%21", "%0A", "%ff%00", "pausing two jobs", "pausing%0Athem", "released CPU 1", "[0] 2 and more",
])  # fmt: skip
KINDS = st.sampled_from(["start", "end", "update_cores", "updated_cores", "pause", "unpause", "custom", "cpu", "START"])
LOG_NOISE = (
    "495457 (process ID) old priority 0, new priority -17", "CPU utilization: 83%",
    "pid 4321's current affinity list: 0-3", "", "Traceback (most recent call last):",
    "2025-05-14T12:22:09.500000 warning vips Cannot update cores", "2025-05-14T12:22:09.500000 start scheduler",
    "2025-05-14T12:22:09.500000 end memcached", "{", "\t", "=" * 80,
)  # fmt: skip
LOG_LINES = st.one_of(
    st.just(LOG.splitlines()),
    st.lists(st.tuples(TIMES, KINDS, JOBS, ARGUMENTS).map(lambda words: " ".join(words).rstrip(" ")), max_size=25),
)

OUTPUT_NOISE = (
    "user@host:~$ ./mcperf -s 10.0.0.1 -a 10.0.0.2 -t 30", "Wed May 14 12:21:56 UTC 2025",
    "Warning! Detected max cpu usage > 95%", "# late: the generator lagged", "# interval: 10 s", "# interval: 0 s",
    "# interval: 0.000000001 s", "# interval: 999999999.999999999 s", f"# interval: {HUGE} s",
    "Timestamp start: 140724174241040", "Timestamp start: 1", "Timestamp end: 1", f"Timestamp end: {HUGE}",
    "Timestamp start: -5", "Total QPS = nan (0 / 0.0s)", "Total QPS = 1.0 (1 / 999999999.0s)", "2, 3, 4)", "1, 2,",
    "Total number of intervals = 999999999 (1", "Total number of intervals = 1 (",
    "Total number of intervals = 3 (1486, 13440, 17185)", OUTPUT, OUTPUT.splitlines()[7], "read", "read nan", "",
)  # fmt: skip
OUTPUT_LINES = st.one_of(
    st.just(OUTPUT.splitlines()), st.lists(st.sampled_from([*OUTPUT.splitlines(), *OUTPUT_NOISE]), max_size=25)
)
ANYTHING = st.text() | st.binary().map(lambda data: data.decode(errors="replace"))


@UNHURRIED
@given(damaged(LOG_LINES, LOG_NOISE) | ANYTHING)
def test_any_event_log_is_read_checked_and_graded(text: str) -> None:
    judge_log(text)


@UNHURRIED
@given(damaged(OUTPUT_LINES, OUTPUT_NOISE) | ANYTHING)
def test_any_output_is_read_and_graded_by(text: str) -> None:
    judge_output(text)


@UNHURRIED
@given(
    damaged(LOG_LINES, LOG_NOISE), damaged(OUTPUT_LINES, OUTPUT_NOISE), st.sampled_from([0.0, 0.8, 1e9]),
    st.none() | st.floats(0.01, 1e6),
)  # fmt: skip
def test_any_log_is_graded_by_any_output(log: str, output: str, slo_ms: float, interval_s: float | None) -> None:
    verdict = grade(parse(log), reported_intervals(mcperf.parse(output, interval_s=interval_s)), slo_ms)
    assert 0 <= verdict.coverage <= 1
    assert verdict.overlap.violations <= verdict.overlap.intervals <= verdict.whole.intervals


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)  # shorter than the two names that are no jobs
CORES = st.frozensets(st.integers(0, 8191), min_size=1, max_size=5)
BATCH = st.tuples(NAMES, CORES, CORES, st.integers(1, 99_999), st.text(), st.booleans())


@UNHURRIED
@given(st.lists(BATCH, max_size=6, unique_by=lambda job: job[0]))
def test_what_is_written_is_read_without_a_deviation_and_back_to_equal_events(
    jobs: list[tuple[str, frozenset[int], frozenset[int], int, str, bool]],
) -> None:
    def at(step: int) -> datetime:
        return BEGIN + timedelta(milliseconds=step)

    events = [Event(at(0), "start", "scheduler"), Event(at(0), "start", "memcached", frozenset({0}), 2)]
    for step, (name, first, second, threads, comment, pauses) in enumerate(jobs, 1):
        events.append(Event(at(step), "start", name, first, threads))
        events += [Event(at(step), "update_cores", name, second)] if second != first else []
        events += [Event(at(step), "custom", name, comment=comment)] if comment.strip() else []
        events += [Event(at(step), kind, name) for kind in ("pause", "unpause", "end") if pauses or kind == "end"]
    events.append(Event(at(len(jobs) + 1), "end", "scheduler"))
    text = "".join(f"{event}\n" for event in events)
    log = parse(text)
    assert log.events == tuple(events)
    assert log.deviations == ()
    assert violations(text) == []


FIGURES = st.floats(0, 1e9).map(lambda figure: round(figure, 1))
ROWS = st.builds(
    mcperf.Row,
    **{f.name: FIGURES for f in fields(mcperf.Row) if f.name.endswith("_us")},
    qps=FIGURES, target=st.integers(0, 10**9), late=st.booleans(),
)  # fmt: skip


@UNHURRIED
@given(st.lists(ROWS, max_size=6), st.integers(10**12, 10**13 - 10**10), st.integers(1, 10**6), st.booleans())
def test_an_output_survives_writing_and_reading(
    rows: list[mcperf.Row], start_ms: int, interval_ms: int, complete: bool
) -> None:
    targets = tuple(row.target for row in rows) or (1,)
    end_s = (start_ms + interval_ms * len(targets)) / 1e3
    output = mcperf.Output(
        start_ms / 1e3, end_s, interval_ms / 1e3, targets, tuple(rows), complete=complete and bool(rows)
    )
    text = mcperf.write(output)
    assert replace(mcperf.parse(text), warnings=()) == output
    assert mcperf.parse_all(2 * text) == 2 * [mcperf.parse(text)] or not rows  # without rows they are not told apart


AT = "2025-05-14T12:22:09.500000"


def filled(unit: str, head: str = "", tail: str = "", size: int = 1_000_000) -> str:
    """A text of that size."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


NASTY_LOGS = {
    "one word": filled("a"),
    "words": filled("a "),
    "blanks": filled(" ", tail="x"),
    "line feeds": filled("\n", size=100_000),
    "carriage returns": filled("\r"),
    "a list": filled("1,", f"{AT} update_cores vips [", "]\n"),
    "ranges": filled("0-8191,", f"{AT} update_cores vips ", "1\n"),
    "all cores in each line": filled(f"{AT} update_cores vips 0-8191\n"),
    "dashes": filled("1-", f"{AT} update_cores vips "),
    "brackets": filled("[", f"{AT} start vips "),
    "quotes": filled("\"'", f"{AT} start vips "),
    "blanks in arguments": filled(" ", f"{AT} start vips [1]", "x y"),
    "digits": filled("9", f"{AT} start vips ["),
    "threads": filled("9", f"{AT} start vips [1] "),
    "half an escape": filled("%2", f"{AT} custom vips "),
    "escapes": filled("%20", f"{AT} custom vips "),
    "half a pause": filled("paus", f"{AT} custom vips "),
    "prefixes": filled("parsec_", f"{AT} start "),
    "runs": filled(f"{AT} start scheduler\n"),
    "ends": filled(f"{AT} end scheduler\n{AT} end a\n"),
}
LIST = "Total number of intervals = 3 (1"
NASTY_OUTPUTS = {
    "one word": filled("a"),
    "reads": filled("read "),
    "a gap in a row": filled(" ", "read", "x"),
    "a row without end": filled("1 ", "read "),
    "digits": filled("1", "read "),
    "a list of a line each": filled("1,\n", f"{LIST}\n"),
    "a padded line below a list": f"{LIST}\n{filled(' ', tail='x')}",
    "lists": filled(f"{LIST}\n"),
    "wrapped lists": filled(f"{LIST}\n1,2\n"),
    "a list in a line": filled("1,", LIST),
    "totals": filled("Total QPS = "),
    "a total": filled("9", "Total QPS = 1 ("),
    "timestamps": filled("Timestamp start: "),
    "marks": filled("# late\n"),
    "outputs": filled(f"#type\n{OUTPUT.splitlines()[7]}\n"),
}


@pytest.mark.parametrize("text", NASTY_LOGS.values(), ids=NASTY_LOGS)
def test_a_megabyte_of_a_nasty_log_is_done_at_all(text: str) -> None:
    violations(text)
    assert grade(parse(text)).overlap.value is None


@pytest.mark.parametrize("text", NASTY_OUTPUTS.values(), ids=NASTY_OUTPUTS)
def test_a_megabyte_of_a_nasty_output_is_done_at_all(text: str) -> None:
    output = mcperf.parse(text, window=(0.0, 1e10))
    assert len(mcperf.intervals(output)) in {0, len(output.rows)}


@pytest.mark.parametrize(
    "line",
    [
        f"{AT} start radix\x1b[31m\0 [1] 1",
        f"{AT} end \x1b]0;title\x07",
        f"{AT} custom scheduler pausing%0Athem",
        f"{AT} start {'X' * 9999} [1] 1",
    ],
)
def test_what_a_log_says_is_shown_in_a_line_without_control_characters(line: str) -> None:
    judge_log(f"{line}\n")
    assert all(len(warning) < 300 for warning in grade(parse(f"{line}\n")).warnings)


def test_no_job_runs_for_less_than_no_time_or_longer_than_it_is_there() -> None:
    def at(second: int, rest: str) -> str:
        return f"2025-05-14T12:22:{second:02}.000000 {rest}\n"

    back = at(10, "start a [1] 1") + at(5, "end a")
    verdict = grade(parse(back))
    assert (verdict.makespan_s, verdict.jobs["a"].wall_s, verdict.jobs["a"].run_s) == (0, 0, 0)
    paused = at(10, "start a [1] 1") + at(11, "pause a") + at(40, "unpause a") + at(12, "end a")
    assert (grade(parse(paused)).jobs["a"].wall_s, grade(parse(paused)).jobs["a"].run_s) == (2, 0)
    undone = at(10, "start a [1] 1") + at(30, "pause a") + at(15, "unpause a") + at(20, "end a")
    assert (grade(parse(undone)).jobs["a"].wall_s, grade(parse(undone)).jobs["a"].run_s) == (10, 10)
