// Where answers come from when there is no server: the same Python, in this page, under MicroPython.
// The build joins page.js, jumps.js, host.js and this file into one classic script: a page that is opened as a file may
// load no module.

const HEAP = 1024 * 1024; // bytes at first; what is small stays in the processor's cache, and it grows by itself
const PATIENCE = 500; // milliseconds after the page's load that its first paint is waited for
const TYPING = 100; // milliseconds without a further edit after which it is worked out what fits
const WAIT = 1500; // milliseconds after which a person is told what the page waits for
const FROM_FILE = location.protocol === "file:";
const files = new URL(".", document.currentScript.src);

const paint = firstPaint();
const python = paint.then(load).catch((error) => {
  console.error("gradaccum: the calculator did not start:", error);
  const own = location.search ? "Below is the default plan, not the one that this link asks for." : "Below is the default plan.";
  const words = `The calculator did not start: ${reason(error)}. ${own}`;
  tellThem(words);
  form.inert = true;
  document.getElementById("json")?.remove();
  results.classList.remove("waiting");
  throw new Error(words);
});
python.catch(() => {}); // said above

function reason(error) {
  if (typeof WebAssembly !== "object" || error instanceof WebAssembly.CompileError) {
    return "this browser, or a rule of this site, blocks WebAssembly";
  }
  if (error.name === "PythonError") return `this build of the page is broken (${error.message.trim().split("\n").pop()})`;
  if (!FROM_FILE) return `a file of the page did not load (${error.message})`;
  return "this browser does not let a page that was opened as a file do that; serve its folder instead: run \u201cpython3 -m http.server\u201d in it and open http://localhost:8000/";
}

// The engine waits for the first paint; a page that is not looked at paints nothing, and waits for its own load alone.
function firstPaint() {
  return new Promise((done) => {
    new PerformanceObserver(done).observe({ type: "paint", buffered: true });
    addEventListener("load", () => setTimeout(done, PATIENCE), { once: true });
  });
}

async function load() {
  const late = setTimeout(() => tellThem("Starting the calculator\u2026"), WAIT);
  try {
    const [wasm] = await Promise.all([engineCode(), script("app.js")]);
    const python = await startPython(wasm, globalThis.gradaccum.app.sources, HEAP);
    const calls = { python };
    for (const name of ["first", "filled", "rest", "page", "plan"]) calls[name] = python("gradaccum.web.site.boot", name);
    return calls;
  } finally {
    clearTimeout(late);
    remark?.remove();
  }
}

async function engineCode() {
  if (FROM_FILE) {
    await script("engine/wasm.js"); // nothing may be fetched from a file, so there it comes as a script
    return WebAssembly.compile(Uint8Array.from(atob(globalThis.gradaccum.wasm), (letter) => letter.charCodeAt(0)));
  }
  const answer = await fetch(new URL("engine/micropython.wasm", files));
  if (!answer.ok) throw new Error(`micropython.wasm: status ${answer.status}`);
  return WebAssembly.compile(await answer.arrayBuffer()); // not streamed: some hosts name another media type
}

function script(path) {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.onload = resolve;
    element.onerror = () => reject(new Error(path + " did not load"));
    element.src = new URL(path, files).href;
    document.head.append(element);
  });
}

let remark = null;

function tellThem(words) {
  remark ??= document.createElement("p");
  remark.className = "remark";
  remark.setAttribute("role", "status");
  remark.textContent = words;
  results.parentElement.prepend(remark);
}

// First what a person looks at; once that is painted, the rest of the results.
async function* ask(query, signal, painted, fill) {
  const { first, filled, rest } = await python;
  if (signal.aborted) return;
  const answer = JSON.parse((fill ? filled : first)(query));
  yield answer;
  await painted();
  if (answer.ok && !signal.aborted) yield JSON.parse(rest(query));
  const open = document.getElementById("fit") !== null;
  if (!(open || asksWhatFits(query))) return;
  const [fit] = await Promise.all([startFit(), new Promise((done) => setTimeout(done, fill ? 0 : TYPING))]);
  if (!signal.aborted) yield fit ? JSON.parse((fill || !open ? fit.panel : fit.found)(query)) : NO_FIT;
}

// The panel of what fits has files of its own, which come when it is opened.

const asksWhatFits = (query) => /(^|&)(model|gpu)=/.test(query);
const NO_FIT = { fit: { panel: '<p class="part remark" role="status">What fits did not load: is there a network? Loading the page again may help.</p>' } };
let fitStarted = null;

// Its calls; null where they did not load, and then the next edit tries again.
function startFit() {
  fitStarted ??= loadFit().catch((error) => {
    console.error("gradaccum: what fits did not load:", error);
    return (fitStarted = null);
  });
  return fitStarted;
}

async function loadFit() {
  await paint;
  const [calls] = await Promise.all([python, script("fit.js")]);
  const { app, fit } = globalThis.gradaccum;
  if (fit.version !== app.version) throw new Error("fit.js is of another version of this page");
  calls.python.add(fit.sources);
  return { found: calls.python("gradaccum.web.site.boot_fit", "found"), panel: calls.python("gradaccum.web.site.boot_fit", "panel") };
}

// The page was drawn for the default plan; where the address asks for another, it is drawn anew, as a server would: the
// answer first, and then all of it. What a person has typed by then is kept.
async function redraw(query) {
  const untouched = form.cloneNode(true); // a person may have typed before this script ran
  untouched.reset();
  let drawnValues = new Map(new FormData(untouched));
  const typedSince = () => [...new FormData(form)].filter(([name, value]) => drawnValues.get(name) !== value);
  if (/(^|&)embed=1(&|$)/.test(query)) document.querySelector("header").className = "unseen";
  results.classList.add("waiting");
  const wanted = asksWhatFits(query);
  const fitStarts = wanted && startFit();
  const { filled, page } = await python.catch(() => ({}));
  if (!page) return; // said above
  const answer = JSON.parse(filled(query));
  if (answer.ok && !typedSince().length) {
    show({ ...answer, summary: null }, true, "");
    document.getElementById("part-answer").className = "ready";
    drawnValues = new Map(new FormData(form));
    await painted();
  }
  const fit = await fitStarts;
  const typedValues = typedSince();
  const focused = form.contains(document.activeElement) ? document.activeElement.id : "";
  const drawn = new DOMParser().parseFromString(page(query), "text/html");
  document.title = drawn.title;
  if (drawn.documentElement.className === "embed") {
    document.documentElement.classList.add("embed");
    document.querySelector("header").replaceWith(drawn.querySelector("header"));
  }
  if (wanted && !fit) drawn.getElementById("part-fit").innerHTML = NO_FIT.fit.panel;
  for (const id of ["part-origin", "inputs", "results", "part-pinned"]) {
    document.getElementById(id).replaceChildren(...drawn.getElementById(id).childNodes);
  }
  const json = document.getElementById("json");
  if (json) json.href = "?" + query;
  results.classList.remove("waiting");
  shown.clear();
  tell();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  if (!typedValues.length) return;
  fillFields(Object.fromEntries(typedValues));
  typed();
}

if (document.documentElement.dataset.drawn !== here.slice(1)) redraw(here.slice(1));

// The link to the plan's JSON has no server behind it.
document.addEventListener("click", async (event) => {
  if (event.target.id !== "json") return;
  event.preventDefault();
  const { plan } = await python;
  const text = plan(new URL(event.target.href).search.slice(1));
  open(URL.createObjectURL(new Blob([text], { type: "application/json" })));
});

try {
  if (!FROM_FILE) navigator.serviceWorker?.register(new URL("offline.js", files)).catch(() => {}); // offline is an extra
} catch {
  // A sandbox may forbid even to ask for it.
}
