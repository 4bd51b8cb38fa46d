"""What a wheel would hold: every package, catalogue and kernel, and nothing under a name that is somebody else's."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
KINDS = {".toml", ".c", ".h", ".typed", ".html", ".css", ".js", ".svg"}


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "colocate").rglob("__init__.py")}
    wanted = {".".join(folder.parts) for folder in folders}
    assert wanted <= set(SETTINGS["packages"])


def test_no_top_level_name_of_anybody_elses():
    tops = {name.split(".")[0] for name in SETTINGS["packages"]}
    assert tops == {"colocate", "colocate_policies", "colocate_workloads"}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in SETTINGS["package-dir"].values())


def test_what_is_no_python_goes_along():
    for package, patterns in SETTINGS["package-data"].items():
        folder = ROOT / SETTINGS["package-dir"][package]
        shipped = {path for pattern in patterns for path in folder.glob(pattern)}
        others = {p for p in folder.rglob("*") if p.suffix in KINDS}
        assert others <= shipped
