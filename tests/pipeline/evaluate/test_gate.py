"""Limits on what an artifact may lose: kept, refused by name, or repaired."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tolerances
from checkpoints import random_weights, write_checkpoint, write_weights
from edgeship import build, cli
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.diff import diff
from edgeship.errors import FidelityError, PlanError, RecipeError
from edgeship.evaluate import gate, worst
from edgeship.plan import plan_checkpoint
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from edgeship.size_limit import directory_size
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.verify import verify
from exports import built, recipe

INT4 = {"body": "int4", "embeddings": "int4", "head": "int4"}
BOTH = ("onnx", "gguf")
WORST = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor has an outlier in every group, so that 4 bits lose nearly all else of it."""
    path = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=3)
    config = json.loads((path / "config.json").read_text())
    weights = random_weights(config)
    weights[WORST][:, ::32] *= 12
    write_weights(path, weights)
    return path


def export(
    checkpoint: Path, out: Path, text: Path, formats: tuple[str, ...] = ("onnx",), **fields: Any
) -> dict[str, Any]:
    """Export and return the manifest's recipe; `accept` is laid over the text and its tokens."""
    accept = {"text": str(text), "tokens": 512, **fields.pop("accept")}
    fields = {"scheme": INT4, "formats": formats, "accept": accept, **fields}
    artifact = built(recipe(**fields), out, formats, checkpoint=checkpoint)
    return dict(read_manifest(artifact / formats[0]).recipe)


@pytest.fixture(scope="module")
def lost(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the int4 artifact loses, with limits that it keeps."""
    out = tmp_path_factory.mktemp("lost")
    return dict(export(checkpoint, out, text, accept={"kl_mean": 50, "top1": 0.01})["fidelity"])


def test_what_was_lost_is_in_the_manifest(lost: dict[str, Any], text: Path) -> None:
    assert 0 < lost["kl_mean"] < lost["kl_95"] < lost["kl_999"]
    assert 0 < lost["top1"] < 1
    assert (lost["text"], lost["window"], lost["positions"]) == ("text.txt", 256, 2 * 127)


def test_an_artifact_over_its_limit_is_not_sealed(
    checkpoint: Path, text: Path, tmp_path: Path, lost: dict[str, Any]
) -> None:
    with pytest.raises(FidelityError) as caught:
        export(checkpoint, tmp_path, text, accept={"kl_mean": lost["kl_mean"] / 2})
    said = caught.value
    assert said.exit_code == 16
    assert f"at most {lost['kl_mean'] / 2:g}, found {lost['kl_mean']:.5f}" in said.message
    worst, *others = re.findall(r"  - (\S+).*: (\S+ \w+) more, KL divergence (?:about )?(-?[\d.]+) less", said.message)
    assert worst[0] == WORST
    rates = [float(gain) / float(size.split()[0]) for _, size, gain in (worst, *others)]
    assert all(a > 0.95 * b for a, b in pairwise(rates))  # as printed, with three digits
    assert all(size.endswith(" KB") for _, size, _ in others)
    assert worst[1] == "3.07 KB"  # 64 x 96 weights from 4 bits to 8
    assert float(worst[2]) > lost["kl_mean"] / 10
    assert re.search("accept.repair: true raises [0-9]+ tensors first, .* then more until accepted", said.hint)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_its_own_code(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "strict.yaml"
    file.write_text(
        f"source: {{host: local, repo: tests/tiny, path: {checkpoint}}}\nscheme: {{body: int4}}\ncontext: 128\n"
        f"accept: {{kl_mean: 1.0e-6, text: {text}, tokens: 256}}\n"
    )
    assert cli.run(["export", str(file), "--out", str(tmp_path / "out"), "--json"]) == 16
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "fidelity"
    assert "was not sealed" in error["message"]
    assert not (tmp_path / "out" / "strict").exists()


def test_a_repair_raises_what_it_takes_and_says_so(
    checkpoint: Path, text: Path, tmp_path: Path, lost: dict[str, Any]
) -> None:
    pytest.importorskip("gguf")
    limit = lost["kl_mean"] * 0.7
    made = export(checkpoint, tmp_path, text, BOTH, accept={"kl_mean": limit, "repair": True})
    assert made["fidelity"]["kl_mean"] <= limit
    assert made["raised"][WORST] == "int8-32"
    assert len(made["raised"]) < 10
    manifests = [read_manifest(tmp_path / "case" / form) for form in BOTH]
    assert manifests[0].recipe == manifests[1].recipe
    assert set(manifests[0].weights.parts["body"].split(", ")) == {"int4-32", "int8-32"}
    assert diff(tmp_path / "case", Silent()).different == ()
    card = (tmp_path / "case" / "gguf" / "README.md").read_text()
    assert f"mean KL divergence {made['fidelity']['kl_mean']:.4f} nats" in card
    assert f"raised to 8 bits for that: {', '.join(sorted(made['raised']))}" in card
    assert verify(tmp_path / "case" / "onnx").verdict == "pass"


@pytest.mark.parametrize(("shown", "tolerance"), [(4096, 1e-3), (worst.GAIN_TOKENS, tolerances.GAIN)])
def test_a_gain_is_what_raising_the_tensor_gains(
    shown: int, tolerance: float, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As promised for the worst tensor from `shown` tokens, and as raising it alone gains on all 4096."""
    monkeypatch.setattr(worst, "GAIN_TOKENS", shown)
    monkeypatch.setattr(gate, "AIM", 1)  # as little as meets the limit
    accept = {"kl_mean": 50.0, "tokens": 4096}
    before = export(checkpoint, tmp_path / "before", text, accept=accept)["fidelity"]["kl_mean"]
    with pytest.raises(FidelityError) as caught:
        export(checkpoint, tmp_path, text, accept=accept | {"kl_mean": before / 2})
    first, said = re.findall(r"- (\S+): .* KL divergence ([\d.]+) less", caught.value.message)[0]
    only = accept | {"kl_mean": before - 1e-4, "repair": True}
    made = export(checkpoint, tmp_path / "after", text, accept=only)
    assert list(made["raised"]) == [first]
    assert float(said) == pytest.approx(before - made["fidelity"]["kl_mean"], rel=tolerance)


def test_a_limit_on_the_likeliest_token(checkpoint: Path, text: Path, tmp_path: Path, lost: dict[str, Any]) -> None:
    limit = round((1 + lost["top1"]) / 2, 3)
    with pytest.raises(FidelityError, match=f"top-1 agreement of at least {limit:g}, found {lost['top1']:.4f}"):
        export(checkpoint, tmp_path / "refused", text, accept={"top1": limit})
    made = export(checkpoint, tmp_path, text, accept={"top1": limit, "repair": True})
    assert made["fidelity"]["top1"] >= limit
    assert WORST in made["raised"]


def test_where_nothing_is_left_to_raise(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match="was not sealed") as caught:
        export(
            checkpoint, tmp_path, text, accept={"kl_mean": 1e-9, "repair": True},
            scheme={"body": "int8", "embeddings": "int8", "head": "int8"},
        )  # fmt: skip
    assert "nothing below 8 bits is left" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_repair_that_does_not_suffice_ends(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match="was not sealed"):
        export(checkpoint, tmp_path, text, accept={"kl_mean": 1e-9, "repair": True})
    assert list(tmp_path.iterdir()) == []


def test_a_repair_keeps_the_limit_on_size(checkpoint: Path, text: Path, tmp_path: Path, lost: dict[str, Any]) -> None:
    source = open_checkpoint(checkpoint)
    size = plan_checkpoint(recipe(scheme=INT4), source.config).footprints["onnx"].size_bytes
    size += sum(path.stat().st_size for path in source.files if path.suffix != ".safetensors")
    with pytest.raises(FidelityError, match=r"with \d+ tensors raised .* would go over accept\.size_mb") as caught:
        export(
            checkpoint, tmp_path, text,
            accept={"kl_mean": lost["kl_mean"] * 0.1, "repair": True, "size_mb": size / 1e6 + 0.015},
        )  # fmt: skip
    assert "a mean KL divergence of at most" in caught.value.message
    assert list(tmp_path.iterdir()) == []


class TestSize:
    """`accept.size_mb` holds for all files of an artifact, each format by itself."""

    @pytest.fixture(scope="class")
    @classmethod
    def sizes(cls, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
        """MB of each format, sealed without a limit."""
        pytest.importorskip("gguf")
        made = cls.export(checkpoint, tmp_path_factory.mktemp("sizes"), None)
        return {form: directory_size(made / form) / 1e6 for form in BOTH}

    @staticmethod
    def export(checkpoint: Path, out: Path, limit: float | None) -> Path:
        return built(recipe(scheme=INT4, formats=BOTH, accept={"size_mb": limit}), out, BOTH, checkpoint=checkpoint)

    def test_the_whole_artifact_counts(self, checkpoint: Path, tmp_path: Path, sizes: dict[str, float]) -> None:
        for limit in (sizes["onnx"] - 0.001, sizes["gguf"] + 0.001):  # the larger one is ONNX
            with pytest.raises(FidelityError, match=r"the onnx artifact\. The artifact was not sealed") as caught:
                self.export(checkpoint, tmp_path, limit)
            assert caught.value.exit_code == 16
            assert list(tmp_path.iterdir()) == []
        made = self.export(checkpoint, tmp_path, sizes["onnx"] + 0.001)
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
        assert all(verify(made / form, threads=1).verdict == "pass" for form in BOTH)

    def test_what_is_known_before_is_said_before(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build, "stream", None)
        planned = plan_checkpoint(recipe(scheme=INT4), open_checkpoint(checkpoint).config)
        size = planned.footprints["onnx"].size_bytes / 1e6
        for limit, said in ((size - 0.0001, "for the onnx file alone"), (size + 0.0001, "weights and tokenizer of")):
            with pytest.raises(FidelityError, match=said) as caught:
                self.export(checkpoint, tmp_path, limit)
            expected, found = re.findall(r"([\d.]+) MB", caught.value.message)[:2]
            assert float(found) > float(expected)
            assert list(tmp_path.iterdir()) == []


def test_interrupted_while_it_is_measured_it_goes_on_from_there(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = {"kl_mean": 50}
    export(checkpoint, tmp_path / "whole", text, accept=accept)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, tmp_path / "cut", text, accept=accept)
    assert not (tmp_path / "cut" / "case" / "onnx").exists()
    jobs: list[int] = []
    streamed = build.stream
    monkeypatch.setattr(build, "stream", lambda given, budget: jobs.append(len(given)) or streamed(given, budget))
    export(checkpoint, tmp_path / "cut", text, accept=accept)
    assert jobs == [0]  # every weight was there already
    for file in sorted((tmp_path / "whole").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes(), file


def test_a_mixed_scheme_is_not_repaired_over_its_budget(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"accept\.repair: a mixed scheme spends its whole budget"):
        export(
            checkpoint, tmp_path, text, scheme={"mixed": {"bits_per_weight": 6}}, calibration={"tokens": 128},
            accept={"kl_mean": 1, "repair": True},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_ggml_types_are_raised_too(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    scheme = {"body": "q4_1", "embeddings": "q8_0", "head": "q8_0"}
    before = export(checkpoint, tmp_path / "a", text, ("gguf",), scheme=scheme, accept={"kl_mean": 50})
    made = export(
        checkpoint, tmp_path / "b", text, ("gguf",), scheme=scheme,
        accept={"kl_mean": before["fidelity"]["kl_mean"] * 0.8, "repair": True},
    )  # fmt: skip
    assert made["raised"]
    assert set(made["raised"].values()) == {"int8-32"}
    assert verify(tmp_path / "b" / "case" / "gguf").verdict == "pass"


def test_the_text_is_looked_for_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"accept\.text: no such file"):
        export(checkpoint, tmp_path, tmp_path / "absent.txt", accept={"kl_mean": 1})
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(RecipeError, match=r"accept\.text: .*at least 256 tokens") as caught:
        export(checkpoint, tmp_path / "out", short, accept={"kl_mean": 1})
    assert "--" not in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_refusal_leaves_nothing_of_what_was_found_out(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "scheme": {**INT4, "algorithm": "gptq"},
        "calibration": {"tokens": 64, "sequence": 32},
        "accept": {"kl_mean": 1e-9},
    }
    with pytest.raises(FidelityError, match="was not sealed"):
        export(checkpoint, tmp_path / "new" / "out", text, **fields)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(FidelityError, match="was not sealed"):
        export(checkpoint, tmp_path / "mine", text, **fields)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verified")
    export(checkpoint, out, text, accept={"kl_mean": 50})
    return out / "case" / "onnx"


class TestVerify:
    """On the device: agreement with the float model."""

    def test_the_float_model_is_not_the_artifact(self, artifact: Path, lost: dict[str, Any]) -> None:
        verdict = verify(artifact, threads=1)
        assert verdict.verdict == "pass", verdict.failures
        assert verdict.agreement is not None
        found = verdict.agreement.float_model
        assert found is not None
        assert 20 <= found.positions <= 48
        assert found.equal < found.positions
        assert 0.1 * lost["kl_mean"] < found.kl_mean < found.kl_budget
        assert "float model: " in verdict.table()
        assert (artifact / "acceptance" / "fidelity.json").stat().st_size < 12_000

    def test_its_tokens_and_probabilities_are_those_of_transformers(self, artifact: Path, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        for case in json.loads((artifact / "acceptance" / "fidelity.json").read_text())["cases"]:
            with torch.no_grad():
                logits = oracle(torch.tensor([case["prompt_ids"] + case["continuation"]])).logits[0]
            for place in case["positions"]:
                best = torch.log_softmax(logits[place["index"]].double(), -1).topk(len(place["top_ids"]))
                assert place["top_ids"] == best.indices.tolist()
                np.testing.assert_allclose(
                    place["top_logits"], best.values.numpy(), rtol=0, atol=tolerances.LOG_PROBABILITIES
                )

    def test_both_formats_have_the_same(self, checkpoint: Path, text: Path, tmp_path: Path) -> None:
        pytest.importorskip("gguf")
        export(checkpoint, tmp_path, text, BOTH, accept={"kl_mean": 50})
        a, b = ((tmp_path / "case" / form / "acceptance" / "fidelity.json").read_bytes() for form in BOTH)
        assert a == b

    def test_an_export_has_it_without_a_limit(self, checkpoint: Path, tmp_path: Path) -> None:
        built(recipe(scheme=INT4), tmp_path, checkpoint=checkpoint)
        assert "fidelity" not in read_manifest(tmp_path / "case" / "onnx").recipe
        verdict = verify(tmp_path / "case" / "onnx", threads=1)
        assert verdict.agreement is not None
        assert verdict.agreement.float_model is not None

    def test_its_budget_follows_from_what_the_weights_lost(self, checkpoint: Path, tmp_path: Path) -> None:
        for body in ("int4", "int8"):
            built(recipe(scheme={**INT4, "body": body}), tmp_path / body, checkpoint=checkpoint)
        budgets = [
            json.loads((tmp_path / body / "case" / "onnx" / "acceptance" / "fidelity.json").read_text())["kl_budget"]
            for body in ("int4", "int8")
        ]
        assert budgets[0] > 1.1 * budgets[1] > 0.03

    def test_without_it_on_request_also_after_an_interruption(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("edgeship.seal.write_manifest", interrupted)
            with pytest.raises(KeyboardInterrupt):
                built(recipe(scheme=INT4), tmp_path, checkpoint=checkpoint)
        assert list(tmp_path.rglob("fidelity.json"))
        built(recipe(scheme=INT4), tmp_path, checkpoint=checkpoint, fidelity=False)
        assert "acceptance/fidelity.json" not in read_manifest(tmp_path / "case" / "onnx").files
        assert not list(tmp_path.rglob("fidelity.json"))
        verdict = verify(tmp_path / "case" / "onnx", threads=1)
        assert verdict.verdict == "pass"
        assert verdict.agreement is not None
        assert verdict.agreement.float_model is None


class TestRecipe:
    @pytest.mark.parametrize(
        ("accept", "message"),
        [
            ("repair: true", "'repair' goes with kl_mean or top1 only"),
            ("tokens: 128", "'tokens' goes with kl_mean or top1 only"),
            ("text: a.txt", "'text' goes with kl_mean or top1 only"),
            ("kl_mean: 0", "accept.kl_mean"),
            ("top1: 1.5", "accept.top1"),
            ("kl_mean: 1, tokens: 1", "accept.tokens"),
            ("kl_max: 1", "unknown key 'kl_max'"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, accept: str, message: str) -> None:
        file = tmp_path / "bad.yaml"
        file.write_text(f"source: {{repo: a/b}}\naccept: {{{accept}}}\n")
        with pytest.raises(RecipeError, match=re.escape(message)):
            read_recipe(file)

    def test_the_text_lies_beside_the_recipe(self, tmp_path: Path) -> None:
        file = tmp_path / "good.yaml"
        file.write_text("source: {repo: a/b}\naccept: {kl_mean: 0.1, text: words.txt}\n")
        read = read_recipe(file)
        assert read.accept.text == str(tmp_path / "words.txt")
        assert read.resolved()["accept"]["text"] == "words.txt"
