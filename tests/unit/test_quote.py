"""What is shown of the manager's words: escaped, short, and never the token."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcm_sync import _secrets
from tcm_sync._secrets import Secret, hide
from tcm_sync._wire.quote import quote

TOKEN = "tok-4711-never-to-be-shown"
#: Tokens that JSON writes in another way than they are.
ODD = 'pass"word\\with/é\U0001f511\n'
TOKENS = [TOKEN, ODD, "x" * 2000, "é" * 40]
MOST = 300


@pytest.fixture(autouse=True)
def _no_other_secret(monkeypatch):
    monkeypatch.setattr(_secrets, "_in_use", {})


def quote_for(text, token):
    """Quote a text while a secret lives; `hide` alone hides as much of a text that is not cut."""
    secret = Secret(token) if token else None
    shown = quote(text)
    del secret
    return shown


def hide_for(text, token):
    secret = Secret(token)
    shown = hide(text)
    del secret
    return shown


def forms_of(token):
    return [token, json.dumps(token)[1:-1], json.dumps(token, ensure_ascii=False)[1:-1]]


def longest_piece(form, shown):
    """Find how much of the beginning of a token is to be read somewhere."""
    return next(size for size in range(len(form), -1, -1) if form[:size] in shown)


def test_plain_words_are_shown_as_they_are():
    assert quote("Forbidden: missing 'inference' role") == "Forbidden: missing 'inference' role"
    assert quote("Réf. 3 €".encode()) == "Réf. 3 €"
    assert quote("") == quote(b"") == ""


def test_what_cannot_be_printed_is_escaped():
    assert quote("a\nb\x1b[31m\u202e\ud800") == r"a\nb\x1b[31m\u202e\ud800"
    assert quote(b"a\xff\x00") == r"a\xff\x00"


@pytest.mark.parametrize("text", ["x" * 301, "x" * 10**6, "\x00" * 300, "\U000e0001" * 301, b"\xff" * 301])
def test_long_words_are_cut(text):
    shown = quote(text)
    assert len(shown) == MOST + 1
    assert shown.endswith("…")
    assert quote_for(text, TOKEN) == shown


def test_words_that_just_fit_are_not_cut():
    assert quote("x" * MOST) == quote_for(b"x" * MOST, TOKEN) == "x" * MOST


@given(st.text() | st.binary(), st.none() | st.text(min_size=1, max_size=50))
def test_whatever_is_quoted_is_one_short_line(text, secret):
    shown = quote_for(text, secret)
    assert shown.isprintable()
    assert len(shown) <= MOST + 1
    shown.encode()


# --- the token ---


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_token_is_replaced_wherever_it_stands(token, as_bytes):
    for form in forms_of(token):
        text = f"before {form} after {form}{form}"
        shown = quote_for(text.encode() if as_bytes else text, token)
        assert shown == "before *** after ******"


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_token_said_a_thousand_times_leaves_no_piece_of_itself_at_the_cut(token, as_bytes):
    for form in forms_of(token):
        for before in range(0, len(form), max(1, len(form) // 40)):
            text = "." * before + form * 1000
            shown = quote_for(text.encode() if as_bytes else text, token)
            assert longest_piece(form, shown) < 3
            assert len(shown) <= MOST + 1


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_token_across_the_end_of_what_is_shown_leaves_no_piece_of_itself(as_bytes):
    for before in range(MOST - len(TOKEN) - 5, MOST + 5):
        text = "." * before + TOKEN + "." * 5000
        shown = quote_for(text.encode() if as_bytes else text, TOKEN)
        assert longest_piece(TOKEN, shown) < 3


WORDS = "[TritonThread] TRITON_NETWORK: model='t' retriable=True"


@pytest.mark.parametrize("token", ["t", "Tr", "model"[:3], "Trit", "NETWORK", "Thread", "retriable="[:8]])
def test_a_short_token_leaves_other_words_as_they_are(token):
    assert quote_for(WORDS, token) == quote_for(WORDS.encode(), token) == hide_for(WORDS, token) == WORDS


@pytest.mark.parametrize("token", ["abcd", "pass-word", "x" * 15, "a/b=c", 'p"w"d', "né€d"])
@pytest.mark.parametrize("around", ["{}", "token={}", "'{}'", "Bearer {} is unknown", "{}, {}", "<{}>"])
def test_a_token_of_four_characters_or_more_is_hidden_as_a_word(token, around):
    for form in forms_of(token):
        assert quote_for(around.format(form, form), token) == around.format("***", "***")
        assert quote_for(around.format(form, form).encode(), token) == around.format("***", "***")


def test_a_long_token_is_hidden_in_the_middle_of_words_too():
    for token in ("x" * 16, TOKEN):
        assert hide_for(f"Bearer{token}0", token) == quote_for(f"Bearer{token}0", token) == "Bearer***0"


def test_without_a_token_nothing_is_taken_out():
    assert quote_for("***", None) == quote_for("***", "") == "***"


@given(
    st.text('ab"/é\U0001f511', min_size=16, max_size=30),
    st.lists(st.sampled_from([0, 1, 2, "...."]), max_size=80),
    st.integers(0, 400),
    st.booleans(),
)
@example('"' * 16, [1, 0, 2, 0, 0, 1], 0, False)
def test_no_arrangement_of_tokens_shows_a_piece_of_one(token, parts, before, as_bytes):
    forms = forms_of(token)
    text = "." * before + "".join(forms[part] if part in (0, 1, 2) else part for part in parts)
    shown = quote_for(text.encode() if as_bytes else text, token)
    assert set(shown) <= set("*.…")
