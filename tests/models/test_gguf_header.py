"""Headers of GGUF files that no converter writes: refused in one line, in no time, whatever they claim."""

import struct
from pathlib import Path

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.resolve import resolve

HUGE = 2**63
STRING, ARRAY, U32, F32, U64 = 8, 9, 4, 6, 10


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, sizes: list[int], kind: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    shape = struct.pack("<I", len(sizes) if count is None else count) + struct.pack(f"<{len(sizes)}Q", *sizes)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def header(pairs: list[bytes], tensors: list[bytes] = (), counts: tuple[int, int] | None = None) -> bytes:
    some, more = counts or (len(tensors), len(pairs))
    return b"GGUF" + struct.pack("<IQQ", 3, some, more) + b"".join(pairs) + b"".join(tensors)


GEMMA = pair(b"general.architecture", STRING, text(b"gemma2"))
EMBEDDING = tensor(b"token_embd.weight", [4, 4])

MALFORMED = {
    "no tensors": header([GEMMA]),
    "2^63 tensors": header([GEMMA], counts=(HUGE, 1)),
    "2^63 pairs": header([GEMMA], counts=(0, HUGE)),
    "alignment 0": header([GEMMA, pair(b"general.alignment", U32, struct.pack("<I", 0))], [EMBEDDING]),
    "alignment 3": header([GEMMA, pair(b"general.alignment", U32, struct.pack("<I", 3))], [EMBEDDING]),
    "alignment is a text": header([GEMMA, pair(b"general.alignment", STRING, text(b"x"))], [EMBEDDING]),
    "a text beyond the file": header([pair(b"general.architecture", STRING, text(b"gemma2", HUGE))]),
    "a key beyond the file": header([text(b"general.architecture", 2**40)]),
    "not UTF-8": header([pair(b"general.architecture", STRING, text(b"\xff\xfe"))]),
    "a type that is none": header([pair(b"general.architecture", 99, b"\0" * 64)]),
    "a list of lists": header([GEMMA, pair(b"a", ARRAY, struct.pack("<IQ", ARRAY, 2) + b"\0" * 64)]),
    "a list of 2^63": header([GEMMA, pair(b"a", ARRAY, struct.pack("<IQ", STRING, HUGE))]),
    "a list beyond the file": header([GEMMA, pair(b"a", ARRAY, struct.pack("<IQ", U64, 10**7)), GEMMA]),
    "the architecture is a list": header(
        [pair(b"general.architecture", ARRAY, struct.pack("<IQI", U32, 1, 1))], [EMBEDDING]
    ),
    "no architecture": header([], [EMBEDDING]),
    "NaN": header([GEMMA, pair(b"gemma2.rope.freq_base", F32, struct.pack("<f", float("nan")))], [EMBEDDING]),
    "10^9 layers": header([GEMMA, pair(b"gemma2.block_count", U32, struct.pack("<I", 10**9))], [EMBEDDING]),
    "heads by layer": header(
        [GEMMA, pair(b"gemma2.attention.head_count", ARRAY, struct.pack("<IQII", U32, 2, 8, 8))], [EMBEDDING]
    ),
    "0 heads": header([GEMMA, pair(b"gemma2.attention.head_count", U32, struct.pack("<I", 0))], [EMBEDDING]),
    "2^32 dimensions": header([GEMMA], [tensor(b"token_embd.weight", [], count=2**32 - 1)]),
    "no dimensions": header([GEMMA], [tensor(b"token_embd.weight", [])]),
    "a size of 0": header([GEMMA], [tensor(b"token_embd.weight", [4, 0])]),
    "sizes of 2^63": header([GEMMA], [tensor(b"token_embd.weight", [HUGE] * 4)]),
    "offset beyond the file": header([GEMMA], [tensor(b"token_embd.weight", [4, 4], offset=HUGE)]),
    "gemma3n": header([pair(b"general.architecture", STRING, text(b"gemma3n"))], [EMBEDDING]),
    "gemma4": header([pair(b"general.architecture", STRING, text(b"gemma4"))], [EMBEDDING]),
    "an architecture that drives terminals": header(
        [pair(b"general.architecture", STRING, text(b"\x1b]52;c;UFdO\x07" * 9))], [EMBEDDING]
    ),
    "cut": header([GEMMA], [EMBEDDING])[:-9],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused_with_the_file_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(NotFoundError) as caught:
        resolve(str(path), revision=None, offline=True)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 140
    assert "Gemma 1 to 4" not in caught.value.message  # it is one, or may be: that is not what is wrong


def test_every_cut_of_a_header_is_refused(tmp_path: Path) -> None:
    whole = header([GEMMA, pair(b"a", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"x"))], [EMBEDDING])
    path = tmp_path / "m.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NotFoundError):
            resolve(str(path), revision=None, offline=True)
