// The service worker: the app and the engine's files come from caches, so that the page opens without a network.
// Weights lie in the origin-private file system and never pass here.

interface ExtendableEvent extends Event {
  waitUntil(promise: Promise<unknown>): void;
}
interface FetchEvent extends ExtendableEvent {
  readonly request: Request;
  respondWith(answer: Promise<Response>): void;
}
interface Scope {
  readonly registration: { readonly scope: string };
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: "install" | "activate", listener: (event: ExtendableEvent) => void): void;
  addEventListener(type: "fetch", listener: (event: FetchEvent) => void): void;
}

const scope = self as unknown as Scope;
// scripts/finish.mjs puts the app's files and their digest in.
const FILES = "__APP_FILES__".split(" ");
const CACHE = "app-__APP_DIGEST__";
const SITE = "site.json";

scope.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(CACHE);
      await cache.addAll(
        FILES.map((file) => new Request(new URL(file, scope.registration.scope), { cache: "reload" })),
      );
      await scope.skipWaiting();
    })(),
  );
});

scope.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) if (name.startsWith("app-") && name !== CACHE) await caches.delete(name);
      await scope.clients.claim();
    })(),
  );
});

scope.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const path = url.href.startsWith(scope.registration.scope)
    ? url.pathname.slice(new URL(scope.registration.scope).pathname.length)
    : null;
  if (request.method !== "GET" || path === null || path.startsWith("model/")) return;
  if (path === SITE) event.respondWith(newest(request));
  else if (path.startsWith("engines/")) event.respondWith(kept(url.origin + url.pathname, request));
  else if (request.mode === "navigate" || path === "" || path === "index.html")
    event.respondWith(kept(scope.registration.scope, request));
  else event.respondWith(kept(url.origin + url.pathname, request));
});

/** From a cache, else from the network. */
async function kept(url: string, request: Request): Promise<Response> {
  return (await caches.match(url)) ?? fetch(request);
}

/** From the network, else what it said last. */
async function newest(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(SITE_URL, answer.clone());
    return answer;
  } catch (cause) {
    const last = await cache.match(SITE_URL);
    if (last) return last;
    throw cause;
  }
}

const SITE_URL = new URL(SITE, scope.registration.scope).href;
