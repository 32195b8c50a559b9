import configparser
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cramjax import config as config_module
from cramjax.config import flatten, load, root, to_dict
from cramjax.errors import UserError
from cramjax.flags import parse_flags
from cramjax.main import main


@pytest.mark.parametrize(
    "path", sorted(Path("configs/data").glob("[a-z]*.py")), ids=str
)
def test_texts_for_any_card(path):
    config = load(f"{path}:h200")
    assert (config.micro_batch, config.budget.hours) == (512, 24.0)
    assert config.data.sources and config.data.licence
    assert "uncopyrighted" not in str(config.data.sources)  # not the card's own text
    assert "lacks" not in config.data.licence
    assert config.data.max_documents == {"c4": 20_000_000, "pile": 8_000_000}.get(
        path.stem, 0
    )
    assert load(path).micro_batch == 128
    with pytest.raises(UserError, match="h20: no such file, .* did you mean h200"):
        load(f"{path}:h20")


@pytest.mark.parametrize(
    "name", ["a4000", "a6000", "rtx2080ti", "h200", "small", "quickstart"]
)
def test_every_config_file_parses(name):
    config = load(f"configs/{name}.py")
    assert config_module.from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_best_recipe_changes_a_card_and_its_budget():
    best = config_module.module("best")
    a6000 = flatten(to_dict(load("a6000")))
    found = {row: flatten(to_dict(load(f"best:{row}"))) for row in best.ROWS}
    assert len(found) == 15
    assert {k for k in a6000 if a6000[k] != found["a6000"][k]} == {*best.CHANGES}
    assert found["h100-hour"]["budget.hours"] == 1
    assert found["a6000-10min"]["batch.sequences"] == 512
    # The quickstart has the same changes.
    quickstart = flatten(to_dict(load("quickstart")))
    assert {k: quickstart[k] for k in best.CHANGES} == best.CHANGES
    assert quickstart["optimizer.learning_rate"] == pytest.approx(1e-2)


def test_gpu_configs_are_the_recipe_but_for_the_card():
    recipe = flatten(to_dict(load("configs/default.py")))
    a6000 = flatten(to_dict(load("configs/a6000.py")))
    assert {k for k in recipe if recipe[k] != a6000[k]} == {
        "micro_batch",
        "model.attention",
        "data.sources",
        "data.max_documents",
        "data.licence",
    }


def test_a_first_update_must_fit_in_a_budget_of_tokens():
    fits = ["batch.ramp_share=0", "batch.sequences=128", "budget.tokens=4096"]
    load("configs/small.py", fits)
    with pytest.raises(UserError, match="config.budget.tokens is 4095: .* 4096"):
        load("configs/small.py", [*fits, "budget.tokens=4095"])


def test_large_numbers_and_one_dash():
    config = load("configs/small.py", ["-config.budget.tokens=1.5e6"])
    assert config.budget.tokens == 1_500_000


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.sources=my file.txt", ("my file.txt",)),
        ("data.sources=text/*.txt", ("text/*.txt",)),
        ("data.sources=['a','b']", ("a", "b")),
        ("data.sources=()", ()),
        ("glue.learning_rates=1e-3", (1e-3,)),
        ("data.cls=true", True),
        ("data.split=1", "1"),
        ("model.norm_eps=1", 1.0),
    ],
)
def test_what_a_text_on_the_command_line_stands_for(override, value):
    config = flatten(to_dict(load("small", [override])))
    expected = list(value) if isinstance(value, tuple) else value
    assert config[override.partition("=")[0]] == expected


def test_of_a_key_given_twice_the_last_one_wins():
    overrides = ["data.sources=a", "data.sources=('b','c')", "seed=1", "seed=2"]
    config = load("small", overrides)
    assert (config.data.sources, config.seed) == (("b", "c"), 2)


def test_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    sgd = load("configs/ablations/training.py:sgd")
    monkeypatch.chdir(tmp_path)
    assert load("ablations/training.py:sgd") == load("ablations/training:sgd") == sgd
    mine = "import cramjax.config as c\ndef get_config(): return c.from_file('a6000')"
    (tmp_path / "a4000.py").write_text(mine)
    assert load("a4000.py").micro_batch == 512  # a file comes before a name
    assert load("a4000").micro_batch == 128
    with pytest.raises(
        UserError, match=r"--config=a400: no such .* mean a4000\? there"
    ):
        load("a400")


def test_the_config_is_printed(capsys):
    flags = ["--config=a4000", "--config.seed=3", "--print_config"]
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(load("a4000", ["seed=3"]))


def test_every_folder_with_code_is_installed():
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    packages = {path.parent for path in Path("cramjax").rglob("*.py")}
    packages |= {"cramjax" / path.parent for path in Path("configs").rglob("*.py")}
    listed = setup["options"]["packages"].split()
    assert sorted(listed) == sorted(str(p).replace("/", ".") for p in packages)


def test_another_text_does_not_have_the_licence_of_the_config():
    mine = ["data.sources=mine.txt"]
    assert load("small", mine).data.licence == ""
    assert load("small", [*mine, "data.licence=CC0"]).data.licence == "CC0"
    assert "public domain" in load("small").data.licence


def test_overrides_and_types():
    config = load(
        "configs/small.py",
        [
            "budget.tokens=0",
            "--config.budget.hours=1",
            "data.sources=('a.txt','b.txt')",
        ],
    )
    assert config.budget.hours == 1.0
    assert config.data.sources == ("a.txt", "b.txt")


# tests/test_frozen.py has more.
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.hour=1", "did you mean --config.budget.hours"),
        ("buget.hours=1", "did you mean --config.budget.hours"),
        ("model.layers=2.5", "config.model.layers is 2.5: must be a whole number"),
        ("model.layers=", "config.model.layers is '': must be a whole number"),
        (
            "data.sources=('a',",
            "config.data.sources is \"('a',\": must be a tuple such as (",
        ),
        ("data.sources=(1,)", "config.data.sources[0] is 1: must be text"),
        ("budget.tokens=-1", "config.budget.tokens is -1"),
        ("budget.tokens=1e-3", "config.budget.tokens is 0.001: must be a whole"),
        (
            "budget.hours=1",
            "hours=1 and tokens=6000000; set all but one to 0, e.g. "
            "--config.budget.hours=0",
        ),
        ("budget.tokens", "has no value"),
        ("seed=2147483648", "config.seed is 2147483648: must be in [0, 2^31)"),
        ("glue.starts=('ema',)", "without 'ema', unless averaging.ema_"),
        ("objective.final_mask_rate=0.001", "objective.final_mask_rate is 0.001"),
        ("objective.separate_documents=True data.sep=False", "False, unless model.mix"),
        ("model.positions=learned glue.max_length=64", "the number of learned"),
        ("model.attention=cudnn model.dtype=bfloat16 model.max_length=31", "'xla' or"),
        ("curriculum.lengths=(8,32)", "config.curriculum.starts is (): must be"),
        ("curriculum.lengths=(8,'x')", "config.curriculum.lengths[1] is 'x': must"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError) as error:
        load("configs/small.py", override.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lengths", "starts", "others", "message"),
    [
        ("(8,24)", "(0.0,0.5)", (), "divisors of it with curriculum.unfold=True"),
        ("(8,64)", "(0.0,0.5)", (), "at most model.max_length=32"),
        ("(8,32)", "(0.5,0.2)", (), "config.curriculum.starts is (0.5, 0.2)"),
        ("(8,32)", "(0.0,1.0)", (), "config.curriculum.starts is (0.0, 1.0)"),
        ("(8,32)", "(0.0,0.5)", ("objective.mask_rate=0.03",), "a sequence of 8"),
    ],
)
def test_stages_that_cannot_be_are_one_line(lengths, starts, others, message):
    overrides = [f"curriculum.lengths={lengths}", f"curriculum.starts={starts}"]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load("configs/small.py", [*overrides, *others])
    assert "\n" not in str(error.value)


def test_a_missing_and_an_unknown_key_in_a_dict_are_named():
    values = to_dict(load("configs/small.py"))
    del values["model"]["layers"]
    with pytest.raises(UserError, match=r"config\.model\.layers is missing"):
        config_module.from_dict(values)
    values["model"]["layers"] = 2
    values["model"]["layer"] = 2
    with pytest.raises(UserError, match=r"did you mean config\.model\.layers"):
        config_module.from_dict(values)


def test_a_record_may_lack_only_keys_that_were_added(tmp_path):
    config = load("configs/small.py", ["data.dir=elsewhere"])
    path = tmp_path / "config.json"

    def read(change):
        values = to_dict(config)
        change(values)
        path.write_text(json.dumps(values))
        return config_module.from_dict(config_module.read_recorded(path, ""))

    assert read(lambda values: values["model"].pop("repeats")) == config
    with pytest.raises(UserError, match=r"config\.model\.layers is missing"):
        read(lambda values: values["model"].pop("layers"))
    with pytest.raises(UserError, match=r"config\.guard is None: must be a section"):
        read(lambda values: values.update(guard=None))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget.hour=1"], "did you mean --config.budget.hours?"),
        # The same name in two sections.
        (["--b2=1"], "did you mean --config.optimizer.b2 or --config.glue.b2?"),
        (["--qqq=1"], "--qqq: no such flag; --print_config lists all keys"),
    ],
)
def test_the_nearest_flag_is_named(flags, message, capsys):
    assert main(["--config=configs/small.py", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "evaluate_glue.py",
            ["--config=configs/small.py", "--datadir=x"],
            "--datadir: no such flag; did you mean --data_dir or",
        ),
        ("blimp.py", ["--checkpoit=x"], "no such flag; did you mean --checkpoint?"),
        (
            "blimp.py",
            ["--checkpoint=x", "--data=y", "--qq"],
            "--qq: no such flag; see --help",
        ),
        ("fill_mask.py", ["-checkpont=x", "a"], "did you mean --checkpoint?"),
        ("study.py", ["--study=x", "--wokdir=y"], "did you mean --workdir?"),
    ],
)
def test_the_scripts_name_the_nearest_flag(name, flags, message, script_error):
    assert message in script_error(name, *flags)


def test_a_text_may_begin_with_a_dash():
    needed = {"checkpoint": "DIR"}
    argv = ["--checkpoint=x", "-cold in <mask>", "--config.seed=1", "a=b"]
    assert parse_flags(argv, needed) == ({"checkpoint": "x"}, argv[1:])


def test_a_needed_flag_has_a_value(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    needed = {"checkpoint": "DIR"}
    found = parse_flags(["--checkpoint=~/runs"], needed)[0]
    assert found == {"checkpoint": "/home/ada/runs"}
    assert parse_flags(["--checkpoint", "x"], needed)[0] == {"checkpoint": "x"}
    with pytest.raises(UserError, match="no checkpoint: pass --checkpoint=DIR"):
        parse_flags([], needed)
    with pytest.raises(UserError, match="--checkpoint has no value: write --checkpo"):
        parse_flags(["--checkpoint="], needed)


def test_a_config_file_with_rows_says_which(tmp_path):
    path = tmp_path / "rows.py"
    table = "import cramjax.config\nROWS = {'first': 1, 'second': 2}\n"
    path.write_text(table + "def get_config(row): return cramjax.config.defaults()")
    known = "the rows are first, second"
    for given, message in (
        ("", f"{path}: name a row, for example {path}:first; {known}"),
        (":secnd", f"{path}:secnd: no row 'secnd'; did you mean 'second'? {known}"),
        (":qq", f"{path}:qq: no row 'qq'; {known}"),
        (":", f"{path}:: no row ''; {known}"),
    ):
        with pytest.raises(UserError) as error:
            load(f"{path}{given}")
        assert str(error.value) == f"--config={message}"
    sources = "data.sources=('a.txt',)"
    assert load(f"{path}:first", [sources]).data.sources == ("a.txt",)
    defaults = "return cramjax.config.defaults()"
    path.write_text(f"{table}def get_config(row='first'): {defaults}")
    load(path, [sources])
    path.write_text(f"{table}def get_config(): {defaults}")
    with pytest.raises(UserError, match="the file has no rows; pass "):
        load(f"{path}:first")


def test_a_config_file_that_does_not_run_is_named(tmp_path):
    path = tmp_path / "broken.py"
    for text, message in (("x =", "SyntaxError"), ("def get_config(): 1 / 0", "Zero")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"broken.py cannot be run: {message}"):
            load(path)


def test_a_mistyped_flag_fails_before_jax_is_imported(tmp_path):
    code = (
        "import sys; from cramjax.main import main; "
        "main(['--config=configs/small.py', '--config.modl.width=8']); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_of_all_keys_is_what_the_source_says():
    page = runpy.run_path("scripts/config_page.py")["page"]()
    assert Path("docs/config.md").read_text() == page, "python scripts/config_page.py"
    assert all(f"| `{key}`" in page for key in root.KEYS)
