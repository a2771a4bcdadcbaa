"""What docs/deploying.rst says about lines of code: by hand, and with the integrations."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
EXAMPLES = HERE.parents[1] / "examples"


def lines_of(code):
    """Count lines that are not empty, comments or docstrings."""
    body = code
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and (
            text := ast.get_docstring(node, clean=False)
        ):
            body = body.replace(f'"""{text}"""', "")
    return sum(1 for line in body.splitlines() if line.strip() and not line.strip().startswith("#"))


def by_hand(name):
    return lines_of((HERE / "by_hand" / name).read_text())


def settings_of_the_example():
    """Return what a project adds to its settings."""
    text = (EXAMPLES / "django" / "service" / "settings.py").read_text()
    return text[text.index("INSTALLED_APPS") : text.index("ROOT_URLCONF")] + text[text.index("TCM = {") :]


def test_the_page_counts_its_lines():
    page = (DOCS / "deploying.rst").read_text()
    flask = re.search(r"^\.\. code-block:: python\n\n((?: {3}.*\n|\n)+)", page, re.M)[1]
    flask_lines = sum(1 for line in flask.splitlines() if line.strip())
    django = EXAMPLES / "django" / "service"
    django_lines = lines_of(settings_of_the_example()) + sum(
        lines_of((django / name).read_text()) for name in ("views.py", "urls.py")
    )
    service = (EXAMPLES / "prometheus" / "service.py").read_text()
    metrics_lines = sum("listener" in line.lower() for line in service.splitlines())
    testing = (DOCS / "testing.rst").read_text()
    own_test = re.search(r"take\s+(\d+) lines", testing)[1], re.search(r"has (\d+) lines", testing)[1]
    rows = re.findall(r"^   \* - (A [^\n]+)\n     - (\d+)\n     - (\d+)$", page, re.M)
    assert [(int(before), int(after)) for _, before, after in rows] == [
        (by_hand("flask_service.py"), flask_lines),
        (by_hand("django_service.py"), django_lines),
        (by_hand("metrics.py"), metrics_lines),
        tuple(map(int, own_test)),
    ]
