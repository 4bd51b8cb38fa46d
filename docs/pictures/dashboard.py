"""Makes dashboard.png: `colocate demo --web` as a browser shows it when its first job has ended, after 90 s at most.

    python docs/pictures/dashboard.py [OPTION...]     the options are those of `colocate demo`

It needs Chromium and its driver. The browser runs at the lowest priority, as it runs on the machine that is measured.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_WIDTH, _HEIGHT = 1280, 900
_LONGEST_S = 90.0
_SCREEN = {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": False}
_FINISHED = "document.getElementById('jobs').textContent.includes('finished')"


def main() -> int:
    """Run the demonstration, take the picture, and let it end."""
    argv = [sys.executable, "-m", "colocate", "demo", "--web", "127.0.0.1:0", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as profile, subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None  # noqa: S101 -- by stderr=PIPE
        url = next(match[0] for line in demo.stderr if (match := re.search(r"http://\S+", line)))
        os.nice(19)
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for option in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"):
            options.add_argument(option)
        browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _SCREEN)
            browser.get(url)
            end_s = time.monotonic() + _LONGEST_S
            while not browser.execute_script(f"return {_FINISHED}") and time.monotonic() < end_s:
                time.sleep(1.0)
            time.sleep(5.0)  # until the event lines are there, too
            browser.save_screenshot(str(Path(__file__).with_suffix(".png")))
        finally:
            browser.quit()
        sys.stderr.write(demo.stderr.read())
        return demo.wait()


if __name__ == "__main__":
    sys.exit(main())
