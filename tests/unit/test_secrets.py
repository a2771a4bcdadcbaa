"""Secrets: what `hide` replaces, for how long, and which parts of headers and URIs are secrets."""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import html
import json
import pickle
from urllib.parse import quote as percent_encode

import pytest

from tcm_sync import AuthContext, TcmClient, TlsSettings, _secrets
from tcm_sync._endpoint import Endpoint
from tcm_sync._secrets import Secret, hide, hide_in, secret_of_header, secrets_of_query, shown_uri
from tcm_sync.settings import Settings

TEXT = "s3cret-4711-never-to-be-shown"
ODD = "s3\"cret\\with/é<&>' and + spaces"


@pytest.fixture(autouse=True)
def _no_other_secret(monkeypatch):
    monkeypatch.setattr(_secrets, "_in_use", {})


def test_a_secret_is_hidden_as_long_as_it_lives():
    secret = Secret(TEXT)
    assert hide(f"a {TEXT} b") == "a *** b"
    again = Secret(TEXT)
    del secret
    gc.collect()
    assert hide(f"a {TEXT} b") == "a *** b"
    del again
    gc.collect()
    assert hide(f"a {TEXT} b") == f"a {TEXT} b"
    assert _secrets._in_use == {}


def test_a_secret_shows_in_no_form_of_itself():
    secret = Secret(TEXT)
    assert f"{secret} {secret!r} {secret!s} {[secret]} {(secret,)!r:.50}".count("***") == 5
    assert secret.reveal() == TEXT
    assert secret == Secret(TEXT) != Secret("other")
    assert hash(secret) == hash(Secret(TEXT))
    with pytest.raises(TypeError):
        vars(secret)


@pytest.mark.parametrize("held", [AuthContext(token=TEXT), TlsSettings(key_password=TEXT)])
def test_a_secret_is_hidden_where_its_settings_were_unpickled(held):
    pickled = pickle.dumps(held)
    assert hide(TEXT) == TEXT
    copies = pickle.loads(pickled), copy.copy(held), dataclasses.replace(held)
    for copied in copies:
        assert copied == held
        assert hide(TEXT) == "***"


def test_a_secret_by_itself_is_not_pickled():
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(Secret(TEXT))


@pytest.mark.parametrize(
    "written",
    [
        str,
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
        lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
        lambda text: percent_encode(text, safe=""),
        lambda text: percent_encode(text, safe="").lower() if text == TEXT else percent_encode(text, safe=""),
        lambda text: percent_encode(text, safe=" ").replace("/", "%2F").replace(" ", "+"),
        html.escape,
        lambda text: html.escape(text, quote=False),
        lambda text: repr(text)[1:-1],
        lambda text: text.encode("unicode_escape").decode(),
    ],
)
@pytest.mark.parametrize("text", [TEXT, ODD])
def test_a_secret_is_found_as_json_urls_html_and_python_write_it(written, text):
    secret = Secret(text)
    assert hide(f"<{written(text)}>") == "<***>"
    assert secret.reveal() == text


def test_secrets_within_secrets_leave_no_piece():
    secrets = Secret(TEXT), Secret(f"{TEXT}-and-more"), Secret(f"Bearer {TEXT}")
    assert hide(f"{TEXT}-and-more, Bearer {TEXT}, {TEXT}") == "***, ***, ***"
    assert len(secrets) == 3


def test_names_and_values_of_json_are_hidden_and_nothing_else():
    secret = Secret(TEXT)
    value = {"a": [f"x {TEXT}", 1, None, True], TEXT: {"b": 2.5}}
    assert hide_in(value) == {"a": ["x ***", 1, None, True], "***": {"b": 2.5}}
    assert secret.reveal() == TEXT


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("Authorization", f"Bearer {TEXT}", TEXT),
        ("proxy-authorization", f"Token {TEXT}", TEXT),
        ("Authorization", "Basic " + base64.b64encode(b"me:hunter-7").decode(), "hunter-7"),
        ("Authorization", "Basic " + base64.b64encode(b"me:hunter-7").decode(), "me:hunter-7"),
        ("authorization", "basic " + base64.b64encode(b"me:hunter-7").decode(), "hunter-7"),
        ("Cookie", f"theme=dark; session={TEXT}; n=1", TEXT),
        ("Cookie", f'session="{TEXT}"', TEXT),
        ("X-Key", TEXT, TEXT),
        ("X-Key", "key-1", "key-1"),
        ("x-api-TOKEN", "pear", "pear"),
        ("X-Goog-Signature", "apple-7", "apple-7"),
        ("X-Session-Id", "1234", "1234"),
        ("X-Team", TEXT, TEXT),
        ("X-Team", f"Bearer {TEXT}", TEXT),
        ("X-Team", "sixteen-letters-", "sixteen-letters-"),
    ],
)
def test_the_credentials_in_a_header_are_hidden_by_themselves(name, value, hidden):
    secret = secret_of_header(name, value)
    assert secret.reveal() == value
    assert hide(f"no {value} here, no {hidden} either") == "no *** here, no *** either"


@pytest.mark.parametrize("value", ["inference", "image inference", "fifteen-letters"])
def test_a_short_value_of_a_header_that_is_not_named_as_a_secret_hides_no_word(value):
    secret = secret_of_header("X-Team", value)
    assert secret.reveal() == value
    said = f"a message of type inference is for the image team {value}"
    assert hide(said) == said


def test_a_short_value_of_a_query_that_is_not_named_as_a_secret_hides_no_word():
    secrets = secrets_of_query("team=inference&api%2Dkey=pear&model&sig=0123456789abcdef")
    assert hide("inference pear model 0123456789abcdef") == "inference *** model ***"
    assert len(secrets) == 4


def test_the_values_of_a_query_are_hidden_as_written_and_as_meant():
    secrets = secrets_of_query("token=s3cret%2Fvalue+x&v=1&flag-without-value")
    assert hide("s3cret%2Fvalue+x s3cret/value x flag-without-value 1") == "*** *** *** 1"
    assert len(secrets) == 3


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("ws://h/ws", "ws://h/ws"),
        ("ws://h/ws?token=a&b=c", "ws://h/ws?token=***&b=***"),
        ("ws://h/ws?abc", "ws://h/ws?***"),
        ("ws://h/ws?a=b?c=d#e", "ws://h/ws?a=***"),
        ("ws://me:pw@h/ws", "ws://***@h/ws"),
        ("ws://me:p@w@h/ws?", "ws://***@h/ws?"),
        ("nonsense?x=y", "nonsense?x=***"),
    ],
)
def test_a_uri_is_shown_without_what_it_hides(uri, shown):
    assert shown_uri(uri) == shown


# --- what users hold ---


def test_no_repr_shows_a_query_a_token_a_header_or_a_password():
    uri = f"wss://h.example/ws?token={TEXT}"
    auth = AuthContext(token=TEXT)
    tls = TlsSettings(key_password=TEXT)
    settings = Settings(uri, auth=auth, headers={"X": TEXT}, tls=tls)
    with TcmClient(uri, auth, headers={"X": TEXT}) as client:
        shown = f"{client!r} {client.with_options(timeout=1.0)!r} {client.model('m', container_id='c')!r}"
    shown += f"{settings!r} {auth!r} {tls!r} {Endpoint.parse(uri)!r}"
    assert TEXT not in shown
    assert shown.count("ws?token=***") == 3


@pytest.mark.parametrize(
    "uri",
    [
        f"http://h/ws?token={TEXT}",
        f"ws:///ws?token={TEXT}",
        f"ws://h:0/ws?token={TEXT}",
        f"ws://h:99999/ws?token={TEXT}",
        f"ws://h/ws?token={TEXT}#{TEXT}",
        f"ws://h/wsé?token={TEXT}",
        f"ws://me:{TEXT}@h/ws",
        f"ws://me:{TEXT}@h:port/ws",
        f"ws://me:{TEXT}@h\u2100/ws",
        f"ws://[{TEXT}/ws?token={TEXT}",
        f"ws://h/ws?token={TEXT} and",
    ],
)
def test_no_refusal_of_a_uri_shows_its_secrets(uri):
    with pytest.raises(ValueError) as caught:
        Settings(uri, tls=TlsSettings())
    error = caught.value
    assert TEXT not in f"{error} {error!r} {error.__cause__!r}".replace(f"[{TEXT}/", "")


def test_a_refusal_of_tls_for_ws_shows_no_query():
    with pytest.raises(ValueError, match=r"ws://h/ws\?token=\*\*\*") as caught:
        Settings(f"ws://h/ws?token={TEXT}", tls=TlsSettings())
    assert TEXT not in str(caught.value)


def test_settings_survive_pickling_with_what_they_hide():
    settings = Settings(f"ws://h/ws?token={TEXT}", headers={"X-Secret": "another/secret"})
    copied = pickle.loads(pickle.dumps(settings))
    assert copied == settings
    del settings
    gc.collect()
    assert hide(f"{TEXT} another%2Fsecret") == "*** ***"
    assert copied.uri.endswith(TEXT)
