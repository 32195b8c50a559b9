"""scripts/check_gpu.py: its parts on a CPU, and what a failing one does to others."""

import json
import runpy
import subprocess
import sys

import check_table
import pytest

from cramjax.errors import UserError

SCRIPT = runpy.run_path("scripts/check_gpu.py")
GLOBALS = SCRIPT["run_parts"].__globals__
TITLES = dict.fromkeys("abcd", "some part")
SPEEDS = {512: 700e3, 256: 660e3, 128: 500e3}

# How a part's process may end.
ENDS = {
    "exit code 3: no memory": "print('no memory'); raise SystemExit(3)",
    "SIGSEGV": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "not done in": "import time; time.sleep(600)",
}


@pytest.fixture
def parts(monkeypatch):
    """Parts that note that they ran; one of them can be made to fail."""
    ran, ends = [], {}

    def part(check):
        ran.append(check.part)
        check.run("step", ["-c", ends.get(check.part, "")])
        return {"found": check.part}

    names = dict.fromkeys("abcd", ("some part", part))
    monkeypatch.setitem(GLOBALS, "PARTS", names)
    monkeypatch.setitem(GLOBALS, "LIMIT_S", 3.0)
    shown = dict.fromkeys("abcd", lambda facts: [f"found {facts['found']}"])
    monkeypatch.setattr(check_table, "SUMMARIES", shown)
    return ran, ends


@pytest.mark.parametrize(
    ("failing", "why"), list(zip("abc", ENDS, strict=True)), ids=["a", "b", "c"]
)
def test_what_fails_is_named_and_the_rest_goes_on(tmp_path, parts, failing, why):
    ran, ends = parts
    ends[failing] = ENDS[why]
    found = SCRIPT["run_parts"]("abcd", tmp_path, ["--config=x"], None, True)
    assert ran == list("abcd")
    assert [name for name, part in found.items() if not part["passed"]] == [failing]
    assert found[failing]["why"].startswith(f"step: {why}")
    lines = check_table.table(found, TITLES).splitlines()
    assert f"| {failing}: some part | **failed**: step: {why}" in "\n".join(lines)
    assert sum("| passed |" in line for line in lines) == 3
    # What passed is not repeated.
    ran.clear(), ends.clear()
    found = SCRIPT["run_parts"]("abcd", tmp_path, ["--config=x"], None, True)
    assert ran == [failing]
    assert all(part["passed"] for part in found.values())
    with pytest.raises(UserError, match="holds a check with other flags"):
        SCRIPT["run_parts"]("a", tmp_path, ["--config=y"], None, True)


def test_a_part_with_an_error_of_its_own_does_not_stop_the_rest(
    tmp_path, parts, monkeypatch
):
    ran, _ = parts
    names = dict(GLOBALS["PARTS"], a=("broken", lambda check: {}["no such key"]))
    monkeypatch.setitem(GLOBALS, "PARTS", names)
    found = SCRIPT["run_parts"]("ab", tmp_path, [], None, True)
    assert found["a"]["why"] == "KeyError: 'no such key'"
    assert found["b"]["passed"]
    assert "Not run: c (some part), d (some part)." in check_table.table(found, TITLES)


def test_part_c_corrects_later_plans(tmp_path, monkeypatch):
    """On a card that is not there, with a plan that has a factor already."""
    store = tmp_path / "calibration.json"
    monkeypatch.setitem(GLOBALS, "CALIBRATION", store)
    store.write_text(json.dumps({"a100": {"factor": 0.9}, "h200": {"factor": 0.5}}))
    asked = {}

    def run(self, what, command, path):
        asked[what] = command
        assert command[-1] == f"--json={path}"
        rows = {str(n): {"tokens_per_s": 0.5 * 1e6} for n in SPEEDS}
        facts = {
            "speeds": {"card": "h200", "attention": "cudnn", "tokens_per_s": SPEEDS},
            "plan": {"calibration": 0.5, "micro_batches": rows},
        }
        return facts[what]

    monkeypatch.setattr(SCRIPT["Check"], "run", run)
    check = SCRIPT["Check"]("c", tmp_path, ("--config=x",), None, False, 0.0)
    facts = SCRIPT["estimate"](check)
    ratios = [row["ratio"] for row in facts["micro_batches"].values()]
    assert ratios == pytest.approx([0.7, 0.66, 0.5])  # over estimates of 1e6
    assert {"--card=h200", "--micro_batches=512,256,128"} < set(asked["plan"])
    stored = json.loads(store.read_text())
    assert stored["h200"]["factor"] == facts["factor"] == pytest.approx(0.66)
    assert stored["a100"] == {"factor": 0.9}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--parts=a,e"], "--parts=a,e: 'e' is none of a,b,c,d"),
        (["--config=no.py"], "--config=no.py: no such file"),
        (["--data=tests"], "there is no folder"),
        (["--prats=a"], "--prats: no such flag; did you mean --parts?"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, line, capsys, tmp_path):
    run = SCRIPT["guarded"]
    out = f"--out={tmp_path / 'out'}"
    assert run(SCRIPT["check_card"], [out, *flags], "") == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


@pytest.mark.parametrize("parts", ["bcd", pytest.param("abcd", marks=pytest.mark.slow)])
def test_the_parts_on_a_cpu(tmp_path, parts):
    command = ["bash", "scripts/check_gpu.sh", "--tiny", f"--out={tmp_path}"]
    command += [f"--parts={','.join(parts)}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**GLOBALS["os"].environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    assert list(found) == list(parts)
    if "a" in parts:
        tests = found["a"]["facts"]["tests"]
        assert (tests["passed"], tests["failed"]) == (6, {})
        assert len(tests["skipped"]) == 5  # they need a GPU
    assert found["b"]["facts"]["tokens_per_s"] > 0
    sizes = found["c"]["facts"]["micro_batches"]
    assert list(sizes) == ["4", "2"]
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored["stand-in"]["factor"] == found["c"]["facts"]["factor"]
    recipes = found["d"]["facts"]
    assert list(recipes) == ["paper", "best"]
    for summary in recipes.values():
        assert summary["tokens"] >= 5000
        titles = [f"Intents, {of}" for of in ("pretrained", "bag of words")]
        assert list(summary["scores"]) == titles
    text = (tmp_path / "check.md").read_text()
    assert text.count("| passed |") == len(parts)
