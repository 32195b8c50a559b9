"""The version of the code and how it was started, for records."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def code_version() -> str:
    """Returns the version, for example "0.1.0, commit 1a2b3c4d5e6f, changed".

    The commit, and whether files differ from it, are those of a git checkout.
    """
    try:
        version = metadata.version("cramjax")
    except metadata.PackageNotFoundError:
        version = "not installed"
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return version

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.check_output(
            command, text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}, commit {commit}{', changed' if changed else ''}"


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the numerical libraries."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def command_line() -> str:
    """Returns the command that this process was started with."""
    program, *arguments = sys.orig_argv
    return shlex.join([Path(program).name, *arguments])
