// Every edit updates the results at once; without this script a submit gives the same page.
// Numbers stay text here: Python has read and written them, and some are larger than a script can hold.

import { ask } from "./ask.js"; // asks the server; the page without one has another file of this name

const form = document.getElementById("inputs");
const results = document.getElementById("results");
const pinned = document.getElementById("part-pinned");
const status = document.getElementById("status");
const shown = new Map(); // part, or a field's remark -> what it shows, so that only what changed is touched
let pending = new AbortController();
let here = location.search; // what the address bar asks
let quiet = 0;
let settling = 0;
let unwritten = null; // the query of an edit that the address bar does not show yet

document.documentElement.classList.add("live");

// Ask, and show the answer unless a later edit has asked since. `remember` puts it into the address bar.
async function update(query, { fill = false, remember = "replaceState" } = {}) {
  pending.abort();
  pending = new AbortController();
  const { signal } = pending;
  try {
    for await (const answer of ask(query, signal, painted, fill)) {
      if (signal.aborted) return;
      show(answer, fill, remember);
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    markStale(true);
    announce(error.message);
  }
}

// An answer may come in pieces, what is looked at first before the rest.
function show({ ok, errors, echoes, fit, values, results, title, query, summary }, fill, remember) {
  if (fill && values) fillFields(values);
  if (errors) showRemarks({ ok, errors, echoes });
  if (results) showResults(results);
  if (fit) showFit(fit);
  if (title) {
    document.title = title;
    address(query, remember);
  }
  if (summary) announce(summary);
}

// The address follows a moment after the last edit: writing it costs a layout, and browsers bound how often it may be.
function address(query, remember) {
  const json = document.getElementById("json"); // not there when embedded
  if (json) json.href = json.getAttribute("href").replace(/\?.*|$/, "?" + query);
  clearTimeout(settling);
  if (remember === "replaceState") {
    unwritten = query;
    settling = setTimeout(settle, 250);
  } else {
    settle(); // so that the way back leads to the last edit
    write(query, remember);
  }
}

function settle() {
  if (unwritten !== null) write(unwritten, "replaceState");
}

function write(query, remember) {
  unwritten = null;
  try {
    if (remember) history[remember](null, "", "?" + query);
  } catch {
    // A page opened as a file, or in a sandbox, may not be allowed an address of its own.
  }
  here = location.search;
  tell();
}

// In an iframe: the page around it may follow the query and the height.
function tell() {
  if (parent === window) return;
  const height = document.documentElement.offsetHeight;
  parent.postMessage({ queryString: location.search.slice(1), height }, "*");
}

function showRemarks({ ok, errors, echoes }) {
  for (const element of form.querySelectorAll(".error, .echo")) {
    const [name, kind] = element.id.split("-");
    const text = kind === "error" ? errors[name] || "" : echoes[name] || "";
    if ((shown.get(element) ?? element.innerHTML) === text) continue;
    shown.set(element, text);
    if (kind === "echo") element.textContent = text;
    else element.innerHTML = text;
  }
  for (const control of form.querySelectorAll("[id][name]:not([type=radio])")) {
    if (!(control.name in errors)) {
      control.removeAttribute("aria-invalid");
      continue;
    }
    control.setAttribute("aria-invalid", "true");
    openAround(control);
  }
  markStale(!ok);
}

function showResults(parts) {
  for (const [name, html] of Object.entries(parts)) {
    if (shown.get(name) === html) continue;
    shown.set(name, html);
    const place = document.getElementById("part-" + name);
    const inside = place.contains(document.activeElement);
    const folds = place.querySelector("details");
    const open = place.querySelector("details[open]")?.id;
    place.innerHTML = html;
    if (folds && (!open || document.getElementById(open))) {
      for (const each of place.querySelectorAll("details")) each.toggleAttribute("open", each.id === open); // as it was
    }
    if (inside) document.getElementById("the-plan").focus({ preventScroll: true });
  }
}

// The panel of what fits: whole, or what was found and what is wrong beside its inputs, which an edit leaves alone.
function showFit({ panel, found, errors }) {
  const place = document.getElementById(found === undefined ? "part-fit" : "part-fit-found");
  const inside = place.contains(document.activeElement);
  place.innerHTML = found ?? panel;
  if (inside) document.getElementById(panel === "" ? "the-plan" : "fit-heading").focus({ preventScroll: true });
  if (!errors) return;
  for (const control of document.querySelectorAll("#fit [name]")) {
    document.getElementById(control.name + "-error").innerHTML = errors[control.name] ?? "";
    if (!(control.name in errors)) {
      control.removeAttribute("aria-invalid");
      continue;
    }
    control.setAttribute("aria-invalid", "true");
    control.closest("details")?.setAttribute("open", "");
  }
}

function painted() {
  return new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
}

function markStale(stale) {
  results.classList.toggle("stale", stale);
  pinned.classList.toggle("stale", stale);
}

function fillFields(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = form.elements[name];
    if (!control) continue;
    const changed = control.value !== value;
    control.value = value; // of radio buttons too: their group takes it
    if (changed && value) openAround(form.querySelector(`[name="${name}"]`));
  }
}

function openAround(element) {
  const group = element?.closest("details.group");
  if (group) group.open = true;
}

function announce(text) {
  clearTimeout(quiet);
  quiet = setTimeout(() => (status.textContent = text), 500);
}

const typed = () => update(new URLSearchParams(new FormData(form)).toString());
form.addEventListener("input", typed);
results.addEventListener("input", typed); // the panel of what fits has inputs of the form, too
form.addEventListener("submit", (event) => {
  event.preventDefault();
  typed();
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-apply], a[data-add]");
  if (link && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
    event.preventDefault();
    if (link.dataset.add) openPanel(link.dataset.add);
    else update(link.search.slice(1), { fill: true, remember: "pushState" });
  }
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});

async function openPanel(query) {
  const asked = new URLSearchParams(new FormData(form)) + "&" + query;
  if (!document.getElementById("fit")) await update(asked, { fill: true, remember: "pushState" });
  document.getElementById("fit-heading")?.focus();
}

async function copy(button) {
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied");
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

window.addEventListener("popstate", () => {
  if (location.search === here) return; // a jump on the page
  clearTimeout(settling);
  unwritten = null; // belonged to the entry that is left
  here = location.search; // at once: the way forward may be taken before the answer is there
  update(here.slice(1), { fill: true, remember: "" });
});

new ResizeObserver(tell).observe(document.body);
