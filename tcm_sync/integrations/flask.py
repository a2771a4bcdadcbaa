"""`Tcm`, the clients of a Flask application, and `current_tcm`, the one of the current request.

Install it with the extra ``flask``. docs/deploying.rst shows how it is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

try:
    import click
    import flask
    from flask.cli import with_appcontext
    from flask.json.provider import DefaultJSONProvider
    from werkzeug.local import LocalProxy
except ImportError as error:
    raise ImportError("tcm_sync.integrations.flask needs Flask: pip install 'tcm-sync[flask]'") from error

from tcm_sync._deadline import Deadline
from tcm_sync.cli import missing_package
from tcm_sync.client import TcmClient
from tcm_sync.errors import ConfigError, TcmError
from tcm_sync.integrations._deadline import bounded
from tcm_sync.integrations._doctor import run_checks
from tcm_sync.integrations._http import Response, readiness_of, response_to
from tcm_sync.integrations._json import to_json
from tcm_sync.integrations._settings import (
    client_from_dict,
    client_from_variables,
    ready_timeout,
    request_timeout,
)

__all__ = ["Tcm", "TcmJSONProvider", "current_tcm", "health"]

DEFAULT = "default"
_DEADLINE = "_tcm_deadline"  # of the request, in `flask.g`


class Tcm:
    """The clients of a Flask application: one of each, for all of its threads.

    Clients are made by `init_app`, so that a wrong setting is reported at the start. They connect when they
    are first used, and may be made before a server forks its workers. They are read from ``app.config``:

    ``TCM_WS_URI``, ``TCM_CONTAINER_ID``, …
        The client ``"default"``: keys named like the environment variables, which are read for keys that
        are missing. ``TCM_CLIENT_TOKEN`` may be a callable too.
    ``TCM_OPTIONS``
        A dictionary of further arguments of `TcmClient` for it.
    ``TCM_CLIENTS``
        Other clients: a dictionary by name of dictionaries with the arguments of `TcmClient`, and ``token``,
        ``container_id`` and so on directly. If it has a ``"default"``, that replaces the one above.
    ``TCM_REQUEST_TIMEOUT``
        Seconds from the start of a request, after which the calls that are made in it end.
    ``TCM_HANDLE_ERRORS``
        Whether errors of calls become JSON responses (400, 502, 503 with Retry-After, 504). Off by default.
    ``TCM_READY_TIMEOUT``
        Seconds that ``/readyz`` of `health` may take; 0.8 by default.

    ``app.extensions["tcm"]`` is the dictionary of the clients by name, in which a test may replace one.

    Parameters
    ----------
    app : flask.Flask, optional
        The application; left out, `init_app` is called later.

    Raises
    ------
    ConfigError
        A setting is missing or cannot work.

    Examples
    --------
    >>> app = Flask(__name__)  # doctest: +SKIP
    >>> app.config["TCM_WS_URI"] = "ws://manager:8000/ws"  # doctest: +SKIP
    >>> tcm = Tcm(app)  # doctest: +SKIP
    """

    def __init__(self, app: flask.Flask | None = None) -> None:
        self._app: weakref.ref[flask.Flask] | None = None
        if app is not None:
            self._app = weakref.ref(app)
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Make the clients of an application.

        Parameters
        ----------
        app : flask.Flask
            The application, whose configuration is complete.

        Raises
        ------
        ConfigError
            A setting is missing or cannot work.
        """
        if "tcm" in app.extensions:
            raise ConfigError("this application has its Tcm already: call init_app once for each application")
        seconds = request_timeout(app.config.get("TCM_REQUEST_TIMEOUT"))
        _ready_timeout(app)
        clients = _clients_of(app.config)
        app.extensions["tcm"] = clients
        for client in clients.values():
            client._core.may_be_dropped = True  # noqa: SLF001 - with the application, which nobody closes
        if seconds is not None:

            def start_deadline() -> None:
                setattr(flask.g, _DEADLINE, Deadline(seconds))

            app.before_request(start_deadline)
        if app.config.get("TCM_HANDLE_ERRORS"):
            app.register_error_handler(TcmError, _error_response)
        app.cli.add_command(_commands)

    def __getitem__(self, name: str) -> TcmClient:
        """Return a client by name, whose calls end with the current request."""
        return _client(self._application(), name)

    @property
    def client(self) -> TcmClient:
        """The client ``"default"``, whose calls end with the current request."""
        return self[DEFAULT]

    def close(self) -> None:
        """Close the clients, such as in a test. Left out, they close when the application is collected."""
        for client in _clients(self._application()).values():
            client.close()

    def _application(self) -> flask.Flask:
        if flask.has_app_context():
            return flask.current_app
        app = None if self._app is None else self._app()
        if app is None:
            raise RuntimeError("there is no current application: use the client inside app.app_context()")
        return app


class TcmJSONProvider(DefaultJSONProvider):
    """Writes results and arrays as JSON, with null for NaN and infinity in them.

    Set ``app.json = TcmJSONProvider(app)``; then ``jsonify(result)`` works.
    """

    @staticmethod
    def default(o: Any) -> Any:
        """Return what Flask cannot write itself as something that it can.

        Parameters
        ----------
        o : object
            What is to be written.

        Returns
        -------
        object
            Lists, numbers and strings.
        """
        return to_json(o, DefaultJSONProvider.default)


def _clients_of(config: Mapping[str, Any]) -> dict[str, TcmClient]:
    given = config.get("TCM_CLIENTS") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"TCM_CLIENTS must be a dictionary of clients by name, not {type(given).__name__}")
    others = {name: client_from_dict(f"TCM_CLIENTS[{name!r}]", each) for name, each in given.items()}
    if DEFAULT in others:
        return others
    return {DEFAULT: client_from_variables(config, config.get("TCM_OPTIONS") or {}), **others}


def _clients(app: flask.Flask) -> dict[str, TcmClient]:
    clients: dict[str, TcmClient] | None = app.extensions.get("tcm")
    if clients is None:
        raise RuntimeError("this application has no Tcm: call Tcm(app), or init_app(app) of one")
    return clients


def _ready_timeout(app: flask.Flask) -> float:
    return ready_timeout(app.config.get("TCM_READY_TIMEOUT"))


def _client(app: flask.Flask, name: str) -> TcmClient:
    clients = _clients(app)
    if name not in clients:
        raise ConfigError(
            f"there is no client {name!r} in TCM_CLIENTS; there are {', '.join(map(repr, clients))}"
        )
    return bounded(clients[name], flask.g.get(_DEADLINE) if flask.has_request_context() else None)


def _current() -> TcmClient:
    return _client(flask.current_app, DEFAULT)


#: The client ``"default"`` of the current application; its calls end with the current request.
current_tcm: TcmClient = cast("TcmClient", LocalProxy(_current))


# --- errors and probes ---


def _respond(response: Response) -> flask.Response:
    made = flask.jsonify(response.body)
    made.status_code = response.status
    made.headers.update(response.headers)
    return made


def _error_response(error: TcmError) -> flask.Response:
    response = response_to(error)
    if response is None:
        raise error
    return _respond(response)


#: The probes, for ``app.register_blueprint(health)``. ``/healthz`` answers 200 while this process answers at
#: all. ``/readyz`` answers 200 if the managers of all clients are ready, else 503, within
#: ``TCM_READY_TIMEOUT`` seconds.
health = flask.Blueprint("tcm_health", __name__)


@health.get("/healthz")
def _healthz() -> flask.Response:
    return flask.jsonify(status="ok")


@health.get("/readyz")
def _readyz() -> flask.Response:
    app = flask.current_app
    return _respond(readiness_of(_clients(app), _ready_timeout(app)))


# --- the command ---


@click.group("tcm")
def _commands() -> None:
    """Commands about the Triton Client Manager."""


@_commands.command("doctor")
@click.option("--client", "name", default=DEFAULT, show_default=True, help="The client to check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one line, keys that stay.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds for each step.")
@with_appcontext
@click.pass_context
def _doctor(context: click.Context, name: str, as_json: bool, timeout: float | None) -> None:
    """Check the connection to the manager step by step, and print what to do."""
    if fault := missing_package():
        raise click.ClickException(fault)
    try:
        client = _client(flask.current_app, name)
    except (ConfigError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    context.exit(run_checks(client, as_json=as_json, timeout=timeout))
