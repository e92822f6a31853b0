// Answers queries under MicroPython: node vectors.mjs SCRIPTS WASM SOURCES [--whole], a JSON list on standard input.
// One line for each query: the digests of the plan, or of what fits, as JSON and of the whole page; with --whole both
// texts, as JSON. SCRIPTS: the files that start the engine, with commas between them.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const [scripts, wasm, sources, whole] = process.argv.slice(2);
const script = scripts.split(",").map((path) => readFileSync(path, "utf8")).join("\n");
const startPython = new Function(script + "; return startPython;")();
const engine = await WebAssembly.compile(readFileSync(wasm));
const python = await startPython(engine, JSON.parse(readFileSync(sources, "utf8")), 1024 * 1024); // as ask.js does

const [plan, page] = ["plan", "page"].map((name) => python("gradaccum.web.site.boot", name));
let fit; // loaded once it is asked for, as the page does: each name that the engine knows slows it
const asksWhatFits = (query) => query.split("&").some((pair) => /^(model|gpu)=/.test(pair));

const digest = (text) => createHash("sha256").update(text).digest("hex").slice(0, 16);
for (const query of JSON.parse(readFileSync(0, "utf8"))) {
  let texts;
  try {
    const answer = asksWhatFits(query) ? (fit ??= python("gradaccum.web.site.boot_fit", "fit")) : plan;
    texts = [answer(query), page(query)];
  } catch (error) {
    texts = [String(error), ""];
  }
  console.log(whole ? JSON.stringify(texts) : texts.map(digest).join(" "));
}
