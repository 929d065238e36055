"""The command that writes messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from messagedb_sa import Store

from .support import messagedb, rows

ID = "0193a2b4-0000-7000-8000-000000000000"


def test_a_message_is_written_and_its_position_printed(store: Store, messagedb_url: str) -> None:
    done = messagedb("write", "account-1", "Opened", '{"owner": "Ada"}', url=messagedb_url)
    assert (done.returncode, done.stdout) == (0, "wrote message at position 0 of account-1\n")
    written = [
        "write",
        "account-1",
        "Closed",
        "null",
        "--metadata",
        '{"by": "x"}',
        "--id",
        ID,
        "--expected-version",
        "0",
    ]
    assert rows(messagedb(*written, "--json", url=messagedb_url)) == [{"stream_name": "account-1", "position": 1}]
    opened, closed = store.read("account-1")
    assert (opened.type, opened.data, opened.metadata) == ("Opened", {"owner": "Ada"}, None)
    assert (closed.type, closed.data, closed.metadata, closed.id) == ("Closed", None, {"by": "x"}, ID)


def test_data_and_metadata_come_from_a_file_or_from_standard_input(
    store: Store, messagedb_url: str, tmp_path: Path
) -> None:
    (tmp_path / "data.json").write_text('{\n  "n": 1\n}\n')
    file = f"@{tmp_path / 'data.json'}"
    by_file = messagedb("write", "a-1", "T", file, url=messagedb_url, stdin=None, input="")
    by_input = messagedb("write", "a-1", "T", "-", "-m", file, url=messagedb_url, stdin=None, input='["é"]')
    assert [by_file.returncode, by_input.returncode] == [0, 0]
    assert [(each.data, each.metadata) for each in store.read("a-1")] == [({"n": 1}, None), (["é"], {"n": 1})]


def test_a_batch_is_written_from_json_lines_all_or_none(store: Store, messagedb_url: str, tmp_path: Path) -> None:
    lines = [{"type": "A", "data": {"n": 1}}, {"type": "B", "data": "\u2028", "metadata": {"by": "x"}, "id": ID}]
    printed = "\n\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
    done = messagedb("write", "a-1", "--lines", "-", url=messagedb_url, stdin=None, input=printed)
    assert (done.returncode, done.stdout) == (0, "wrote 2 messages, the last one at position 1 of a-1\n")
    assert [(each.type, each.data) for each in store.read("a-1")] == [("A", {"n": 1}), ("B", "\u2028")]
    (tmp_path / "again").write_text(printed)
    done = messagedb("write", "a-1", "--lines", str(tmp_path / "again"), url=messagedb_url)
    assert (done.returncode, f"message id {ID} is already in the store" in done.stderr) == (1, True)
    assert store.stream_version("a-1") == 1


def test_what_read_prints_can_be_written_to_another_store(store: Store, messagedb_url: str) -> None:
    store.write_batch("a-1", [("A", {"n": 1}, {"by": "x"}), ("B", None)])
    before = [(each.type, each.data, each.metadata, each.id) for each in store.read("a-1")]
    printed = messagedb("read", "a-1", "--json", url=messagedb_url).stdout
    done = messagedb("write", "a-1", "--lines", "-", url=messagedb_url, stdin=None, input=printed)
    # Here they are already.
    assert (done.returncode, "already in the store" in done.stderr) == (1, True)
    assert [(each.type, each.data, each.metadata, each.id) for each in store.read("a-1")] == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a-1", "T", "{}", "--expected-version", "3"], 1, "stream 'a-1' is at version -1, expected 3"),
        (["a-1", "T", "{}", "--id", "7"], 2, "id='7': must be a UUID"),
        (
            ["a-1", "T", "hello"],
            2,
            "DATA: must be JSON: Expecting value: line 1 column 1 (char 0). Text needs its quotes",
        ),
        (["a-1", "T", "[NaN]"], 2, "DATA: must be JSON: JSON has no NaN"),
        (["a-1", "T", '{"a": 1, "a": 2}'], 2, "DATA: must be JSON: the key 'a' comes twice"),
        (["a-1", "T", "[" * 100_000], 2, "DATA: must be JSON: "),
        (["a-1", "T", r'"\u0000"'], 2, "must not contain a NUL character"),
        (["a-1", "T", "@/nonexistent"], 2, "@/nonexistent: No such file or directory"),
        (["a-1", "T", "{}", "-m", "[]"], 2, "--metadata: must be a JSON object"),
        (["a-1", "T", "-", "-m", "-"], 2, "cannot both be standard input"),
        (["a-1", "T"], 2, "TYPE and DATA are missing"),
        (["a-1", "", "{}"], 2, "must not be empty"),
        (["a-1", "T", "{}", "--lines", "-"], 2, "with --lines, TYPE, DATA"),
        (["a-1", "--lines", "-"], 2, "-: there are no messages"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else None,
)
def test_what_cannot_be_written_is_refused_with_its_reason(
    store: Store, messagedb_url: str, arguments: list[str], code: int, said: str
) -> None:
    done = messagedb("write", *arguments, url=messagedb_url)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert store.read("$all") == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"type": "T"}', "-, line 2: must be a JSON object with type and data"),
        ("[]", "-, line 2: must be a JSON object with type and data"),
        ('{"type": "T", "data": 1', "-, line 2: must be JSON: "),
        ('{"type": "T", "data": 1, "note": {}}', "-, line 2: unknown key 'note'"),
        ('{"type": 7, "data": 1}', "messages[1].type=7: must be a string"),
        ('{"type": "T", "data": 1, "metadata": 7}', "messages[1].metadata=7: must be a dict or None"),
    ],
    ids=["no data", "no object", "no JSON", "unknown key", "type", "metadata"],
)
def test_a_wrong_line_is_named_and_nothing_is_written(store: Store, messagedb_url: str, line: str, said: str) -> None:
    printed = f'{{"type": "T", "data": 1}}\n{line}\n'
    done = messagedb("write", "a-1", "--lines", "-", url=messagedb_url, stdin=None, input=printed)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert store.read("$all") == []
