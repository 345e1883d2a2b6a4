"""Token ids from llama.cpp's chunks, which hold back the tokens of an incomplete character."""

import pytest
from support.models import own_tokenizer

from localgemma_cli.backends.llamacpp.completion import chunk_ids, completion_request
from localgemma_cli.sampling import Sampling


def byte_id(byte: int) -> int:
    found = own_tokenizer().id_of(f"<0x{byte:02X}>")
    assert found is not None
    return found


@pytest.mark.parametrize("before", [b"", b"\xf0\x92\x90", b"\xe2\x82"])
@pytest.mark.parametrize("text", ["e", "\u2581", "<end_of_turn>", "<0xAB>"])
def test_held_back_bytes_are_tokens_before_the_last_one(before: bytes, text: str) -> None:
    tokenizer = own_tokenizer()
    last = tokenizer.id_of(text)
    assert last is not None
    own = {"\u2581": b" ", "<end_of_turn>": b"", "<0xAB>": b"\xab"}.get(text, text.encode())
    assert chunk_ids(last, before + own, tokenizer) == [*map(byte_id, before), last]


def test_ids_that_cannot_be_known_are_not_guessed() -> None:
    last = own_tokenizer().id_of("e")
    assert last is not None
    assert chunk_ids(last, b"xe", own_tokenizer()) is None
    assert chunk_ids(last, b"x", own_tokenizer()) is None


def test_sampling_options_map_to_llama_cpps() -> None:
    greedy = completion_request([1, 2], Sampling(temperature=0, top_p=0.5), 3)
    assert (greedy["samplers"], greedy["top_k"]) == (["penalties", "top_k"], 1)
    off = completion_request([1, 2], Sampling(temperature=1), 3)
    assert (off["top_k"], off["top_p"], off["min_p"], off["repeat_penalty"]) == (0, 1.0, 0.0, 1.0)
    assert "seed" not in off
    on = Sampling(0.5, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2, seed=2**32 - 1)
    request = completion_request([1, 2], on, 3)
    assert [request[key] for key in ("temperature", "top_k", "top_p", "min_p")] == [0.5, 40, 0.9, 0.1]
    assert (request["prompt"], request["max_tokens"], request["seed"]) == ([[1, 2]], 3, 0)
