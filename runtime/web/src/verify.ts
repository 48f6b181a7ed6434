import {
  CHATS,
  DATE_STRING,
  FIDELITY,
  GOLDEN,
  parseChats,
  parseGolden,
  type ChatCase,
  type Golden,
  type GoldenCase,
  type Position,
} from "./acceptance";
import type { Engine, Scores, Sequence } from "./engine";
import { asAppError } from "./errors";
import { sha256OfFile } from "./hash";
import { MANIFEST } from "./manifest";
import { notLoaded, type Model } from "./model";
import type { Agreement, Count, Tie, Verdict } from "./protocol";

/** Largest error of a golden top logit in deviations, as edgeship_runtime.tolerances.LOGIT_ERROR_STD. */
const LOGIT_ERROR_STD = 0.5;

export type Progress = (what: string, share: number) => void;

/** The checks of edgeship_runtime.verify on the installed files and the loaded engine: the same verdict. */
export async function verify(
  model: Model,
  artifact: string,
  progress: Progress,
  stopped: () => boolean,
): Promise<Verdict> {
  const start = performance.now();
  const failures: string[] = [];
  const verdict: Verdict = {
    artifact,
    name: model.manifest.name,
    verdict: "fail",
    intact: null,
    size: null,
    templates: null,
    tokens: null,
    agreement: null,
    skipped: [],
    failures,
    seconds: 0,
  };
  verdict.intact = await checkFiles(model, failures, progress);
  verdict.size = await checkSize(model, failures);
  if (!failures.length) {
    const cases = parseChats(await model.store.text(model.site.digest, CHATS));
    progress("templates", 0);
    verdict.templates = checkTemplates(model, cases, failures);
    progress("tokens", 0);
    verdict.tokens = await checkTokens(model, cases, failures);
    verdict.agreement = await checkAgreement(model, failures, progress, stopped);
  }
  verdict.verdict = failures.length ? "fail" : "pass";
  verdict.seconds = round((performance.now() - start) / 1000, 3);
  return verdict;
}

async function checkFiles(model: Model, failures: string[], progress: Progress): Promise<boolean> {
  const sealed = Object.entries(model.manifest.files);
  // The site's own graphs are in no manifest; site.json has their hashes.
  const graphs = Object.values(model.site.graphs);
  const own = model.site.files.filter((file) => graphs.includes(file.name));
  const entries = [...sealed, ...own.map((file) => [file.name, file] as const)].sort(([a], [b]) => (a < b ? -1 : 1));
  const total = entries.reduce((sum, [, entry]) => sum + entry.size, 0);
  let done = 0;
  const before = failures.length;
  for (const [name, entry] of entries) {
    const file = await model.store.find(model.site.digest, name);
    if (!file) failures.push(`files: ${name}: the file is named in the manifest and does not exist`);
    else if (file.size !== entry.size) {
      failures.push(
        `files: ${name}: expected ${entry.size} bytes, found ${file.size}: the file was cut short or replaced`,
      );
    } else {
      const found = await sha256OfFile(file, (bytes) => progress("files", (done += bytes) / Math.max(total, 1)));
      if (found !== entry.sha256)
        failures.push(`files: ${name}: the bytes are not those that were sealed (sha256 differs)`);
    }
  }
  return failures.length === before;
}

async function checkSize(model: Model, failures: string[]): Promise<NonNullable<Verdict["size"]>> {
  const files = Object.values(model.manifest.files).reduce((sum, entry) => sum + entry.size, 0);
  const bytes = files + (await model.store.file(model.site.digest, MANIFEST)).size;
  const size = { mb: round(bytes / 1e6, 3), budget_mb: model.manifest.sizeBudgetMb };
  if (size.budget_mb !== null && size.mb > size.budget_mb) {
    failures.push(`size: ${size.mb} MB is more than the budget of ${size.budget_mb} MB`);
  }
  return size;
}

function checkTemplates(model: Model, cases: readonly ChatCase[], failures: string[]): Count {
  if (!model.template) {
    if (cases.length) failures.push(`templates: ${CHATS} has ${cases.length} cases and the artifact no chat template`);
    return { cases: cases.length, equal: 0 };
  }
  let equal = 0;
  for (const each of cases) {
    const problem = renderProblem(model, each);
    if (problem) failures.push(`templates: ${each.name}: ${problem}`);
    else equal++;
  }
  return { cases: cases.length, equal };
}

function renderProblem(model: Model, each: ChatCase): string {
  let text: string;
  try {
    text = model.template!.render(each.messages as never, {
      tools: each.tools,
      enableThinking: each.enableThinking,
      addGenerationPrompt: each.addGenerationPrompt,
      variables: { date_string: DATE_STRING },
    });
  } catch (cause) {
    return each.rendered === null ? "" : asAppError(cause).message;
  }
  if (text === each.rendered) return "";
  if (each.rendered === null) return "the text differs: it was refused when the artifact was sealed";
  let at = 0;
  while (at < text.length && text[at] === each.rendered[at]) at++;
  const [expected, found] = [each.rendered, text].map((whole) => JSON.stringify(whole.slice(at, at + 20)));
  return `the text differs at character ${at}: expected ${expected}, found ${found}`;
}

async function checkTokens(model: Model, cases: readonly ChatCase[], failures: string[]): Promise<Count> {
  const texts = cases.filter((each) => each.rendered !== null);
  // Other programs read the vocabulary inside a GGUF file and not tokenizer.json.
  const inside = model.engine?.sequence.encode?.bind(model.engine.sequence);
  let equal = 0;
  for (const each of texts) {
    const ids = inside && (await inside(each.rendered!));
    if (!same(model.tokens.encode(each.rendered!), each.tokenIds)) {
      failures.push(`tokens: ${each.name}: the token ids differ`);
    } else if (ids && !same(ids, each.tokenIds) && !same(ids, each.ggufTokenIds)) {
      failures.push(`tokens: ${each.name}: the token ids differ (by the vocabulary in ${model.manifest.modelFile})`);
    } else equal++;
  }
  return { cases: texts.length, equal };
}

function same(ids: readonly number[], expected: readonly number[]): boolean {
  return ids.length === expected.length && ids.every((id, place) => id === expected[place]);
}

async function checkAgreement(
  model: Model,
  failures: string[],
  progress: Progress,
  stopped: () => boolean,
): Promise<Agreement | null> {
  const { engine, manifest, store, site } = model;
  if (!engine) throw notLoaded();
  const golden = parseGolden(await store.text(site.digest, GOLDEN));
  const floats = FIDELITY in manifest.files ? parseGolden(await store.text(site.digest, FIDELITY), FIDELITY) : null;
  const longest = Math.max(...golden.cases.map((each) => each.tokens.length));
  if (longest > engine.sequence.context) {
    failures.push(`agreement: ${GOLDEN} needs a context of ${longest} tokens, found ${engine.sequence.context}`);
    return null;
  }
  const comparison = new Comparison(golden, floats);
  await engine.forget();
  const total = golden.cases.reduce((sum, each) => sum + each.positions.length, 0);
  let done = 0;
  for (const each of golden.cases) {
    for (const position of each.positions) {
      if (stopped()) {
        failures.push("agreement: the check was stopped");
        return null;
      }
      try {
        await comparison.run(engine, each, position);
      } catch (cause) {
        failures.push(`agreement: ${each.name}: ${asAppError(cause).message}`);
        return null;
      }
      progress("agreement", ++done / total);
    }
  }
  const found = comparison.agreement(engine.sequence);
  failures.push(...comparison.failures.map((each) => `agreement: ${each}`));
  return found;
}

/** Golden and engine's scores position by position, teacher-forced, as edgeship_runtime.verify compares them. */
export class Comparison {
  readonly failures: string[] = [];
  private positions = 0;
  private equal = 0;
  private maxError = 0;
  private maxErrorStd = 0;
  private readonly ties: Tie[] = [];
  private readonly kl: number[] = [];
  private floatEqual = 0;

  constructor(
    private readonly golden: Golden,
    private readonly floats: Golden | null,
  ) {}

  async run(engine: Engine, each: GoldenCase, position: Position): Promise<void> {
    const float = this.floats?.cases
      .find((other) => other.name === each.name)
      ?.positions.find((other) => other.index === position.index);
    const scores = await engine.scores(each.tokens.slice(0, position.index + 1));
    this.compare(each.name, position, scores, float ?? null);
  }

  compare(name: string, position: Position, scores: Scores, float: Position | null): void {
    this.positions++;
    const expected = position.topIds[0]!;
    if (!Number.isFinite(scores.score(scores.best) ?? NaN)) {
      this.failures.push(`${name}, position ${position.index}: the engine gave logits that are no numbers`);
      this.ties.push({ case: name, index: position.index, expected, chosen: -1, gap_std: null, tolerated: false });
      return;
    }
    this.measure(name, position, scores);
    if (float) {
      this.kl.push(divergence(float, scores));
      if (scores.best === float.topIds[0]) this.floatEqual++;
    }
    if (scores.best === expected) {
      this.equal++;
      return;
    }
    const gap = gapOf(position, scores.best);
    const tolerated = gap !== null && gap < this.golden.tieTolerance;
    this.ties.push({ case: name, index: position.index, expected, chosen: scores.best, gap_std: gap, tolerated });
    if (!tolerated) {
      const far = gap === null ? "not among the golden best" : `${gap.toFixed(3)} deviations behind`;
      const said = `expected token ${expected}, found ${scores.best}, ${far}`;
      this.failures.push(`${name}, position ${position.index}: ${said} (tolerance ${this.golden.tieTolerance})`);
    }
  }

  private measure(name: string, position: Position, scores: Scores): void {
    const errors: number[] = [];
    position.topIds.forEach((id, place) => {
      const score = scores.score(id);
      if (score !== null) errors.push(score - position.topLogits[place]!);
    });
    if (errors.length < position.topIds.length) {
      const missing = position.topIds.length - errors.length;
      this.failures.push(
        `${name}, position ${position.index}: ${missing} of the golden best are not among the engine's best`,
      );
    }
    // Log probabilities are logits less a constant, which is taken to be what these ids say on average.
    const shift =
      scores.kind === "logits" ? 0 : errors.reduce((sum, error) => sum + error, 0) / Math.max(errors.length, 1);
    const error = Math.max(0, ...errors.map((each) => Math.abs(each - shift)));
    const inStd = position.std ? error / position.std : 0;
    this.maxError = Math.max(this.maxError, error);
    this.maxErrorStd = Math.max(this.maxErrorStd, inStd);
    if (inStd > LOGIT_ERROR_STD) {
      this.failures.push(
        `${name}, position ${position.index}: a logit is off by ${inStd.toFixed(2)} deviations, more than ${LOGIT_ERROR_STD}`,
      );
    }
  }

  agreement(engine: Pick<Sequence, "name" | "kernels">): Agreement {
    const near = this.ties.filter((tie) => tie.tolerated).length;
    return {
      engine: engine.name,
      positions: this.positions,
      equal: this.equal,
      near_ties: near,
      wrong: this.ties.length - near,
      max_logit_error: round(this.maxError, 5),
      max_logit_error_std: round(this.maxErrorStd, 5),
      kernels: engine.kernels,
      ties: this.ties,
      cosine: null,
      float_model: this.floatModel(),
    };
  }

  private floatModel(): Agreement["float_model"] {
    if (!this.floats || !this.kl.length) return null;
    const mean = round(this.kl.reduce((sum, each) => sum + each, 0) / this.kl.length, 6);
    const budget = this.floats.klBudget;
    if (mean > budget) this.failures.push(`${mean} nats from the float model, more than ${budget}`);
    return { positions: this.kl.length, equal: this.floatEqual, kl_mean: mean, kl_budget: budget };
  }
}

/** How far the chosen token's golden logit is behind the best, in deviations; null when it is not known. */
function gapOf(position: Position, chosen: number): number | null {
  const place = position.topIds.indexOf(chosen);
  if (place < 0) return null;
  const behind = position.topLogits[0]! - position.topLogits[place]!;
  return position.std ? behind / position.std : 0;
}

/** KL divergence in nats from the tokens of a float position and all others as one, as edgeship_runtime.acceptance. */
export function divergence(position: Position, scores: Scores): number {
  const p = position.topLogits.map(Math.exp);
  const q = position.topIds.map((id) => {
    const score = scores.score(id);
    return score === null ? 0 : Math.exp(score - scores.logSum);
  });
  const least = 1e-30;
  const rest = (values: number[]) => Math.max(1 - values.reduce((sum, value) => sum + value, 0), least);
  const [ps, qs] = [
    [...p, rest(p)],
    [...q, rest(q)],
  ];
  return ps.reduce(
    (sum, each, place) => sum + Math.max(each, least) * Math.log(Math.max(each, least) / Math.max(qs[place]!, least)),
    0,
  );
}

export function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
