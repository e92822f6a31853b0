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

// Both answers in one call: after each the engine tidies up its memory.
function both(module, name) {
  const lines = [
    "from gradaccum.web.site.boot import page", `from ${module} import ${name}`,
    `def both(query): return ${name}(query) + "\\n" + page(query)`,
  ];
  python.add({ [`both_${name}.py`]: lines.join("\n") });
  return python(`both_${name}`, "both");
}
const plan = both("gradaccum.web.site.boot", "plan");
let fit; // loaded once it is asked for, as the page does: each name that the engine knows slows it
const asksWhatFits = (query) => query.split("&").some((pair) => /^(model|gpu)=/.test(pair));

const digest = (text) => createHash("sha256").update(text).digest("hex").slice(0, 16);
for (const query of JSON.parse(readFileSync(0, "utf8"))) {
  let texts;
  try {
    const answer = asksWhatFits(query) ? (fit ??= both("gradaccum.web.site.boot_fit", "fit")) : plan;
    const found = answer(query), end = found.indexOf("\n"); // JSON has none
    texts = [found.slice(0, end), found.slice(end + 1)];
  } catch (error) {
    texts = [String(error), ""];
  }
  console.log(whole ? JSON.stringify(texts) : texts.map(digest).join(" "));
}
