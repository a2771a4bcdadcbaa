"""Which proxy a client uses: URLs, the environment's variables by urllib's rules, and what is refused."""

from __future__ import annotations

import pickle
import sys

import pytest

from tcm_sync import ConfigError, TcmClient, TlsSettings
from tcm_sync._environment import settings_from_env
from tcm_sync._proxy_url import ProxyUrl, find_proxy
from tcm_sync._transport.proxies import make_proxy
from tcm_sync.settings import Settings

URI = "ws://manager.example:8000/ws"
SECRET = "pr0xy-never-shown"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "WS_PROXY", "WSS_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Begin with none of the variables in either case."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://p", ProxyUrl("http", "p", 80)),
        ("https://p", ProxyUrl("https", "p", 443)),
        ("socks5://p", ProxyUrl("socks5", "p", 1080)),
        ("socks5h://p:9", ProxyUrl("socks5h", "p", 9)),
        ("HTTP://P.example:3128/", ProxyUrl("http", "p.example", 3128)),
        ("http://[::1]:3128", ProxyUrl("http", "::1", 3128)),
        ("http://u:p%40ss%3A%2F@p:1", ProxyUrl("http", "p", 1, "u", "p@ss:/")),
        ("http://u@p:1", ProxyUrl("http", "p", 1, "u", "")),
        ("http://ü:é@p:1", ProxyUrl("http", "p", 1, "ü", "é")),
    ],
)
def test_a_url_is_read(url, read):
    assert ProxyUrl.parse(url) == read


REFUSED = {
    "no text": 7,
    "empty": "",
    "no scheme": f"user:{SECRET}@p:1",
    "an unknown scheme": f"socks4://user:{SECRET}@p:1",
    "the manager's scheme": f"ws://user:{SECRET}@p:1",
    "no host": f"http://user:{SECRET}@",
    "no host and no name": "http://",
    "port 0": f"http://user:{SECRET}@p:0",
    "a port that is no number": f"http://user:{SECRET}@p:{SECRET}",
    "a port that is too large": f"http://user:{SECRET}@p:99999",
    "a slash in the password": f"http://user:{SECRET}/{SECRET}@p:1",
    "a path": f"http://user:{SECRET}@p:1/{SECRET}",
    "a query": f"http://user:{SECRET}@p:1?{SECRET}",
    "a fragment": f"http://user:{SECRET}#{SECRET}@p:1",
    "a space": f"http://user:{SECRET} @p:1",
    "a line end": f"http://user:{SECRET}%0A@p:1",
    "a password without a user": f"http://:{SECRET}@p:1",
    "a colon in the user name": f"http://us%3Aer:{SECRET}@p:1",
    "SOCKS and no ASCII": f"socks5://us%C3%A9r:{SECRET}@p:1",
    "SOCKS and a long password": f"socks5://user:{SECRET * 20}@p:1",
    "SOCKS and a user alone": "socks5://user@p:1",
    "half a bracket": f"http://user:{SECRET}@[::1:1",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_url_of_a_proxy_is_refused_and_not_shown(name):
    with pytest.raises(ConfigError, match="proxy") as caught:
        TcmClient(URI, proxy=REFUSED[name])
    error = caught.value
    assert SECRET not in f"{error} {error!r} {error.__cause__!r}"
    assert error.__suppress_context__ or error.__context__ is None


def test_credentials_are_in_no_repr():
    settings = Settings(URI, proxy=f"http://user:{SECRET}@p:1")
    client = TcmClient(URI, proxy=settings.proxy)
    proxy = make_proxy(settings)
    for shown in (settings, pickle.loads(pickle.dumps(settings)), client, proxy, proxy.url):
        assert SECRET not in f"{shown} {shown!r}"
    assert str(proxy.url) == "http://p:1"
    assert str(ProxyUrl.parse(f"http://user:{SECRET}@[::1]")) == "http://[::1]:80"


def test_a_pickled_client_has_its_proxy():
    client = pickle.loads(pickle.dumps(TcmClient(URI, proxy=f"http://user:{SECRET}@p:1")))
    assert make_proxy(client._core.settings).url == ProxyUrl("http", "p", 1, "user", SECRET)


def test_a_socks_proxy_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.setattr("tcm_sync._proxy_url.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tcm-sync\[proxy\]'") as caught:
        TcmClient(URI, proxy=f"socks5h://user:{SECRET}@p:1")
    assert SECRET not in str(caught.value)
    assert TcmClient(URI, proxy="http://p:1")


def test_tls_settings_are_for_the_proxy_too():
    assert Settings(URI, proxy="https://p", tls=TlsSettings()).tls is not None
    for proxy in (None, "http://p", "socks5h://p"):
        with pytest.raises(ConfigError, match="tls is given"):
            Settings(URI, proxy=proxy, tls=TlsSettings())


# --- the environment ---


def found(secure=False, host="manager.example", port=8000):
    url = find_proxy("env", secure=secure, host=host, port=port)
    return None if url is None else str(url)


def test_without_a_setting_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    monkeypatch.setenv("ALL_PROXY", "socks4://nonsense")
    assert make_proxy(Settings(URI)) is None
    assert find_proxy(None, secure=False, host="h", port=1) is None


def test_an_environment_without_proxies_has_none():
    assert found() is None
    assert found(secure=True) is None


def test_ws_has_the_http_proxy_and_wss_the_https_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://plain:1")
    assert (found(), found(secure=True)) == ("http://plain:1", None)
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:2")
    assert (found(), found(secure=True)) == ("http://plain:1", "http://secure:2")


def test_all_proxy_is_for_what_has_no_own(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://any:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:2")
    assert (found(), found(secure=True)) == ("socks5h://any:1", "http://secure:2")


def test_lower_case_goes_first_and_an_address_may_lack_its_scheme(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://upper:1")
    monkeypatch.setenv("http_proxy", "lower:2")
    assert found() == "http://lower:2"


def test_a_cgi_program_does_not_take_a_header_for_its_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://evil:1")
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert found() is None


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("*", "manager.example", True),
        ("manager.example", "manager.example", True),
        ("manager.example:8000", "manager.example", True),
        ("manager.example:8001", "manager.example", False),
        ("other, .example", "manager.example", True),
        ("example", "manager.example", True),
        ("ample", "manager.example", False),
        ("MANAGER.example", "manager.EXAMPLE", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/8", "10.0.0.1", False),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("[::1]:8000", "::1", True),
        ("[::1]:8001", "::1", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_hosts_without_a_proxy(monkeypatch, entry, host, direct):
    monkeypatch.setenv("ALL_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", entry)
    assert (found(host=host) is None) is direct


def test_a_variable_that_cannot_be_used_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", f"socks4://user:{SECRET}@p:1")
    with pytest.raises(ConfigError, match=r"^ALL_PROXY must start with") as caught:
        TcmClient(URI, proxy="env")
    assert SECRET not in str(caught.value)


def test_from_env_takes_the_proxy_of_the_client_from_its_own_variable():
    environ = {"TCM_WS_URI": URI, "TCM_PROXY": "http://p:1\r\n", "HTTP_PROXY": "http://other:1"}
    assert settings_from_env(environ) == {"uri": URI, "proxy": "http://p:1"}
