// Where answers come from: the server. First what a person looks at; once that is painted, the rest of the results,
// and what fits, as far as that panel is open.

export async function* ask(query, signal, painted, fill) {
  const first = await get("live?" + query, signal);
  yield first;
  await painted();
  if (first.ok && !signal.aborted) yield await get("live/rest?" + query, signal);
  const open = document.getElementById("fit") !== null;
  const asked = /(^|&)(model|gpu)=/.test(query);
  if ((asked || open) && !signal.aborted) yield await get((fill || !open ? "live/fit/panel?" : "live/fit?") + query, signal);
}

document.addEventListener("click", async ({ target }) => {
  if (target.id === "trace") (await import("./trace.js")).trace(target);
});

async function get(address, signal) {
  const gone = new Error("No answer: is the server still running?");
  const response = await fetch(address, { signal }).catch((error) => {
    throw error.name === "AbortError" ? error : gone;
  });
  if (!response.ok) throw gone;
  return response.json();
}
