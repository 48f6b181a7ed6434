import type { Answer, FinishReason, Stats } from "./engine";
import type { Backend, Site } from "./site";
import type { Message } from "./template";

/** How to load the installed model. */
export interface LoadOptions {
  readonly backend: Backend;
  readonly threads: number;
  readonly context: number | null;
  /** On WebGPU, compute with 16-bit floats and keep the KV cache in them. */
  readonly half: boolean;
}

export interface Loaded {
  readonly engine: string;
  readonly kernels: string;
  readonly backend: Backend;
  readonly threads: number;
  readonly context: number;
  readonly contextLimit: number;
  readonly temperature: number;
  readonly seconds: number;
}

export interface StoreState {
  readonly installed: Site | null;
  /** Bytes here of the site that the host has now. */
  readonly storedBytes: number;
}

export interface ChatAnswer {
  readonly text: string;
  readonly finish: FinishReason;
  readonly stats: Stats;
}

export interface BenchOptions {
  readonly prompt_tokens: number;
  readonly decode_tokens: number;
  readonly repeats: number;
}

/** What the page asks the worker for: arguments and result of each call. */
export interface Calls {
  state: { args: [site: Site | null]; result: StoreState };
  install: { args: [siteJson: string, backends: readonly Backend[]]; result: null };
  remove: { args: []; result: null };
  load: { args: [options: LoadOptions]; result: Loaded };
  chat: { args: [messages: readonly Message[], temperature: number | null]; result: ChatAnswer };
  encode: { args: [text: string]; result: number[] };
  decode: { args: [ids: readonly number[]]; result: string };
  render: {
    args: [
      messages: readonly Message[],
      tools: readonly unknown[] | null,
      thinking: boolean | null,
      prompt: boolean,
      extra: Record<string, unknown>,
    ];
    result: string;
  };
  logits: { args: [ids: readonly number[]]; result: Float32Array };
  generate: { args: [ids: readonly number[], count: number]; result: Answer };
  verify: { args: []; result: Verdict };
  bench: { args: [options: BenchOptions, about: BenchAbout]; result: BenchReport };
}

export type Call = keyof Calls;

/** From the page to the worker. */
export type Request =
  | { readonly id: number; readonly call: Call; readonly args: readonly unknown[]; readonly base: string }
  | { readonly stop: true };

/** From the worker to the page; `progress` may come many times before the end of a call. */
export type Reply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: { readonly message: string; readonly hint: string } }
  | { readonly id: number; readonly progress: unknown };

/** As edgeship_runtime.verify.Verdict.to_json. */
export interface Verdict {
  artifact: string;
  name: string;
  verdict: "pass" | "fail";
  intact: boolean | null;
  size: { mb: number; budget_mb: number | null } | null;
  templates: Count | null;
  tokens: Count | null;
  agreement: Agreement | null;
  skipped: string[];
  failures: string[];
  seconds: number;
}

export interface Count {
  cases: number;
  equal: number;
}

export interface Tie {
  case: string;
  index: number;
  expected: number;
  chosen: number;
  gap_std: number | null;
  tolerated: boolean;
}

export interface Agreement {
  engine: string;
  positions: number;
  equal: number;
  near_ties: number;
  wrong: number;
  max_logit_error: number;
  max_logit_error_std: number;
  kernels: string;
  ties: Tie[];
  cosine: null;
  float_model: { positions: number; equal: number; kl_mean: number; kl_budget: number } | null;
}

/** What the page knows of the machine and the worker does not. */
export interface BenchAbout {
  readonly cpu: string;
  readonly system: string;
  readonly edgeship: string;
}

/** As edgeship_runtime.bench.BenchReport.to_json. */
export interface BenchReport {
  artifact: string;
  engine: string;
  kernels: string;
  threads: number;
  context: number;
  prompt_tokens: number;
  decode_tokens: number;
  repeats: number;
  load_s: number;
  ttft_s: number;
  prefill_tokens_per_s: number;
  decode_tokens_per_s: number;
  peak_rss_mb: number | null;
  cpu: string;
  load_average: null;
  system: string;
  python: string;
  edgeship_runtime: string;
}
