// After the first visit the page works without a network. VERSION and FILES are written by the build.

const VERSION = "@VERSION@";
const FILES = "@FILES@".split(" ");

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const stale = (names) => names.filter((name) => name.startsWith("gradaccum-") && name !== VERSION);
  event.waitUntil(
    caches.keys().then((names) => Promise.all(stale(names).map((name) => caches.delete(name)))).then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(self.registration.scope)) return;
  event.respondWith(
    caches.match(event.request, { ignoreSearch: true, cacheName: VERSION }).then((kept) => kept || fetch(event.request)),
  );
});
