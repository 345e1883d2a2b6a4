"""GGUF models of a hub on loopback, with the real client: headers, downloads, the cache and offline use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gguf_files import gguf_bytes, split_gguf_bytes, use_hub
from support.hub_server import HubServer, Repo

from localgemma_cli.errors import AccessError, LocalGemmaError, NetworkError, NotFoundError
from localgemma_cli.models.gguf_names import GgufName, gguf_name
from localgemma_cli.models.hub import gguf as hub_gguf
from localgemma_cli.models.hub.gguf_cache import list_cached_ggufs
from localgemma_cli.models.resolve import Source, resolve

ID, Q4, Q8 = "org/tiny-GGUF", "tiny-Q4_K_M.gguf", "tiny-q8_0.gguf"
SPLIT = "big-BF16"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        "README.md": b"# Tiny",
        Q4: gguf_bytes(folder, salt=4),
        Q8: gguf_bytes(folder, salt=8),
        "mmproj-F16.gguf": b"GGUF",
        **{f"BF16/{name}": data for name, data in split_gguf_bytes(folder, SPLIT).items()},
    }


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({ID: files}) as server:
        use_hub(server, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr(hub_gguf, "_HEADER_BYTES", 1 << 10)
        yield server


def found(wanted: str | None, *, revision: str | None = None, offline: bool = False) -> Source:
    return resolve(f"{ID}:{wanted}" if wanted else ID, revision=revision, offline=offline)


def fetch(wanted: str, *, offline: bool = False, largest_update: int | None = None) -> Path:
    return hub_gguf.fetch_gguf(
        GgufName(ID, wanted),
        revision=None,
        offline=offline,
        largest_update=largest_update,
        progress=lambda _: None,
    )


@pytest.mark.parametrize(
    ("wanted", "id"), [("q4_k_m", "Q4_K_M"), (None, "Q4_K_M"), (Q8, Q8), ("bf16", "BF16")]
)
def test_facts_come_from_the_beginning_of_the_file(hub: HubServer, wanted: str | None, id: str) -> None:
    source = found(wanted)
    assert (source.facts.id, source.facts.name, source.folder) == (f"{ID}:{id}", f"{ID}:{id}", None)
    assert source.facts.is_gguf
    assert source.facts.architecture.hidden == 64
    assert source.facts.architecture.tied_head
    assert list_cached_ggufs(ID) == []


def test_a_header_is_read_by_ranges_and_its_bytes_are_kept(hub: HubServer, files: dict[str, bytes]) -> None:
    found("Q4_K_M")
    ranges = [request.range for request in hub.asked_for(Q4)]
    assert ranges == ["bytes=0-1023", "bytes=1024-2047", "bytes=2048-4095", "bytes=4096-8191"]
    found("Q4_K_M")
    assert len(hub.asked_for(Q4)) == 4
    assert fetch("Q4_K_M").read_bytes() == files[Q4]
    assert hub.asked_for(Q4)[4].range == "bytes=8192-"
    assert len(hub.asked_for(Q4)) == 5


def test_a_hub_without_ranges_sends_the_beginning_too(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.refuses_ranges = True
    assert found("Q4_K_M").facts.is_gguf
    assert fetch("Q4_K_M").read_bytes() == files[Q4]


def test_the_beginning_of_something_else_is_discarded(hub: HubServer, tmp_path: Path) -> None:
    found("Q4_K_M")
    (partial,) = tmp_path.rglob("*.incomplete")
    partial.write_bytes(b"x" * 9000)
    assert found("Q4_K_M").facts.is_gguf


def test_only_the_chosen_file_is_downloaded(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    path = fetch("Q8_0")
    assert path.name == Q8
    assert path.read_bytes() == files[Q8]
    assert [each.name.id for each in list_cached_ggufs(ID)] == [f"{ID}:Q8_0"]
    assert not hub.asked_for(Q4)
    assert not hub.asked_for("mmproj-F16.gguf")
    assert hub_gguf.gguf_bytes_to_fetch(gguf_name(f"{ID}:Q4_K_M"), revision=None, gated=None) == len(
        files[Q4]
    )


def test_a_split_model_is_downloaded_whole_and_named_by_its_first_piece(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    path = fetch("BF16")
    assert path.name == f"{SPLIT}-00001-of-00003.gguf"
    assert {each.name for each in path.parent.iterdir()} == {
        name.removeprefix("BF16/") for name in files if name.startswith("BF16/")
    }
    assert found("BF16", offline=True).facts.architecture == found("Q4_K_M").facts.architecture


def test_a_complete_file_is_used_offline_and_without_the_hub(hub: HubServer) -> None:
    path = fetch("Q8_0")
    asked = len(hub.requests)
    for wanted in ("q8_0", Q8, None):
        assert found(wanted, offline=True).facts.is_gguf
    assert found(None, offline=True).facts.id == f"{ID}:Q8_0"
    assert found(None).facts.id == f"{ID}:Q8_0"  # what is on disk needs no question
    assert fetch("Q8_0", offline=True) == path
    assert len(hub.requests) == asked
    hub.fail_with(500)
    assert fetch("Q8_0") == path


def test_what_is_not_on_disk_is_refused_offline(hub: HubServer) -> None:
    found("Q8_0")  # of which the beginning is on disk
    for wanted in ("Q8_0", None):
        with pytest.raises(NetworkError, match="--offline forbids") as caught:
            found(wanted, offline=True)
        assert ID in caught.value.message
    with pytest.raises(NetworkError, match="--offline forbids"):
        fetch("Q8_0", offline=True)


def test_offline_several_on_disk_are_listed(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.publish(ID, {"a-Q2_K.gguf": files[Q4], "a-Q3_K.gguf": files[Q8]})
    for wanted in ("Q2_K", "Q3_K"):
        fetch(wanted)
    with pytest.raises(NotFoundError) as caught:
        found(None, offline=True)
    assert "org/tiny-GGUF:Q2_K (" in caught.value.hint


def test_a_newer_revision_keeps_the_copies_of_the_older(hub: HubServer, files: dict[str, bytes]) -> None:
    old = fetch("Q8_0")
    hub.publish(ID, {Q4: files[Q4], Q8: gguf_copy(files[Q8])})
    assert fetch("Q8_0", largest_update=100) == old
    assert fetch("Q4_K_M").parent != old.parent
    assert fetch("Q8_0", offline=True) == old
    assert {each.name.wanted for each in list_cached_ggufs(ID)} == {"Q4_K_M", "Q8_0"}
    assert fetch("Q8_0") != old


def gguf_copy(data: bytes) -> bytes:
    return data[:-4] + b"\1\2\3\4"


def test_a_revision_is_searched_by_itself(hub: HubServer, files: dict[str, bytes]) -> None:
    fetch("Q8_0")
    hub.publish(ID, Repo({Q8: gguf_copy(files[Q8])}, tags=("v2",)))
    with pytest.raises(NetworkError):
        found("Q8_0", revision="v2", offline=True)
    assert found("Q8_0", revision="v2").facts.is_gguf
    with pytest.raises(LocalGemmaError, match="revision"):
        found("Q8_0", revision="no-such")


def test_beside_safetensors_the_plain_name_means_those(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.publish(ID, {Q8: files[Q8], "config.json": b'{"model_type": "gemma2"}', "model.safetensors": b"x"})
    assert not found(None).facts.is_gguf
    assert found("Q8_0").facts.is_gguf
    fetch("Q8_0")
    assert not found(None).facts.is_gguf
    assert found(None, offline=True).facts.is_gguf  # nothing else is on disk
    with pytest.raises(NotFoundError, match="no GGUF file Q4_K_M"):
        found("Q4_K_M")
    hub.publish(ID, {"config.json": b'{"model_type": "gemma2"}', "model.safetensors": b"x"})
    with pytest.raises(NotFoundError, match="has no GGUF files") as caught:
        found("Q4_K_M")
    assert f"-m {ID}" in caught.value.hint


def test_refusals_of_the_hub(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.publish(ID, Repo(files, gated="manual"))
    with pytest.raises(AccessError, match="gated"):
        found("Q4_K_M")
    assert not hub.asked_for(Q4)
    with pytest.raises(NotFoundError, match="no model org/missing"):
        resolve("org/missing:Q4_K_M", revision=None, offline=False)
    hub.publish(ID, {Q4: b"not a GGUF file" * 100})
    with pytest.raises(NotFoundError, match=f"{ID}:{Q4} cannot be read as a GGUF file"):
        found("Q4_K_M")
    hub.fail_with(500)
    with pytest.raises(NetworkError):
        found("Q8_0")


def test_another_kind_of_model_is_refused_by_its_name(hub: HubServer, tmp_path: Path) -> None:
    hub.publish(ID, {"llama-Q4_0.gguf": gguf_bytes(tmp_path, architecture="llama")})
    with pytest.raises(NotFoundError, match=f"{ID}:llama-Q4_0.gguf is not a Gemma, but llama"):
        found("Q4_0")


def test_a_file_larger_than_the_disk_is_refused_before_the_download(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.publish(ID, Repo(files, claimed_sizes={Q4: 10**17}))
    with pytest.raises(LocalGemmaError, match=r"disk space"):
        fetch("Q4_K_M")
    assert not hub.asked_for(Q4)


def test_the_address_of_a_model_names_it(hub: HubServer) -> None:
    for name in (f"hf.co/{ID}", f"https://huggingface.co/{ID}", f"hf.co/{ID}:q4_k_m"):
        assert resolve(name, revision=None, offline=False).facts.id == f"{ID}:Q4_K_M"


def test_names_that_lead_out_of_the_repository_are_no_files(hub: HubServer, files: dict[str, bytes]) -> None:
    names = (
        "../m-Q4_0.gguf",
        "a/../../m-Q4_0.gguf",
        "/m-Q4_0.gguf",
        "C:\\m-Q4_0.gguf",
        "a/con.gguf",
        "a//b.gguf",
    )
    hub.publish(ID, dict.fromkeys(names, files[Q4]))
    with pytest.raises(NotFoundError, match="no GGUF files"):
        found("Q4_0")


def test_a_folder_that_is_a_link_out_of_the_cache_is_not_written_to(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    name = "a/b/tiny-Q2_K.gguf"
    commit = hub.publish(ID, {name: files[Q4]}).commit
    snapshot = tmp_path / "hub" / "models--org--tiny-GGUF" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "a").symlink_to(outside)
    assert fetch("Q2_K") == snapshot / name
    assert not list(outside.iterdir())
