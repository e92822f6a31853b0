// Where answers come from: the server. First what a person looks at; once that is painted, the rest of the results.

export async function* ask(query, signal, painted) {
  const first = await get("live?" + query, signal);
  yield first;
  await painted();
  if (first.ok && !signal.aborted) yield await get("live/rest?" + query, signal);
}

async function get(address, signal) {
  const gone = new Error("No answer: is the server still running?");
  const response = await fetch(address, { signal }).catch((error) => {
    throw error.name === "AbortError" ? error : gone;
  });
  if (!response.ok) throw gone;
  return response.json();
}
