"""What the stages of calibration take of memory, beside what a plan says that they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import exports
import tolerances
from checkpoints import write_checkpoint
from edgeship import archs, cli
from edgeship.budget import Mixed
from edgeship.calibration import Calibration
from edgeship.calibration_stages import (
    choosing_memory,
    largest,
    measuring_memory,
    require_memory,
    stages,
    statistics_memory,
    writing_memory,
)
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.errors import PlanError
from edgeship.memory import RESERVED
from edgeship.plan import Plan, plan_checkpoint

STAGES = """
import sys
from pathlib import Path
import numpy as np
from edgeship import archs
from edgeship.calibrate.quantize import Calibrator
from edgeship.calibrate.sampler import sample
from edgeship.calibrate.sensitivity import Probe
from edgeship.calibrate.statistics import statistics
from edgeship.calibration import Calibration
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.encodings import ENCODINGS
from edgeship.memory import peak_rss
from edgeship.progress import Silent
from edgeship.reference.weights import CheckpointWeights
from tokenizers import Tokenizer

checkpoint, directory, stage, count, length = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
count, length, opened = int(count), int(length), open_checkpoint(checkpoint)
decoder = archs.read(opened.config)
body = {role.key: ENCODINGS["int4-32"] for role in decoder.roles() if role.part == "body"}
weights = CheckpointWeights(account(opened, decoder.roles()))
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
before = peak_rss()
if stage != "writing":
    tokens = np.random.default_rng(0).integers(0, decoder.vocab_size, (count // length, length)).tolist()
if stage == "choosing":
    Calibrator(decoder, weights, tokens, body, "gptq", directory, Silent()).run()
elif stage == "statistics":
    statistics(decoder, weights, tokens, directory=directory)
elif stage == "measuring":
    types = {key: [encoding, ENCODINGS["int8-32"]] for key, encoding in body.items()}
    Probe(decoder, weights, tokens, types, {}, Silent(), directory).run()
else:
    sample(decoder, weights, tokenizer, Calibration(tokens=count, sequence=length), Silent())
print(peak_rss() - before)
"""

# Models whose Hessians, blocks, hidden states, or keys and values take most, as those of large models do.
WIDE: dict[str, int] = {"hidden": 128, "ff": 6144, "layers": 1}
LARGE = {"hidden": 1024, "ff": 12288, "layers": 1, "heads": 16}
LIGHT = {"hidden": 256, "ff": 256, "layers": 2}
DEEP = {"hidden": 64, "ff": 64, "layers": 32, "heads": 16, "kv_heads": 16, "head_dim": 64}


@pytest.mark.parametrize(
    ("stage", "model", "tokens", "sequence"),
    [
        ("choosing", WIDE, 1024, 256),
        ("statistics", LARGE, 1024, 256),
        ("statistics", LIGHT, 1 << 16, 64),
        ("measuring", LIGHT | {"layers": 1}, 1 << 14, 256),
        ("writing", DEEP, 1 << 10, 16),
    ],
)
def test_a_stage_stays_within_what_the_plan_says(
    stage: str, model: dict[str, Any], tokens: int, sequence: int, tmp_path: Path
) -> None:
    made = write_checkpoint(tmp_path / "model", **model)
    command = [sys.executable, "-c", STAGES, str(made), str(tmp_path / "kept"), stage, str(tokens), str(sequence)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    section = Calibration(text="unused", tokens=tokens, sequence=sequence)
    decoder = archs.read(open_checkpoint(made).config)
    said = {
        "choosing": lambda: choosing_memory(section, decoder, "gptq"),
        "statistics": lambda: statistics_memory(section, decoder),
        "measuring": lambda: measuring_memory(section, Mixed(bits_per_weight=6, tokens=tokens), decoder),
        "writing": lambda: writing_memory(section, decoder),
    }[stage]() - RESERVED
    assert tolerances.CALIBRATION_MEMORY * said < taken < said


def planned(checkpoint: Path, tmp_path: Path, scheme: dict[str, Any], **calibration: Any) -> Plan:
    (tmp_path / "words.txt").write_text("The cat sat on the mat.")
    given = {"text": str(tmp_path / "words.txt")} | calibration
    recipe = exports.recipe(scheme=scheme, calibration=given, formats=["gguf"])
    return plan_checkpoint(recipe, open_checkpoint(checkpoint).config)


MIXED = {"mixed": {"bits_per_weight": 6}}


@pytest.mark.parametrize(
    ("scheme", "calibration", "what"),
    [
        ({"mix": "Q8_0"}, {"tokens": 1 << 20}, "importance from 1048576 calibration tokens"),
        (MIXED, {"tokens": 1 << 20}, "importance from 1048576 calibration tokens"),
        (MIXED, {}, "measuring on 512 tokens what each tensor costs"),
        ({"mixed": {"bits_per_weight": 6, "tokens": 65536}, "algorithm": "gptq"}, {"tokens": 65536}, "measuring on"),
        ({"algorithm": "gptq"}, {"tokens": 65536}, "gptq with 65536 calibration tokens"),
        (MIXED, {"text": None, "tokens": 1 << 19}, "calibration text of 524288 tokens that the model writes"),
    ],
)
def test_plan_and_export_name_the_stage_that_takes_most(
    scheme: dict[str, Any], calibration: dict[str, Any], what: str, small: Path, tmp_path: Path
) -> None:
    plan = planned(small, tmp_path, scheme, **calibration)
    most = largest(stages(plan))
    [note] = [note for note in plan.notes if "--max-ram" in note]
    assert note.startswith(what)
    require_memory(stages(plan), most.nbytes)
    with pytest.raises(PlanError, match=f"--max-ram: expected at least .* for {what}"):
        require_memory(stages(plan), most.nbytes - 1)
    assert most.nbytes > RESERVED


def test_text_that_nothing_looks_at_takes_nothing(small: Path, tmp_path: Path) -> None:
    assert largest(stages(planned(small, tmp_path, {}))).nbytes == 0


def test_imatrix_counts_the_text_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", **DEEP)
    source = "source: {host: local, repo: a/b, path: model}\n"
    (tmp_path / "mine.yaml").write_text(source + "calibration: {tokens: 1024, sequence: 32}\n")
    command = ["imatrix", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "im.gguf"), "--max-ram", "500MB"]
    assert cli.run(command) == PlanError.exit_code
    assert "for calibration text of 1024 tokens that the model writes, found 500 MB" in capsys.readouterr().err
