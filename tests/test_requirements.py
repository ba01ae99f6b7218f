"""The lower bounds of pyproject.toml equal the versions of `make test-lowest`. The GPU tests and the benchmarks need
fewer packages."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis")
# The GPU tests and the benchmarks do not need the sample corpus, shell completion, optional formats and test tools.
NOT_NEEDED = ("babel", "num2words", "shtab", "datasets", "py3langid", "sentence_transformers", "mteb", "playwright")


def lower_bounds() -> dict[str, Version]:
    """Returns the lowest version of each package that building, running and the optional formats require."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    listed = pyproject["build-system"]["requires"] + project["dependencies"]
    for extra in ("report", "sample", "tensorboard", "langid", "datasets"):
        listed += project["optional-dependencies"][extra]
    bounds: dict[str, Version] = {}
    for requirement in map(Requirement, listed):
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", requirement
        bound = Version(specifier.version)
        assert bounds.setdefault(canonicalize_name(requirement.name), bound) == bound, requirement
    return bounds


def tables(page: str) -> dict[str, list[str]]:
    """Returns the first words of the rows of each section with a table whose header names a package."""
    sections: dict[str, list[str]] = {}
    for section in page.split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
        if rows and "package" in rows[0]:
            place = rows[0].index("package")
            assert all(all(row) for row in rows), f"an empty cell: {section}"
            sections[section.splitlines()[0]] = [" ".join(row[: place + 1]) for row in rows[2:]]
    return sections


def test_the_page_of_dependencies_has_a_row_for_each_and_no_other():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]

    def names(requirements: list[str]) -> list[str]:
        found = [Requirement(requirement).name for requirement in requirements]
        return [name for name in found if name != "ppa-fast"]  # an extra of ours

    extras = project["optional-dependencies"].items()
    assert tables((ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")) == {
        "To train and to evaluate": names(project["dependencies"]),
        "To build the native operations": names(pyproject["build-system"]["requires"]),
        "Extras": [f"{extra} {name}" for extra, listed in extras for name in names(listed)],
    }


def test_the_extra_all_has_every_extra_of_users():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (all_of_them,) = map(Requirement, extras["all"])
    assert all_of_them.extras == extras.keys() - {"all", "test", "docs", "dev"}


def constraints(name: str) -> dict[str, Version]:
    """Returns the versions in a constraints file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, _, version in pins}


def test_the_lowest_constraints_are_the_lower_bounds():
    lowest, bounds = constraints("constraints-lowest.txt"), lower_bounds()
    assert {name: lowest.get(name) for name in bounds} == bounds


def test_the_test_tools_are_the_same_in_both_sets_of_constraints():
    lowest, usual = constraints("constraints-lowest.txt"), constraints("constraints.txt")
    assert {name: lowest[name] for name in TEST_TOOLS} == {name: usual[name] for name in TEST_TOOLS}


@pytest.fixture
def small_environment(tmp_path: Path) -> dict[str, str]:
    """The environment in which a Python process, and all processes that it starts, cannot import ``NOT_NEEDED``."""
    text = f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED}))\n"
    (tmp_path / "sitecustomize.py").write_text(text, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu"], id="GPU tests"),
        pytest.param(["benchmarks/step.py", "--device", "cpu", "--quick", "--rows", "naive,DeepSpeed"], id="step"),
        pytest.param(["benchmarks/kernels.py", "--device", "cpu", "--quick"], id="kernels"),
        pytest.param(["benchmarks/gpu.py", "--device", "cpu", "--stages", "smoke", "--out", "OUT"], id="gpu.py"),
    ],
)
def test_gpu_tests_and_benchmarks_need_no_other_packages(
    small_environment: dict[str, str], command: list[str], tmp_path: Path
) -> None:
    command = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=small_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_without_extras_the_rest_works_and_a_command_names_the_extra_it_needs(tmp_path: Path) -> None:
    missing = ("matplotlib", "jinja2", "babel", "num2words", "tensorboard", "py3langid", "datasets")
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n", encoding="utf-8"
    )
    script = """
import ppa_fast
from ppa_fast import cli
for name in ppa_fast.__all__:
    getattr(ppa_fast, name)
for command in ("sample --pairs 4 --out out", "report run", "ablate plan.yaml --out out"):
    assert cli.main(command.split()) == 2
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [error.partition(" is not installed: ")[2] for error in errors] == [
        f"pip install 'ppa-fast[{extra}]'" for extra in ("sample", "report", "report")
    ]


@pytest.mark.parametrize("package", NOT_NEEDED)
def test_the_small_environment_lacks_these_packages(small_environment: dict[str, str], package: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {package}"], env=small_environment, capture_output=True)
    assert b"ModuleNotFoundError" in done.stderr
