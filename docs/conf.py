"""Settings of the documentation. Build it with ``sphinx-build -W --keep-going -n docs docs/_build``."""

from configparser import ConfigParser
from pathlib import Path

package = ConfigParser()
package.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")

project = "tcm_sync"
author = package["metadata"]["author"]
copyright = author
version = release = package["metadata"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # single backticks in docstrings name parameters as often as objects
nitpicky = True
nitpick_ignore_regex = [
    ("py:exc", r"\w+Error"),  # the page on errors lists them
    # Types in docstrings are prose: "mapping", "mapping of str to int", a set of texts.
    ("py:class", r"[\w-]+|(str|int) to \w+|\{?\"\w+\"\}?"),
]

html_theme = "furo"
html_title = f"{project} {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types, with shapes and units
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True
