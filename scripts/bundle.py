"""Packs what a machine without a network lacks to run scripts/check_gpu.sh.

python scripts/bundle.py --out=bundle.tar.gz [--python=3.12] [--have=FILE]
    [--limit_mb=60] [--glue=glue_data] [--config=configs/h200.py]
    [--config.data.sources="('texts/*.txt.xz',)"]

In it are this repository as of HEAD, wheels for that Python on Linux (x86-64), the text
with its packed corpus, and those of GLUE's tasks that fine-tune within minutes. --have
is what the machine's `pip list --format=freeze` prints: what is there is left out, and
so is all that only this needs. Without it wheels of everything are packed, JAX for a
CPU among them; that is above any small limit, so pass --limit_mb=0 for none. Torch, for
comparison, and JAX's CUDA plugin are never packed. On the machine:

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
from cramjax.errors import UserError
from cramjax.flags import parse_command_line, parse_flags
from cramjax.main import guarded

ROOT = Path(__file__).parents[1]
LIMIT_MB = 60.0
# What the tests and the energy meter need besides setup.cfg's install_requires.
ALSO = ("pytest>=8,<10", "nvidia-ml-py>=12,<14")
GLUE = ("CoLA", "MRPC", "RTE", "STS-B", "SST-2")
GLIBC = (39, 38, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)  # 2.N, of manylinux tags
INSTALL = """#!/usr/bin/env bash
# Installs the packages of wheels/ into site/, which scripts/check_gpu.sh looks into.
set -euo pipefail
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m pip install --no-index --no-deps --no-compile --upgrade \\
  --target=site wheels/*.whl
"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the bundle is for.

    Attributes:
      python: its version, "3.12".
      have: {canonical name of a package: its version, or "" if it is not known}.
    """

    python: str
    have: dict[str, str]

    def applies(self, marker: Marker | None, extra: str = "") -> bool:
        """Returns whether a requirement with this marker is one there."""
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
        """Returns whether it is met by what is there."""
        version = self.have.get(canonicalize_name(requirement.name))
        if not version:
            return version is not None
        return requirement.specifier.contains(version, prereleases=True)

    def wheel(self, name: str, versions: SpecifierSet, folder: Path) -> Path:
        """Fetches a package's wheel, or builds it where only its source is there.

        Raises:
          UserError: neither can be done.
        """
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        tags = [f"manylinux_2_{n}_x86_64" for n in GLIBC]
        tags += [f"manylinux{n}_x86_64" for n in ("2014", "2010", "1")]
        there = ["--only-binary=:all:", "--implementation=cp"]
        there += [f"--python-version={self.python}", *(f"--platform={t}" for t in tags)]
        place = folder / name
        for command in (
            [*pip, "download", "--no-deps", *there, f"--dest={place}"],
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
    """Returns what this project needs, by setup.cfg."""
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].strip().splitlines()
    return [Requirement(line.strip()) for line in (*lines, *ALSO) if line.strip()]


def wheels(needed: Iterable[Requirement], machine: Machine, folder: Path) -> list[Path]:
    """Returns wheels of what is needed and not there, and of what these need."""
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
    """Copies the text and packs it as the run of part d will."""
    from cramjax.data.prepare import prepare
    from cramjax.data.sources import resolve

    found = parse_command_line(flags)[0]
    if not found.data.sources:
        print("no text: part d will train on the embedded books")
        return
    texts = data / "texts"
    texts.mkdir(parents=True)
    for number, file in enumerate(resolve(found.data)):
        path = Path(file.name)
        if not path.is_file():
            raise UserError(f"config.data.sources: {path} is no file: pass files")
        shutil.copy(path, texts / f"{number:04}-{path.name}")
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
    values, flags = parse_flags(
        argv,
        {"out": "bundle.tar.gz"},
        {
            "python": "version",
            "have": "what is there",
            "limit_mb": "0 for none",
            "glue": "folder of GLUE's tasks",
            "config": "the card's",
        },
    )
    try:
        limit_mb = float(values["limit_mb"] or LIMIT_MB)
    except ValueError as error:
        raise UserError(f"--limit_mb={values['limit_mb']}: must be a number") from error
    out = files.to_be_written("out", values["out"])
    machine = Machine(values["python"] or "3.12", read_have(values["have"]))
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name) / "cramjax"
        (stage / "wheels").mkdir(parents=True)
        print(f"wheels for Python {machine.python}, beside {len(machine.have)} there:")
        sizes = {}
        for path in wheels(requirements(), machine, Path(name) / "found"):
            path.rename(stage / "wheels" / path.name)
            sizes[path.name] = (stage / "wheels" / path.name).stat().st_size
        _refuse_above(limit_mb, sizes)
        paths = [".", ":!records"]
        tree = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "HEAD", "--", *paths],
            capture_output=True,
            check=True,
        )
        archive = Path(name) / "tree.tar"
        archive.write_bytes(tree.stdout)
        with tarfile.open(archive) as file:
            file.extractall(stage, filter="data")
        (stage / "install.sh").write_text(INSTALL)
        given = values["config"] or "configs/h200.py"
        _corpus([f"--config={given}", *flags], stage / "data")
        for task in GLUE if values["glue"] else ():
            there = Path(values["glue"]).expanduser() / task
            if there.is_dir():
                shutil.copytree(there, stage / "data" / "glue_data" / task)
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
        if 0 < limit_mb * 1e6 < size:
            out.unlink()
            _refuse_above(limit_mb, sizes | {"everything": size}, size)
    for what in ("data/texts", "data/packed", "data/glue_data"):
        print(f"  {_mb(sizes[what]):>9}  {what}")
    print(f"{out}: {_mb(size)}")


def _refuse_above(limit_mb: float, sizes: dict[str, int], whole: int = 0) -> None:
    """Raises a `UserError` that names the largest if it is more than the limit."""
    whole = whole or sum(sizes.values())
    if not limit_mb or whole <= limit_mb * 1e6:
        return
    parts = {name: size for name, size in sizes.items() if name != "everything"}
    largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
    named = ", ".join(f"{name} ({_mb(parts[name])})" for name in largest)
    raise UserError(
        f"--limit_mb={limit_mb:g}: it would take {_mb(whole)}, most of it {named}; "
        "pass --have with what the machine has, less text, or another limit (0: none)"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(guarded(bundle, sys.argv[1:], __doc__))
