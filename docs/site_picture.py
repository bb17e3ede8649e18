"""Takes docs/images/site.png, the site's front page, with Chromium; `make docs-picture` runs it."""

import functools
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE, PICTURE = ROOT / "build/site", ROOT / "docs/images/site.png"
SIZE = "1280,860"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is its base's
        """Nothing."""


def main() -> None:
    """Serve the site to the browser: from a file it would have no search."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("no chromium: on Debian, apt-get install chromium")
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server,
        tempfile.TemporaryDirectory(prefix="gatherd-picture-") as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-sandbox",  # it shows our own pages only, and root has no other way
            f"--user-data-dir={profile}",
            f"--window-size={SIZE}",
            f"--screenshot={PICTURE}",
        ]
        url = f"http://127.0.0.1:{server.server_port}/index.html"
        subprocess.run([browser, *options, url], check=True, capture_output=True, timeout=120)
        server.shutdown()
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
