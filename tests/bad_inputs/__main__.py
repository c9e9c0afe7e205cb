"""Writes docs/bad_inputs.md: `python tests/bad_inputs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bad_inputs import PAGE, page

PAGE.parent.mkdir(exist_ok=True)
PAGE.write_text(page(), encoding="utf-8")
