// A trace on demand: the server follows the model's real step in a process of its own, and says how far it is.

let running = null; // the button that started it, and what stops it

export async function trace(button) {
  const before = running;
  before?.stop.abort();
  if (before?.button === button) return;
  const place = document.getElementById("traced");
  const label = button.textContent;
  const stop = new AbortController();
  const own = (running = { button, stop });
  button.textContent = "Stop the trace";
  try {
    const body = new URLSearchParams(new FormData(document.getElementById("inputs")));
    const response = await fetch("trace", { method: "POST", body, signal: stop.signal });
    if (!response.ok) throw new Error(response.status === 422 ? "The inputs give nothing to trace." : await response.text());
    for await (const line of lines(response)) {
      if (!place.isConnected) stop.abort(); // an edit has put something else there
      if (line.error) throw new Error(line.error);
      if (line.html) place.innerHTML = line.html;
      else say(place, `Tracing the real step: ${line.seconds} s of at most ${line.limit} s.`);
    }
  } catch (error) {
    say(place, error.name === "AbortError" ? "Stopped." : error.message);
  } finally {
    if (running === own) running = null;
    button.textContent = label;
  }
}

function say(place, words) {
  const said = document.createElement("p");
  said.className = "hint";
  said.textContent = words;
  place.replaceChildren(said);
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (text + part.value).split("\n");
    text = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}
