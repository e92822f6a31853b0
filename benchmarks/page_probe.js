// What bench_page.py adds to every document that it opens, so that the page itself holds no line of a benchmark.
// It notes when an element changed after an input event, and when that change was on the screen.

(() => {
  const WATCHED = "#results";
  const ANSWER = "#part-answer"; // the headline numbers; the bare page has nothing but its result
  const QUIET = 60; // milliseconds without another change, after which an edit is done
  const ASKED = "640"; // the batch that a visit by a permalink asks for
  const probe = (window.benchmark = { visible: null, asked: null });
  let edit = null;

  // A task that goes before all others, once the frame is over that paints a change.
  const painted = (then) =>
    requestAnimationFrame(() => scheduler.postTask(() => then(performance.now()), { priority: "user-blocking" }));

  // First visit: the first result is there, and painted.
  const arrival = new MutationObserver(() => {
    if (!document.querySelector(WATCHED)?.textContent.trim()) return;
    arrival.disconnect();
    painted((now) => (probe.visible = now));
  });
  arrival.observe(document, { childList: true, subtree: true });

  // The result that the address asked for, which a page without a server calculates first.
  const result = new MutationObserver(() => {
    if (document.querySelector(".batch .number")?.textContent !== ASKED) return;
    result.disconnect();
    painted((now) => (probe.asked = now));
  });
  result.observe(document, { childList: true, subtree: true });

  // An edit: from the input event's own time stamp to the last change that it brought.
  addEventListener("input", (event) => edit && (edit.begun ??= event.timeStamp), true);

  function changed(records) {
    if (!edit?.begun) return;
    const now = performance.now();
    const answer = document.querySelector(ANSWER);
    if (records.some((record) => answer?.contains(record.target))) edit.answered ??= now;
    edit.changed = now;
    edit.painted = null;
    painted((then) => edit.changed === now && (edit.painted = then));
    clearTimeout(edit.timer);
    edit.timer = setTimeout(done, QUIET);
  }

  function done() {
    if (edit.painted === null) {
      edit.timer = setTimeout(done, QUIET);
      return;
    }
    // Not the last request: Chromium asks for the icon again when the address changes.
    const [request] = performance.getEntriesByType("resource").filter((entry) => entry.initiatorType === "fetch");
    const answered = edit.answered ?? edit.changed;
    const asked = request && { // a page without a server asks nobody
      round_trip: request.responseEnd - request.startTime,
      after_answer: answered - request.responseEnd,
    };
    edit.resolve({ dom: answered - edit.begun, whole: edit.changed - edit.begun, paint: edit.painted - edit.begun, ...asked });
    edit = null;
  }

  addEventListener("DOMContentLoaded", () =>
    new MutationObserver(changed).observe(document.querySelector(WATCHED), {
      characterData: true,
      childList: true,
      subtree: true,
    }),
  );

  // Called before the key is pressed; settled() then waits for what it did, in milliseconds.
  probe.expect = () => {
    performance.clearResourceTimings();
    edit = {};
    probe.settled = new Promise((resolve) => (edit.resolve = resolve));
  };
})();
