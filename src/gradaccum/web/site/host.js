// The smallest host for MicroPython's WebAssembly: a clock, a console, and files that can be read. A module's functions
// that take text and give text are called directly; no other object crosses over. It replaces the engine's own loader,
// which brings a whole file system and proxies for every kind of object: ten times the code, and four times the start.
//
// What it stands on: Emscripten's calls (wasi fd_*, __syscall_*, struct stat of wasm32; jumps.js answers invoke_*) and the
// exported functions of MicroPython's WebAssembly port (mp_js_*, proxy_c_*), both those of the version that is pinned.

const NO_SUCH_FILE = -44; // Emscripten's ENOENT
const RAISED = -1, TEXT = 5; // kinds of value that cross over, as [kind, length or number, address]

// wasm: a WebAssembly.Module; files: path -> text, put below /lib; heap: bytes for Python's objects.
// Returns a function: python(module, name) imports a module and returns its function `name` for JavaScript to call;
// python.add(files) adds files.
async function startPython(wasm, files, heap) {
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  let engine; // what the WebAssembly exports
  const bytes = () => new Uint8Array(engine.memory.buffer); // anew each time: memory grows
  const words = () => new DataView(engine.memory.buffer);
  const text = (address, length) => decoder.decode(bytes().subarray(address, address + length));
  const textUpToNul = (address) => text(address, bytes().indexOf(0, address) - address);

  // Files

  const folders = new Set(["/", "/lib"]);
  const foldersOf = (paths) => {
    for (const path of Object.keys(paths)) {
      for (let end = path.indexOf("/"); end > 0; end = path.indexOf("/", end + 1)) folders.add("/lib/" + path.slice(0, end));
    }
  };
  foldersOf(files);
  const opened = new Map(); // descriptor -> { content, position }

  function find(address) {
    const path = textUpToNul(address);
    if (folders.has(path)) return { mode: 0o040555, content: [] };
    const found = path.startsWith("/lib/") && Object.hasOwn(files, path.slice(5));
    return found ? { mode: 0o100444, content: encoder.encode(files[path.slice(5)]) } : null;
  }

  function describe(file, address) {
    if (!file) return NO_SUCH_FILE;
    bytes().fill(0, address, address + 96);
    words().setUint32(address + 4, file.mode, true);
    words().setBigUint64(address + 24, BigInt(file.content.length), true);
    return 0;
  }

  function openFile(_, path) {
    const file = find(path);
    if (!file) return NO_SUCH_FILE;
    const descriptor = 3 + opened.size; // closed in the order of a stack
    opened.set(descriptor, { ...file, position: 0 });
    return descriptor;
  }

  // Each of several pieces of memory in turn, until one is not filled whole; returns 0 and stores the sum.
  function eachPiece(pieces, count, total, handle) {
    let sum = 0;
    for (let piece = pieces; piece < pieces + 8 * count; piece += 8) {
      const length = words().getUint32(piece + 4, true);
      const done = handle(words().getUint32(piece, true), length);
      sum += done;
      if (done < length) break;
    }
    words().setUint32(total, sum, true);
    return 0;
  }

  function read(descriptor, pieces, count, total) {
    const file = opened.get(descriptor);
    return eachPiece(pieces, count, total, (address, length) => {
      const part = file.content.subarray(file.position, file.position + length);
      bytes().set(part, address);
      file.position += part.length;
      return part.length;
    });
  }

  let line = ""; // what Python printed, up to the end of its line
  function write(_, pieces, count, total) {
    return eachPiece(pieces, count, total, (address, length) => {
      const lines = (line + text(address, length)).split("\n");
      line = lines.pop();
      for (const each of lines) console.info(each);
      return length;
    });
  }

  // The calls that the engine makes

  const calls = {
    fd_close: (descriptor) => (opened.delete(descriptor), 0),
    fd_read: read,
    fd_write: write,
    __syscall_openat: openFile,
    __syscall_stat64: (path, address) => describe(find(path), address),
    __syscall_fstat64: (descriptor, address) => describe(opened.get(descriptor), address),
    __syscall_getcwd: (address) => (bytes().set([47, 0], address), 2), // "/"
    mp_js_random_u32: () => crypto.getRandomValues(new Uint32Array(1))[0],
    mp_js_ticks_ms: () => performance.now(),
    mp_js_time_ms: () => Date.now(),
    js_check_existing: () => -1, // no object of Python's is held on this side
    emscripten_resize_heap(size) {
      engine.memory.grow(Math.ceil(((size >>> 0) - engine.memory.buffer.byteLength) / 65536));
      return 1;
    },
  };
  const needed = WebAssembly.Module.imports(wasm);
  const jumps = await startJumps(needed.map(({ name }) => name));
  Object.assign(calls, jumps.calls);
  const imports = {};
  for (const { module, name } of needed) {
    const missing = () => {
      throw new Error("the engine called " + name + ", which this page does not offer");
    };
    (imports[module] ??= {})[name] = calls[name] ?? missing;
  }

  // Python

  engine = (await WebAssembly.instantiate(wasm, imports)).exports;
  jumps.join(engine);
  engine.emscripten_stack_init();
  engine.__wasm_call_ctors();
  engine.mp_js_init(2048, heap);
  engine.proxy_c_init();

  function copyIn(content) {
    const encoded = encoder.encode(content);
    const address = engine.malloc(encoded.length + 1);
    bytes().set(encoded, address);
    bytes()[address + encoded.length] = 0;
    return [address, encoded.length];
  }

  // Calls `ask(value)` for it to leave a value at that address: text, or the number of an object that stays inside.
  function receive(ask) {
    const value = engine.malloc(12);
    ask(value);
    const [kind, first, second] = [0, 4, 8].map((offset) => words().getInt32(value + offset, true));
    engine.free(value);
    if (kind === RAISED) {
      const [, traceback] = text(second, first).split("\x04");
      engine.free(second);
      throw Object.assign(new Error(traceback), { name: "PythonError" });
    }
    return kind === TEXT ? text(second, first) : first;
  }

  function withText(content, use) {
    const [address, length] = copyIn(content);
    try {
      return use(address, length);
    } finally {
      engine.free(address);
    }
  }

  function python(module, name) {
    const inside = withText(module, (path) => receive((value) => engine.mp_js_do_import(path, value)));
    const called = withText(name, (path) => receive((value) => engine.proxy_c_to_js_lookup_attr(inside, path, value)));
    return (argument) => {
      const [address, length] = copyIn(argument); // freed by the call
      const given = engine.malloc(12);
      [TEXT, length, address].forEach((word, place) => words().setInt32(given + 4 * place, word, true));
      const found = receive((value) => engine.proxy_c_to_js_call(called, 1, given, value));
      engine.free(given);
      return found;
    };
  }
  python.add = (more) => foldersOf(Object.assign(files, more));
  return python;
}
