#!/usr/bin/env python3
"""pages_in_browser.py [HTML [PICTURES]] : pages in headless Chromium, in two widths.

HTML is what ./moe docs built (build/docs/html), or a report's folder. Takes pictures of its
main page into PICTURES (build/docs/pictures), and exits with 1 when a page is wider than its
window, when a report's table does not fit 1280 pixels, or when one that scrolls does not
show it.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

WIDTHS = (1280, 390)
# Frames have the width they are given; a headless window has at least 500 pixels.
MEASURE = """<!doctype html><body><script>
const frame = document.createElement("iframe");
frame.style = "border: 0; width: %dpx; height: 900px";
frame.src = "%s";
frame.onload = () => setTimeout(() => {
    const all = frame.contentDocument;
    const excess = part => part.scrollWidth - part.clientWidth;
    // The documentation's text scrolls in a box of its own
    const parts = [all.documentElement, all.getElementById("doc-content")];
    const scrolling = [...all.querySelectorAll(".wide")].filter(part => excess(part) > 0);
    const seen = part => getComputedStyle(part).backgroundImage.includes("gradient");
    document.title = "seen: " + JSON.stringify({
        over: Math.max(...parts.filter(part => part).map(excess)),
        scrolling: scrolling.length,
        unseen: scrolling.filter(part => !seen(part)).length});
}, 500);
document.body.append(frame);
</script>"""


def chromium(home, *arguments):
    """Its stdout; ends the test when there is no browser, or none that works."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        sys.exit("chromium = missing: apt-get update && apt-get install chromium")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--allow-file-access-from-files", f"--user-data-dir={home}",
         "--virtual-time-budget=10000", *arguments],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        timeout=120).stdout


def judge(seen, width):
    """What the measured page is like; what is well begins with "fits"."""
    if seen["over"] > 0:
        return f"{seen['over']} px too wide"
    if seen["scrolling"] == 0:
        return "fits"
    if width >= 1280:
        return f"{seen['scrolling']} tables do not fit"
    if seen["unseen"] > 0:
        return f"{seen['unseen']} tables scroll and do not show it"
    return f"fits, {seen['scrolling']} tables scroll and show it"


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    given = [pathlib.Path(argument).resolve() for argument in sys.argv[1:]]
    html = given[0] if given else root / "build/docs/html"
    pictures = given[1] if len(given) > 1 else root / "build/docs/pictures"
    pages = [html / "index.html", *sorted(html.glob("md_*.html"))]
    if not pages[0].exists():
        sys.exit(f"pages = {html}: has none; run ./moe docs or ./moe compare first")
    pictures.mkdir(parents=True, exist_ok=True)
    bad = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        frame = pathlib.Path(home) / "frame.html"
        for width in WIDTHS:
            frame.write_text(f'<!doctype html><body style="margin: 0"><iframe style="border: '
                             f'0; width: {width}px; height: 2000px" '
                             f'src="{pages[0].as_uri()}"></iframe>')
            chromium(home, f"--screenshot={pictures}/{width}.png",
                     f"--window-size={max(width, 500)},2000", frame.as_uri())
            for page in pages:
                frame.write_text(MEASURE % (width, page.as_uri()))
                seen = re.search(r"<title>seen: (.*)</title>",
                                 chromium(home, "--dump-dom", "--window-size=1400,1000",
                                          frame.as_uri()))
                verdict = judge(json.loads(seen[1]), width) if seen else "not measured"
                bad = bad or not verdict.startswith("fits")
                print(f"{page.name}, {width} px: {verdict}", flush=True)
    print(f"pictures in {pictures}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
