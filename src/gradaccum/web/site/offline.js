// After the first visit the page works without a network. VERSION and FILES are written by the build.

const HERE = "gradaccum " + self.registration.scope + " "; // one host may serve several folders
const VERSION = HERE + "@VERSION@";
const FILES = "@FILES@".split(" ");

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const stale = (names) => names.filter((name) => name.startsWith(HERE) && name !== VERSION);
  event.waitUntil(
    caches.keys().then((names) => Promise.all(stale(names).map((name) => caches.delete(name)))).then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(self.registration.scope)) return;
  const kept = caches.match(event.request, { ignoreSearch: true, cacheName: VERSION }); // a permalink is the page
  event.respondWith(kept.then((file) => file || fetch(event.request)));
});
