"""A headless browser for tests: Chromium by BGNN_BROWSER or from the path. Debian: apt-get install chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("BGNN_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or BGNN_BROWSER=PATH")

# What the page looks like once it is drawn.
_LOOK = """
<script>
const box = one => one.getBoundingClientRect(), all = what => [...document.querySelectorAll(what)];
const told = {
  width: innerWidth, needed: document.documentElement.scrollWidth,
  ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  text: all("svg text").map(t => getComputedStyle(t).fill)[0],
  bars: all("svg.chart .bar").map(b => [box(b).width, box(b).height]),
  outside: all("body *").filter(e => !e.closest(".box") && box(e).right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 80)),
  scripts: window.hacked || 0,
};
document.body.innerHTML = "<pre id=told></pre>";
document.getElementById("told").textContent = JSON.stringify(told);
</script>
"""


def look(page: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """How a page is drawn at a width: what the script above tells. It runs in a copy that allows scripts."""
    copy = re.sub(r"<meta http-equiv=[^>]*>", "", page, count=1)
    assert copy != page
    place = folder / f"look-{width}-{dark}.html"
    place.write_text(copy.replace("</body>", f"{_LOOK}</body>"))
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder}/profile", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", place.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr[-500:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
