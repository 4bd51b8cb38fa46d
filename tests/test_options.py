import argparse

import pytest

from colocate.cli import options
from colocate.cli.main import Parser
from colocate.cli.run import add_run_options
from colocate.errors import UserError


@pytest.fixture
def parser():
    made = Parser(prog="colocate run", allow_abbrev=False)
    add_run_options(made)
    made.add_argument("--memcached-ip")
    return made


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("90", 90), ("1.5s", 1.5), ("15m", 900), ("2h", 7200), ("200us", 2e-4)]
)
def test_times_have_units(text, seconds):
    assert options.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1s", "1 fortnight", "nan", "1e9", "ms"])
def test_what_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no time above zero"):
        options.seconds(text)


def test_a_latency_needs_its_unit():
    assert options.latency_ms("800us") == pytest.approx(0.8)
    with pytest.raises(argparse.ArgumentTypeError, match=r"write it like 0\.8ms"):
        options.latency_ms("0.8")


@pytest.mark.parametrize(
    ("convert", "bad"), [(options.percentile, "100"), (options.port, "80000"), (options.cores, "")]
)
def test_out_of_range(convert, bad):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(bad)


def test_flags_win_over_the_file(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colocate.toml").write_text(
        'slo = "1ms"\nmemcached_ip = "127.0.0.1"\nset = ["high=0.8"]\ndry-run = true\nonce = false\nretries = 4\n'
    )
    args = options.parse_with_config(parser, ["--slo", "0.7ms", "--set", "low=0.2"])
    assert (args.slo, args.memcached_ip, args.dry_run, args.once) == (pytest.approx(0.7), "127.0.0.1", True, False)
    assert args.set == ["high=0.8", "low=0.2"]
    assert args.retries == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", "other.toml: unknown key 'colour'.*slo"),
        ('slo = "fast"', "other.toml: .*--slo"),
        ("dry-run = 3", "other.toml: dry-run"),
        ("slo = true", "other.toml: slo"),
        ("[run]\nslo = 1", "other.toml: unknown key 'run'"),
        ("slo = ", "other.toml: "),
        ("config = 'x'", "unknown key 'config'"),
    ],
)
def test_a_bad_file_is_refused_by_name(parser, tmp_path, text, message):
    file = tmp_path / "other.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        options.parse_with_config(parser, ["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_keys_of_another_command_are_no_fault(parser, tmp_path):
    file = tmp_path / "shared.toml"
    file.write_text('port = 11311\nslo = "2ms"\n')
    args = options.parse_with_config(parser, ["--config", str(file)], ignored=("port",))
    assert args.slo == pytest.approx(2.0)


def test_a_file_that_is_not_there(parser, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        options.parse_with_config(parser, [f"--config={tmp_path / 'none.toml'}"])
