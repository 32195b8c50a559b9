"""Packs what a machine without a network lacks to run scripts/check_gpu.sh.

python scripts/bundle.py --out=bundle.tar.gz [--python=3.12] [--have=FILE]
    [--limit_mb=60] [--glue=glue_data] [--config=configs/h200.py]
    [--config.data.sources="('texts/*.txt.xz',)"]

The bundle contains this repository as of HEAD, wheels for that Python on Linux
(x86-64), the text with its packed corpus, and the GLUE tasks that fine-tune within
minutes. --have is a file with the output of the machine's `pip list --format=freeze`:
installed packages and their dependencies are left out. Without it wheels of everything
are packed, including JAX for a CPU; that exceeds any small limit, so pass --limit_mb=0
for none. PyTorch and JAX's CUDA plugin are never packed. On the machine:

tar xf bundle.tar.gz && cd cramjax && bash install.sh
bash scripts/check_gpu.sh --data=data
"""

import configparser
import dataclasses
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from email import message_from_bytes
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from cramjax import files
from cramjax.config.key import at_least
from cramjax.errors import UserError
from cramjax.flags import number, parse_command_line, parse_flags
from cramjax.main import guarded

ROOT = Path(__file__).parents[1]
LIMIT_MB = 60.0  # of the bundle
# What the tests and the energy meter need besides setup.cfg's install_requires.
ALSO = ("pytest>=8,<10", "nvidia-ml-py>=12,<14")
GLUE = ("CoLA", "MRPC", "RTE", "STS-B", "SST-2")
GLIBC = (39, 38, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)  # 2.N, of manylinux tags
INSTALL = """#!/usr/bin/env bash
# Installs the packages of wheels/ into site/, where scripts/check_gpu.sh finds them.
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m pip install --no-index --no-deps --no-compile --upgrade \\
  --target=site wheels/*.whl
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine that the bundle is for.

    Attributes:
      python: its version, "3.12".
      have: {canonical name of an installed package: its version, "" if unknown}.
    """

    python: str
    have: dict[str, str]

    def applies(self, marker: Marker | None, extra: str = "") -> bool:
        """Returns whether a requirement with this marker applies to the machine."""
        return marker is None or marker.evaluate(
            {
                "python_version": self.python,
                "python_full_version": f"{self.python}.0",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "os_name": "posix",
                "sys_platform": "linux",
                "platform_system": "Linux",
                "platform_machine": "x86_64",
                "extra": extra,
            }
        )

    def has(self, requirement: Requirement) -> bool:
        """Returns whether an installed package meets the requirement."""
        version = self.have.get(canonicalize_name(requirement.name))
        if not version:
            return version is not None
        return requirement.specifier.contains(version, prereleases=True)

    def wheel(self, name: str, versions: SpecifierSet, folder: Path) -> Path:
        """Downloads a package's wheel, or builds it where there is only its source.

        Raises:
          UserError: neither is possible.
        """
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        tags = [f"manylinux_2_{n}_x86_64" for n in GLIBC]
        tags += [f"manylinux{n}_x86_64" for n in ("2014", "2010", "1")]
        binary = ["--only-binary=:all:", f"--python-version={self.python}"]
        binary += ["--implementation=cp", *(f"--platform={tag}" for tag in tags)]
        place = folder / name
        for command in (
            [*pip, "download", "--no-deps", *binary, f"--dest={place}"],
            [*pip, "wheel", "--no-deps", f"--wheel-dir={place}"],
        ):
            done = subprocess.run(
                [*command, f"{name}{versions}"], capture_output=True, text=True
            )
            if found := sorted(place.glob("*.whl")):
                if command[-2] == "wheel" and not found[0].name.endswith("-any.whl"):
                    break  # it was built for this machine
                return found[0]
        lines = done.stderr.strip().splitlines() or ["it is built for this Python only"]
        raise UserError(
            f"{name}{versions}: no wheel for --python={self.python}: {lines[-1]}"
        )


def requirements() -> list[Requirement]:
    """Returns the requirements of this project and its tests."""
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].strip().splitlines()
    return [Requirement(line.strip()) for line in (*lines, *ALSO) if line.strip()]


def wheels(needed: Iterable[Requirement], machine: Machine, folder: Path) -> list[Path]:
    """Returns wheels of the packages that are missing, and of their dependencies."""
    found: dict[str, Path] = {}
    versions: dict[str, SpecifierSet] = {}
    extras: dict[str, set[str]] = {}
    queue = list(needed)
    while queue:
        requirement = queue.pop(0)
        name = canonicalize_name(requirement.name)
        if machine.has(requirement):
            continue
        known = versions.get(name)
        versions[name] = (known or SpecifierSet()) & requirement.specifier
        new_extras = requirement.extras - extras.setdefault(name, set())
        extras[name] |= requirement.extras
        if name in found:
            version = found[name].name.split("-")[1]
            if versions[name].contains(version, prereleases=True) and not new_extras:
                continue
            shutil.rmtree(found[name].parent)
        found[name] = machine.wheel(name, versions[name], folder)
        print(f"  {_mb(found[name].stat().st_size):>9}  {found[name].name}", flush=True)
        with zipfile.ZipFile(found[name]) as archive:
            [path] = [n for n in archive.namelist() if n.endswith("info/METADATA")]
            metadata = message_from_bytes(archive.read(path))
        for line in metadata.get_all("Requires-Dist") or []:
            other = Requirement(line)
            if any(machine.applies(other.marker, e) for e in ("", *extras[name])):
                queue.append(other)
    return list(found.values())


def read_have(path: str) -> dict[str, str]:
    """Returns {canonical name: version or ""} of `pip list --format=freeze`.

    Raises:
      UserError: the file cannot be read.
    """
    if not path:
        return {}
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except OSError as error:
        raise UserError(f"--have={path} cannot be read ({error.strerror})") from error
    pairs = [line.split("#")[0].split(" @ ")[0].partition("==") for line in lines]
    return {
        str(canonicalize_name(name.strip())): version.strip()
        for name, _, version in pairs
        if name.strip()
    }


def _corpus(flags: Sequence[str], data: Path) -> None:
    """Copies the text, and packs it as the runs of part d do."""
    from cramjax.data.prepare import prepare
    from cramjax.data.sources import resolve

    found = parse_command_line(flags)[0]
    if not found.data.sources:
        print("no text: part d will train on the embedded books")
        return
    texts = data / "texts"
    texts.mkdir(parents=True)
    for index, file in enumerate(resolve(found.data)):
        path = Path(file.name)
        if not path.is_file():
            raise UserError(f"config.data.sources: {path} is not a file: pass files")
        shutil.copy(path, texts / f"{index:04}-{path.name}")
    prepare(
        dataclasses.replace(
            found,
            data=dataclasses.replace(
                found.data, sources=(str(texts / "*"),), dir=str(data / "packed")
            ),
        )
    )


def bundle(argv: Sequence[str]) -> None:
    """Writes the bundle and prints the sizes.

    Raises:
      UserError: it would be larger than the limit.
    """
    optional = ["python", "have", "limit_mb", "glue", "config"]
    values, flags = parse_flags(argv, {"out": "bundle.tar.gz"}, optional)
    limit_mb = number(values, "limit_mb", LIMIT_MB, at_least(0, "0 = no limit"))
    out = files.to_be_written("out", values["out"])
    machine = Machine(values["python"] or "3.12", read_have(values["have"]))
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name) / "cramjax"
        (stage / "wheels").mkdir(parents=True)
        print(f"wheels for Python {machine.python}, {len(machine.have)} are installed:")
        sizes = {}
        for path in wheels(requirements(), machine, Path(name) / "found"):
            sizes[path.name] = path.stat().st_size
            path.rename(stage / "wheels" / path.name)
        _refuse_above(limit_mb, sum(sizes.values()), sizes)
        archive = Path(name) / "tree.tar"
        git = ["git", "-C", str(ROOT), "archive", f"--output={archive}", "HEAD"]
        subprocess.run([*git, "--", ".", ":!records"], check=True)
        with tarfile.open(archive) as file:
            # Python 3.11.3 and earlier do not have the filter.
            file.extraction_filter = getattr(tarfile, "data_filter", None)
            file.extractall(stage)
        (stage / "install.sh").write_text(INSTALL)
        given = values["config"] or "configs/h200.py"
        _corpus([f"--config={given}", *flags], stage / "data")
        for task in GLUE if values["glue"] else ():
            folder = Path(values["glue"]) / task
            if folder.is_dir():
                shutil.copytree(folder, stage / "data" / "glue_data" / task)
        for part in ("data/texts", "data/packed", "data/glue_data"):
            inside = [p for p in (stage / part).rglob("*") if p.is_file()]
            sizes[part] = sum(path.stat().st_size for path in inside)
        with (
            files.replacing(out) as file,
            tarfile.open(fileobj=file, mode="w:gz") as tar,
        ):
            tar.add(stage, "cramjax")
            file.flush()
        size = out.stat().st_size
        try:
            _refuse_above(limit_mb, size, sizes)
        except UserError:
            out.unlink()
            raise
    for what in ("data/texts", "data/packed", "data/glue_data"):
        print(f"  {_mb(sizes[what]):>9}  {what}")
    print(f"{out}: {_mb(size)}")


def _refuse_above(limit_mb: float, size: int, sizes: dict[str, int]) -> None:
    """Raises a `UserError` that names the largest parts if there is too much."""
    if 0 < limit_mb * 1e6 < size:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        named = ", ".join(f"{name} ({_mb(sizes[name])})" for name in largest)
        raise UserError(
            f"--limit_mb={limit_mb:g}: it would take {_mb(size)}, most of it {named}; "
            "pass --have with what the machine has, less text, or another limit (0: "
            "none)"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(guarded(bundle, sys.argv[1:], __doc__))
