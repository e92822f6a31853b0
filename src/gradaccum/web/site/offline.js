// After the first visit the page works without a network. VERSION and FILES are written by the build.

const HERE = "gradaccum " + self.registration.scope + " "; // one host may serve several folders
const VERSION = HERE + "@VERSION@";
const FILES = "@FILES@".split(" ");
const LATER = ["fit.js"]; // kept once it was asked for

self.addEventListener("install", (event) => {
  event.waitUntil(keep().then(() => self.skipWaiting()));
});

async function keep() {
  const asked = await Promise.all(LATER.map((name) => caches.match(new URL(name, self.registration.scope))));
  const names = [...FILES, ...LATER.filter((_, place) => asked[place])];
  // Each file is asked for anew: a copy in the browser's cache may be of the version before.
  await (await caches.open(VERSION)).addAll(names.map((name) => new Request(name, { cache: "no-cache" })));
}

self.addEventListener("activate", (event) => {
  const stale = (names) => names.filter((name) => name.startsWith(HERE) && name !== VERSION);
  event.waitUntil(
    caches.keys().then((names) => Promise.all(stale(names).map((name) => caches.delete(name)))).then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(self.registration.scope)) return;
  const address = event.request.url.replace(/[?#].*/, "").replace(/\/index\.html$/, "/"); // a permalink is the page
  const kept = caches.match(address, { cacheName: VERSION });
  event.respondWith(kept.then((file) => file || load(event.request, address)));
});

async function load(request, address) {
  const answer = await fetch(request);
  if (answer.ok && LATER.some((name) => address === self.registration.scope + name)) {
    await (await caches.open(VERSION)).put(address, answer.clone());
  }
  return answer;
}
