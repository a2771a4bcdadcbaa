"""``stream``."""

from __future__ import annotations

import json

import pytest

from tcm_sync.local import LocalManager

from ..helpers.served_models import Talker

TRANSIENT = ("--allow-transient", "--container-id", "local-transient")


def test_chunks_are_written_as_they_are(cli, manager):
    done = cli("stream", "poet", "--text", "to be", *TRANSIENT)
    assert (done.code, done.out, done.err) == (0, "to be \n", "")


def test_the_text_comes_from_the_standard_input(cli, manager):
    assert cli("stream", "poet", "--text", "-", *TRANSIENT, stdin="ü a".encode()).out == "ü a \n"


def test_each_chunk_is_a_line_of_json(cli, manager):
    done = cli("--json", "stream", "poet", "--text", "to be", *TRANSIENT)
    *chunks, end = map(json.loads, done.out.splitlines())
    assert chunks == [{"chunk": "to "}, {"chunk": "be "}]
    assert end.pop("elapsed") > 0
    assert end == {"ended_by": "completed", "chunks": 2}


def test_a_silence_is_the_end_where_that_is_said(cli, manager):
    done = cli("stream", "bard", "--text", "to be", "--idle-end", "0.2", "--json", *TRANSIENT)
    assert json.loads(done.out.splitlines()[-1])["ended_by"] == "idle"


def test_other_inputs_and_the_name_of_the_text(cli, manager):
    done = cli("stream", "poet", "--input", 'text=["a"]', *TRANSIENT)
    assert done.out == "a \n"
    done = cli("stream", "poet", "--text", "a", "--text-name", "words", *TRANSIENT)
    assert done.code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no input: give --text or --input"),
        (("--text", "a", "--input", "text=[1]"), "given by --text and by --input"),
        (("--text", "-"), "not UTF-8"),
        (("--text", "a", "--idle-end", "0"), "--idle-end"),
    ],
)
def test_a_stream_that_cannot_begin(cli, manager, arguments, said):
    done = cli("stream", "poet", *arguments, *TRANSIENT, stdin=b"\xff")
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_manager_that_dies_amid_a_stream(start):
    talker = Talker()
    talker.hold_before = 2
    with LocalManager({"talker": talker}, tick=0) as manager:
        process = start("--uri", manager.uri, "stream", "talker", "--text", "one two three", *TRANSIENT)
        assert process.stdout.read(6) == "onetwo"
        manager.kill()
        out, err = process.communicate(timeout=60)
        talker.go_on()
    assert (process.returncode, out) == (3, "\n")
    assert err.count("\n") == 1
    assert err.startswith("tcm-sync: ")
