// The page of `mixerflow view`: it asks the server, and shows what it answers.
"use strict";

const secret = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const png = (base64) => `data:image/png;base64,${base64}`;
const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const turns = new Map(); // of each section: only what was asked last is shown
const last = []; // the two images that were scored last, the older one first
let model, path;

// ---- the server
async function ask(route, body = {}) {
  const file = body instanceof Blob || body instanceof Uint8Array;
  const given = { method: "POST", headers: { "X-Secret": secret }, body: file ? body : JSON.stringify(body) };
  const lost = () => { throw new Error("no answer: is `mixerflow view` still running?"); };
  const response = await fetch(route, given).catch(lost), answer = await response.json().catch(lost);
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Work for a section: its error is the section's line, and an older answer than the last is dropped.
async function within(id, work) {
  const section = at(id), turn = (turns.get(id) ?? 0) + 1;
  const current = () => turns.get(id) === turn;
  turns.set(id, turn);
  section.setAttribute("aria-busy", "true");
  section.querySelector(".error").textContent = "";
  try {
    await work(current);
  } catch (error) {
    if (current()) section.querySelector(".error").textContent = error.message;
    if (current() && id === "one") at("map-words").textContent = "";
  } finally {
    if (current()) section.removeAttribute("aria-busy");
  }
}

// ---- words and elements
const figure = (value, digits = 3) => (value === null ? "not finite" : value.toFixed(digits));
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const picture = (base64, alt) => element("img", { className: "pixels", src: png(base64), alt });

// ---- an image
function scoreFile(file) {
  const [size, most] = [file?.size ?? 0, model.largest].map((each) => each.toLocaleString("en"));
  let wrong = file ? "" : "no file was given: drop an image file";
  if (file?.size > model.largest) wrong = `${size} bytes, and at most ${most} are taken: give a smaller file`;
  return wrong ? within("one", async () => { throw new Error(wrong); }) : scoreBytes(file, file.name);
}

function scoreBytes(body, name) {
  return within("one", async (current) => {
    const found = await ask(at("fit").checked ? "/score-fitted" : "/score", body);
    if (!current()) return;
    showScored(found, name);
    remember(found.image, name);
    await showMap(current);
  });
}

function showScored(found, name) {
  at("scored").hidden = false;
  Object.assign(at("image"), { src: png(found.image), alt: `The image as the model sees it: ${name}` });
  at("image-name").textContent = `${name}: ${found.done}`;
  at("bits").textContent = figure(found.bits_per_dim);
  const names = { flow: "the model, ideal", png: "PNG", webp: "WebP, lossless" };
  at("files").replaceChildren(...Object.entries(found.bytes).map(([key, bytes]) => {
    const shown = bytes === null ? "-" : bytes.toLocaleString("en", { maximumFractionDigits: 0 });
    const bits = bytes === null ? "-" : ((8 * bytes) / found.dims).toFixed(3);
    const head = element("th", { scope: "row", textContent: names[key] });
    return element("tr", {}, head, element("td", { textContent: shown }), element("td", { textContent: bits }));
  }));
  const [first] = found.scores, verdict = at("verdict");
  verdict.textContent = first ? judged(first) : model.thresholds;
  verdict.className = first ? (first.outlier ? "fails" : "holds") : "note";
  at("histograms").replaceChildren(...found.scores.flatMap(histogram));
  at("classes").hidden = !found.classes.length;
  at("class-bars").replaceChildren(...found.classes.map(bar));
}

function judged(score) {
  const words = score.outlier ? "An outlier" : "No outlier";
  const beside = score.outlier ? "beyond" : "within";
  const rare = `of images like the inside ones, at most ${percent(score.rarity)} score as high`;
  return `${words} by ${score.name}: ${figure(score.value)} is ${beside} the threshold ${figure(score.threshold)}; ${rare}.`;
}

function bar([name, probability]) {
  const fill = element("span");
  fill.style.width = `${100 * probability}%`; // null is 0
  const share = probability === null ? "not finite" : percent(probability);
  return element("li", { className: probability > 0.5 ? "sure" : "" }, element("span", { textContent: name }),
    element("span", { className: "track", ariaHidden: "true" }, fill),
    element("span", { className: "share", textContent: share }));
}

async function showMap(current) {
  at("map-figure").hidden = !model.maps.length;
  if (!model.maps.length) return;
  const kind = at("map-kind").value, [image] = last.slice(-1);
  Object.assign(at("map"), { src: png(image.image), alt: "The image, before its map is computed" });
  at("map-words").textContent = "Computing the map ...";
  const found = await ask("/map", { image: image.image, map: kind });
  if (!current()) return;
  Object.assign(at("map"), { src: png(found.map), alt: `Map ${kind} over the image: hot where the model finds it unlikely` });
  at("map-words").textContent = found.words;
}

// A histogram of inside images' scores, with the threshold and the image's own place.
function histogram(score) {
  const [width, height, top] = [420, 92, 38], most = Math.max(...score.counts, 1);
  const place = (value) => (width * (value - score.low)) / (score.high - score.low || 1);
  const step = width / score.counts.length;
  const bins = score.counts.map((count, i) => {
    const beyond = score.low + ((i + 0.5) * (score.high - score.low)) / score.counts.length > score.threshold;
    const tall = (height * count) / most;
    return drawn("rect", { class: beyond ? "bin beyond" : "bin", x: i * step, width: step - 1, y: top + height - tall, height: tall });
  });
  const limit = place(score.threshold), value = score.value ?? score.high;
  const here = Math.min(Math.max(place(value), 0), width);
  const own = `${value < score.low ? "← " : ""}${figure(score.value)}${value > score.high ? " →" : ""}`;
  const anchor = (x) => (x < 60 ? "start" : x > width - 60 ? "end" : "middle");
  const ends = [[0, "start", score.low], [width, "end", score.high]].map(([x, side, shown]) =>
    drawn("text", { x, y: top + height + 17, "text-anchor": side }, figure(shown, 2)));
  const label = `Histogram of ${score.name} of ${score.images} inside images, from ${figure(score.low)} to ` +
    `${figure(score.high)}; threshold ${figure(score.threshold)}; this image ${figure(score.value)}`;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${top + height + 22}`, role: "img", "aria-label": label }, ...bins,
    drawn("line", { class: "axis", x1: 0, x2: width, y1: top + height, y2: top + height }),
    drawn("line", { class: "limit", x1: limit, x2: limit, y1: top - 4, y2: top + height }),
    drawn("text", { class: "limit-words", x: limit, y: top - 8, "text-anchor": anchor(limit) }, `threshold ${figure(score.threshold)}`),
    drawn("line", { class: "mark", x1: here, x2: here, y1: top - 22, y2: top + height }),
    drawn("text", { x: here, y: 12, "text-anchor": anchor(here) }, `this image ${own}`), ...ends);
  const title = `${score.name === "bits" ? "bits/dim" : score.name} of ${score.images.toLocaleString("en")} inside images`;
  return [element("h3", { textContent: title }), element("p", { className: "note", textContent: score.equation }), svg];
}

const showExample = () => within("one", async (current) => {
  const found = await ask("/example", { number: Math.floor(Math.random() * model.examples) });
  if (current()) await scoreBytes(bytesOf(found.image), found.name);
});

function remember(image, name) {
  last.push({ image, name });
  if (last.length > 2) last.shift();
  last.forEach((each, i) => {
    const id = i ? "second" : "first";
    Object.assign(at(id), { src: png(each.image), alt: each.name, hidden: false });
    at(`${id}-name`).textContent = each.name;
  });
  at("go").disabled = last.length < 2;
  at("find").disabled = !model.searched;
}

// ---- samples
function draw() {
  return within("draw", async (current) => {
    const [temperature, seed] = [at("temperature").valueAsNumber, at("seed").valueAsNumber];
    const asked = { number: 16, temperature, seed, label: Number(at("label").value) };
    const found = await ask("/samples", asked);
    if (!current()) return;
    at("samples-words").textContent = `${found.words}. Choose one to score it.`;
    at("samples").replaceChildren(...found.images.map((image, i) => {
      const turn = model.classes[asked.label < 0 ? i % (model.classes.length || 1) : asked.label];
      const name = `sample ${i + 1} of seed ${asked.seed}${model.inTurn || asked.label >= 0 ? `, ${turn}` : ""}`;
      const button = element("button", { type: "button", title: name }, picture(image, `Score ${name}`));
      button.addEventListener("click", () => scoreBytes(bytesOf(image), name).then(() => at("one").scrollIntoView()));
      return button;
    }));
  });
}

// ---- a path
function interpolate() {
  return within("walk", async (current) => {
    const [first, second] = last;
    const found = await ask("/path", { first: first.image, second: second.image, way: at("way").value, number: 11 });
    if (!current()) return;
    path = found;
    at("path").hidden = false;
    at("path-words").textContent = `${found.words}.`;
    at("film").setAttribute("aria-label", `${found.images.length} images from ${first.name} to ${second.name}`);
    at("film").replaceChildren(...found.images.map((image) => picture(image, "")));
    at("path-plot").replaceChildren(curve(found.bits_per_dim));
    at("place").max = found.images.length - 1;
    showPlace();
  });
}

function showPlace() {
  const i = at("place").valueAsNumber, count = path.images.length;
  const words = `${i + 1} of ${count}, ${figure(path.bits_per_dim[i])} bits/dim`;
  Object.assign(at("frame"), { src: png(path.images[i]), alt: `Image ${words}` });
  at("place-shown").textContent = words;
  at("place").setAttribute("aria-valuetext", words);
  [...at("film").children].forEach((each, j) => each.classList.toggle("here", i === j));
  const mark = at("path-plot").querySelector(".mark"), dots = at("path-plot").querySelectorAll(".dot");
  for (const name of ["cx", "cy"]) mark.setAttribute(name, dots[i].getAttribute(name));
}

// Bits/dim along a path.
function curve(values) {
  const known = values.filter((value) => value !== null), [width, height, top] = [420, 80, 24];
  const low = Math.min(...known), high = Math.max(...known);
  const x = (i) => ((i + 0.5) * width) / values.length;
  const y = (value) => top + height * (1 - ((value ?? high) - low) / (high - low || 1));
  const points = values.map((value, i) => [x(i), y(value)]);
  const label = `Bits/dim along the path: ${values.map((value) => figure(value, 2)).join(", ")}`;
  return drawn("svg", { viewBox: `0 0 ${width} ${top + height + 8}`, role: "img", "aria-label": label },
    drawn("text", { x: 0, y: 12 }, `bits/dim, ${figure(low, 2)} to ${figure(high, 2)}`),
    drawn("polyline", { class: "curve", points: points.join(" ") }),
    ...points.map(([cx, cy]) => drawn("circle", { class: "dot", cx, cy, r: 1 })),
    drawn("circle", { class: "mark", r: 4 }));
}

// ---- neighbours
function findNeighbours() {
  return within("near", async (current) => {
    const [image] = last.slice(-1);
    let found;
    do {
      found = await ask("/neighbours", { image: image.image, number: 8 });
      if (!current()) return;
      at("progress-field").hidden = !found.total;
      at("progress").value = found.done / found.total || 0;
      at("progress-shown").textContent = `${found.done} of ${found.total}`;
    } while (found.total);
    for (const [id, rows, unit] of [["by-latents", found.latents, "°"], ["by-pixels", found.pixels, ""]]) {
      at(id).replaceChildren(...rows.map(({ image: shown, name, distance }) => {
        const far = element("b", { textContent: figure(distance, 1) + unit });
        return element("figure", {}, picture(shown, name), element("figcaption", {}, far, ` ${name}`));
      }));
    }
    at("near-words").textContent = `Neighbours of ${image.name}, ${found.words}. ` +
      "In the latents: the angle. By pixels: the root of the mean squared difference, in levels.";
    at("neighbours").hidden = false;
  });
}

// ---- the page
async function begin() {
  model = await ask("/about");
  const [channels, height, width] = model.shape;
  const facts = Object.fromEntries(model.facts);
  document.title = `${model.title} - mixerflow view`;
  at("title").textContent = model.title;
  at("summary").textContent = [facts.recipe, facts.images, `${facts.parameters} parameters`, facts["bits/dim"]].join(" · ");
  at("shape").textContent = `${width} x ${height}${channels === 1 ? ", grey" : ""}`;
  at("example").hidden = !model.examples;
  at("map-kind").replaceChildren(...model.maps.map((kind) => new Option(kind)));
  at("label").replaceChildren(new Option(model.inTurn ? "all in turn" : "any", -1), ...model.classes.map((name, i) => new Option(name, i)));
  at("label-field").hidden = !model.classes.length;
  at("near-note").textContent = model.searched
    ? `Among ${model.searched.toLocaleString("en")} images of ${model.set}.`
    : "No images beside the model: start the page with --data SET.";
  at("facts").replaceChildren(...[...model.facts, ["thresholds", model.thresholds]].flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  listen();
  await draw();
}

function listen() {
  at("file").addEventListener("change", (event) => { scoreFile(event.target.files[0]); event.target.value = ""; });
  at("example").addEventListener("click", showExample);
  at("map-kind").addEventListener("change", () => within("one", showMap));
  at("temperature").addEventListener("input", () => { at("temperature-shown").textContent = Number(at("temperature").value).toFixed(2); });
  for (const id of ["temperature", "label", "seed"]) at(id).addEventListener("change", draw);
  at("again").addEventListener("click", () => { at("seed").value = (at("seed").valueAsNumber || 0) + 1; draw(); });
  at("go").addEventListener("click", interpolate);
  at("place").addEventListener("input", showPlace);
  at("film").addEventListener("click", (event) => { // the slider does the same for keys
    const place = [...at("film").children].indexOf(event.target);
    if (place >= 0) { at("place").value = place; showPlace(); }
  });
  at("find").addEventListener("click", findNeighbours);
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // or the browser would open the file
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop") scoreFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", ({ clipboardData: { files } }) => { if (files.length) scoreFile(files[0]); });
}

within("one", begin);
