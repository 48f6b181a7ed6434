"""What `plan --device local` expects of artifacts beside what `edgeship-runtime bench` measures, one after the other.

python tests/bench/compare_plan.py artifacts/qwen2.5-0.5b-int4 artifacts/qwen2.5-1.5b-int4

An artifact's directory has its recipe's name; random weights will do. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from edgeship import catalog
from edgeship.fit import FormatFit, fit
from edgeship.plan import read_plan

PROMPT, ANSWER = 512, 64


def measured(artifact: Path) -> dict[str, float]:
    """The report of one `bench`, in a process of its own."""
    command = [Path(sys.executable).parent / "edgeship-runtime", "bench", artifact, "--json"]
    options = ["--prompt-tokens", str(PROMPT), "--decode-tokens", str(ANSWER)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    report: dict[str, float] = json.loads(done.stdout)
    return report


def compare(artifact: Path, made: FormatFit) -> bool:
    """Print a line for prefill, decode and memory; whether the decode band and 15 % of memory hold."""
    found = measured(artifact / made.form)
    m = made.memory
    peak = (m.total - m.kv_total + m.kv_per_token * (PROMPT + ANSWER) + made.passing) / 1e6
    off = peak / found["peak_rss_mb"] - 1
    print(f"{artifact.name} {made.form}, {found['threads']} threads, load {found['load_average']} before")
    for name, band in (("prefill", made.speed.prefill), ("decode", made.speed.decode)):
        value = found[f"{name}_tokens_per_s"]
        inside = "inside" if value in band else "OUTSIDE"
        print(f"  {name:8} expected {band.low:.1f} to {band.high:.1f}, measured {value:.1f}: {inside}")
    print(f"  {'peak MB':8} expected {peak:.0f}, measured {found['peak_rss_mb']:.0f}: {off:+.1%}")
    return found["decode_tokens_per_s"] in made.speed.decode and abs(off) <= 0.15


def main() -> int:
    """0 where every estimate holds, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path)
    held = []
    for artifact in parser.parse_args().artifacts:
        plan = read_plan(catalog.find(artifact.name))
        for form in sorted(plan.formats):
            local = catalog.find_device("local")  # anew each time: other work comes and goes
            made = next(f for f in fit(plan, local).formats if f.form == form)
            held.append(compare(artifact, made))
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
