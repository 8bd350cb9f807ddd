"""The checker of the built book finds what it is there to find (`.ci/run` runs it on the book itself)."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import check_book
import pytest

from grokutils.paper.kit.figures import PHASE_COLORS

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0L9 9"/></svg>'

needs_browser = pytest.mark.skipif(check_book.find_browser() is None, reason="no Chromium is installed")


def write_book(folder: Path, body: str, head: str = "") -> Path:
    """A book of two pages, sound but for what is passed in."""
    (folder / "_static").mkdir()
    (folder / "_static" / "book.css").write_text("body { margin: 0 } /* url(https://example.org/x) */")
    (folder / "one.svg").write_bytes(SVG)
    (folder / "one.png").write_bytes(PNG)
    (folder / "blank.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    (folder / "broken.svg").write_bytes(b"<svg")
    (folder / "empty.png").write_bytes(b"")
    (folder / "other.html").write_text('<!doctype html><title>x</title><h1 id="here">Other</h1>')
    (folder / "page.html").write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">{head}'
        f'<link rel="stylesheet" href="_static/book.css"><h1 id="top">Page</h1>{body}'
    )
    return folder


SOUND = (
    '<a href="other.html#here">x</a> <a href="#top">x</a> <a href="other.html">x</a>'
    '<a href="https://example.org">x</a> <img src="one.svg" alt="A line"> <img src="one.png" alt="A dot">'
)


def problems(html: Path) -> list[str]:
    pages = {path: check_book.Page(path) for path in sorted(html.glob("*.html"))}
    return check_book.read_problems(pages) + check_book.style_problems(html)


def test_a_sound_book_has_no_problems(tmp_path):
    assert problems(write_book(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    "body, complaint",
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<a href="other.html#gone">x</a>', "names a place that other.html does not have"),
        ('<a href="#gone">x</a>', "names a place that page.html does not have"),
        ('<img src="gone.svg" alt="A line">', "gone.svg does not exist"),
        ('<img src="one.svg">', "no alternative text"),
        ('<img src="one.svg" alt=" ">', "no alternative text"),
        ('<img src="one.svg" alt="../_images/one.svg">', "only a file's name"),
        ('<img src="blank.svg" alt="A line">', "draws nothing"),
        ('<img src="broken.svg" alt="A line">', "no valid SVG"),
        ('<img src="empty.png" alt="A dot">', "is an empty file"),
        ('<img src="https://example.org/a.png" alt="A dot">', "from the network"),
        ('<script src="//example.org/a.js"></script>', "from the network"),
        ('<script src="gone.js"></script>', "gone.js does not exist"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "from the network"),
    ],
)
def test_what_is_wrong_with_a_page_is_named(tmp_path, body, complaint):
    (found,) = problems(write_book(tmp_path, SOUND + body))
    assert found.startswith("page.html: ") and complaint in found


def test_a_style_sheet_that_fetches_is_named(tmp_path):
    write_book(tmp_path, SOUND)
    (tmp_path / "_static" / "more.css").write_text("@font-face { src: url(https://example.org/a.woff2) }")
    (found,) = problems(tmp_path)
    assert "more.css: fetches https://example.org/a.woff2" in found


def test_no_book_is_said_plainly(tmp_path, capsys):
    assert check_book.main([str(tmp_path)]) == 2
    assert "make book" in capsys.readouterr().err


def test_without_a_browser_the_rest_is_still_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert check_book.main([str(write_book(tmp_path, SOUND))]) == 0
    assert "not opened in a browser" in capsys.readouterr().out
    (tmp_path / "other.html").unlink()
    assert check_book.main([str(tmp_path)]) == 1


def test_phases_have_one_colour_in_pages_and_figures():
    css = (check_book.ROOT / "book" / "_assets" / "book.css").read_text()
    shown = dict(re.findall(r"\.phase-(\w+) \{ background: color-mix\(in srgb, (#\w{6})", css))
    assert shown == {name.removesuffix("-grokking"): color for name, color in PHASE_COLORS.items()}


@needs_browser
def test_the_browser_sees_what_reading_cannot(tmp_path, capsys):
    body = (
        SOUND
        + '<span class="math">\\(x\\)</span><div style="width:600px">wide</div>'
        + '<script>document.querySelector("h2").textContent = "x"</script>'
        + '<script>fetch("http://127.0.0.1:9/x")</script>'
    )
    assert check_book.main([str(write_book(tmp_path, body))]) == 1
    lines = capsys.readouterr().out.splitlines()
    for complaint in (
        "console: Uncaught TypeError",
        "px wider than a window of 400 px",
        "1 of 1 formulas are not typeset",
    ):
        assert any(line.startswith("page.html: ") and complaint in line for line in lines), lines
    assert not any("window of 1400 px" in line or line.startswith("other.html") for line in lines)
