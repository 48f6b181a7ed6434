import type { App } from "./app";
import { memoryMb } from "./browser";
import { at, bar, onPress, show } from "./dom";
import { AppError } from "./errors";
import type { BenchOptions, BenchReport, Verdict } from "./protocol";

const BENCH: BenchOptions = { prompt_tokens: 64, decode_tokens: 32, repeats: 3 };

interface Step {
  readonly what: string;
  readonly share: number;
}

/** Verify: the model is loaded first, as its answers are part of it. */
export async function runVerify(app: App, progress: (step: Step) => void = () => undefined): Promise<Verdict> {
  await app.load(app.client.loaded ?? {});
  app.verdict = await app.client.call("verify", [], progress);
  app.changed();
  return app.verdict;
}

export async function runBench(
  app: App,
  options: Partial<BenchOptions> = {},
  progress: (step: Step) => void = () => undefined,
): Promise<BenchReport> {
  await app.load(app.client.loaded ?? {});
  const { userAgent, platform } = app.browser;
  const about = { cpu: userAgent, system: platform, edgeship: app.model.edgeship };
  const report = await app.client.call("bench", [{ ...BENCH, ...options }, about], progress);
  app.bench = report;
  app.changed();
  progress({ what: "memory, which browsers tell after up to 20 s", share: 1 });
  app.bench = { ...report, peak_rss_mb: await memoryMb() };
  app.changed();
  return app.bench;
}

/** What is posted to the host: verdict, measurement, and the browser they came from. */
export function results(app: App): Record<string, unknown> {
  const { browser, model, client } = app;
  return {
    schema: 1,
    device: "phone-web",
    name: model.name,
    engine: model.engine,
    digest: model.digest,
    browser: {
      user_agent: browser.userAgent,
      platform: browser.platform,
      cores: browser.cores,
      memory_gb: browser.memoryGb,
      isolated: browser.isolated,
      backend: client.loaded?.backend ?? app.loadOptions.backend,
      threads: client.loaded?.threads ?? app.loadOptions.threads,
      adapter: browser.adapter,
    },
    verify: app.verdict,
    bench: app.bench,
  };
}

/** Post the results; AppError with the host's words where it does not take them. */
export async function sendResults(app: App): Promise<void> {
  const place = app.site?.results;
  if (!place) throw new AppError("This host takes no results.", "Copy the JSON instead.");
  const body = JSON.stringify(results(app));
  const answer = await fetch(new URL(place, app.base), {
    method: "POST",
    body,
    headers: { "Content-Type": "application/json" },
  }).catch(() => null);
  if (!answer)
    throw new AppError("The host cannot be reached.", "Copy the JSON, or send it when the connection is back.");
  if (answer.ok) return;
  const said = (await answer.json().catch(() => null)) as { error?: { message?: string } } | null;
  throw new AppError(said?.error?.message ?? `The host answered ${answer.status}.`, "Copy the JSON instead.");
}

export function checkView(app: App): void {
  const status = at("check-status");
  const run = async (act: (progress: (step: Step) => void) => Promise<unknown>) => {
    busy(true);
    status.textContent = app.client.loaded ? "" : "Loading the model…";
    try {
      await act(({ what, share }) => {
        bar("check-progress", share);
        status.textContent = `${what}…`;
      });
      status.textContent = "";
    } catch (cause) {
      status.textContent = "";
      throw cause;
    } finally {
      busy(false);
    }
  };
  const draw = () => {
    const { verdict, bench } = app;
    const any = verdict !== null || bench !== null;
    show("verdict", any);
    show("verdict-actions", any);
    show("send-result", any && Boolean(app.site?.results));
    at("verdict").textContent = any ? JSON.stringify({ verify: verdict, bench }, null, 1) : "";
    at("summary").replaceChildren(...rows(verdict, bench));
  };
  onPress("verify-button", () => run((progress) => runVerify(app, progress)));
  onPress("bench-button", () => run((progress) => runBench(app, {}, progress)));
  onPress("check-stop", () => app.client.stop());
  onPress("copy", async () => {
    await navigator.clipboard.writeText(JSON.stringify(results(app), null, 1)).catch(() => {
      throw new AppError("The browser does not let the page copy.", "Select the text below and copy it.");
    });
    status.textContent = "Copied.";
  });
  onPress("send-result", async () => {
    await sendResults(app);
    status.textContent = "The host has it.";
  });
  app.onChange(draw);
  draw();
}

function busy(value: boolean): void {
  at<HTMLButtonElement>("verify-button").disabled = value;
  at<HTMLButtonElement>("bench-button").disabled = value;
  show("check-stop", value);
  bar("check-progress", value ? 0 : null);
}

function rows(verdict: Verdict | null, bench: BenchReport | null): HTMLElement[] {
  const lines: [string, string][] = [];
  if (verdict) {
    const { agreement: it, templates, tokens } = verdict;
    lines.push(["Verdict", verdict.verdict === "pass" ? "pass" : `fail: ${verdict.failures[0] ?? ""}`]);
    lines.push(["Files", verdict.intact ? "intact" : "NOT intact"]);
    if (templates) lines.push(["Templates", `${templates.equal} of ${templates.cases} equal`]);
    if (tokens) lines.push(["Token ids", `${tokens.equal} of ${tokens.cases} equal`]);
    if (it) {
      lines.push([
        "Answers",
        `${it.equal} of ${it.positions} tokens equal, ${it.near_ties} near ties, ${it.wrong} wrong`,
      ]);
      lines.push(["Logits", `off by ${it.max_logit_error.toFixed(4)} at most`]);
      for (const tie of it.ties.filter((each) => each.tolerated)) {
        lines.push([
          "Near tie",
          `${tie.case}, position ${tie.index}: the best two are ${tie.gap_std?.toFixed(3)} deviations apart`,
        ]);
      }
    }
  }
  if (bench) {
    lines.push([
      "Engine",
      `${bench.engine}, ${bench.kernels}, ${bench.threads} ${bench.threads === 1 ? "thread" : "threads"}`,
    ]);
    lines.push(["First token", `${bench.ttft_s} s after ${bench.prompt_tokens} tokens`]);
    lines.push(["Prefill", `${bench.prefill_tokens_per_s} tokens/s`]);
    lines.push(["Decode", `${bench.decode_tokens_per_s} tokens/s`]);
    if (bench.peak_rss_mb !== null) lines.push(["Memory", `${bench.peak_rss_mb} MB`]);
  }
  return lines.flatMap(([name, text]) => {
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    value.textContent = text;
    return [term, value];
  });
}
