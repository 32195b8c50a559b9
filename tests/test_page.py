"""A page in both formats; report.html as a browser that is offline reads it."""

import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawn
from matplotlib.image import imread

from cramjax import figures, page
from cramjax.page import Code, Figure, Fold, Heading, Table

EVIL = "<script>x</script> & \"q\" 'a|b'"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Checker(html.parser.HTMLParser):
    """Notes the visible text, and what is wrong with a page that loads nothing."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.text, self.faults = [], [], "", []
        self.feed(text)
        self.faults += [f"open: {tag}" for tag in self.open]
        self.faults += {i for i in self.ids if self.ids.count(i) > 1}
        self.faults += re.findall(r"@import|url\((?!#)|https?://", text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.faults.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.faults.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag != "meta" and self.open.pop() != tag:
            self.faults.append(f"/{tag}")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def drawn(label):
    figure = Drawn()
    figure.subplots().plot([0, 1], [0, 1], label=label)
    figure.axes[0].legend()
    return figure


def test_text_of_others_is_escaped_everywhere():
    blocks = [
        Heading(EVIL, 1),
        EVIL,
        Table([EVIL, ""], [[EVIL, f"**{EVIL}**"]]),
        f"`{EVIL}`",
        Fold(EVIL, [Code(EVIL), Figure(EVIL, drawn(EVIL))]),
        Figure("second", drawn("b")),
    ]
    checked = Checker(page.to_html(EVIL, blocks))
    assert checked.faults == []
    assert checked.text.count(EVIL) == 10  # as often as it was given, but the name
    assert "'a\\|b'" in page.to_markdown(blocks)


def test_both_formats_say_the_same():
    blocks = ["A **bold 1** `c**d**`.", Fold("More", [Table(["a", "b"], [["c", "d"]])])]
    assert page.to_markdown(blocks) == (
        "A **bold 1** `c**d**`.\n\n## More\n\n| a | b |\n| --- | --- |\n| c | d |"
    )
    text = page.to_html("t", blocks)
    assert "<p>A <strong>bold 1</strong> <code>c**d**</code>.</p>" in text
    assert "<summary>More</summary>" in text and "<td>c</td><td>d</td>" in text
    assert "<p>x/**/a.txt, **/b.txt</p>" in page.to_html("t", ["x/**/a.txt, **/b.txt"])


def test_a_long_run_has_a_small_figure_with_its_means():
    events = [{"tokens": i, "loss": float(i % 2)} for i in range(20_000)]
    events += [{"tokens": 0, "loss": None}, {"event": "x", "tokens": 0, "loss": 9.0}]
    tokens_N, loss_N = figures.curve(events, "tokens", "loss")
    assert len(tokens_N) == figures.MAX_POINTS
    np.testing.assert_allclose(loss_N, 0.5)
    np.testing.assert_allclose(np.diff(tokens_N), 40)
    assert [len(x) for x in figures.curve(events[:3], "tokens", "loss")] == [3, 3]
    assert [len(x) for x in figures.curve([], "tokens", "loss")] == [0, 0]


def test_a_run_without_measurements_has_empty_panels(tiny):
    assert len(figures.panels(tiny, [], figures.SCHEDULE).axes) == 2
    known = [{"progress": 0.5, "mfu": 0.4, "tokens_per_s": None, "grad_norm": 2.0}]
    known[0] |= {"not_training": 0.25, "peak_memory_bytes": 3e9}
    shown = [
        (axes.get_ylabel(), *axes.lines[0].get_ydata())
        for axes in figures.panels(tiny, known, figures.DEVICE).axes
    ]
    assert shown == [
        ("MFU (%)", 40.0),
        ("not training (%)", 25.0),
        ("gradient norm", 2.0),
        ("peak memory (GB)", pytest.approx(3.0)),
    ]


def test_the_report_of_a_run_is_one_file_that_loads_nothing(finished):
    text = (finished[0] / "report.html").read_text()
    checked = Checker(text)
    assert checked.faults == [] and len(text) < 1_000_000
    assert text.count("<svg") == 3 and text.count("<details>") == 3
    for said in ("5,120 tokens", "random initialization", "Blocks, chosen at random"):
        assert said in checked.text
    assert "What went wrong: nothing (no interruption" in checked.text
    assert "It was not scored on all rows of all nine numbers of GLUE" in checked.text


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="there is no chromium")
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize(("theme", "back"), [(0, (13, 17, 23)), (1, (255, 255, 255))])
def test_a_browser_shows_it(finished, tmp_path, width, theme, back):
    shot = tmp_path / "shot.png"
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--blink-settings=preferredColorScheme={theme}", "--hide-scrollbars"]
    command += [f"--window-size={width},6000", f"--user-data-dir={tmp_path}/chromium"]
    command += [f"--screenshot={shot}", (finished[0] / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels_HxWx3 = np.round(imread(shot)[..., :3] * 255).astype(int)
    assert pixels_HxWx3.shape[:2] == (6000, width)
    # The margins have nothing in them: nothing is wider than the window.
    for margin in (pixels_HxWx3[:, :8], pixels_HxWx3[:, -8:]):
        assert (margin == back).all()
    assert 0.01 < (pixels_HxWx3 != back).any(axis=2).mean() < 0.5
