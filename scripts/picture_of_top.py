"""Draw `docs/pictures/top.svg`: what `colocate top` shows of the run in progress, at 100 by 30.

colocate demo & sleep 60; python scripts/picture_of_top.py docs/pictures/top.svg [COLUMNS ROWS [STATE_DIR]]
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import partial
from pathlib import Path

from colocate.host.state import default_directory
from colocate.top.app import TopApp
from colocate.top.feed import status_of


async def draw(path: Path, columns: int, rows: int, state: Path) -> None:
    """Write the picture of this moment."""
    source = partial(status_of, state)
    app = TopApp(source, source())
    async with app.run_test(size=(columns, rows)) as pilot:
        await pilot.pause()
        picture = app.export_screenshot(title="colocate top")
    picture = re.sub(r"@font-face {.*?}", "", picture, flags=re.DOTALL)  # any font of one width will do
    path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    path, columns, rows, state = [*sys.argv[1:], *["", "100", "30", str(default_directory())][len(sys.argv) - 1 :]]
    asyncio.run(draw(Path(path), int(columns), int(rows), Path(state)))
