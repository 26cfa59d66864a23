// The page: pictures in, masks from the worker, drawn over the picture. Nothing here talks to any other server.

const LARGEST_FILE = 200e6; // bytes
const $ = (id) => document.getElementById(id);
const settings = await (await fetch("page.json", { cache: "no-cache" })).json();
const { classes } = settings;
const shown = classes.map(() => true);

let model = null; // that of settings.models which runs
let worker = null; // {load, run}
let threads = 1;
let last = null; // {name, width, height, ids}
let turn = 0; // of the picture that was asked for last
let camera = null; // its stream, while it runs

// --- the worker ------------------------------------------------------------------------------------------------------

function start() {
  const thread = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  let count = 0;
  const fail = (message) => {
    for (const { reject } of waiting.values()) reject(new Error(message));
    waiting.clear();
  };
  thread.onmessage = ({ data: { id, found, error } }) => {
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error === undefined) resolve?.(found);
    else reject?.(new Error(error));
  };
  thread.onerror = (event) => {
    event.preventDefault();
    fail(event.message || "the model's thread ended: the browser may be too old, or short of memory");
  };
  const ask = (task, given, moved = []) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, { resolve, reject });
      thread.postMessage({ id: count, task, ...given }, moved);
    });
  return {
    load: () => ask("load", { model, runtime: settings.runtime, base: location.href }),
    run: (picture) => ask("run", picture, [picture.pixels.buffer]),
    stop: () => thread.terminate(),
  };
}

async function prepare() {
  if (worker) return;
  const started = start();
  try {
    ({ threads } = await started.load());
    worker = started;
  } catch (error) {
    started.stop();
    throw error;
  }
}

async function run(picture) {
  await prepare();
  try {
    return await worker.run(picture);
  } catch (error) {
    worker?.stop(); // what is left of a runtime that ran out of memory answers nothing more
    worker = null;
    const sides = `${picture.width} × ${picture.height} pixels`;
    throw new Error(`the model cannot segment ${sides} here (${first(error)}): try a smaller picture`);
  }
}

// --- pictures --------------------------------------------------------------------------------------------------------

// Colours as they are stored, as Pillow reads them.
const bitmap = (source) => createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" });

// RGB bytes of what a canvas holds, and whether it is transparent anywhere.
function pixelsOf(canvas) {
  const { width, height } = canvas;
  const from = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * 3);
  let alpha = 255;
  for (let i = 0, j = 0; i < from.length; i += 4) {
    pixels[j++] = from[i];
    pixels[j++] = from[i + 1];
    pixels[j++] = from[i + 2];
    alpha &= from[i + 3];
  }
  return { pixels, width, height, transparent: alpha !== 255 };
}

function draw(canvas, image, width = image.width, height = image.height) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
}

// The size at which a picture is segmented.
function sizeFor({ width, height }) {
  if (settings.size) return [settings.size[1], settings.size[0]];
  const factor = Math.min(1, Math.sqrt(settings.most_pixels / (width * height)));
  return [Math.max(1, Math.floor(width * factor)), Math.max(1, Math.floor(height * factor))];
}

async function segment(image, name) {
  const mine = ++turn;
  const [width, height] = sizeFor(image);
  const notes = [];
  if (width !== image.width || height !== image.height) {
    notes.push(`made ${width} × ${height} of ${image.width} × ${image.height} pixels, which is what this page takes`);
  }
  const canvas = camera ? document.createElement("canvas") : $("picture");
  if (!camera) forget();
  draw(canvas, image, width, height);
  image.close?.();
  const picture = pixelsOf(canvas);
  if (picture.transparent) notes.push("transparent places are taken as the browser shows them");
  if (!camera) show(width, height);
  const { ids, milliseconds, bytes } = await run(picture);
  if (mine !== turn) return;
  if (camera) {
    draw($("picture"), canvas);
    show(width, height);
  }
  last = { name, width, height, ids };
  paint();
  count();
  $("figures").textContent = [
    `${(milliseconds / 1000).toFixed(2)} s for ${width} × ${height} pixels`,
    `${Math.round(bytes / 2 ** 20)} MiB of memory`,
    `${threads} ${threads === 1 ? "thread" : "threads"}`,
    ...notes,
  ].join(" · ");
  $("save-mask").disabled = $("save-overlay").disabled = false;
}

function forget() {
  last = null;
  $("mask").hidden = true;
  $("figures").textContent = $("pointed").textContent = "";
  $("save-mask").disabled = $("save-overlay").disabled = true;
}

function show(width, height) {
  $("stage").classList.add("filled");
  $("stage").style.setProperty("--ratio", `${width / height}`);
  $("picture").hidden = false;
  $("drop").hidden = true;
}

function paint() {
  const { width, height, ids } = last;
  const canvas = $("mask");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const colors = new Uint8ClampedArray(classes.length * 4);
  classes.forEach(({ color }, k) => shown[k] && colors.set([...color, 255], 4 * k));
  const table = new Uint32Array(colors.buffer);
  const target = new Uint32Array(image.data.buffer);
  for (let i = 0; i < ids.length; i++) target[i] = table[ids[i]];
  context.putImageData(image, 0, 0);
  canvas.hidden = false;
}

async function take(file) {
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} has ${Math.round(file.size / 1e6)} MB: at most 200 are read`);
  say(`Segmenting ${file.name} …`);
  const image = await bitmap(file).catch(() => {
    throw new Error(`${file.name} cannot be read: it is no picture that this browser knows, or too large for it`);
  });
  if (Math.min(image.width, image.height) < settings.least_side) {
    throw new Error(`${file.name} has ${image.width} × ${image.height} pixels: this model takes sides of ${settings.least_side} or more`);
  }
  await segment(image, file.name);
  if (last) say(`Segmented ${file.name}`);
}

// --- the camera ------------------------------------------------------------------------------------------------------

async function film() {
  if (!navigator.mediaDevices) throw new Error("browsers give the camera to pages at https:// addresses and localhost only");
  const wanted = { video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };
  camera = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
    throw new Error(`the camera cannot be used: ${first(error)}`);
  });
  $("camera").textContent = "Stop the camera";
  $("camera").setAttribute("aria-pressed", "true");
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = camera;
  await video.play();
  say("The camera runs");
  while (camera) await segment(await createImageBitmap(video), "camera.png");
  say("The camera is off");
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  $("camera").textContent = "Start the camera";
  $("camera").setAttribute("aria-pressed", "false");
}

// --- the legend ------------------------------------------------------------------------------------------------------

function legend() {
  const body = $("legend").tBodies[0];
  classes.forEach(({ name, color }, k) => {
    const row = body.insertRow();
    row.dataset.id = k;
    const head = document.createElement("th");
    head.scope = "row";
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      shown[k] = box.checked;
      if (last) paint();
    });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = `rgb(${color.join(" ")})`;
    label.append(box, swatch, name);
    head.append(label);
    row.append(head);
    row.insertCell().textContent = "–";
  });
}

function count() {
  const areas = new Array(classes.length).fill(0);
  for (const id of last.ids) areas[id]++;
  const rows = [...$("legend").tBodies[0].rows];
  for (const row of rows) {
    const area = areas[row.dataset.id] / last.ids.length;
    const percent = area < 0.0005 ? "< 0.1" : (100 * area).toFixed(1);
    row.cells[1].textContent = area ? `${percent} %` : "–";
    row.classList.toggle("absent", !area);
  }
  if (camera) return; // rows that change places with every frame cannot be read
  rows.sort((a, b) => areas[b.dataset.id] - areas[a.dataset.id] || a.dataset.id - b.dataset.id);
  $("legend").tBodies[0].append(...rows);
}

function about(lines) {
  for (const [name, value] of Object.entries(lines)) {
    $("about").append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    );
  }
}

// --- files to keep ---------------------------------------------------------------------------------------------------

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let sum = -1;
  for (let i = 4; i < content.length + 8; i++) sum = CRC[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  view.setUint32(content.length + 8, ~sum);
  return bytes;
}

// A PNG of class ids as `segtune predict` writes it: a palette, or 16 bits of grey from 257 classes on.
async function maskFile() {
  const { width, height, ids } = last;
  const wide = classes.length > 256;
  const line = width * (wide ? 2 : 1) + 1;
  const rows = new Uint8Array(line * height); // each begins with 0, no filter
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const id = ids[y * width + x];
      if (wide) rows.set([id >> 8, id & 255], y * line + 1 + 2 * x);
      else rows[y * line + 1 + x] = id;
    }
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set(wide ? [16, 0] : [8, 3], 8);
  const palette = wide ? [] : [chunk("PLTE", Uint8Array.from(classes.flatMap(({ color }) => color)))];
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  return new Blob([signature, chunk("IHDR", header), ...palette, chunk("IDAT", data), chunk("IEND", [])], { type: "image/png" });
}

async function overlayFile() {
  const canvas = document.createElement("canvas");
  draw(canvas, $("picture"));
  const context = canvas.getContext("2d");
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage($("mask"), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = last.name.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- words and events ------------------------------------------------------------------------------------------------

const first = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 200);

function say(text) {
  $("status").textContent = text;
  $("error").hidden = true;
}

function tell(error) {
  $("status").textContent = "";
  $("error").textContent = first(error);
  $("error").hidden = false;
}

const guarded = (step) => (event) => Promise.resolve(step(event)).catch(tell);

function pick(files) {
  if (!files?.length || $("file").disabled) return undefined;
  stopCamera();
  return take(files[0]);
}

function listen() {
  $("file").addEventListener("change", guarded(async ({ target }) => {
    const files = [...target.files];
    target.value = ""; // so that the same file can be chosen again
    await pick(files);
  }));
  $("camera").addEventListener("click", guarded(async () => {
    if (camera) return stopCamera();
    return film().catch((error) => {
      stopCamera();
      throw error;
    });
  }));
  $("save-mask").addEventListener("click", guarded(async () => save(await maskFile(), ".mask.png")));
  $("save-overlay").addEventListener("click", guarded(async () => save(await overlayFile(), ".overlay.png")));
  $("opacity").addEventListener("input", ({ target }) => $("stage").style.setProperty("--opacity", target.value / 100));
  $("all").addEventListener("change", ({ target }) => {
    for (const box of $("legend").tBodies[0].querySelectorAll("input")) box.checked = target.checked;
    shown.fill(target.checked);
    if (last) paint();
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("stage").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("stage").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("stage").classList.remove("over");
    guarded(() => pick(event.dataTransfer.files))();
  });
  document.addEventListener("paste", guarded((event) => pick(event.clipboardData?.files)));
  $("stage").addEventListener("pointermove", ({ clientX, clientY }) => {
    if (!last) return;
    const box = $("stage").getBoundingClientRect();
    const x = Math.floor(((clientX - box.left) / box.width) * last.width);
    const y = Math.floor(((clientY - box.top) / box.height) * last.height);
    $("pointed").textContent = classes[last.ids[y * last.width + x]]?.name ?? "";
  });
  $("stage").addEventListener("pointerleave", () => ($("pointed").textContent = ""));
}

// --- the check: this browser must answer as the checkpoint does ------------------------------------------------------

async function verify() {
  const names = [settings.check, model.check];
  const [image, expected] = await Promise.all(names.map((name) => fetch(name, { cache: "no-cache" })));
  if (!image.ok || !expected.ok) throw new Error("the files of the check cannot be fetched from this server");
  const canvas = document.createElement("canvas");
  draw(canvas, await bitmap(await image.blob()));
  const picture = pixelsOf(canvas);
  const bytes = await expected.arrayBuffer();
  const pixels = new Uint8Array(bytes, 0, picture.pixels.length);
  if (pixels.some((value, i) => value !== picture.pixels[i])) {
    throw new Error("this browser changes the pixels that a page reads, as a protection against fingerprinting: allow this page to read canvases");
  }
  const { ids } = await worker.run(picture);
  const Ids = ids.constructor;
  const mask = new Ids(bytes.slice(pixels.length));
  let agreeing = 0;
  for (let i = 0; i < mask.length; i++) agreeing += mask[i] === ids[i];
  const share = agreeing / mask.length;
  if (!(share >= model.least)) {
    throw new Error(`this model is refused: its masks are wrong in this browser (${(100 * share).toFixed(2)} % of the check's pixels agree, ${100 * model.least} % must)`);
  }
  return share;
}

// The first model that is right here: one in 8-bit integers may not be, the one in float32 is the last.
async function choose() {
  let refused = "";
  for (model of settings.models) {
    try {
      say(`Loading the model (${(model.bytes / 1e6).toFixed(1)} MB) …`);
      await prepare();
      say("Checking the model …");
      return { share: await verify(), refused };
    } catch (error) {
      worker?.stop();
      worker = null;
      if (model === settings.models.at(-1)) throw error;
      refused = ` ${model.file} (${model.precision}) is not used: ${first(error)}`;
    }
  }
}

try {
  legend();
  about({ ...settings.about, Runtime: `ONNX Runtime Web ${settings.runtime.version}, WebAssembly` });
  const { share, refused } = await choose();
  about({ Computes: `in ${model.precision}`, "Agreement with the checkpoint": model.agreement });
  listen();
  $("file").disabled = $("camera").disabled = false;
  say(`Ready. Checked in this browser: ${(100 * share).toFixed(2)} % of the check's pixels agree.${refused}`);
} catch (error) {
  tell(error);
}
