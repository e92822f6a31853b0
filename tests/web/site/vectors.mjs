// Answers queries under MicroPython: node vectors.mjs HOST WASM SOURCES EVERY [--whole], a JSON list on standard input.
// One line for each query: the digests of the plan, or of what fits, as JSON and, of each EVERY-th, of the whole page; with --whole
// both texts, as JSON.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const [host, wasm, sources, every, whole] = process.argv.slice(2);
const startPython = new Function(readFileSync(host, "utf8") + "; return startPython;")();
const engine = await WebAssembly.compile(readFileSync(wasm));
const python = await startPython(engine, JSON.parse(readFileSync(sources, "utf8")), 16 * 1024 * 1024);
const [plan, page] = ["plan", "page"].map((name) => python("gradaccum.web.site.boot", name));
const fit = python("gradaccum.web.site.boot_fit", "fit");
const asksWhatFits = (query) => query.split("&").some((pair) => /^(model|gpu)=/.test(pair));

const digest = (text) => createHash("sha256").update(text).digest("hex").slice(0, 16);
for (const [index, query] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  let texts;
  try {
    texts = [(asksWhatFits(query) ? fit : plan)(query), index % every ? "" : page(query)];
  } catch (error) {
    texts = [String(error), ""];
  }
  console.log(whole ? JSON.stringify(texts) : texts.map(digest).join(" "));
}
