"""Fits: verdicts and their reasons against sums worked out here, bands against what was measured elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeship import catalog, cli_devices, show, yaml_source
from edgeship.device import Cores, Device
from edgeship.fit import Fit, fit
from edgeship.footprint import footprint, repacked_types
from edgeship.plan import Plan, make_plan, read_plan
from edgeship.recipe import Recipe
from edgeship.speed import Band, speed, tier


def plan_of(name: str, **changes: Any) -> Plan:
    recipe = catalog.find(name).model_copy(update=changes)
    assert recipe.model is not None
    return make_plan(recipe, recipe.model)


def device(name: str = "raspberry-pi-5-8gb", **changes: Any) -> Device:
    return catalog.find_device(name).model_copy(update=changes)


def by_form(made: Fit) -> dict[str, Any]:
    return {f.form: f for f in made.formats}


def test_a_pi_4_prefers_llama_cpp_and_says_why() -> None:
    made = fit(plan_of("qwen2.5-0.5b-int4"), device("raspberry-pi-4-4gb"))
    assert made.verdict == "fits"
    assert made.best is not None
    assert made.best.form == "gguf"
    assert "no dotprod" in made.advice[0]
    assert "ten times slower" in made.advice[0]
    ort, llama = by_form(made)["onnx"], by_form(made)["gguf"]
    assert ort.speed.prefill.high < llama.speed.prefill.high
    assert ort.speed.decode.middle < llama.speed.decode.middle


def test_a_laptop_prefers_onnxruntime() -> None:
    made = fit(plan_of("qwen2.5-0.5b-int4"), device("laptop-avx2"))
    assert made.best is not None
    assert made.best.form == "onnx"


def test_the_other_format_is_preferred_where_only_it_fits() -> None:
    plan = plan_of("qwen2.5-1.5b-int4")
    llama = plan.footprints["gguf"].memory.total
    tight = device("laptop-avx2", ram_mb=(llama + 1e6) / 0.6 / 1e6 + 3000)
    made = fit(plan, tight)
    assert made.best is not None
    assert (made.best.form, made.verdict) == ("gguf", "fits")
    assert made.advice[0].startswith("prefer gguf (llama.cpp); onnx: ")
    assert by_form(made)["onnx"].verdict == "too big"


def test_what_the_engines_lack_is_named() -> None:
    made = fit(plan_of("qwen2.5-0.5b-int4", formats=("onnx",)), device("android-flagship"))
    assert made.verdict == "no engine"
    assert not made.usable
    assert "onnxruntime does not run there" in made.advice[0]
    made = fit(plan_of("qwen2.5-0.5b-int4", formats=("onnx",)), device())
    assert made.advice[0] == "prefer onnx (onnxruntime); the recipe makes nothing for llama.cpp"


def test_the_largest_context_fills_the_budget_and_no_more() -> None:
    plan = plan_of("qwen3-4b-int4")
    for name in ("raspberry-pi-5-4gb", "raspberry-pi-5-8gb", "jetson-orin-nano"):
        board = device(name)
        for made in fit(plan, board).formats:
            m = made.memory
            fixed = m.weights + m.repacked + m.runtime
            if not made.context:
                assert fixed + 64 * m.kv_per_token > board.budget_bytes
                continue
            assert fixed + made.context * m.kv_per_token <= board.budget_bytes
            longest = plan.decoder.max_positions if made.form == "gguf" else plan.rope_positions
            assert made.context == longest or fixed + (made.context + 64) * m.kv_per_token > board.budget_bytes


@pytest.mark.parametrize(
    ("room", "verdict"),
    [(4096, "fits"), (4095, "less context"), (512, "less context"), (511, "too big"), (0, "too big")],
)
def test_verdicts_by_context(room: int, verdict: str) -> None:
    plan = plan_of("qwen2.5-0.5b-int4", formats=("gguf",), context=4096)
    m = plan.footprints["gguf"].memory
    need = m.total - m.kv_total + room * m.kv_per_token
    board = device(os_mb=0.0, ram_mb=(need + 1) / 1e6, budgets=device().budgets.model_copy(update={"ram_share": 1.0}))
    made = fit(plan, board).formats[0]
    assert made.verdict == verdict
    if verdict == "less context":
        assert f"a context of {room // 64 * 64} would fit" in made.reason


def test_slow_is_said() -> None:
    made = fit(plan_of("qwen2.5-7b-int4"), device())
    assert made.verdict == "slow"
    assert made.best is not None
    assert "decoding is likely below the 4 wanted there" in made.best.reason


def test_encodings_are_advised() -> None:
    assert len(fit(plan_of("qwen2.5-0.5b-int4"), device()).advice) == 1
    assert "of the encodings prefer int4 there" in fit(plan_of("qwen2.5-0.5b-int8"), device()).advice
    board = device("android-flagship")
    assert "int8 is not among those known to run well" in fit(plan_of("qwen2.5-0.5b-int8"), board).advice[1]


def test_llama_cpp_copies_what_the_processor_has_kernels_for() -> None:
    plan = plan_of("qwen2.5-1.5b-int4")
    total = plan.footprints["gguf"].memory.total
    copied = {isa: footprint(plan, "gguf", isa).memory for isa in ((), ("avx2",), ("dotprod",))}
    assert copied[()].repacked == 0
    assert 0 < copied["avx2",].repacked < copied["dotprod",].repacked  # an ARM core copies Q8_0, the head, too
    assert {m.total for m in copied.values()} == {total}
    assert "Q2_K" in repacked_types(("avx2", "avx512"))
    assert "Q8_0" not in repacked_types(("avx2", "avx512", "vnni"))


def test_the_best_instructions_are_found() -> None:
    tiers = {name: tier(device(name)) for name in catalog.device_names()}
    assert tiers["raspberry-pi-4-8gb"] == tiers["raspberry-pi-zero-2-w"] == "none"
    assert tiers["raspberry-pi-5-8gb"] == tiers["android-mid-range"] == "dotprod"
    assert (tiers["apple-m2"], tiers["laptop-avx2"], tiers["laptop-avx512"]) == ("i8mm", "avx2", "vnni")


ONE_CORE = device(
    "laptop-avx512",
    cores=(Cores(kind="EPYC", count=1, mhz=2596),),
    bandwidth_gbps=29.0,
)
MEASURED = [  # one thread of an EPYC with AVX512-VNNI that reads 29 GB/s with one core, tokens per CPU second
    ("qwen2.5-0.5b-int4", "onnx", 169.3, 38.0, 744.7),
    ("qwen2.5-0.5b-int4", "gguf", 168.4, 29.0, 671.7),
    ("qwen2.5-1.5b-int4", "onnx", 45.5, 11.9, 1868.0),
    ("qwen2.5-1.5b-int4", "gguf", 38.5, 11.0, 1934.4),
]


@pytest.mark.parametrize(("name", "form", "prefill", "decode", "peak_mb"), MEASURED)
def test_estimates_hold_what_was_measured(name: str, form: Any, prefill: float, decode: float, peak_mb: float) -> None:
    made = by_form(fit(plan_of(name, context=512), ONE_CORE))[form]
    assert prefill in made.speed.prefill
    assert decode in made.speed.decode
    assert (made.memory.total + made.passing) / 1e6 == pytest.approx(peak_mb, rel=0.15)


LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
TINY_LLAMA = LLAMA | {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA_3B = LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("config", "mix", "board", "prefill", "decode"),
    [  # justine.lol/matmul, and geerlingguy/ai-benchmarks issue 24
        (TINY_LLAMA, "Q8_0", "raspberry-pi-5-8gb", (35.0, 45.0), 9.0),
        (TINY_LLAMA, "Q8_0", "raspberry-pi-4-8gb", (10.0, 10.0), 3.0),
        (LLAMA_3B, "Q4_K_M", "raspberry-pi-5-16gb", (), 5.55),
    ],
)
def test_estimates_hold_what_others_published(
    config: dict[str, Any], mix: str, board: str, prefill: tuple[float, ...], decode: float
) -> None:
    values = {"name": "llama", "source": {"repo": "a/b"}, "formats": ["gguf"], "context": 2048, "scheme": {"mix": mix}}
    made = speed(make_plan(Recipe.model_validate(values), config), "gguf", device(board))
    assert decode in made.decode
    assert all(value in made.prefill for value in prefill)


def test_bands_narrow_to_an_order_of_magnitude() -> None:
    for name in catalog.device_names():
        for recipe in ("qwen2.5-0.5b-int4", "qwen2.5-7b-q4_k_m"):
            for made in fit(read_plan(catalog.find(recipe)), device(name)).formats:
                assert 0 < made.speed.load.low < made.speed.load.high
                for band in (made.speed.prefill, made.speed.decode):
                    assert 0 < band.low < band.high < 10 * band.low


def test_more_of_everything_is_faster() -> None:
    plan = plan_of("qwen2.5-1.5b-int4")
    base = speed(plan, "gguf", device())
    faster = speed(plan, "gguf", device(bandwidth_gbps=24.0))
    assert faster.decode.low > base.decode.low
    assert faster.prefill == base.prefill
    assert speed(plan, "gguf", device(isa=("dotprod", "fp16", "i8mm"))).prefill.low > base.prefill.low
    assert speed(plan, "gguf", device(storage_mbps=400.0)).load.high < base.load.high
    small = Cores(kind="little", count=4, mhz=1800, efficiency=True)
    assert speed(plan, "gguf", device(cores=(*device().cores, small))) == base


def test_a_band_contains_its_ends() -> None:
    band = Band(2.0, 8.0)
    assert (1.9 in band, 2.0 in band, 8.0 in band, 8.1 in band) == (False, True, True, False)
    assert band.middle == pytest.approx(4)


def test_every_recipe_on_every_device_reads_each_file_once_or_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: dict[Path, int] = {}
    read = yaml_source.read

    def counted(path: Path, name: str | None = None) -> yaml_source.Document:
        reads[path] = reads.get(path, 0) + 1
        return read(path, name)

    monkeypatch.setattr(yaml_source, "read", counted)
    plans = [read_plan(catalog.find(name)) for name in catalog.names()]
    devices = [catalog.find_device(name) for name in catalog.device_names()]
    fits = [fit(plan, board).to_json() for plan in plans for board in devices]
    assert len(fits) == len(plans) * len(devices)
    ours = {p: n for p, n in reads.items() if p.parent.name in ("recipes", "devices")}
    assert len(ours) == len(plans) + len(devices)
    assert sum(ours.values()) <= 2 * len(ours)  # itself, and the one it extends


def test_a_recipe_that_cannot_be_exported_fits_nowhere() -> None:
    plan = plan_of("qwen2.5-0.5b-int4", formats=("gguf",), scheme=catalog.find("qwen2.5-0.5b-int4").scheme)
    group = plan.recipe.scheme.model_copy(update={"group_size": 64})
    made = fit(plan_of("qwen2.5-0.5b-int4", formats=("gguf",), scheme=group), device())
    assert (made.verdict, made.best, made.usable) == ("not exported", None, False)
    assert "cannot be exported" in made.advice[0]
    assert cli_devices.fit_blocks([made])


def test_recipes_rank_usable_first_and_large_before_small() -> None:
    ranked = cli_devices.ranked_recipes(device("raspberry-pi-4-2gb"))
    usable = [f.usable for f in ranked]
    assert usable == sorted(usable, reverse=True)
    fitting = [f.plan.parameters for f in ranked if f.verdict == "fits"]
    assert fitting == sorted(fitting, reverse=True)
    assert any(f.verdict == "too big" for f in ranked)


def write_report(root: Path, **changes: Any) -> Path:
    sample = {"load_s": 9.0, "ttft_s": 1.0, "prefill_tokens_per_s": 40.0, "decode_tokens_per_s": 8.0}
    sample |= {"peak_rss_mb": 1300.0, "prompt_tokens": 64, "decode_tokens": 16, "threads": 4, "at_s": 1.0}
    report = {"schema": 1, "time": "2026-01-02T03:04:05Z", "device": "raspberry-pi-5-8gb", "host": "pi"}
    report |= {"artifact": "qwen2.5-1.5b-int4", "format": "gguf", "engine": "llamacpp", "digest": "0123456789ab"}
    report |= {"verdict": "pass", "checks": [], "steps": [], "board": {}, "samples": [sample], **changes}
    path = root / str(report["device"]) / "0123456789ab" / f"{report['time'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))
    return path


def test_what_was_measured_replaces_the_estimate(tmp_path: Path) -> None:
    write_report(tmp_path)
    plan = plan_of("qwen2.5-1.5b-int4")
    made = cli_devices.fits_on(plan, [device(), device("raspberry-pi-5-4gb")], tmp_path)
    llama = by_form(made[0])["gguf"]
    assert llama.measured is not None
    assert (llama.measured.decode, llama.decode) == (8.0, 8.0)
    assert llama.errors["decode"] == pytest.approx(llama.speed.decode.middle / 8 - 1)
    assert by_form(made[0])["onnx"].measured is None
    assert by_form(made[1])["gguf"].measured is None
    table = next(b for b in cli_devices.fit_blocks(made) if isinstance(b, show.Table))
    assert any(row[0] == "decode, tok/s" and "8.0 measured" in row for row in table.rows)
    assert any(row[0] == "estimates were" and row[1].startswith("prefill ") for row in table.rows)
    assert made[0].to_json()["formats"]["gguf"]["measured"]["time"] == "2026-01-02T03:04:05Z"


def test_a_slow_measurement_changes_the_verdict(tmp_path: Path) -> None:
    sample = json.loads(write_report(tmp_path).read_text())["samples"][0]
    write_report(tmp_path, time="2026-01-03T03:04:05Z", samples=[sample | {"decode_tokens_per_s": 2.0}])
    made = cli_devices.fits_on(plan_of("qwen2.5-1.5b-int4", formats=("gguf",)), [device()], tmp_path)[0]
    assert made.verdict == "slow"
    assert made.best is not None
    assert "was measured at 2.0 tokens/s, below the 4 wanted there" in made.best.reason


def test_an_emulated_board_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path, board={"emulated": "QEMU"})
    (tmp_path / "raspberry-pi-5-8gb" / "0123456789ab" / "other.json").write_text("{")
    assert cli_devices.measured(tmp_path) == {}
    assert "left out: " in capsys.readouterr().err
    assert cli_devices.measured(tmp_path / "nowhere") == {}
