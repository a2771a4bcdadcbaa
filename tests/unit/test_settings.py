"""Settings: every bad one is refused by name, and secrets stay out of sight."""

from __future__ import annotations

import logging
import pickle
import ssl

import pytest

from tcm_sync import AuthContext, ConfigError, InputError, Route, TcmClient, TlsSettings
from tcm_sync._arguments import check_count, check_seconds
from tcm_sync._endpoint import Endpoint
from tcm_sync.settings import UNSET, Settings, Unset

TOKEN = "tok-4711-never-to-be-shown"
URI = "ws://localhost:8000/ws"


# --- identity ---


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("uuid", "", "auth.uuid must be a text that is not empty"),
        ("uuid", None, "auth.uuid must be a text"),
        ("uuid", 7, "auth.uuid must be a text"),
        ("sub", "", "auth.sub must be a text"),
        ("sub", 7, "auth.sub must be a text"),
        ("tenant_id", b"t", "auth.tenant_id must be a text"),
        ("token", b"secret", "auth.token must be a str or a callable returning one, not bytes"),
        ("token", 7, "auth.token must be a str"),
        (
            "roles",
            "inference",
            "auth.roles must be a collection of texts such as ('inference',), not 'inference'",
        ),
        ("roles", 7, "auth.roles must be a collection"),
        ("roles", iter(["inference"]), "auth.roles must be a collection"),
        ("roles", [""], "auth.roles must be a text that is not empty"),
        ("roles", ["inference", 7], "auth.roles must be a text"),
        ("roles", None, "auth.roles must be a collection"),
    ],
)
def test_an_identity_that_cannot_be_sent_is_refused(field, value, words):
    with pytest.raises(ConfigError) as caught:
        AuthContext(**{field: value})
    assert caught.value.message.startswith(words)


def test_roles_are_kept_in_order():
    assert AuthContext(roles=["inference", "admin"]).roles == ("inference", "admin")
    assert AuthContext(roles={"inference"}).roles == ("inference",)
    assert AuthContext().roles == ()


def test_the_token_is_in_no_repr():
    auth = AuthContext(token=TOKEN, sub="svc")
    client = TcmClient(URI, auth)
    for what in (auth, Settings(URI, auth), client, TlsSettings(key_password=TOKEN)):
        assert TOKEN not in f"{what} {what!r}"
    assert "svc" in repr(auth)


# --- routes ---


@pytest.mark.parametrize(
    "route",
    [
        {"container_id": ""},
        {"container_id": None},
        {"container_id": 7},
        {"container_id": "c", "vm_ip": ""},
        {"container_id": "c", "vm_ip": 7},
        {"container_id": "c", "vm_id": b"vm"},
    ],
)
def test_a_route_that_leads_nowhere_is_refused(route):
    """As an input, since calls have routes too."""
    with pytest.raises(InputError, match=r"^route\.(container_id|vm_ip|vm_id) must be a text"):
        Route(**route)


# --- addresses ---


@pytest.mark.parametrize(
    ("uri", "endpoint", "authority", "url"),
    [
        (URI, Endpoint(False, "localhost", 8000, "/ws", ""), "localhost:8000", URI),
        ("ws://h/ws", Endpoint(False, "h", 80, "/ws", ""), "h", "ws://h:80/ws"),
        ("wss://h/ws", Endpoint(True, "h", 443, "/ws", ""), "h", "wss://h:443/ws"),
        ("wss://h:80/ws", Endpoint(True, "h", 80, "/ws", ""), "h:80", "wss://h:80/ws"),
        ("ws://h:443", Endpoint(False, "h", 443, "/", ""), "h:443", "ws://h:443/"),
        ("ws://[::1]:9/a", Endpoint(False, "::1", 9, "/a", ""), "[::1]:9", "ws://[::1]:9/a"),
        ("ws://[::1]/a", Endpoint(False, "::1", 80, "/a", ""), "[::1]", "ws://[::1]:80/a"),
        ("WS://Host/Pa%20th/", Endpoint(False, "host", 80, "/Pa%20th/", ""), "host", "ws://host:80/Pa%20th/"),
        ("ws://h/ws?a=1&b", Endpoint(False, "h", 80, "/ws", "a=1&b"), "h", "ws://h:80/ws?a=1&b"),
    ],
)
def test_an_address_is_read(uri, endpoint, authority, url):
    found = Endpoint.parse(uri)
    assert found == endpoint
    assert (found.authority, found.url) == (authority, url)


@pytest.mark.parametrize(
    ("path", "sibling"),
    [
        ("/ws", "/ready"),
        ("/prefix/ws", "/prefix/ready"),
        ("/prefix/ws/", "/prefix/ws/ready"),
        ("/prefix", "/prefix/ready"),
        ("/news", "/news/ready"),
        ("/", "/ready"),
        ("", "/ready"),
        ("/ws/ws", "/ws/ready"),
    ],
)
def test_the_probes_are_beside_the_final_ws(path, sibling):
    assert Endpoint.parse(f"ws://h{path}").sibling("ready") == sibling


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "must start with ws:// or wss://"),
        ("localhost:8000/ws", "must start with ws:// or wss://"),
        ("http://localhost/ws", "must start with ws:// or wss://"),
        ("ws:///ws", "names no host"),
        ("ws://:8000/ws", "names no host"),
        ("ws://h:port/ws", "cannot be read"),
        ("ws://h:65536/ws", "cannot be read"),
        ("ws://h:0/ws", "port 0"),
        ("wss://h:000", "port 0"),
        ("ws://[::1/ws", "cannot be read"),
        ("ws://h/ws#part", "must not have a fragment"),
        ("ws://h /ws", "without spaces or control characters"),
        ("ws://h/ws\r\nX: 1", "without spaces or control characters"),
        ("ws://h/ws\n", "without spaces or control characters"),
        ("ws://h/\u202e", "without spaces or control characters"),
        ("ws://h/é", "percent-encoding"),
        ("ws://h/ws?é", "percent-encoding"),
        (None, "must be a text"),
        (b"ws://h/ws", "must be a text"),
    ],
)
def test_an_address_that_cannot_work_is_refused(uri, words):
    for make in (Endpoint.parse, Settings, TcmClient):
        with pytest.raises(ConfigError) as caught:
            make(uri)
        assert caught.value.message.startswith("uri ")
        assert words in caught.value.message


@pytest.mark.parametrize("uri", ["ws://user:{}@h/ws", "ws://{}@h/ws", "ws://:{}@h/ws", "http://u:{}@h/ws"])
def test_credentials_in_an_address_are_refused_and_not_repeated(uri):
    with pytest.raises(ConfigError, match="must not hold credentials") as caught:
        Endpoint.parse(uri.format(TOKEN))
    assert TOKEN not in str(caught.value)


# --- numbers ---

NOT_SECONDS = [0, 0.0, -1, float("nan"), float("inf"), True, "5", None, [], 1j]


@pytest.mark.parametrize("value", NOT_SECONDS)
def test_seconds_are_positive_and_finite(value):
    with pytest.raises(ConfigError, match=r"^it must be a positive, finite number, not "):
        check_seconds("it", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "5", None, float("nan")])
def test_a_count_is_whole_and_at_least_one(value):
    with pytest.raises(ConfigError, match=r"^it must be a whole number of at least 1, not "):
        check_count("it", value)


def test_good_numbers_are_returned():
    assert (check_seconds("it", 1), check_seconds("it", 0.5), check_count("it", 7)) == (1, 0.5, 7)


COUNTS = ["pool_size", "max_requests", "max_message_bytes", "max_reply_bytes"]
SECONDS = ["max_idle", "max_lifetime", "connect_timeout", "ping_interval"]
SECONDS_OR_NONE = ["timeout", "pool_timeout", "messages_per_second"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in COUNTS for value in (0, -1, 2.5, True, "4")),
        *((name, None) for name in COUNTS if name != "pool_size"),
        *(("turns", value) for value in (0, -1, 101, 2.5, True, "4", "on", None)),
        *(
            (name, value)
            for name in SECONDS
            for value in (0, -1, float("inf"), float("nan"), True, "4", None)
        ),
        *((name, value) for name in SECONDS_OR_NONE for value in (0, -1, float("inf"), True, "4")),
        ("messages_per_second", 0.5),
    ],
)
def test_a_number_that_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        TcmClient(URI, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "sockets", "turns"),
    [({}, 16, 5), ({"turns": "auto"}, 16, 5), ({"turns": 10}, 16, 10), ({"turns": "off"}, 4, None)],
)
def test_a_pool_without_turns_is_smaller(arguments, sockets, turns):
    settings = TcmClient(URI, **arguments)._core.settings
    assert (settings.pool_size, settings.turn_count) == (sockets, turns)
    assert TcmClient(URI, pool_size=7, **arguments)._core.settings.pool_size == 7


@pytest.mark.parametrize("name", SECONDS_OR_NONE)
def test_some_limits_may_be_none(name):
    assert getattr(Settings(URI, **{name: None}), name) is None


# --- the rest ---


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("auth", TOKEN, "AuthContext"),
        ("auth", {"token": TOKEN}, "AuthContext"),
        ("route", "ctr-9", "Route"),
        ("tls", True, "TlsSettings"),
        ("tls", ssl.create_default_context(), "TlsSettings"),
        ("retry", 3, "RetryPolicy"),
        ("retry", False, "RetryPolicy"),
    ],
)
def test_a_setting_of_another_type_is_refused_and_not_shown(name, value, kind):
    with pytest.raises(ConfigError, match=rf"^{name} must be a {kind}, not ") as caught:
        TcmClient("wss://h/ws", **{name: value})
    assert TOKEN not in str(caught.value)


def test_tls_settings_need_a_secure_address():
    with pytest.raises(ConfigError, match=r"^tls is given but the uri 'ws://h/ws' is not wss://"):
        TcmClient("ws://h/ws", tls=TlsSettings())


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([("A", "x")], "must map names to values"),
        ("A: x", "must map names to values"),
        ({"": "x"}, "is not a header name"),
        ({"A B": "x"}, "is not a header name"),
        ({"A:": "x"}, "is not a header name"),
        ({"A\r\nB": "x"}, "is not a header name"),
        ({"é": "x"}, "is not a header name"),
        ({7: "x"}, "must map names to values"),
        ({"A": 7}, "must map names to values"),
        ({"A": None}, "must map names to values"),
        ({"A": b"x"}, "must map names to values"),
        ({"A": "x\r\nB: y"}, "the value of A must be one line of printable ASCII"),
        ({"A": "é"}, "the value of A must be one line of printable ASCII"),
        ({"A": "\x00"}, "the value of A must be one line of printable ASCII"),
        ({"Host": "x"}, "Host is the handshake's own"),
        ({"UPGRADE": "x"}, "UPGRADE is the handshake's own"),
        ({"connection": "x"}, "connection is the handshake's own"),
        ({"Content-Length": "0"}, "Content-Length is the handshake's own"),
        ({"Sec-WebSocket-Extensions": "x"}, "Sec-WebSocket-Extensions is the handshake's own"),
        ({"sec-websocket-new": "x"}, "sec-websocket-new is the handshake's own"),
    ],
)
def test_a_header_that_would_break_the_handshake_is_refused(headers, words):
    with pytest.raises(ConfigError) as caught:
        TcmClient(URI, headers=headers)
    assert caught.value.message.startswith("headers")
    assert words in caught.value.message


def test_what_a_header_holds_is_not_shown_when_it_is_refused():
    with pytest.raises(ConfigError) as caught:
        TcmClient(URI, headers={"Authorization": f"Bearer {TOKEN}\n."})
    assert TOKEN not in str(caught.value)


def test_headers_are_copied_and_trimmed():
    headers = {"Authorization": "Bearer x", "X-Empty": "", "X-!#$%&'*+.^_`|~": "  a b\x20"}
    settings = Settings(URI, headers=headers)
    headers["Host"] = "elsewhere"
    assert settings.headers == {"Authorization": "Bearer x", "X-Empty": "", "X-!#$%&'*+.^_`|~": "a b"}
    assert Settings(URI).headers == {}


# --- UNSET ---


def test_unset_is_one_of_its_kind_and_not_none():
    assert UNSET is Unset.UNSET is not None
    assert repr(UNSET) == "UNSET"
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


def test_a_pool_beyond_what_a_manager_serves_is_a_warning_and_no_error(caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.pool")
    TcmClient(URI, pool_size=50)
    assert not caplog.records  # it is said when the client opens
