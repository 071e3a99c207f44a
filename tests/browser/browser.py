"""Opens the pages that are written in a real browser, where there is one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
# A window is at least 500 pixels wide, a frame in it is not.
FRAME = """<!DOCTYPE html><script>
addEventListener("message", (event) => {
  const found = Object.assign(document.createElement("pre"), { textContent: event.data });
  document.body.append(found);
});
</script><body><iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe>"""


def used_in_browser(path, script, width, scratch):
    """Opens a page in a headless browser at a width, uses it, and returns what was found.

    Whatever the page, it loads nothing, reports no problem, fits the width and names its controls.
    """
    folder = Path(__file__).parent
    listen, tools = ((folder / f"{name}.js").read_text() for name in ("listen", "tools"))
    # In a block: a page's program has names of its own.
    used = f"<script>{{{script.read_text()}}}</script>"
    text = path.read_text().replace("<title>", f"<script>{listen}</script><title>")
    text = text.replace("</body>", f"<script>{tools}</script>{used}</body>")
    (scratch / "page.html").write_text(text)
    (scratch / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={scratch / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
        (scratch / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    written, *_ = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.S)
    found = json.loads(html.unescape(written))
    assert found["problems"] == []
    assert found["loaded"] == []
    assert found["width"] == width
    assert found["overflow"] == 0
    assert found["unnamed"] == []
    return found
