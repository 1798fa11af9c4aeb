from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit

from darl_rerank import Checkpoint
from darl_rerank.errors import InputError
from darl_rerank.model.prompt import Prompt, PromptEncoder


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> PromptEncoder:
    return Checkpoint.load(tiny_model).encoder()


def room(encoder: PromptEncoder, query: str) -> int:
    """Document tokens that fit beside `query`."""
    return len(encoder.encode(query, ["x" * 10_000]).suffixes[0]) - len(encoder.encode(query, ["x"]).suffixes[0]) + 1


def test_prefix_is_shared_and_parts_are_whole(encoder: PromptEncoder) -> None:
    group = encoder.encode("garden hose", ["a hose", "a laptop"])
    alone = encoder.encode("garden hose", ["a laptop"])
    assert group.prefix == alone.prefix
    assert group.suffixes[1] == alone.suffixes[0]
    decoded = encoder._plain.decode([*group.prefix, *group.suffixes[0]])
    prompt = encoder.prompt
    assert decoded == f"{prompt.instruction}garden hose{prompt.separator}a hose{prompt.answer}"


def test_only_the_document_is_cut(encoder: PromptEncoder) -> None:
    group = encoder.encode("hose", ["long " * 1000, "short"])
    assert group.truncated == (True, False)
    assert len(group.prefix) + len(group.suffixes[0]) == encoder.prompt.max_length
    answer = encoder.encode("hose", ["x"]).suffixes[0][-3:]
    assert group.suffixes[0][-3:] == answer
    assert group.suffixes[0][0] == encoder.encode("hose", ["long"]).suffixes[0][0]


def test_cut_head_equals_the_head_of_the_whole_text(encoder: PromptEncoder) -> None:
    text = " ".join(f"word{i}" for i in range(100_000))
    whole = encoder._plain.encode(text, add_special_tokens=False).ids
    suffix = encoder.encode("hose", [text]).suffixes[0]
    kept = room(encoder, "hose")
    assert list(suffix[:kept]) == whole[:kept]


def test_a_head_cut_in_a_word_is_as_the_whole_text_is() -> None:
    # 16 characters a token, as many as the encoder takes for each token of room: a first head of the text holds
    # room - 2 whole words and 13 letters of another, which alone are 10 tokens where the whole word is one.
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "bcdefghi"), "##jklm"]
    first, word = "z" * 34, "abcdefghijklmno"
    vocabulary = {piece: i for i, piece in enumerate(["?", first, word, *pieces])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="?", max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    encoder = PromptEncoder(Prompt("a", "b", "c", max_length=64), tokenizer.to_str())
    kept = encoder._room(encoder._plain.encode("q", add_special_tokens=False).ids)
    text = " ".join([first, *([word] * 200)])
    assert encoder._plain.encode(text[: 16 * kept], add_special_tokens=False).tokens[kept - 2 : kept] == ["a", "##b"]
    whole = encoder._plain.encode(text, add_special_tokens=False).ids
    assert list(encoder.encode("q", [text]).suffixes[0][:kept]) == whole[:kept]


def test_special_tokens_in_a_document_are_plain_text(encoder: PromptEncoder) -> None:
    parsing = Tokenizer.from_str(encoder.tokenizer_json)
    special = parsing.token_to_id("<|endoftext|>")
    assert special in parsing.encode("<|endoftext|>", add_special_tokens=False).ids
    group = encoder.encode("a <|endoftext|> b", ["x <|endoftext|> y"])
    assert special not in (*group.prefix, *group.suffixes[0])


def test_windows_cover_a_long_document(encoder: PromptEncoder) -> None:
    text = " ".join(f"{i}" for i in range(2000))
    group = encoder.encode("hose", [text, "short"], "window")
    assert set(group.owners) == {0, 1}
    assert group.owners.count(0) > 1
    assert group.owners.count(1) == 1
    assert group.truncated == (False, False)
    answer = len(encoder._answer)
    ids = encoder._plain.encode(text, add_special_tokens=False).ids
    windows = [list(s[:-answer]) for s, owner in zip(group.suffixes, group.owners, strict=True) if owner == 0]
    assert windows[0] == ids[: len(windows[0])]
    assert windows[-1] == ids[-len(windows[-1]) :]
    covered = 0
    for window in windows:
        start = next(i for i in range(covered + 1) if ids[i : i + len(window)] == window)
        assert start <= covered
        covered = start + len(window)
    assert covered == len(ids)


def test_a_document_of_many_megabytes_has_an_end(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darl_rerank.model.prompt._MOST_WINDOWS", 4)
    group = encoder.encode("hose", ["a notebook " * 20_000, "short", "notebooks " * 1000, "notebooks " * 200], "window")
    assert [group.owners.count(i) for i in range(4)] == [4, 1, 4, 2]
    assert group.truncated == (True, False, True, False)


@pytest.mark.parametrize("query", ["", "   \n"])
def test_empty_query_is_refused(encoder: PromptEncoder, query: str) -> None:
    with pytest.raises(InputError, match="query is empty"):
        encoder.encode(query, ["x"])


def test_query_without_room_for_a_document_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(InputError, match=r"the query has \d+ tokens, at most \d+ fit"):
        encoder.encode("why " * 100_000, ["x"])
