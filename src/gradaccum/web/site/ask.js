// Where answers come from when there is no server: the same Python, in this page, under MicroPython.

const WAIT = 1500; // milliseconds after which a person is told what the page waits for
const files = new URL(".", import.meta.url);
const remark = document.createElement("p");
remark.className = "remark";
remark.setAttribute("role", "status");

function tell(text) {
  remark.textContent = text;
  document.getElementById("results").prepend(remark);
}

const python = new Promise((resolve, reject) => {
  const start = () => setTimeout(() => load().then(resolve, reject)); // after the first paint
  if (document.readyState === "complete") start();
  else addEventListener("load", start, { once: true });
});
python.catch((error) => {
  console.info("gradaccum: the engine did not start:", error);
  tell("The calculator did not start: this browser, or a rule of this site, blocks WebAssembly. Below is the default plan.");
});

async function load() {
  const late = setTimeout(() => tell("Starting the calculator\u2026"), WAIT);
  const [{ loadMicroPython }, sources] = await Promise.all([
    import("./engine/micropython.mjs"),
    fetch(new URL("app.json", files)).then((answer) => answer.json()),
  ]);
  const engine = await loadMicroPython({ heapsize: 16 * 1024 * 1024, url: new URL("engine/micropython.wasm", files).href });
  for (const [path, text] of Object.entries(sources)) {
    path.split("/").reduce((folder, name) => {
      if (!engine.FS.analyzePath(folder).exists) engine.FS.mkdir(folder);
      return folder + "/" + name;
    }, "/lib");
    engine.FS.writeFile("/lib/" + path, text);
  }
  engine.runPython("import sys; sys.path.append('/lib')");
  const boot = engine.pyimport("boot");
  clearTimeout(late);
  remark.remove();
  return boot;
}

// First what a person looks at; once that is painted, the rest of the results.
export async function* ask(query, signal, painted) {
  const { first, rest } = await python;
  if (signal.aborted) return;
  const answer = JSON.parse(first(query));
  yield answer;
  await painted();
  if (answer.ok && !signal.aborted) yield JSON.parse(rest(query));
}

// The link to the plan's JSON has no server behind it.
document.getElementById("json")?.addEventListener("click", async (event) => {
  event.preventDefault();
  const { plan } = await python;
  const text = plan(new URL(event.target.href).search.slice(1));
  open(URL.createObjectURL(new Blob([text], { type: "application/json" })));
});

if ("serviceWorker" in navigator) navigator.serviceWorker.register(new URL("offline.js", files));
