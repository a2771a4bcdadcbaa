"""Settings of the documentation. Build it with ``sphinx-build -W --keep-going -n docs docs/_build``."""

import ast
from configparser import ConfigParser
from itertools import groupby
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]

package = ConfigParser()
package.read(ROOT / "setup.cfg", encoding="utf-8")

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


class ModuleList(SphinxDirective):
    """Lists every module of the package by folder, each with the first sentence of its docstring."""

    def run(self):
        paths = sorted((ROOT / "tcm_sync").rglob("*.py"), key=lambda path: (path.parent, path))
        lines = []
        for folder, files in groupby(paths, key=lambda path: path.parent):
            lines += [f"**{folder.relative_to(ROOT).as_posix()}/**", ""]
            for path in files:
                says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
                lines += [f"- ``{path.name}``: {says}".replace("\n", " "), ""]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    app.add_directive("module-list", ModuleList)
