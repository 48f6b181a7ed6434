import { AppError, noRoom } from "./errors";
import { sha256 } from "./hash";
import type { EngineFile, Part, Site, SiteFile } from "./site";
import type { Store, SyncFile } from "./store";

export const ENGINE_CACHE = "engines";
const TRIES = 3;
const PAUSE_MS = 500;
const SPARE = 4 << 20; // what the browser's own bookkeeping takes
const RESUME = "What has arrived is kept: press Resume when the connection is back.";

export interface InstallProgress {
  readonly done: number;
  readonly total: number;
  readonly what: string;
}

export interface InstallJob {
  readonly site: Site;
  /** The text of site.json, kept beside the files. */
  readonly json: string;
  readonly base: string;
  readonly engineFiles: readonly EngineFile[];
}

/**
 * Bring every file of the site into the store, part by part, each checked by its sha256 before it is written.
 *
 * Parts that are there already are hashed and kept, so a download that was cut, or a tab that was killed while it
 * wrote, goes on where it ended. AppError says what stopped it; the state is resumable then.
 */
export async function install(
  job: InstallJob,
  store: Store,
  report: (progress: InstallProgress) => void,
  stopped: () => boolean,
): Promise<void> {
  const { site, base } = job;
  const engineBytes = job.engineFiles.reduce((sum, file) => sum + file.size, 0);
  const total = site.bytes + engineBytes;
  await checkRoom(total - (await store.storedBytes(site)));
  let done = 0;
  const add = (bytes: number, what: string) => report({ done: (done += bytes), total, what });
  for (const file of job.engineFiles) {
    if (stopped()) throw paused();
    await keepEngine(file, base);
    add(file.size, file.url);
  }
  const old = await store.installed();
  for (const file of site.files) await keepFile(file, job, store, add, stopped, await oldFile(file, old, store));
  await store.finish(site, job.json);
}

async function keepFile(
  file: SiteFile,
  { site, base }: InstallJob,
  store: Store,
  add: (bytes: number, what: string) => void,
  stopped: () => boolean,
  old: Blob | null,
): Promise<void> {
  const out = await store.write(site.digest, file.name);
  try {
    if (out.getSize() > file.size) out.truncate(file.size);
    for (const [place, part] of file.parts.entries()) {
      if (stopped()) throw paused();
      if (!(await holds(out, part))) {
        const bytes =
          (await partOf(old, part)) ??
          (await fetchPart(part, file, base, `part ${place + 1} of ${file.parts.length} of ${file.name}`));
        writePart(out, bytes, part);
      }
      add(part.size, file.name);
    }
  } finally {
    out.close();
  }
}

/** The same file in the model that an update replaces: it is not downloaded again. */
async function oldFile(file: SiteFile, old: Site | null, store: Store): Promise<Blob | null> {
  const same = old?.files.find((each) => each.sha256 === file.sha256 && each.size === file.size);
  return old && same ? store.find(old.digest, same.name) : null;
}

async function partOf(file: Blob | null, part: Part): Promise<Uint8Array | null> {
  if (!file || file.size < part.offset + part.size) return null;
  const bytes = new Uint8Array(await file.slice(part.offset, part.offset + part.size).arrayBuffer());
  return (await sha256(bytes)) === part.sha256 ? bytes : null;
}

/** Whether the file has this part's bytes already. */
async function holds(file: SyncFile, part: Part): Promise<boolean> {
  if (file.getSize() < part.offset + part.size) return false;
  const bytes = new Uint8Array(part.size);
  file.read(bytes, { at: part.offset });
  return (await sha256(bytes)) === part.sha256;
}

function writePart(file: SyncFile, bytes: Uint8Array, part: Part): void {
  if (file.write(bytes, { at: part.offset }) !== bytes.length) throw noRoom();
  file.flush();
}

async function fetchPart(part: Part, file: SiteFile, base: string, what: string): Promise<Uint8Array> {
  let last = "";
  for (let turn = 0; turn < TRIES; turn++) {
    if (turn) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS << turn));
    const bytes = await fetchOnce(part, file, base).catch((cause: Error) => {
      if (cause instanceof AppError) throw cause;
      last = cause.message;
      return null;
    });
    if (!bytes) continue;
    if (bytes.length !== part.size) {
      last = `${bytes.length} of ${part.size} bytes came`;
      continue;
    }
    if ((await sha256(bytes)) === part.sha256) return bytes;
    last = "wrong hash";
  }
  if (last === "wrong hash") {
    throw new AppError(
      `${what} is not what site.json says: its sha256 differs. It was not stored.`,
      "The site may be changing just now: reload the page and press Resume. If that does not help, the site is damaged.",
    );
  }
  throw new AppError(`The download was cut at ${what} (${last}).`, RESUME);
}

async function fetchOnce(part: Part, file: SiteFile, base: string): Promise<Uint8Array> {
  const whole = part.url !== null || file.parts.length === 1;
  const range = `bytes=${part.offset}-${part.offset + part.size - 1}`;
  // Bytes are hashed here; the HTTP cache would hold the model a second time.
  const init: RequestInit = { cache: "no-store", ...(whole ? {} : { headers: { Range: range } }) };
  const answer = await fetch(new URL(part.url ?? file.url, base), init);
  if (answer.status === 404)
    throw new AppError(`${file.url} is not on the site.`, "Reload the page: the site has changed.");
  if (!answer.ok) throw new Error(`the site answered ${answer.status}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const ranged = !whole && answer.status !== 206; // a host that knows no ranges sends all of it
  return ranged ? bytes.subarray(part.offset, part.offset + part.size) : bytes;
}

/** Put an engine's file into the cache that the service worker answers from. */
async function keepEngine(file: EngineFile, base: string): Promise<void> {
  const cache = await caches.open(ENGINE_CACHE);
  const url = new URL(file.url, base);
  const kept = await cache.match(url);
  if (kept && (await sha256(new Uint8Array(await kept.arrayBuffer()))) === file.sha256) return;
  const answer = await fetch(url, { cache: "no-cache" }).catch((cause: Error) => {
    throw new AppError(`The download was cut at ${file.url} (${cause.message}).`, RESUME);
  });
  if (!answer.ok) throw new AppError(`The site answered ${answer.status} for ${file.url}.`, RESUME);
  const copy = answer.clone();
  const bytes = await answer.arrayBuffer().catch((cause: Error) => {
    throw new AppError(`The download was cut at ${file.url} (${cause.message}).`, RESUME);
  });
  if ((await sha256(new Uint8Array(bytes))) !== file.sha256) {
    throw new AppError(
      `${file.url} is not what site.json says: its sha256 differs.`,
      "Reload the page and press Resume.",
    );
  }
  await cache.put(url, copy);
}

async function checkRoom(needed: number): Promise<void> {
  const { quota = 0, usage = 0 } = await navigator.storage.estimate();
  if (quota - usage >= needed + SPARE || needed <= 0) return;
  const mb = (bytes: number) => `${Math.ceil(Math.max(bytes, 0) / 1e6)} MB`;
  throw new AppError(
    `The model needs ${mb(needed + SPARE)} and the browser gives this page ${mb(quota - usage)}.`,
    "Free space on the device, leave private browsing, or choose a smaller model. Nothing was downloaded.",
  );
}

function paused(): AppError {
  return new AppError("The download is paused.", "What has arrived is kept: press Resume to go on.");
}
