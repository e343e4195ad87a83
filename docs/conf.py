"""Sphinx: Markdown pages, and the reference from docstrings. `python3 run.py docs` builds it."""

from __future__ import annotations

import nonlocal_nn

project = "nonlocal_nn"
author = "the nonlocal_nn authors"
copyright = author
release = version = nonlocal_nn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Copying an example leaves its prompts and its output behind.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"nonlocal_nn {version}"
html_static_path: list[str] = []
html_show_sourcelink = False
