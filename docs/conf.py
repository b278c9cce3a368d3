"""Sphinx builds the site of `docs/` from this configuration: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_app import __version__

project = "iris-api"
author = "The authors of iris-api"
version = release = __version__

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
exclude_patterns = ["notebooks", "images/*.dot"]
suppress_warnings = ["misc.highlighting_failure"]
nitpicky = True

html_theme = "furo"
html_title = "iris-api"
html_static_path: list[str] = []
html_show_sourcelink = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
