// setjmp and longjmp for the engine, in WebAssembly's own exceptions.
//
// The engine makes every call that may end in a longjmp through an import such as `invoke_iii`, whose letters are the
// result (`v`: none) and the arguments. Emscripten answers those in JavaScript. But that is most of the engine's calls, a
// hundred thousand for one page, and the way through JavaScript took a third of the time. So a small module answers them,
// put together here for the very imports that the engine has.
//
// It stands between two modules that need each other: it exists before the engine, which imports it, and is given the
// engine's functions afterwards, in tables. The codes are those of the WebAssembly specification and, for exceptions, of
// the form that browsers have had since 2021 (Chrome 95, Firefox 100, Safari 15.2); where that is gone, or not there
// yet, JavaScript answers after all.

// names: the engine's imports. Returns { calls: name -> function, join(engine) }; join is called once the engine is there.
async function startJumps(names) {
  const invokes = names.filter((name) => name.startsWith("invoke_"));
  const code = new Uint8Array(jumpCode(invokes));
  if (!WebAssembly.validate(code)) return scriptedJumps(invokes);
  const { functions, stack, ...calls } = (await WebAssembly.instantiate(code)).instance.exports;
  const join = (engine) => {
    const table = engine.__indirect_function_table;
    functions.grow(table.length);
    for (let index = 0; index < table.length; index++) functions.set(index, table.get(index));
    const helpers = [engine.emscripten_stack_get_current, engine._emscripten_stack_restore, engine.setThrew];
    helpers.forEach((each, index) => stack.set(index, each));
  };
  return { calls, join };
}

// The module's bytes. For each invoke: remember the stack, try the call, and where a longjmp is caught, restore the stack
// and tell the caller of setjmp. An error of JavaScript's own passes through.
function jumpCode(invokes) {
  const I32 = 0x7f, FUNCTION = 0x60, FUNCTIONS = 0x70, NO_RESULT = 0x40;
  const GET = 0x20, SET = 0x21, CONSTANT = 0x41, CALL_INDIRECT = 0x11, TRY = 0x06, CATCH = 0x07, THROW = 0x08, END = 0x0b;
  const TYPES = 1, DECLARED = 3, TABLES = 4, EXPORTS = 7, BODIES = 10, TAGS = 13; // sections
  const CURRENT = 0, RESTORE = 1, SET_THREW = 2; // places in the table `stack`

  const number = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...number(value >> 7)]);
  const sized = (content) => [...number(content.length), ...content];
  const list = (items) => [...number(items.length), ...items.flat()];
  const section = (id, items) => [id, ...sized(list(items))];
  const exported = (name, kind, index) => [...sized([...name].map((letter) => letter.charCodeAt(0))), kind, index];
  const type = (count, results) => [FUNCTION, ...list(Array(count).fill(I32)), ...list(Array(results).fill(I32))];

  const shapes = invokes.map((name) => {
    const [result, ...values] = name.slice("invoke_".length);
    return { count: values.length, results: result === "v" ? 0 : 1 };
  });
  const helpers = [type(0, 0), type(0, 1), type(1, 0), type(2, 0)]; // of the jump, and of what is on the table `stack`
  const called = (index) => helpers.length + index, calling = (index) => helpers.length + shapes.length + index;
  const types = [...helpers, ...[0, 1].flatMap((index) => shapes.map(({ count, results }) => type(count + index, results)))];

  const get = (local) => [GET, local], constant = (value) => [CONSTANT, value];
  const call = (type, table) => [CALL_INDIRECT, type, table];
  const onStack = (place) => [...constant(place), ...call(place + 1, 1)];
  const body = ({ count, results }, index) => {
    const kept = count + 1; // the one local, after the function's index and the values
    return [
      1, 1, I32,
      ...onStack(CURRENT), SET, kept,
      TRY, results ? I32 : NO_RESULT,
      ...Array.from({ length: count }, (_, value) => get(value + 1)).flat(), ...get(0), ...call(called(index), 0),
      CATCH, 0,
      ...get(kept), ...onStack(RESTORE),
      ...constant(1), ...constant(0), ...onStack(SET_THREW),
      ...(results ? constant(0) : []),
      END, END,
    ];
  };
  const jump = [0, THROW, 0, END];
  return [
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // "\0asm", version 1
    ...section(TYPES, types),
    ...section(DECLARED, [...shapes.map((_, index) => number(calling(index))), [0]]),
    ...section(TABLES, [[FUNCTIONS, 0, 0], [FUNCTIONS, 0, 3]]),
    ...section(TAGS, [[0, 0]]),
    ...section(EXPORTS, [
      ...[...invokes, "_emscripten_throw_longjmp"].map((name, index) => exported(name, 0, index)),
      ...["functions", "stack"].map((name, index) => exported(name, 1, index)),
    ]),
    ...section(BODIES, [...shapes.map(body), jump].map(sized)),
  ];
}

// The same in JavaScript.
function scriptedJumps(invokes) {
  let engine;
  const invoke = (index, ...values) => {
    const stack = engine.emscripten_stack_get_current();
    try {
      return engine.__indirect_function_table.get(index)(...values);
    } catch (thrown) {
      engine._emscripten_stack_restore(stack);
      if (thrown !== Infinity) throw thrown;
      engine.setThrew(1, 0);
    }
  };
  const calls = Object.fromEntries(invokes.map((name) => [name, invoke]));
  calls._emscripten_throw_longjmp = () => {
    throw Infinity;
  };
  return { calls, join: (started) => (engine = started) };
}
