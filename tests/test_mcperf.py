"""mcperf's format: its waveform bit for bit, its output as users really have it, and what is written read back."""

from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from colocate.errors import UserError
from colocate.mcperf import (
    COLUMNS,
    Output,
    Row,
    format_intervals,
    format_row,
    format_total,
    intervals,
    is_late_mark,
    parse,
    parse_all,
    parse_row,
    waveform,
    write,
)

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on emulated machines, too

HEADER = (
    "#type       avg     std     min      p5     p10     p50     p67     p75     p80     p85     p90     p95     p99"
    "    p999   p9999      QPS   target"
)
LINE = (
    "read      202.8   133.9    68.9   109.0   126.7   189.3   210.4   222.3   231.0   242.0   257.0   288.3   773.3"
    "  1398.5  7086.6   8055.5     8195"
)
WIDE = (
    "read     1703.9 12115.2   148.8   205.6   221.3   381.9   447.6   482.4   508.3   548.1   616.5   757.0  1977.5"
    " 13931.2 770933.1  13946.8    13911"
)
START_S, INTERVAL_S = 1747218116.063, 10.0
TARGETS = (1486, 13440, 17185)


def text(rows=3, targets=TARGETS, *, start="1747218116063", end="1747218146363", trailer=True):
    """What mcperf prints for intervals of 10 s."""
    lines = ["Random waveform, supplied seed", format_intervals(targets), "Average QPS expected = 10703"]
    lines += [f"Timestamp start: {start}", f"Timestamp end: {end}", "", HEADER, *[LINE] * rows, ""]
    if trailer:
        lines += [format_total(342711, INTERVAL_S * rows), "", "Warning! Detected max cpu usage > 95%"]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("least", "most", "golden"),
    [
        (1000, 20000, [1486, 13440, 17185, 12790, 6319, 17576]),
        (5000, 180000, [9484, 119578, 154073, 113596, 53990, 157669, 9212, 110542, 7875, 37295]),
    ],
)
def test_the_waveform_is_that_of_mcperf(least, most, golden):
    assert waveform(3274, least, most, len(golden)) == golden


@UNHURRIED
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 50))
def test_a_waveform_stays_in_its_range_and_a_longer_one_begins_alike(seed, low, width, count):
    targets = waveform(seed, low, low + width, count)
    assert len(targets) == count
    assert all(low <= target <= low + width for target in targets)
    assert waveform(seed, low, low + width, count + 3)[:count] == targets


@pytest.mark.parametrize(("least", "most", "count"), [(5, 4, 1), (-1, 4, 1), (1, 2 * 10**9, 1), (1, 2, -1)])
def test_an_impossible_waveform_is_refused(least, most, count):
    with pytest.raises(UserError):
        waveform(1, least, most, count)


def test_rows_and_header_have_the_column_widths_of_mcperf():
    assert COLUMNS == HEADER
    for line in (LINE, WIDE):
        row = parse_row(line)
        assert row is not None
        assert format_row(row) == line
    assert parse_row(f"{LINE}      \r\n") == parse_row(LINE)
    assert parse_row(LINE.replace("  133.9", "   -nan")) is not None


@pytest.mark.parametrize(
    "line", ["", "read", LINE[:-5], HEADER, LINE + " 7", LINE.replace("8195", "81.95"), "x" + LINE]
)
def test_what_is_not_a_whole_row_is_none(line):
    assert parse_row(line) is None


def test_a_whole_output():
    output = parse(text())
    assert (output.start_s, output.end_s, output.interval_s) == (START_S, 1747218146.363, INTERVAL_S)
    assert (output.targets, len(output.rows), output.complete, output.warnings) == (TARGETS, 3, True, ())
    assert [(a, b) for a, b, _ in intervals(output)] == [
        (START_S + 10 * i, pytest.approx(START_S + 10 * (i + 1))) for i in range(3)
    ]


def test_prompts_notes_dates_padding_and_carriage_returns_do_not_matter():
    noisy = "user@host:~$ ./mcperf -s 10.0.0.1 -t 30\nWed May 25 20:25:22 UTC 2022\nfirst try, ok\n" + text()
    padded = "\n".join(f"{line:<300}\r" for line in noisy.split("\n"))
    assert parse(noisy) == parse(padded) == parse(text())


@pytest.mark.parametrize("width", [40, 43, 47, 50, 55])
def test_a_terminal_wraps_the_waveform_even_inside_a_number(width):
    line = format_intervals(TARGETS)
    wrapped = text().replace(line, "\n".join(line[i : i + width] for i in range(0, len(line), width)))
    assert parse(wrapped) == parse(text())


def test_without_a_preamble_times_are_known_but_no_targets():
    output = parse(text()[text().index("Timestamp start") :])
    assert (output.start_s, output.interval_s, output.targets, len(output.rows)) == (START_S, INTERVAL_S, (), 3)


def test_the_interval_of_a_file_that_was_cut_comes_from_its_waveform():
    cut = text(rows=2, trailer=False).rstrip() + "\n" + LINE[:38]
    output = parse(cut)
    assert (output.interval_s, len(output.rows), output.complete) == (INTERVAL_S, 2, False)
    assert any("cut" in warning for warning in output.warnings)


def test_a_last_row_that_lacks_digits_is_cut_but_a_whole_one_needs_no_newline():
    whole = text(trailer=False).rstrip()
    assert len(parse(whole).rows) == 3
    assert len(parse(whole[:-1]).rows) == 2


def test_an_uninitialised_start_is_counted_back_from_the_end():
    output = parse(text(start="140724174241040"))
    assert output.interval_s == INTERVAL_S
    assert output.start_s == pytest.approx(START_S + 0.3)
    assert any("counted back" in warning for warning in output.warnings)


def test_without_any_valid_time_rows_are_read_but_have_no_times():
    output = parse(text(start="140724174241040", end="7"))
    assert (output.start_s, intervals(output), len(output.rows)) == (None, [], 3)
    assert any("no times" in warning for warning in output.warnings)


@pytest.mark.parametrize("length_s", [0.75, 1.0, 1.25, 1.75, 2.75, 4.0, 7.0, 10.0, 15.0])
@pytest.mark.parametrize("overrun_s", [0.2, 0.45, 1.0, 1.7])
def test_the_interval_is_inferred_though_runs_last_longer_and_end_with_a_part(length_s, overrun_s):
    count = -int(-960 // length_s)
    end = str(round(1747218116063 + 1e3 * (960 + overrun_s)))
    assert parse(text(count, tuple([8195] * count), end=end)).interval_s == length_s


def test_an_interval_that_is_given_wins_and_a_disagreement_is_told():
    output = parse(text(), interval_s=8.0)
    assert output.interval_s == 8.0
    assert any("10 s" in warning for warning in output.warnings)
    assert parse(text(), interval_s=10.0).warnings == ()


def test_of_two_outputs_in_one_file_the_one_in_the_window_is_taken():
    later = text(start="1747219116063", end="1747219146363").replace("8055.5", "7000.0")
    both = f"{text()}\n{later}"
    first, second = parse_all(both)
    assert (first, second) == (parse(text()), parse(later))
    assert parse(both) == second
    assert parse(both, window=(START_S + 5, START_S + 900)) == first
    assert parse(both, window=(START_S + 900, START_S + 1100)) == second


def test_a_planned_end_gives_way_to_the_true_one_after_the_rows():
    early = text(rows=2).replace("Total QPS", "Timestamp end: 1747218132063\nTotal QPS")
    output = parse(early.replace("Timestamp start", "# interval: 10 s\nTimestamp start"))
    assert (output.end_s, output.interval_s, output.complete) == (1747218132.063, 10.0, False)
    assert intervals(output)[-1][:2] == (START_S + 10, 1747218132.063)


def test_a_mark_makes_the_row_before_it_late():
    mark = "# late: the generator lagged"
    assert is_late_mark(mark)
    assert not is_late_mark(HEADER)
    marked = text().replace(LINE, f"{LINE}\n{mark}", 1)
    assert [row.late for row in parse(marked).rows] == [True, False, False]
    assert parse(f"{mark}\n{text()}") == parse(text())


@UNHURRIED
@given(st.text(alphabet=st.characters(codec="utf-8")))
@example("Total number of intervals = 3 (1, 2")
@example(f"{LINE}\nTimestamp end: 99999999999999999999")
@example("Timestamp start: 1747218146363\nTimestamp end: 1747218116063\n" + LINE)
@example("# interval: 0 s\n" + text())
def test_no_text_makes_it_raise(anything):
    output = parse(anything)
    assert len(intervals(output)) in (0, len(output.rows))


@UNHURRIED
@given(st.lists(st.sampled_from([*text().split("\n"), WIDE, "# late", "", LINE[:70], "Timestamp start: 1"])), st.data())
def test_no_mixture_of_its_lines_makes_it_raise_or_loses_a_row(lines, data):
    mixed = "\n".join(lines)
    cut = data.draw(st.integers(0, len(mixed)))
    assert sum(len(part.rows) for part in parse_all(mixed + "\n")) == sum(line in (LINE, WIDE) for line in lines)
    parse(mixed[:cut], interval_s=data.draw(st.sampled_from([None, 0.5, 10.0])), window=(0.0, 1e10))


VALUES = st.integers(0, 10**8).map(lambda tenths: tenths / 10)
ROWS = st.builds(
    Row,
    **{f.name: VALUES for f in fields(Row) if f.name.endswith("_us")},
    qps=VALUES,
    target=st.integers(0, 10**7),
    late=st.booleans(),
)


@UNHURRIED
@given(
    st.lists(ROWS, min_size=1, max_size=8),
    st.integers(10**12, 10**13 - 10**9),
    st.integers(1, 10**5).map(lambda hundredths: hundredths / 100),
    st.booleans(),
)
def test_what_is_written_is_read_back(rows, start_ms, interval_s, complete):
    targets = tuple(row.target for row in rows)
    end_s = round(start_ms + 1e3 * interval_s * len(rows)) / 1e3
    output = Output(start_ms / 1e3, end_s, interval_s, targets, tuple(rows), complete)
    assert parse(write(output)) == output
    assert parse(write(replace(output, rows=output.rows[:-1], complete=False))).rows == output.rows[:-1]


def test_an_output_without_times_cannot_be_written():
    with pytest.raises(ValueError, match="start or end"):
        write(Output())
