"""What only the llama.cpp engine has: its options, its library, files that come alone."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import edgeship_runtime
import tolerances
from command_line import ROOT, Ended
from edgeship_runtime.engines import llamacpp
from edgeship_runtime.engines.llama_library import errors, library
from edgeship_runtime.errors import (
    ArtifactError,
    EngineError,
    ResourceError,
    TemplateError,
    UsageError,
)
from edgeship_runtime.manifest import read_manifest
from gguf_bytes import STRING, model
from toy_artifact import END, VOCAB
from toy_gguf import ToyGguf, needs_llamacpp, write_toy_gguf, write_toy_gguf_artifact

pytestmark = needs_llamacpp
IDS = [5, 17, 300, 5, 44, 2, 199, 63, 63, 8, 120]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyGguf:
    return write_toy_gguf(tmp_path_factory.mktemp("toy") / "toy.gguf", head_dim=32)


def assert_close(got: Any, want: Any, tolerance: float = tolerances.TOY_GGUF_LOGITS) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def evaluated(toy: ToyGguf, **options: Any) -> Any:
    with edgeship_runtime.load(toy.path, threads=1, **options) as loaded:
        return loaded.engine.evaluate(IDS).copy()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "tolerance"),
        [
            ({"flash_attention": "off"}, tolerances.TOY_GGUF_LOGITS),
            ({"flash_attention": "on"}, tolerances.TOY_GGUF_LOGITS),
            ({"mmap": False}, tolerances.TOY_GGUF_LOGITS),
            ({"batch_threads": 2}, tolerances.TOY_GGUF_LOGITS),
            ({"kv_type": "q8_0"}, tolerances.Q8_KV_LOGITS),
        ],
    )
    def test_they_change_no_answer(self, toy: ToyGguf, options: dict[str, Any], tolerance: float) -> None:
        assert_close(evaluated(toy, **options), toy.logits(IDS)[-1], tolerance)

    def test_they_arrive(self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []
        lib = library()
        opened = lib.llama_init_from_model
        monkeypatch.setattr(
            lib, "llama_init_from_model", lambda model, params: seen.append(params) or opened(model, params)
        )
        evaluated(toy, context=80, batch_threads=3, kv_type="q8_0", flash_attention="on")
        (params,) = seen
        assert (params.n_ctx, params.n_threads, params.n_threads_batch) == (80, 1, 3)
        assert (params.type_k, params.type_v, params.flash_attn_type) == (8, 8, 1)
        assert params.n_outputs_max == 1, "no memory for the logits of a whole prompt"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kv_type": "q4_0"}, "kv_type: expected one of f16, q8_0, found 'q4_0'"),
            ({"flash_attention": True}, "flash_attention: expected one of auto, off, on"),
            ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash attention"),
            ({"batch_threads": 0}, "0 threads"),
            ({"threads": 5000}, "at most 4096 threads"),
            ({"lora": {"x": "much"}}, "scale of x"),
            ({"lora": {"x": float("nan")}}, "scale of x"),
        ],
    )
    def test_impossible_ones(self, toy: ToyGguf, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            edgeship_runtime.load(toy.path, **options)

    def test_a_cache_type_the_heads_do_not_divide_into(self, tmp_path: Path) -> None:
        narrow = write_toy_gguf(tmp_path / "narrow.gguf", head_dim=16)
        with pytest.raises(EngineError, match=r"block size 32 does not divide.*\n\nhint: .*kv_type f16"):
            edgeship_runtime.load(narrow.path, kv_type="q8_0")

    def test_few_weights_get_few_threads(self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llamacpp, "choose_threads", lambda threads, _: threads or 8)
        whole = toy.path.stat().st_size
        for size, threads in ((4 << 20, 1), (whole // 4, 5), (whole // 100, 8)):
            monkeypatch.setattr(llamacpp, "_BYTES_PER_THREAD", size)
            with edgeship_runtime.load(toy.path) as loaded:
                assert loaded.engine.threads == threads
        with edgeship_runtime.load(toy.path, threads=2) as loaded:
            assert loaded.engine.threads == 2

    def test_on_the_command_line(
        self, command: Callable[..., Ended], toy: ToyGguf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}

        @wraps(llamacpp.open_engine)
        def spy(*_: Any, **given: Any) -> Any:
            seen.update(given)
            raise EngineError("seen enough")

        monkeypatch.setattr(llamacpp, "open_engine", spy)
        line = (
            "--engine llamacpp --kv-type q8_0 --flash-attention on --batch-threads 3 --no-mmap --lora a=b=0.5 --lora c"
        )
        assert command("run", toy.path, "x", *line.split(" ")).code == 12
        assert seen["lora"] == {"a=b": 0.5, "c": 1.0}
        assert (seen["kv_type"], seen["flash_attention"], seen["batch_threads"], seen["mmap"]) == (
            "q8_0",
            "on",
            3,
            False,
        )
        assert command("run", toy.path, "x", "--lora", "a=b").code == 2


def write_lora(path: Path, toy: ToyGguf, *, rank: int = 4, alpha: float = 8, name: str = "attn_q") -> Any:
    """An adapter of one matrix; returns what it adds to it at scale 1."""
    rng = np.random.default_rng(1)
    rows, columns = toy.weights[f"blk.0.{name}.weight"].shape
    a, b = (rng.standard_normal(shape, np.float32) * np.float32(0.3) for shape in ((rank, columns), (rows, rank)))
    writer = GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_tensor(f"blk.0.{name}.weight.lora_a", a)
    writer.add_tensor(f"blk.0.{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (b @ a) * np.float32(alpha / rank)


class TestAdapters:
    def merged(self, toy: ToyGguf, **added: Any) -> Any:
        changed = {f"blk.0.{name}.weight": values for name, values in added.items()}
        weights = {name: values + changed.get(name, 0) for name, values in toy.weights.items()}
        return replace(toy, weights=weights).logits(IDS)[-1]

    def test_they_add_to_the_weights(self, toy: ToyGguf, tmp_path: Path) -> None:
        q = write_lora(tmp_path / "q.gguf", toy)
        v = write_lora(tmp_path / "v.gguf", toy, name="ffn_up", rank=2)
        plain = toy.logits(IDS)[-1]
        one = self.merged(toy, attn_q=q)
        assert np.abs(one - plain).max() > 10 * tolerances.TOY_GGUF_LOGITS * np.abs(plain).max()
        assert_close(evaluated(toy, lora=str(tmp_path / "q.gguf")), one)
        assert_close(evaluated(toy, lora=[str(tmp_path / "q.gguf")]), one)
        scales = {str(tmp_path / "q.gguf"): 0.5, str(tmp_path / "v.gguf"): -1.0}
        assert_close(evaluated(toy, lora=scales), self.merged(toy, attn_q=q * np.float32(0.5), ffn_up=-v))

    def test_what_is_no_adapter_of_this_model(self, toy: ToyGguf, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="not a LoRA adapter"):
            edgeship_runtime.load(toy.path, lora=str(toy.path))
        with pytest.raises(ArtifactError, match="no such file"):
            edgeship_runtime.load(toy.path, lora=["nowhere.gguf"])
        other = write_toy_gguf(tmp_path / "other.gguf", head_dim=16)
        write_lora(tmp_path / "lora.gguf", other)
        with pytest.raises(ArtifactError, match=r"llama.cpp cannot use the adapter: .*\n\nhint: .*another model"):
            edgeship_runtime.load(toy.path, lora=[str(tmp_path / "lora.gguf")])
        (tmp_path / "lora.gguf").write_bytes((tmp_path / "lora.gguf").read_bytes()[:-64])
        with pytest.raises(ArtifactError, match="cut short"):
            edgeship_runtime.load(toy.path, lora=[str(tmp_path / "lora.gguf")])


class TestFilesAlone:
    def test_everything_comes_from_the_file(self, toy: ToyGguf) -> None:
        with edgeship_runtime.load(toy.path, threads=1) as loaded:
            assert loaded.directory == toy.path
            assert loaded.manifest.model.eos_token_ids == tuple(sorted(END)), "also what llama.cpp knows by its text"
            prompt = loaded.render([{"role": "user", "content": "hi"}])
            assert prompt.endswith("<|im_start|>assistant\n")
            assert loaded.chat([{"role": "user", "content": "hi"}], max_tokens=3, ignore_eos=True).tokens

    def test_templates(self, toy: ToyGguf, tmp_path: Path) -> None:
        for metadata, says in (
            ({"tokenizer__chat_template__other": ("{{ x }}", 8)}, None),
            ({"tokenizer__chat_template": ("{% for %}", 8)}, "does not parse"),
            ({"tokenizer__chat_template": ("{{ eos_token }}|{{ pad_token }}|{{ bos_token }}", 8)}, ""),
        ):
            path = tmp_path / "templates.gguf"
            if "tokenizer__chat_template" in metadata:
                raw = write_toy_gguf(path, template=metadata.pop("tokenizer__chat_template")[0])
            else:
                raw = write_toy_gguf(path, **{name: (value, kind) for name, (value, kind) in metadata.items()})
            with edgeship_runtime.load(raw.path, threads=1) as loaded:
                if says:
                    with pytest.raises(TemplateError, match=says):
                        loaded.render([{"role": "user", "content": "hi"}])
                elif says == "":
                    assert loaded.render([{"role": "user", "content": "hi"}]) == "<|im_end|>|<|endoftext|>|"
                assert loaded.generate("raw text works", max_tokens=2).tokens is not None

    def test_a_link_as_hub_caches_have_it(self, toy: ToyGguf, tmp_path: Path) -> None:
        (tmp_path / "snapshot.gguf").symlink_to(toy.path)
        with edgeship_runtime.load(tmp_path / "snapshot.gguf", threads=1) as loaded:
            assert_close(loaded.engine.evaluate(IDS), toy.logits(IDS)[-1])

    def test_a_sealed_file_without_tokenizers(self, tmp_path: Path) -> None:
        toy = write_toy_gguf_artifact(tmp_path / "gguf")
        (tmp_path / "hide").mkdir()
        (tmp_path / "hide" / "tokenizers.py").write_text("raise ImportError('hidden by the test')")
        program = f"""
import edgeship_runtime
with edgeship_runtime.load({str(toy.directory)!r}, threads=1) as model:
    assert type(model.tokenizer).__name__ == "LlamaTokenizer"
    print(model.encode([{{"role": "user", "content": "The cät 🙂"}}]), model.manifest.model.eos_token_ids)
"""
        environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'hide'}:{ROOT / 'runtime'}"}
        hidden = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        with edgeship_runtime.load(toy.directory, threads=1) as loaded:
            ids = loaded.encode([{"role": "user", "content": "The cät 🙂"}])
            assert hidden.stdout == f"{ids} {loaded.manifest.model.eos_token_ids}\n"

    def test_a_file_other_than_its_manifest_says(self, tmp_path: Path) -> None:
        toy = write_toy_gguf_artifact(tmp_path / "gguf")
        manifest = read_manifest(toy.directory)
        facts = replace(manifest.model, layers=2, vocab_size=VOCAB + 1)
        with pytest.raises(ArtifactError, match="vocabulary 320, expected 321; layers 1, expected 2"):
            llamacpp.open_engine(toy.directory, replace(manifest, model=facts), context=8, threads=1)
        shutil.copy(toy.path, tmp_path / "whole.gguf")
        toy.path.write_bytes(toy.path.read_bytes()[:-1])
        with pytest.raises(ArtifactError, match="cut short or replaced"):
            edgeship_runtime.load(toy.directory)

    def test_what_does_not_continue_text(self, tmp_path: Path) -> None:
        path = tmp_path / "none.gguf"
        path.write_bytes(model().with_key("tokenizer.ggml.model", STRING, "no_vocab").bytes())
        with pytest.raises(ArtifactError, match="cannot load it"):
            edgeship_runtime.load(path)


class TestKeeping:
    def test_an_interrupt_in_the_middle_leaves_a_usable_engine(
        self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lib = library()
        decode = lib.llama_decode
        with edgeship_runtime.load(toy.path, threads=1) as loaded:
            engine = loaded.engine
            engine.evaluate(IDS[:3])

            def interrupted(*given: Any) -> int:
                assert decode(*given) == 0
                raise KeyboardInterrupt  # it went through, and nobody knows

            monkeypatch.setattr(lib, "llama_decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.evaluate([7, 7, 7])
            monkeypatch.setattr(lib, "llama_decode", decode)
            assert engine.length == 3
            assert_close(engine.evaluate(IDS[3:]), toy.logits(IDS)[-1])

    def test_a_failure_is_translated(self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        lib = library()

        def fail(*_: Any) -> int:
            errors().append("decode: failed to find a memory slot\n")
            return 1

        with edgeship_runtime.load(toy.path, threads=1) as loaded:
            loaded.engine.evaluate(IDS[:3])
            decode = lib.llama_decode
            monkeypatch.setattr(lib, "llama_decode", fail)
            with pytest.raises(EngineError, match=r"code 1\): failed to find a memory slot"):
                loaded.engine.evaluate([1])
            monkeypatch.setattr(lib, "llama_decode", decode)
            assert_close(loaded.engine.evaluate(IDS[3:]), toy.logits(IDS)[-1])

    def test_memory_that_cannot_be_had(self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            errors().append("alloc_tensor_range: failed to allocate CPU buffer of size 99999\n")

        monkeypatch.setattr(library(), "llama_init_from_model", fail)
        with pytest.raises(ResourceError, match="not enough memory"):
            edgeship_runtime.load(toy.path)

    def test_a_state_that_cannot_be_wound_back_is_built_anew(
        self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(library(), "llama_memory_seq_rm", lambda *_: False)  # as for a recurrent model
        with edgeship_runtime.load(toy.path, threads=1, context=16) as loaded:
            engine = loaded.engine
            engine.evaluate(IDS)
            engine.truncate(4)
            assert engine.length == 4
            assert_close(engine.evaluate([9]), toy.logits([*IDS[:4], 9])[-1])
            engine.truncate(0)
            assert_close(engine.evaluate([9, 9]), toy.logits([9, 9])[-1])

    def test_memory_is_freed_with_the_last_array_of_logits(self, toy: ToyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        freed: list[str] = []
        lib = library()
        free = lib.llama_free
        monkeypatch.setattr(lib, "llama_free", lambda pointer: freed.append("context") or free(pointer))
        loaded = edgeship_runtime.load(toy.path, threads=1)
        logits = loaded.engine.evaluate(IDS)
        part = logits[3:5]
        del logits
        loaded.close()
        assert freed == []
        assert np.isfinite(part).all()
        del part
        gc.collect()
        assert freed == ["context"]

    def test_text_after_closing(self, toy: ToyGguf) -> None:
        loaded = edgeship_runtime.load(toy.path, threads=1)
        loaded.close()
        for use in (lambda: loaded.tokenizer.encode("x"), lambda: loaded.tokenizer.decode([5])):
            with pytest.raises(EngineError, match="closed"):
                use()

    def test_threads_load_and_answer_side_by_side(self, toy: ToyGguf) -> None:
        answers: list[tuple[int, ...]] = []

        def ask() -> None:
            for _ in range(3):
                with edgeship_runtime.load(toy.path, threads=1) as loaded:
                    answers.append(loaded.generate("The cat", max_tokens=8, temperature=0.0).tokens)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 12
        assert len(set(answers)) == 1
