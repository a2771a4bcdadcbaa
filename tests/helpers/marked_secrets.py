"""A pytest plugin: marked secrets in every client, and a record of all that is shown.

``python -m tests.helpers.marked_secrets [pytest arguments]`` runs tests with it, and then looks for the marks
in all that was written: output, log records, and every error with its causes, its repr and its pickle. It
exits with 1 if one is found. Tests that compare what a server received, or the exact words of an error, fail
under it, since peers repeat the secrets; what counts is what the tests wrote.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

PASSWORD = "mark-password-83b1f7"
MARKS = {
    "token": "mark-token-0f6a2c",
    "header": "mark-header-c94d10",
    "cookie": "mark-cookie-77e5ab",
    "query": "mark-query-5d20e9",
    "password": PASSWORD,
    "basic": base64.b64encode(f"me:{PASSWORD}".encode()).decode(),
}
SAID = " ".join(MARKS.values())  # what peers repeat
PROXY_PASSWORD = "mark-proxy-2e61d8"
SAID_BY_PROXIES = f"{PROXY_PASSWORD} {base64.b64encode(f'me:{PROXY_PASSWORD}'.encode()).decode()}"
OF_TESTS = "pr0xy-"  # with which the passwords begin that the tests' own proxies check
SOUGHT = {
    **MARKS,
    "proxy's password": PROXY_PASSWORD,
    "proxy's basic": SAID_BY_PROXIES.split()[1],
    "password of a proxy of the tests": OF_TESTS,
    "password of a key": "mark-key-61c0f3",
}
_FOLDER = "TCM_MARKED_SECRETS"  # the variable with the folder for the record


def main(arguments: list[str]) -> int:
    """Run tests, and look for the marks in what they wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pytest", "-p", "tests.helpers.marked_secrets", "-q", "-s"]
        command += ["-p", "no:cacheprovider", "--tb=no", "-r", "N", "-W", "default", *arguments]
        with open(folder / "output", "wb") as output:
            environment = {**os.environ, _FOLDER: name}
            subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
        found = marks_in(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        last = (folder / "output").read_text(errors="replace").strip().splitlines()[-1:]
    lines = [*found, f"{len(found)} marks found in {size:,} bytes", *last]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found or not size else 0


def marks_in(folder: Path) -> list[str]:
    """Return each mark that stands in a file of a folder, with what is around it."""
    found = []
    for path in sorted(folder.iterdir()):
        text = path.read_bytes()
        for kind, mark in SOUGHT.items():
            at = text.find(mark.encode())
            if at >= 0:
                around = text[max(0, at - 300) : at + 100].decode(errors="replace")
                found.append(
                    f"{path.name}: the {kind} is shown {text.count(mark.encode())} times: ...{around}..."
                )
    return found


class Record:
    """What is shown while tests run: log records at once, and errors when the test that made them is over."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - for the whole run
        self.errors: list[BaseException] = []
        self.objects: list[object] = []

    def write(self, text: str) -> None:
        self._file.write(text + "\n")
        self._file.flush()

    def write_errors(self) -> None:
        errors, self.errors = self.errors, []
        for error in errors:
            chain = "".join(traceback.format_exception(error))
            self.write(f"{chain}\n{error!r}\n{vars(error)!r}\n{_pickled(error)}")


def _pickled(error: BaseException) -> str:
    try:
        return repr(pickle.dumps(error, 0))
    except Exception as failure:  # noqa: BLE001 - a test's own odd attribute
        return repr(failure)


class _Handler(logging.Handler):
    def __init__(self, record: Record) -> None:
        super().__init__(logging.DEBUG)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("tcm_sync"):
            self._record.write(f"{self.format(record)}\n{vars(record)!r}")


def pytest_configure() -> None:
    """Patch settings, errors and peers for the whole run."""
    record = Record(Path(os.environ[_FOLDER]) / f"record-{os.getpid()}")
    pytest_runtest_teardown.record = record  # type: ignore[attr-defined]
    logging.getLogger("tcm_sync").addHandler(_Handler(record))
    logging.getLogger("tcm_sync").setLevel(logging.DEBUG)
    _mark_settings()
    _collect_errors(record)
    _have_peers_repeat()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Write down the errors of the test."""
    pytest_runtest_teardown.record.write_errors()  # type: ignore[attr-defined]


def _mark_settings() -> None:
    from tcm_sync.settings import AuthContext, Settings, TlsSettings

    check, check_tls = Settings.__post_init__, TlsSettings.__post_init__

    def marked(settings: Settings) -> None:
        if isinstance(settings.uri, str) and "?" not in settings.uri and settings.uri.startswith("ws"):
            object.__setattr__(settings, "uri", f"{settings.uri}?key={MARKS['query']}")
        if isinstance(settings.headers, dict | None):
            more = {
                "X-Marked": MARKS["header"],
                "Cookie": f"theme=dark; session={MARKS['cookie']}",
                "Authorization": f"Basic {MARKS['basic']}",
            }
            object.__setattr__(settings, "headers", {**more, **(settings.headers or {})})
        auth = settings.auth
        if isinstance(auth, AuthContext | None):
            given = AuthContext() if auth is None else auth
            token = partial(_marked_token, given.token) if callable(given.token) else MARKS["token"]
            object.__setattr__(settings, "auth", dataclasses.replace(given, token=token))
        if settings.proxy == "env":
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                os.environ[name] = _marked_proxy(os.environ[name])
        elif isinstance(settings.proxy, str):
            object.__setattr__(settings, "proxy", _marked_proxy(settings.proxy))
        check(settings)

    def marked_tls(tls: TlsSettings) -> None:
        if tls.key_password:
            object.__setattr__(tls, "key_password", SOUGHT["password of a key"])
        check_tls(tls)

    Settings.__post_init__ = marked  # type: ignore[method-assign]
    TlsSettings.__post_init__ = marked_tls  # type: ignore[method-assign]


def _marked_proxy(url: str) -> str:
    """Return a URL with marked credentials, unless a proxy of the tests checks those that it has."""
    return url if OF_TESTS in url else re.sub(r"://(?:[^/@]*@)?", f"://me:{PROXY_PASSWORD}@", url, count=1)


def _marked_token(ask: Callable[[], str]) -> str:
    """Ask for a test's own token, which may fail, and return the marked one."""
    token = ask()
    return MARKS["token"] if isinstance(token, str) else token


def _collect_errors(record: Record) -> None:
    from tcm_sync.errors import TcmError

    make = TcmError.__init__

    def collect(error: TcmError, message: str, **fields: object) -> None:
        make(error, message, **fields)
        record.errors.append(error)

    TcmError.__init__ = collect  # type: ignore[method-assign]


def _have_peers_repeat() -> None:
    """Have scripted peers put the marks into every text that they send."""
    from . import peer_connection

    peer = peer_connection.PeerConnection
    answer_http, error, fail, close = peer.answer_http, peer.error, peer.fail, peer.close
    send_raw = peer.send_raw

    def answer(self, status, body=b"", extra_headers=()):
        said = SAID.encode()
        if status != 200:
            body = body.replace(b'": "', b'": "%b ' % said) if body.startswith(b"{") else said + b" " + body
        answer_http(self, status, body, extra_headers)

    def refuse(self, message, code=None, **more):
        error(self, f"{message} {SAID}", code, **more)

    def failed(self, code, reason="because", retriable=False, **more):
        fail(self, code, f"{reason} {SAID}", retriable, **more)

    def closed(self, code=1000, reason=""):
        close(self, code, reason and f"{reason} {MARKS['token']}")

    def sent(self, data):
        marked = SAID_BY_PROXIES.split()[1] in self.headers.get("proxy-authorization", "")
        if marked and re.match(rb"HTTP/1\.\d [345]", data):
            line, end, rest = data.partition(b"\r\n")
            data = line + f" {SAID_BY_PROXIES}".encode() + end + rest
        send_raw(self, data)

    peer.answer_http, peer.error, peer.fail, peer.close = answer, refuse, failed, closed
    peer.send_raw = sent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
