"""Text to tokens and back, streaming."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringc.cli.stopping import StopText
from ringc.errors import CheckpointError
from ringc.runtime.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, find_tokenizer


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(t) for t in tokens) + stream.end()


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert streamed(tokenizer, tokenizer.encode(text)) == text


def test_bytes_show_a_character_once_it_is_complete() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(b) for b in "é!".encode()] == ["", "é", "!"]
    assert stream.push(300) == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the state of the layer, and the gate of the layer"] * 4, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("text", ["the gate of the layer", "Überraschung 漢字 🙂", " ".join(["the layer"] * 60)])
def test_a_file_s_tokens_stream_back(trained: Path, text: str) -> None:
    tokenizer = FileTokenizer(trained)
    tokens = tokenizer.encode(text)
    assert streamed(tokenizer, tokens) == text


def test_the_checkpoint_s_file_is_found(trained: Path, tmp_path: Path) -> None:
    assert isinstance(find_tokenizer({"tokenizer": "checkpoint"}, trained.parent, tmp_path), FileTokenizer)
    assert isinstance(find_tokenizer({"tokenizer": "bytes"}, None, tmp_path), ByteTokenizer)


def test_an_error_names_both_kinds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer: bytes.*tokenizer\.json"):
        find_tokenizer({"tokenizer": "checkpoint"}, "random:0", tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read") as caught:
        find_tokenizer({"tokenizer": "checkpoint"}, tmp_path, tmp_path)
    assert "tokenizer.json" in str(caught.value)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_words_end_the_text_however_it_is_cut(text: str, words: list[str], data: st.DataObject) -> None:
    places = [text.find(w) for w in words if w in text]
    # Pieces of one character: the word that is complete first ends the text.
    guard, shown = StopText(words), ""
    for character in text:
        shown += guard.push(character)
        if guard.found:
            break
    shown += "" if guard.found else guard.end()
    assert guard.found == bool(places)
    if places:
        assert text.startswith(shown)
        assert not any(w in shown for w in words)
    else:
        assert shown == text
