"""Modules import downwards only, and never in a circle; `files` alone writes files."""

import ast
import re
from pathlib import Path

import cramjax

ROOT = Path(cramjax.__file__).parent
# From the lowest to the highest; a module imports from its own layer or lower ones.
LAYERS = (
    ("errors", "files", "page", "progress", "tokens", "output", "version"),
    ("config",),
    ("flags", "model", "hlo"),
    ("device", "data"),
    ("likelihood", "word_order"),
    ("training",),
    ("describe", "checkpoints", "glue"),
    ("examples", "figures", "plan", "report", "trackers"),
    ("run",),
    ("compare", "rehearsal", "score", "study", "study_runs"),
    ("commands",),
    ("main",),
)


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}
MODULES.pop("cramjax")  # loads `checkpoints` when it is asked for it


def imported(path):
    """Yields the modules of cramjax that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                name = full if full in MODULES else node.module
                if name in MODULES:
                    yield name


IMPORTS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def cycle():
    """Returns modules each of which imports the next one, and the first again."""
    done = set()

    def visit(name, above):
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for other in sorted(IMPORTS[name]):
            if found := visit(other, [*above, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(IMPORTS))), [])


def test_no_module_imports_itself_through_others():
    assert cycle() == []


def test_imports_go_downwards():
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    upwards = [
        (name, other)
        for name, others in sorted(IMPORTS.items())
        for other in sorted(others)
        if layer[other.split(".")[1]] > layer[name.split(".")[1]]
    ]
    assert upwards == []


def test_a_folder_and_its_neighbours_do_not_import_each_other():
    """Folders and single modules as wholes: no two of them depend on each other."""
    pairs = {
        (name.split(".")[1], other.split(".")[1])
        for name, others in IMPORTS.items()
        for other in others
    }
    assert [(a, b) for a, b in pairs if a < b and (b, a) in pairs] == []


def direct_writes(path):
    """Yields the lines that write a file in place: a kill would leave a part of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        writes = re.search(r"\.write_(text|bytes)$", name) and "files." not in name
        values = (*node.args, *(keyword.value for keyword in node.keywords))
        modes = [x.value for x in values if isinstance(x, ast.Constant)]
        opens = name.split(".")[-1] == "open" and any(
            re.fullmatch("[wx][bt+]*", str(mode)) for mode in modes
        )
        if writes or opens:
            yield ast.unparse(node)


def test_files_are_written_whole():
    """But /dev/null, and a rehearsal's sample, which is in a temporary folder."""
    found = {
        name: lines
        for name, path in MODULES.items()
        if name != "cramjax.files" and (lines := list(direct_writes(path)))
    }
    assert found == {
        "cramjax.device.distributed": ["open(os.devnull, 'w')"],
        "cramjax.rehearsal": ["(scratch / 'sample.jsonl').open('w')"],
    }
