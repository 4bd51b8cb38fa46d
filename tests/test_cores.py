import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.cores import format_list, format_ranges, parse_ranges
from colocate.errors import UserError

core_sets = st.frozensets(st.integers(0, 300), min_size=1)


@given(core_sets)
def test_what_is_written_is_read_again(cores):
    assert parse_ranges(format_ranges(cores)) == cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0-3", {0, 1, 2, 3}), ("0", {0}), ("0-1,4\n", {0, 1, 4}), ("", set()), (" 2 , 5-6", {2, 5, 6})],
)
def test_the_kernels_list_format(text, cores):
    assert parse_ranges(text) == cores


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "1-", "1,,2", "0-99999999999", "1.5", "٣", "9" * 9999, "0-8191,0"])
def test_what_is_no_set_is_named(text):
    with pytest.raises(UserError, match=r"not a set of cores|no range"):
        parse_ranges(text)


@given(st.text(max_size=20))
def test_any_text_is_a_set_or_a_user_error(text):
    try:
        cores = parse_ranges(text)
    except UserError:
        return
    assert all(core >= 0 for core in cores)


@given(core_sets)
def test_the_logs_list_is_ascending_without_blanks(cores):
    text = format_list(cores)
    assert text == str(sorted(cores)).replace(" ", "")


@pytest.mark.parametrize("write", [format_list, format_ranges])
@pytest.mark.parametrize("cores", [[], [-1, 2]])
def test_an_empty_or_negative_set_is_never_written(write, cores):
    with pytest.raises(ValueError, match=r"empty|negative"):
        write(cores)
