// The model, off the thread of the page: "load" once, then "run" for each picture.

// The runtime asks for its memory here and never gives any of it back: its length is the most that was in use.
const memories = [];
const Memory = WebAssembly.Memory;
WebAssembly.Memory = class extends Memory {
  constructor(descriptor) {
    super(descriptor);
    memories.push(this);
  }
};

let ort = null;
let session = null;

async function fetched(address, integrity) {
  const answer = await fetch(address, { integrity, cache: "no-cache", credentials: "same-origin" }).catch(() => {
    throw new Error(`${address} cannot be fetched, or is not the file that was exported: reload the page`);
  });
  if (!answer.ok) throw new Error(`${address} cannot be fetched: the server says ${answer.status}`);
  return answer.arrayBuffer();
}

async function load({ model, runtime, base }) {
  const [[script, scriptSum], [wasm, wasmSum]] = Object.entries(runtime.files);
  const root = new URL(runtime.base, base);
  const [code, binary, graph] = await Promise.all([
    fetched(new URL(script, root).href, scriptSum),
    fetched(new URL(wasm, root).href, wasmSum),
    fetched(new URL(model.file, base).href, model.integrity),
  ]);
  ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = binary;
  // Threads share memory, which browsers allow on pages that their server isolates from others.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
  session = await ort.InferenceSession.create(new Uint8Array(graph), { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { threads: ort.env.wasm.numThreads };
}

async function run({ pixels, width, height }) {
  const image = new ort.Tensor("uint8", pixels, [height, width, 3]);
  const start = performance.now();
  const { mask } = await session.run({ image });
  const milliseconds = performance.now() - start;
  const bytes = memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
  const ids = mask.data.slice();
  mask.dispose();
  return { ids, milliseconds, bytes };
}

self.onmessage = async ({ data: { id, task, ...given } }) => {
  try {
    const found = await { load, run }[task](given);
    self.postMessage({ id, found }, found.ids ? [found.ids.buffer] : []);
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
