"""Look at every page of the built book as a reader does: from a file, without a network.

    python tests/check_book.py [book/_build/html] [--screenshots FOLDER]

By reading the pages: no link leads nowhere, every image is there, is not empty and has a text for those who
cannot see it, nothing a page needs comes from the network. In headless Chromium, where one is found: no
error on the console, every formula typeset, no page wider than its window, be it a telephone's. Prints what
is wrong, a line each, and exits with 1.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--allow-file-access-from-files",
    # Nothing may come from outside: a page that asks for it gets an error, which is then reported.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
# Attributes through which a page loads what it needs to be read.
LOADS = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",),
}  # fmt: skip
LOADING_RELATIONS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut icon", "prefetch"}


class Page(HTMLParser):
    """What a page links to, loads and contains."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel", "").lower() in LOADING_RELATIONS:
            self.loads.append(given.get("href", ""))
        for key in LOADS.get(tag, ()):
            if given.get(key):
                self.loads += re.findall(r"\S+(?=[^,]*)", given[key])[:1]
        if tag == "img":
            self.images.append(given)

    handle_startendtag = handle_starttag


def is_external(address: str) -> bool:
    own = ("", "file", "data", "mailto", "javascript")
    return address.startswith("//") or urlsplit(address).scheme not in own


def target(page: Path, address: str) -> tuple[Path, str]:
    """The file and the fragment an internal address leads to."""
    parts = urlsplit(address)
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def image_problem(path: Path) -> str | None:
    """Why an image file shows nothing, if it does."""
    content = path.read_bytes()
    if not content:
        return "is an empty file"
    if path.suffix == ".svg":
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            return f"is no valid SVG ({error})"
        drawn = {"path", "rect", "line", "circle", "polygon", "polyline", "text", "use", "image", "ellipse"}
        if not any(element.tag.rpartition("}")[2] in drawn for element in root.iter()):
            return "draws nothing"
    elif path.suffix == ".png":
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or min(struct.unpack(">II", content[16:24])) < 1:
            return "is no valid PNG"
    return None


def read_problems(pages: dict[Path, Page]) -> list[str]:
    """All that can be seen without a browser."""
    problems = []
    for path, page in pages.items():
        for address in page.loads:
            if is_external(address):
                problems.append(f"{path.name}: loads {address} from the network")
            elif not address.startswith("data:") and not target(path, address)[0].is_file():
                problems.append(f"{path.name}: {address} does not exist")
        for address in page.links:
            if is_external(address) or address.startswith(("data:", "mailto:", "javascript:")):
                continue
            file, fragment = target(path, address)
            if not file.is_file():
                problems.append(f"{path.name}: the link {address} leads nowhere")
            elif fragment and file in pages and fragment not in pages[file].ids:
                problems.append(f"{path.name}: {address} names a place that {file.name} does not have")
        for image in page.images:
            source = image.get("src", "")
            if not image.get("alt", "").strip():
                problems.append(f"{path.name}: the image {source[:80]} has no alternative text")
            elif re.fullmatch(r"\S*\.(svg|png|jpe?g)", image["alt"].strip()):
                problems.append(f"{path.name}: the alternative text of {source[:80]} is only a file's name")
            if source.startswith("data:") or is_external(source):
                continue
            file = target(path, source)[0]
            if file.is_file() and (reason := image_problem(file)):
                problems.append(f"{path.name}: the image {source} {reason}")
    return problems


def style_problems(html: Path) -> list[str]:
    """Style sheets that fetch from the network or name files that are not there."""
    problems = []
    for sheet in html.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8", errors="replace"), flags=re.S)
        for address in re.findall(r"""(?:url\(|@import\s+)\s*["']?([^"')\s;]+)""", text):
            if is_external(address):
                problems.append(f"{sheet.name}: fetches {address} from the network")
    return problems


def find_browser() -> str | None:
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


# A page is looked at inside frames, because a browser's own window cannot be made as narrow as a telephone.
PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<script>
const WIDTHS = {widths}, THEME = "{theme}", found = [];
function look(frame, width) {{
  const page = frame.contentDocument, root = page.documentElement;
  found.push({{
    width: width,
    overflow: Math.max(root.scrollWidth, page.body.scrollWidth) - root.clientWidth,
    formulas: page.querySelectorAll(".math").length,
    typeset: page.querySelectorAll("mjx-container").length,
    errors: [...page.querySelectorAll("[data-mjx-error]")].map(e => e.dataset.mjxError),
    blank: [...page.images].filter(i => i.naturalWidth == 0).map(i => i.getAttribute("src")),
  }});
  if (found.length == WIDTHS.length) {{
    const result = document.createElement("pre");
    result.hidden = true;
    result.textContent = "FOUND" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + "END";
    document.body.append(result);
  }}
}}
for (const width of WIDTHS) {{
  const frame = document.createElement("iframe");
  frame.style = `display:block;border:0;width:${{width}}px;height:{height}px`;
  frame.onload = () => {{
    if (THEME) frame.contentDocument.documentElement.dataset.theme = THEME;
    setTimeout(look, 5000, frame, width);
  }};
  frame.src = "{address}";
  document.body.append(frame);
}}
</script>"""
WIDTHS = (1400, 400)
# What the theme's scripts say on every page when all is well.
CHATTER = r"\[PST\]: |\[togglebutton\]: |Got invalid theme mode: \. Resetting to auto\.$"


def browse(browser: str, page: Path, widths=WIDTHS, theme="", height=1000, shot: Path | None = None):
    """What the page is like at each width once its scripts have run, and the console's messages."""
    with tempfile.TemporaryDirectory(prefix="check-book-") as folder:
        probe = Path(folder) / "probe.html"
        address = page.as_uri()
        probe.write_text(PROBE.format(widths=list(widths), theme=theme, height=height, address=address))
        task = [f"--window-size={max(widths)},{height}", f"--screenshot={shot}"] if shot else ["--dump-dom"]
        result = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--v=0",
             "--virtual-time-budget=20000", *task, probe.as_uri()],
            capture_output=True, text=True, errors="replace", timeout=180, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"{browser} exited with {result.returncode}: {result.stderr[-500:]}")
    messages = re.findall(r'CONSOLE[^\]]*\] "(.*?)", source:', result.stderr, re.S)
    messages = [message for message in messages if not re.match(CHATTER, message)]
    if shot:
        return [], messages
    answer = re.search(r"FOUND([\w+/=]+)END</pre>", result.stdout)
    if answer is None:
        raise RuntimeError(f"{browser} did not finish {page.name}: {result.stderr[-500:]}")
    return json.loads(base64.b64decode(answer[1])), messages


def browser_problems(browser: str, page: Page, shots: Path | None) -> list[str]:
    """All that can be seen only in a browser."""
    found, messages = browse(browser, page.path)
    problems = [f"console: {message}" for message in dict.fromkeys(messages)]
    for view in found:
        if view["overflow"] > 0:
            problems.append(f"is {view['overflow']} px wider than a window of {view['width']} px")
        missing = view["formulas"] - view["typeset"]
        if missing > 0:
            problems.append(f"{missing} of {view['formulas']} formulas are not typeset")
        problems += [f"a formula is in error: {message}" for message in view["errors"]]
        problems += [f"the image {source} shows nothing" for source in view["blank"]]
    if shots:
        for width in WIDTHS:
            for theme in ("light", "dark"):
                shot = shots / f"{page.path.stem}-{width}-{theme}.png"
                browse(browser, page.path, [width], theme, height=2000, shot=shot)
    return [f"{page.path.name}: {problem}" for problem in dict.fromkeys(problems)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", nargs="?", type=Path, default=ROOT / "book" / "_build" / "html")
    parser.add_argument(
        "--screenshots", type=Path, help="a folder for pictures of each page, wide and narrow, light and dark"
    )
    options = parser.parse_args(arguments)
    html = options.html.resolve()
    files = [file for file in sorted(html.rglob("*.html")) if "_static" not in file.relative_to(html).parts]
    if not files:
        print(f"there is no built book in {html}: run `make book`", file=sys.stderr)
        return 2
    pages = {file: Page(file) for file in files}
    problems = read_problems(pages) + style_problems(html)
    browser = find_browser()
    if browser is None:
        print(f"not opened in a browser: none of {', '.join(BROWSERS)} is installed (or set CHROMIUM)")
    else:
        if options.screenshots:
            options.screenshots.mkdir(parents=True, exist_ok=True)
        for page in pages.values():
            problems += browser_problems(browser, page, options.screenshots)
    for problem in problems:
        print(problem)
    links = sum(len(page.links) for page in pages.values())
    images = sum(len(page.images) for page in pages.values())
    how = "read only" if browser is None else "read and opened"
    print(f"{len(pages)} pages {how}, {links} links, {images} images: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
