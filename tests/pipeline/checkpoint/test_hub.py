"""Hubs and directories: the same checks against the stand-in server in both protocols, and what is special to each."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkpoints import write_checkpoint
from edgeship.checkpoint import hub, huggingface, modelscope, transfer
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.errors import CheckpointError, EdgeshipError, ResourceError, SourceError
from hub_client import Client
from hub_standin import COMMIT, Standin, serve
from small_disks import full

WANTED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"}
UNWANTED = {
    "README.md": b"no",
    "pytorch_model.bin": b"no",
    "consolidated.safetensors": b"no",
    "onnx/config.json": b"no",
    "figures/plot.png": b"no",
}
SHARDS = {"model.safetensors.index.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))}
BIG = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded checkpoint and the things that lie beside one on a hub."""
    path = write_checkpoint(tmp_path_factory.mktemp("remote"), shards=3, tied=False)
    (path / "LICENSE").write_text("Apache-2.0")
    return {p.name: p.read_bytes() for p in path.iterdir()} | UNWANTED


@pytest.fixture
def standin(files: dict[str, bytes]) -> Iterator[Standin]:
    with serve(Standin(dict(files))) as running:
        yield running


@pytest.fixture(params=["huggingface", "modelscope"])
def client(request: pytest.FixtureRequest, standin: Standin, tmp_path: Path) -> Client:
    return Client(request.param, standin, tmp_path)


def test_brings_what_an_export_reads_and_nothing_else(client: Client) -> None:
    got = client.fetch()
    assert got.revision == COMMIT
    assert got.names == WANTED | SHARDS
    assert got.path is not None
    checkpoint = open_checkpoint(got.path, got.revision)
    assert checkpoint.revision == COMMIT
    for name in WANTED | SHARDS:
        assert (got.path / name).read_bytes() == client.standin.files[name]
    assert set(client.standin.asked()) == WANTED | SHARDS  # each once, and nothing else was downloaded
    assert set(client.standin.asked().values()) == {1}


MODULES = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}, {"path": "figures"}]
SENTENCE = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
BAD_MODULES = [{"path": path} for path in ("..", "../up", "/etc", "a/b", ".git", "a\\b", "none", 3, None)]


def embedding(client: Client, modules: bytes) -> None:
    client.standin.files |= {
        "modules.json": modules,
        "sentence_bert_config.json": b'{"max_seq_length": 64}',
        "config_sentence_transformers.json": b'{"prompts": {}}',
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "1_Pooling/other.json": b"no",
        "3_Dense/config.json": b"no",
        "a/b/config.json": b"no",
        ".git/config.json": b"no",
    }


def test_brings_the_modules_of_an_embedding_model(client: Client) -> None:
    embedding(client, json.dumps([*MODULES, *BAD_MODULES, "text", None]).encode())
    wanted = WANTED | SHARDS | SENTENCE
    got = client.fetch()
    assert got.names == wanted | {"1_Pooling"}
    assert got.path is not None
    assert {p.name for p in (got.path / "1_Pooling").iterdir() if not p.name.startswith(".")} == {"config.json"}
    assert set(client.standin.asked()) == wanted | {"1_Pooling/config.json"}
    client.standin.requests.clear()
    assert client.fetch().names == got.names
    assert not client.standin.asked()
    assert client.fetch(HF_HUB_OFFLINE="1").names == got.names


@pytest.mark.parametrize("modules", [b"", b"{}", b"3", b'["a"', b"\xff", b'[{"path": "1_Pooling"}, {"path": '])
def test_modules_that_cannot_be_read_are_the_exporters_to_refuse(client: Client, modules: bytes) -> None:
    embedding(client, modules)
    assert client.fetch().names == WANTED | SHARDS | SENTENCE


def test_reports_progress(client: Client) -> None:
    got = client.fetch()
    size = len(client.standin.files[BIG])
    steps = [(done, total) for name, done, total in got.progress if name == BIG]
    assert steps[-1] == (size, size)
    assert all(0 <= done <= total == size for done, total in steps)


def test_config_only(client: Client) -> None:
    got = client.fetch("config")
    assert got.names == {"config.json"}
    assert set(client.standin.asked()) == {"config.json"}


def test_a_second_fetch_downloads_nothing(client: Client) -> None:
    first = client.fetch()
    client.standin.requests.clear()
    again = client.fetch()
    assert (again.path, again.revision) == (first.path, first.revision)
    assert not client.standin.asked()


def test_a_commit_can_be_named(client: Client) -> None:
    assert client.fetch(revision=COMMIT).revision == COMMIT


@pytest.mark.parametrize("unreachable", ["offline", "refused"])
def test_without_network_the_cache_serves(client: Client, unreachable: str) -> None:
    first = client.fetch()
    env = {"HF_HUB_OFFLINE": "1"} if unreachable == "offline" else _nowhere()
    client.standin.requests.clear()
    again = client.fetch(**env)
    assert (again.path, again.revision, again.names) == (first.path, first.revision, WANTED | SHARDS)
    assert not client.standin.requests


@pytest.mark.parametrize("unreachable", ["offline", "refused"])
@pytest.mark.parametrize("cached", ["nothing", "config"])
def test_without_network_and_files_it_says_so(client: Client, unreachable: str, cached: str) -> None:
    if cached == "config":
        client.fetch("config")
    got = client.fetch(**({"HF_HUB_OFFLINE": "1"} if unreachable == "offline" else _nowhere()))
    assert got.error == "SourceError"
    assert ("HF_HUB_OFFLINE is set" if unreachable == "offline" else "cannot be reached") in got.message


def _nowhere() -> dict[str, str]:
    return {"HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}


def test_a_cut_connection_resumes(client: Client) -> None:
    client.standin.cut[BIG] = [1000, 2000]
    got = client.fetch()
    assert got.path is not None, got.message
    assert (got.path / BIG).read_bytes() == client.standin.files[BIG]
    assert client.standin.ranges(BIG) == [None, "bytes=1000-", "bytes=3000-"]


def test_a_server_without_ranges_starts_over(client: Client) -> None:
    client.standin.ignore_range = True
    client.standin.cut[BIG] = [1000]
    got = client.fetch()
    assert got.path is not None, got.message
    assert (got.path / BIG).read_bytes() == client.standin.files[BIG]


def test_a_connection_that_always_breaks_is_given_up(client: Client) -> None:
    client.standin.cut[BIG] = [0] * 100
    got = client.fetch()
    assert (got.error, "cannot be reached" in got.message) == ("SourceError", True)
    assert client.standin.cut[BIG], "gave up only after every cut was used"


def test_wrong_size(client: Client) -> None:
    client.standin.short.add(BIG)
    got = client.fetch()
    assert got.error == "SourceError"
    assert BIG in got.message
    assert str(len(client.standin.files[BIG]) - 1) in got.message
    client.standin.short.clear()
    assert client.fetch().names == WANTED | SHARDS  # the damaged part does not stay in the way


def test_wrong_content(client: Client) -> None:
    client.standin.altered.add(BIG)
    got = client.fetch()
    assert got.error == "SourceError"
    assert BIG in got.message
    assert "sha256" in got.message
    client.standin.altered.clear()
    again = client.fetch()
    assert again.path is not None
    assert (again.path / BIG).read_bytes() == client.standin.files[BIG]


@pytest.mark.parametrize("status", [401, 403])
def test_access_denied_and_token(client: Client, status: int) -> None:
    client.standin.token, client.standin.deny = "secret-token", status
    got = client.fetch()
    assert got.error == "SourceError"
    assert "private" in got.message or "denied" in got.message
    assert ("HF_TOKEN" if client.host == "huggingface" else "MODELSCOPE_API_TOKEN") in got.hint
    assert "secret" not in got.message + got.hint
    assert client.fetch(HF_TOKEN="secret-token", MODELSCOPE_API_TOKEN="secret-token").revision == COMMIT


def test_no_such_repository(client: Client) -> None:
    got = client.fetch(repo="owner/other")
    assert (got.error, "no such repository" in got.message) == ("SourceError", True)


def test_no_such_revision(client: Client) -> None:
    got = client.fetch(revision="v9")
    assert (got.error, "no revision 'v9'" in got.message) == ("SourceError", True)


def test_no_config(client: Client) -> None:
    del client.standin.files["config.json"]
    got = client.fetch("config")
    assert (got.error, "has no config.json" in got.message) == ("SourceError", True)


@pytest.mark.parametrize("what", ["list", "config.json", BIG])
def test_a_hub_that_is_down(client: Client, what: str) -> None:
    client.standin.fail[what] = 503
    got = client.fetch()
    assert got.error == "SourceError"
    assert "503" in got.message


@pytest.mark.parametrize(
    ("gone", "added", "text"),
    [
        ({BIG}, {}, "1 of them missing"),
        (SHARDS, {}, "pickle"),
        (SHARDS | {"pytorch_model.bin"}, {"q4.gguf": b"GGUF"}, "GGUF"),
        ({"tokenizer.json"}, {}, "expected tokenizer.json"),
        (set(), {"model.safetensors": b"x"}, "found both"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_weights_are_downloaded(
    client: Client, gone: set[str], added: dict[str, bytes], text: str
) -> None:
    for name in gone:
        del client.standin.files[name]
    client.standin.files |= added
    got = client.fetch()
    assert (got.error, text in got.message) == ("CheckpointError", True), got.message
    assert not any(n.endswith(".safetensors") for n in client.standin.asked())


def test_names_cannot_leave_the_directory(client: Client) -> None:
    client.standin.files |= {
        "LICENSE/../../../evil": b"x",
        "tokenizer/../../evil.json": b"x",
        "LICENSE\\..\\evil": b"x",
    }
    assert client.fetch().names == WANTED | SHARDS
    assert not list(client.home.parent.rglob("*evil*"))


def test_a_killed_download_resumes(standin: Standin, tmp_path: Path) -> None:
    client = Client("modelscope", standin, tmp_path)
    standin.cut[BIG] = [700] + [0] * 100
    assert client.fetch().error == "SourceError"
    standin.cut.clear()
    standin.requests.clear()
    assert client.fetch().names == WANTED | SHARDS
    assert standin.ranges(BIG) == ["bytes=700-"]


def test_huggingface_gated(standin: Standin, tmp_path: Path) -> None:
    standin.token, standin.deny, standin.gated = "secret-token", 403, True
    got = Client("huggingface", standin, tmp_path).fetch()
    assert (got.error, "has to be granted" in got.message) == ("SourceError", True)


def test_huggingface_bad_name(standin: Standin, tmp_path: Path) -> None:
    got = Client("huggingface", standin, tmp_path).fetch(repo="a/b/c d")
    assert (got.error, "owner/name" in got.hint) == ("SourceError", True)


def test_modelscope_pins_the_commit_it_was_given_in_part(standin: Standin, tmp_path: Path) -> None:
    standin.short_commit = True
    got = Client("modelscope", standin, tmp_path).fetch(revision="master")
    assert got.revision == COMMIT
    assert all(f"Revision={COMMIT}" in path for _, path, _ in standin.requests if "FilePath" in path)


def test_modelscope_without_commits_compares_what_is_cached(standin: Standin, tmp_path: Path) -> None:
    standin.no_commit = True
    client = Client("modelscope", standin, tmp_path)
    first = client.fetch()
    assert first.revision == "main"
    standin.requests.clear()
    assert client.fetch().path == first.path
    assert not standin.asked()
    standin.files["LICENSE"] = standin.files["LICENSE"][::-1]
    again = client.fetch()
    assert set(standin.asked()) == {"LICENSE"}
    assert again.path is not None
    assert (again.path / "LICENSE").read_bytes() == standin.files["LICENSE"]


def test_modelscope_refuses_another_part_than_it_asked_for(standin: Standin, tmp_path: Path) -> None:
    standin.cut[BIG], standin.shift = [1000], 7
    got = Client("modelscope", standin, tmp_path).fetch()
    assert (got.error, "another part" in got.message) == ("SourceError", True)


def test_modelscope_sends_no_token_to_a_cdn(standin: Standin, tmp_path: Path) -> None:
    with serve(Standin(standin.files)) as cdn:
        standin.redirect, standin.token = cdn.url, "secret-token"
        got = Client("modelscope", standin, tmp_path).fetch(MODELSCOPE_API_TOKEN="secret-token")
        assert got.names == WANTED | SHARDS
        assert len(cdn.requests) == len(WANTED | SHARDS)
        assert not any("secret-token" in str(headers) for _, _, headers in cdn.requests)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"Data": {"Files": [{"Type": "blob"}]}}', b'{"Data": {"Files": 3}}', b"\xff"],
)
def test_modelscope_strange_lists(standin: Standin, tmp_path: Path, body: bytes) -> None:
    standin.listing = body
    got = Client("modelscope", standin, tmp_path).fetch()
    assert got.error == "SourceError"
    assert "MODELSCOPE_ENDPOINT" in got.hint or "default branch" in got.hint


def test_modelscope_endpoint_must_be_http(standin: Standin, tmp_path: Path) -> None:
    got = Client("modelscope", standin, tmp_path).fetch(MODELSCOPE_ENDPOINT="file:///etc")
    assert (got.error, "http" in got.message) == ("SourceError", True)


@dataclass(frozen=True)
class Local:
    path: str | None
    host: str = "local"
    repo: str = "owner/model"
    revision: str = "main"


def test_local(tmp_path: Path) -> None:
    assert hub.fetch(Local(str(tmp_path))) == (tmp_path, "local")


def test_local_problems(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (None, str(tmp_path / "missing"), str(tmp_path / "file"), str(tmp_path / ("x" * 300))):
        with pytest.raises(SourceError) as e:
            hub.fetch(Local(path))
        assert e.value.hint
    with pytest.raises(SourceError, match="known: huggingface, modelscope, local"):
        hub.fetch(Local(None, host="ftp"))


def test_a_full_disk(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", standin.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ResourceError, match="is full") as e:
        modelscope.fetch("owner/model", "main", "all", transfer.no_progress)
    assert e.value.hint
    monkeypatch.undo()
    explained: EdgeshipError = huggingface._Hub("a/b", "main", transfer.no_progress)._explain(
        OSError(errno.ENOSPC, "No space left on device"), "model.safetensors"
    )
    assert isinstance(explained, ResourceError)


def test_errors_are_the_documented_kinds() -> None:
    assert (SourceError.exit_code, CheckpointError.exit_code, ResourceError.exit_code) == (5, 6, 9)
