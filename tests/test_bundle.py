"""scripts/bundle.py: which wheels, and how large."""

import runpy
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cramjax.errors import UserError

SCRIPT = runpy.run_path("scripts/bundle.py")
Machine = SCRIPT["Machine"]

# {name: {version: what it requires}}, newest first.
INDEX = {
    "trainer": {"2.0": ["arrays>=1", "reader[xz]", "old; python_version<'3.12'"]},
    "arrays": {"2.1": ["kernel"], "1.4": ["kernel"]},
    "kernel": {"9": []},
    "reader": {"1.0": ["xz; extra == 'xz'", "tests; extra == 'test'"]},
    "xz": {"5": ["Arrays<2"]},
}


@pytest.fixture
def index(monkeypatch):
    """Stands for a package index."""

    def wheel(self, name, versions, folder):
        version = next(v for v in INDEX[name] if v in versions)
        path = folder / name / f"{name}-{version}-py3-none-any.whl"
        path.parent.mkdir()
        lines = [f"Requires-Dist: {line}\n" for line in INDEX[name][version]]
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{name}-{version}.dist-info/METADATA", "".join(lines) + "\n")
        return path

    monkeypatch.setattr(Machine, "wheel", wheel)


def names(machine, folder):
    found = SCRIPT["wheels"]([Requirement("trainer")], machine, folder)
    return sorted(path.name.rpartition("-py3")[0] for path in found)


def test_all_that_is_needed_by_what_is_needed(index, tmp_path):
    """Of the versions that all agree to; extras that are asked for; its own Python."""
    expected = ["arrays-1.4", "kernel-9", "reader-1.0", "trainer-2.0", "xz-5"]
    assert names(Machine("3.12", {}), tmp_path) == expected


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("arrays==1.9\n", ["reader-1.0", "trainer-2.0", "xz-5"]),
        ("Arrays @ file:///somewhere\nxz", ["reader-1.0", "trainer-2.0"]),
        ("xz==5\narrays==0.9", ["arrays-2.1", "kernel-9", "reader-1.0", "trainer-2.0"]),
    ],
)
def test_what_is_there_is_left_out_with_what_only_it_needs(
    index, tmp_path, there, expected
):
    path = tmp_path / "have.txt"
    path.write_text(there)
    machine = Machine("3.12", SCRIPT["read_have"](str(path)))
    assert names(machine, tmp_path) == expected


def test_the_requirements_are_those_of_setup_cfg():
    found = {requirement.name: requirement for requirement in SCRIPT["requirements"]()}
    assert {"jax", "tokenizers", "importlib-resources", "pytest"} <= found.keys()
    assert found["numpy"].specifier == SpecifierSet(">=2.0,<3")


def test_too_large_a_bundle_is_refused_and_the_largest_named():
    sizes = {"jaxlib.whl": 90_000_000, "rich.whl": 300_000, "scipy.whl": 35_000_000}
    message = (
        r"it would take 125\.3 MB, most of it jaxlib\.whl \(90\.0 MB\), scipy\.whl"
    )
    with pytest.raises(UserError, match=message):
        SCRIPT["_refuse_above"](60.0, 125_300_000, sizes)
    for limit_mb in (126.0, 0.0):
        SCRIPT["_refuse_above"](limit_mb, 125_300_000, sizes)
