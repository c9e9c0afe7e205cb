"""Writes docs/models.md: `python tests/zoo`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import NEGATIVE, PAGE, VIDEO, page

PAGE.write_text(page(VIDEO, NEGATIVE), encoding="utf-8")
