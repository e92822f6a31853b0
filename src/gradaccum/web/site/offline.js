// After the first visit the page works without a network. VERSION and FILES are written by the build.

const HERE = "gradaccum " + self.registration.scope + " "; // one host may serve several folders
const VERSION = HERE + "@VERSION@";
const FILES = "@FILES@".split(" ");

self.addEventListener("install", (event) => {
  // Each file is asked for anew: a copy in the browser's cache may be of the version before.
  const fresh = FILES.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(fresh)).then(() => self.skipWaiting()));
});

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
  event.respondWith(kept.then((file) => file || fetch(event.request)));
});
