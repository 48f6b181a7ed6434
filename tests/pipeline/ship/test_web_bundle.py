"""Bundles for a browser: what lies in a site, that its parts are the artifact, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from acceptance_files import write_acceptance
from edgeship import catalog
from edgeship.cli import run
from edgeship.errors import ArtifactError, DependencyError, PlanError, SourceError, UsageError
from edgeship.progress import Silent
from edgeship.ship import half_graph, tiled_graph, transformers_js, web_app, web_bundle
from edgeship.ship.making import Bundle
from edgeship.ship.web_app import audit_summary, find_app, read_app
from edgeship.ship.web_bundle import make_web_bundle
from edgeship_runtime.manifest import read_manifest
from toy_artifact import write_toy
from web_apps import AUDIT, write_app

PHONE = catalog.find_device("phone-web")
Make = Callable[..., Bundle]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app")


@pytest.fixture
def make(app: Path, tmp_path: Path) -> Make:
    def made(artifact: Path, engine: str | None = None, **options: Any) -> Bundle:
        given = {"app": app, "out": tmp_path / "out", "progress": Silent(), "kind": None} | options
        return make_web_bundle(artifact, PHONE, engine, given.pop("out"), **given)

    return made


def site(made: Bundle) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((made.path / "site.json").read_text())
    return value


def joined(made: Bundle, entry: dict[str, Any]) -> bytes:
    """A file as the app puts it together: each part from its own address, or a range of the file's."""
    pieces = []
    for part in entry["parts"]:
        if "url" in part:
            pieces.append((made.path / part["url"]).read_bytes())
        else:
            raw = (made.path / entry["url"]).read_bytes()
            pieces.append(raw[part["offset"] : part["offset"] + part["size"]])
        assert len(pieces[-1]) == part["size"]
        assert hashlib.sha256(pieces[-1]).hexdigest() == part["sha256"]
        assert part["offset"] == sum(map(len, pieces[:-1]))
    return b"".join(pieces)


# what lies in one


@pytest.mark.parametrize("split", [False, True])
def test_the_parts_are_the_artifact(make: Make, artifact: Path, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_bundle, "PART", 1000)
    made = make(artifact, split=split)
    told = site(made)
    manifest = read_manifest(artifact / "onnx")
    raw = (artifact / "onnx/model.onnx").read_bytes()
    graphs = {half_graph.NAME: half_graph.half_graph(raw), tiled_graph.NAME: tiled_graph.tiled_graph(raw)}
    assert told["graphs"] == {"float16": half_graph.NAME, "tiled": tiled_graph.NAME}
    assert {each["name"] for each in told["files"]} == {"edgeship.json", *graphs, *manifest.files}
    for each in told["files"]:
        raw = joined(made, each)
        assert raw == (graphs.get(each["name"]) or (artifact / "onnx" / each["name"]).read_bytes())
        assert (each["size"], each["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
        assert len(each["parts"]) == -(-len(raw) // 1000)
    assert told["bytes"] == sum(each["size"] for each in told["files"])
    assert (told["engine"], told["results"], told["name"]) == ("onnx", None, manifest.name)


def test_layout(make: Make, artifact: Path) -> None:
    made = make(artifact)
    says = json.loads((made.path / "bundle.json").read_text())
    there = sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file())
    assert made.path.name == "toy-phone-web-ort"
    assert sorted([*says["files"], "bundle.json"]) == there
    for name, entry in says["files"].items():
        raw = (made.path / name).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert {"index.html", "sw.js", "assets/app.js", "engines/onnx/ort.wasm", "model/edgeship.json"} < set(there)
    assert not [name for name in there if "gguf" in name]
    assert site(made)["engine_files"]["wasm"][0]["url"] == "engines/onnx/ort.wasm"
    assert says["device"] == PHONE.to_json()
    assert says["artifact"]["digest"] == hashlib.sha256((artifact / "onnx/edgeship.json").read_bytes()).hexdigest()
    assert made.sizes["artifact"] > made.sizes["app"] > 0
    told = made.to_json()
    assert list(told["sizes"]) == ["app", "engine", "artifact"]
    assert list(told)[-2:] == ["sizes", "audit"]
    assert told["audit"] == "no known vulnerability"


def test_licences_and_audit_are_listed(make: Make, artifact: Path) -> None:
    made = make(artifact)
    says, readme = json.loads((made.path / "bundle.json").read_text()), (made.path / "README.md").read_text()
    assert says["licences"] == [{"name": "onnxruntime-web", "version": "1.30.0", "licence": "MIT"}]
    assert "Permission is hereby granted" in (made.path / "licences.json").read_text()
    assert says["audit"] == "no known vulnerability"
    assert "| onnxruntime-web | 1.30.0 | MIT |" in readme
    assert "`npm audit`: no known vulnerability." in readme
    assert "@" not in readme.replace("@huggingface", "")


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (AUDIT, "no known vulnerability"),
        ({"metadata": {"vulnerabilities": {"low": 2, "high": 1, "total": 3}}}, "2 low, 1 high"),
        ({"error": {"code": "ENOAUDIT"}}, "not run: the registry's audit could not be asked when the app was built"),
        ({}, "not run: the registry's audit could not be asked when the app was built"),
    ],
)
def test_what_the_audit_said(audit: dict[str, Any], said: str) -> None:
    assert audit_summary(audit) == said


def test_same_inputs_same_bytes(make: Make, artifact: Path, tmp_path: Path) -> None:
    one, other = (make(artifact, out=tmp_path / name, kind="gz") for name in ("one", "other"))
    assert one.digest == other.digest
    assert one.archive is not None
    assert other.archive is not None
    assert one.archive.read_bytes() == other.archive.read_bytes()
    assert make(artifact, out=tmp_path / "three", split=True).digest != one.digest


def test_phones_learn_of_another_engine(make: Make, artifact: Path, tmp_path: Path) -> None:
    before = site(make(artifact))["digest"]
    app = write_app(tmp_path / "app", **{"assets/app.js": "another page"})
    assert site(make(artifact, app=app))["digest"] == before
    newer = write_app(tmp_path / "newer", onnx="\0asm newer")
    assert site(make(artifact, app=newer))["digest"] != before


def test_a_site_is_replaced(make: Make, artifact: Path) -> None:
    made = make(artifact)
    (made.path / "stale.txt").write_text("of an older version")
    assert not (make(artifact).path / "stale.txt").exists()


# a model folder of transformers.js


def test_the_graph_names_its_data_as_transformers_js_does(make: Make, tmp_path: Path) -> None:
    directory = write_external(tmp_path / "ext")
    made = make(directory)
    graph = onnx.load(made.path / "model/onnx/model_q4.onnx")  # with its data, which onnx looks for beside it
    assert onnx.numpy_helper.to_array(graph.graph.initializer[0]).size
    data = next(each for each in site(made)["files"] if each["name"] == "model.onnx.data")
    assert data["url"] == "model/onnx/model_q4.onnx_data"
    assert not (made.path / "model/model.onnx.data").exists()
    config = json.loads((made.path / "model/config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": 1}}
    assert config["num_attention_heads"] == 4


def write_external(folder: Path) -> Path:
    """The toy artifact, its weights in a file of their own."""
    from acceptance_files import seal

    directory = write_acceptance(write_toy(folder))
    model = onnx.load(directory / "model.onnx")
    onnx.save_model(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return seal(directory)


def test_names_of_types() -> None:
    def manifest(body: str) -> Any:
        made = read_manifest_of_parts(body)
        return transformers_js.dtype(made), transformers_js.data_name(made)

    assert manifest("int4-32") == ("q4", "onnx/model_q4.onnx_data")
    assert manifest("int8-128") == ("int8", "onnx/model_int8.onnx_data")
    assert manifest("float16") == ("fp16", "onnx/model_fp16.onnx_data")
    assert manifest("q4_k") == ("fp32", "onnx/model.onnx_data")


def read_manifest_of_parts(body: str) -> Any:
    from edgeship_runtime.manifest import parse_manifest
    from manifests import VALID

    made = parse_manifest(json.dumps(VALID).encode(), "here")
    return replace(made, weights=replace(made.weights, parts={"body": body}))


def test_a_graph_with_other_data_is_refused(make: Make, tmp_path: Path) -> None:
    from acceptance_files import seal

    directory = write_acceptance(write_toy(tmp_path / "other"))
    model = onnx.load(directory / "model.onnx")
    onnx.save_model(model, directory / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    seal(directory)
    with pytest.raises(ArtifactError, match=r"expected its data in model\.onnx\.data"):
        make(directory)


# what is refused


def test_what_no_browser_holds(make: Make, artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(web_bundle, "MAX_FILE", 100)
    with pytest.raises(PlanError, match="a browser holds files of at most 2 GiB"):
        make(artifact)
    assert not list(tmp_path.glob("out/*"))


def test_a_damaged_artifact(make: Make, artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    (tmp_path / "copy/onnx/tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not intact"):
        make(tmp_path / "copy")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"engines__onnx__ort.wasm": "other"}, "expected a file of engines/onnx/ with that size and sha256"),
        ({"engines.json": '{"onnx": {}}'}, 'member "gguf" is missing'),
        ({"engines.json": '{"onnx": {"wasm": [{"url": "../x", "size": 1, "sha256": "a"}]}, "gguf": {}}'}, "expected"),
        ({"licences.json": "[]"}, "expected a list of the packages that are shipped"),
        ({"audit.json": "[]"}, "expected an object"),
        ({"audit.json": "{"}, "not JSON"),
    ],
)
def test_an_app_that_is_not_whole(make: Make, artifact: Path, tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        make(artifact, app=write_app(tmp_path / "bad", **files))
    assert says in caught.value.message
    assert caught.value.hint


def test_a_folder_that_is_no_app(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no built app: index\.html is missing"):
        read_app(tmp_path)


# npm


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of an app, and a PATH with a node and an npm that copies a built one."""
    folder = tmp_path / "web"
    (folder / "src").mkdir(parents=True)
    for name in ("package.json", "package-lock.json", "src/app.ts"):
        (folder / name).write_text("{}")
    write_app(tmp_path / "built")
    stub(tmp_path / "bin", "node", "echo v22.1.0")
    stub(
        tmp_path / "bin",
        "npm",
        f'echo "$@" >> {tmp_path}/calls; [ "$1" = ci ] || cp -r {tmp_path}/built dist',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(web_app, "sources", lambda: folder)
    return folder


def build(tmp_path: Path) -> web_app.App:
    return find_app(None, Silent(), tmp_path / "cache")


def test_npm_builds_once_for_each_state_of_the_sources(sources: Path, tmp_path: Path) -> None:
    first = build(tmp_path)
    (sources / "node_modules").mkdir()
    (sources / "node_modules/x.js").write_text("not a source")
    assert build(tmp_path).digest == first.digest
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["ci --ignore-scripts --no-audit --no-fund", "run build"]
    (sources / "src/app.ts").write_text("changed")
    build(tmp_path)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4
    assert not list((tmp_path / "cache").glob("build-*"))


def test_a_build_that_fails(sources: Path, tmp_path: Path) -> None:
    stub(tmp_path / "bin", "npm", "echo npm error code ENOTFOUND; exit 1")
    with pytest.raises(SourceError, match="ENOTFOUND") as caught:
        build(tmp_path)
    assert "--app" in caught.value.hint
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_the_wheel_carries_all_sources() -> None:
    root = Path(web_app.__file__).parents[3]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    there = {path.name for path in (root / "runtime/web").iterdir()} - web_app.LEFT_OUT
    assert {Path(name).name for name in listed["force-include"] if name.startswith("runtime/web/")} == there


def test_without_node(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DependencyError, match="there is no node here") as caught:
        build(tmp_path)
    assert "--app" in caught.value.hint


def test_an_old_node(sources: Path, tmp_path: Path) -> None:
    stub(tmp_path / "bin", "node", "echo v18.19.0")
    with pytest.raises(DependencyError, match=r"Node\.js 20\.19 or newer"):
        build(tmp_path)


# the command


def test_the_command(artifact: Path, app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--device", "phone-web", "--app", str(app), "--out", str(tmp_path / "out"), "--archive", "none"]
    assert run(["bundle", str(artifact), *given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["device"], told["engine"]) == ("phone-web", "ort")
    assert run(["bundle", str(artifact), *given]) == 0
    assert "edgeship serve-web" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "phone-web", "--no-model"], "a site holds an artifact, and no wheels"),
        (["--device", "phone-web", "--wheels", "x"], "a site holds an artifact, and no wheels"),
        (["--device", "raspberry-pi-5-8gb", "--split"], "--split is for bundles for a browser"),
        (["--device", "raspberry-pi-5-8gb", "--app", "x"], "--app is for bundles for a browser"),
        (["--device", "phone-web", "--engine", "tflite"], "there is no engine 'tflite'"),
    ],
)
def test_options_that_do_not_go_together(
    artifact: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", str(artifact), *options]) == UsageError.exit_code
    assert says in capsys.readouterr().err


def test_a_browser_is_not_validated_over_ssh(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(artifact), "--device", "phone-web", "--host", "pi@x"]) == UsageError.exit_code
    assert "serve-web" in capsys.readouterr().err
