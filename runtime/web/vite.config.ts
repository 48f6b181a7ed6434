import { readFileSync } from "node:fs";

import { defineConfig } from "vite";

const wllama = JSON.parse(
  readFileSync(new URL("node_modules/@wllama/wllama/package.json", import.meta.url), "utf8"),
) as { version: string };

export default defineConfig({
  // A site may lie in a folder of a host.
  base: "./",
  define: { __WLLAMA__: JSON.stringify(wllama.version) }, // the package does not say its own
  worker: { format: "es" },
  build: {
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // the content security policy lets nothing inline through
    rolldownOptions: {
      input: { index: "index.html", sw: "src/sw.ts" },
      output: { entryFileNames: (chunk) => (chunk.name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
  test: { include: ["test/**/*.test.ts"], testTimeout: 60_000 }, // a whole vocabulary is read on a busy machine
} as Parameters<typeof defineConfig>[0]);
