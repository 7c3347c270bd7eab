// The page: sends a study, follows its progress, and shows its slices with saliency maps and the scores of disorders.
//
// - Only the extension of a file name is sent. Files that belong together (.hdr and .img) share a number. Of a header that
//   names the files of its pixels (.mhd, .nhdr), the names that stand in it are sent with their numbers.
// - Slices are loaded as sheets, those near the shown slice first. Sheets are kept as JPEG; the few in use are decoded.
// - A map is a coarse grid for each slice that the model read; the map of a volume is resampled over slices. It is
//   interpolated and coloured here, as `radfm.eval.saliency` does, so that choosing another disorder or slice does not
//   wait for the server.
// - Of a volume, the planes across its slices are pictures: they show the peak of the map, and where the slice lies.

const settings = JSON.parse(document.getElementById("settings").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = [[0, 88, 24, 130], [0.4, 212, 62, 80], [0.7, 250, 150, 40], [1, 252, 240, 130]];
const OPACITY = 0.62; // of a map, at most
const GRID = 64; // points on each side of a drawn map
const DECODED = 6; // sheets
const FETCHES = 3; // simultaneous requests
const MEGA = 1e6;

let token = null, study = null, viewer = null, running = null;

// --- making elements -------------------------------------------------------------------------------------------------

const SVG = new Set(["svg", "image", "rect", "line", "text"]);

function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width" && !SVG.has(tag)) element.style.width = value;
    else if (name === "left") element.style.left = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const many = (n, noun, plural = `${noun}s`) => `${n.toLocaleString("en")} ${n === 1 ? noun : plural}`;
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);
const score = (diagnosis) => (diagnosis.calibrated ? percent(diagnosis.score) : diagnosis.score < 0.001 ? diagnosis.score.toExponential(0) : diagnosis.score.toFixed(3));
const state = (name) => (document.body.dataset.state = name);

// --- sending a study -------------------------------------------------------------------------------------------------

// [[number and extension, file], ...], in natural order of the paths.
function numbered(files) {
  const natural = new Intl.Collator("en", { numeric: true });
  const sorted = [...files].map((file) => [file.webkitRelativePath || file.path || file.name, file]);
  sorted.sort((a, b) => natural.compare(a[0], b[0]));
  const numbers = new Map(), taken = new Set(), list = [];
  for (const [path, file] of sorted) {
    const leaf = path.split("/").pop();
    if (leaf.startsWith(".") || /^(thumbs\.db|desktop\.ini)$/i.test(leaf)) continue;
    const extension = (/(\.(nii|hdr|img)\.gz|\.[a-z0-9]{1,8})$/i.exec(leaf)?.[0] ?? "").toLowerCase();
    const stem = path.slice(0, path.length - extension.length);
    if (!numbers.has(stem)) numbers.set(stem, numbers.size + 1);
    let name = `${numbers.get(stem)}${extension}`;
    if (taken.has(name)) {
      numbers.set(stem, numbers.size + 1 + taken.size);
      name = `${numbers.get(stem)}${extension}`;
    }
    taken.add(name);
    list.push([name, file]);
  }
  return list;
}

// { header: { name in it: number and extension } } of all headers that name the files of their pixels.
async function pixelNames(list) {
  const path = (file) => (file.webkitRelativePath || file.path || file.name).replace(/^\//, "");
  const numbers = new Map(list.map(([name, file]) => [path(file).toLowerCase(), name])), names = {};
  for (const [header, file] of list.filter(([name]) => /\.(mhd|nhdr)$/.test(name))) {
    const [, first, rest] = /^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(.*)([^]*)/im.exec(await file.slice(0, MEGA).text()) ?? ["", "", ""];
    for (const named of [first, ...(/^LIST/i.test(first) ? rest.split("\n") : [])].map((line) => line.trim()).filter(Boolean)) {
      const parts = path(file).split("/").slice(0, -1);
      for (const part of named.split(/[\\/]/)) part === ".." ? parts.pop() : part !== "." && parts.push(part);
      const number = numbers.get(parts.join("/").toLowerCase());
      if (number) (names[header] ??= {})[named] = number;
    }
  }
  return names;
}

async function send(files) {
  const list = numbered(files);
  const total = list.reduce((sum, [, file]) => sum + file.size, 0);
  if (!list.length) return refuse("There is no file in what you dropped.");
  if (list.length > settings.files) return refuse(`The study has ${many(list.length, "file")}, and this page accepts up to ${settings.files.toLocaleString("en")}: drop one series, or fewer.`);
  if (total > settings.megabytes * MEGA) return refuse(`The study has ${Math.round(total / MEGA).toLocaleString("en")} MB, and this page accepts up to ${settings.megabytes.toLocaleString("en")} MB: drop one series, or fewer.`);
  const header = { files: list.map(([name, file]) => [name, file.size]), modality: $("modality").value || null, history: $("history").value.trim() || null, names: await pixelNames(list) };
  const body = new Blob([JSON.stringify(header), "\n", ...list.map(([, file]) => file)]);
  $("error").hidden = true;
  state("busy");
  progress("Sending", 0, total, `${many(list.length, "file")}, ${(total / MEGA).toFixed(1)} MB`);
  const upload = new XMLHttpRequest(); // fetch does not report the progress of an upload
  running = { stop: () => upload.abort() };
  upload.upload.onprogress = (event) => progress("Sending", event.loaded, event.total);
  upload.onload = () => {
    const answer = parsed(upload.responseText);
    if (upload.status === 200) follow(answer.study);
    else refuse(sentence(answer?.reason ?? "the server did not accept the study"));
  };
  upload.onerror = () => refuse("The connection broke while the study was sent. Try again, or drop fewer files.");
  upload.onabort = () => state("empty");
  upload.open("POST", "study");
  upload.send(body);
}

// A study that the server has: it is diagnosed as one that was sent.
async function tryExample(example) {
  $("error").hidden = true;
  state("busy");
  progress("Waiting", 0, 0, example.title);
  const response = await fetch("example", { method: "POST", body: example.name }).catch(() => null);
  const answer = response && parsed(await response.text());
  if (response?.ok) follow(answer.study, example);
  else refuse(sentence(answer?.reason ?? "the connection to the server broke"));
}

// Listens to the progress of a study, which the server sends as events, until it is answered or refused.
async function follow(studyToken, example = null) {
  const connection = new AbortController();
  running = { stop: () => { connection.abort(); running = null; forget(studyToken); state("empty"); } };
  progress("Waiting", 0, 0);
  let last = null;
  try {
    const response = await fetch("progress", { headers: { "X-Study": studyToken }, signal: connection.signal });
    if (!response.ok) return refuse(sentence((await reason(response)) ?? "the study was deleted"));
    for await (const event of events(response.body)) show(last = event);
  } catch {
    if (connection.signal.aborted) return;
  }
  if (last?.stage === "refused") return refuse(sentence(last.reason));
  if (last?.stage !== "answered") return refuse("The connection to the server broke. Drop the study again.");
  running = null;
  token = studyToken;
  const answer = await request("answer").catch(() => null);
  answer ? open(await answer.json(), example) : refuse("The answer was deleted. Drop the study again.");
}

// Server-sent events, each one JSON; fetch in place of EventSource, which cannot send the token in a header.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
  }
}

function show({ stage, done, total }) {
  if (stage === "waiting") progress("Waiting", 0, 0, total ? `${many(total, "study", "studies")} before yours` : "yours is next");
  if (stage === "opening") progress("Opening the study", 0, 0);
  if (stage === "reading") progress("Reading", done, total, `${done.toLocaleString("en")} of ${many(total, "file")}`);
  if (stage === "diagnosing") progress("Diagnosing", 0, 0, many(total, "slice"));
  if (stage === "mapping") progress("Computing saliency maps", 0, 0, many(total, "slice"));
  if (stage === "rendering") progress("Rendering slices", done, total, many(total, "slice"));
}

function progress(title, done, total, detail) {
  $("stage").textContent = title;
  $("done").parentElement.classList.toggle("endless", !total);
  $("done").style.width = total ? `${(100 * done) / total}%` : "";
  if (detail !== undefined) $("detail").textContent = detail || "\u00a0";
}

function refuse(message) {
  running = null;
  $("error").textContent = message;
  $("error").hidden = false;
  state("empty");
}

const parsed = (text) => { try { return JSON.parse(text); } catch { return null; } };
const sentence = (text) => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");
const forget = (studyToken) => navigator.sendBeacon("forget", studyToken);
const reason = async (response) => parsed(await response.text())?.reason;

async function request(address, options = {}) {
  const response = await fetch(address, { ...options, headers: { "X-Study": token, ...options.headers } });
  if (response.status === 410) leave("This study was deleted because it was not used for a while. Drop it again.");
  if (!response.ok && response.status !== 422) throw new Error(response.status);
  return response;
}

function leave(message) {
  if (token) forget(token);
  viewer?.close();
  token = study = viewer = null;
  for (const id of ["files", "folder", "name", "history"]) $(id).value = "";
  $("typed").replaceChildren();
  $("error").hidden = true;
  state("empty");
  if (message) refuse(message);
}

// --- disorders -------------------------------------------------------------------------------------------------------

function open(answer, example) {
  study = answer;
  $("example").hidden = !example;
  if (example) $("example").replaceChildren(make("b", {}, `${example.title}.`), ` Its collection states: ${example.disorders}.`, make("small", {}, example.credit));
  $("diagnoses").replaceChildren(...study.diagnoses.map((diagnosis, i) => row(diagnosis, i + 1)));
  $("typed").replaceChildren();
  $("name-error").hidden = true;
  $("score-help").firstElementChild.textContent = study.calibrated ? "Scores are probabilities" : "Scores rank disorders and are not probabilities";
  $("score-help").lastElementChild.textContent = scoreHelp();
  $("warnings").replaceChildren(...warnings());
  $("skipped").hidden = !study.skipped.length;
  $("skipped").firstElementChild.textContent = `${many(study.skipped.length, "file")} skipped`;
  $("skipped").lastElementChild.replaceChildren(...study.skipped.map(([file, cause]) => make("li", {}, `file ${file}: ${cause}`)));
  const { reading, model } = study.seconds;
  $("facts").textContent = `${many(study.scans.length, "scan")}, ${many(study.slices, "slice")}: read in ${reading.toFixed(1)} s, diagnosed in ${model.toFixed(1)} s. The model's vocabulary has ${many(study.vocabulary, "disorder")}. ${study.training_data}`;
  $("disorder").replaceChildren(...study.explained.map((name, i) => make("option", { value: i }, name)));
  state("study");
  viewer = new Viewer(study);
  scrollTo(0, 0);
}

function scoreHelp() {
  const sentences = [];
  if (study.out_of_distribution) sentences.push("The study is out of distribution: scores rank disorders and are not probabilities, and no threshold is valid.");
  else if (study.calibrated) sentences.push("Scores of the model's vocabulary are calibrated; scores of other names are not.");
  else sentences.push("The model is not calibrated: scores rank disorders and are not probabilities.");
  if (study.diagnoses.some((diagnosis) => diagnosis.threshold !== null)) sentences.push("A line on a bar is the disorder's threshold.");
  if (study.sets) {
    const share = `${Math.round(100 * study.sets.coverage)}%`;
    const promise = study.sets.guarantee === "all" ? `in ${share} of cases it contains all disorders of the case` : `on average it contains ${share} of a case's disorders`;
    sentences.push(`The prediction set contains the disorders that cannot be ruled out: ${promise}, if patients are like those it was fitted to.`);
  }
  if (study.p_value !== null && !study.out_of_distribution) sentences.push(`The study is not out of distribution: ${percent(study.p_value)} of the validation cases are at least as far from the training data.`);
  return sentences.join(" ");
}

function warnings() {
  const loud = study.alerts.map((alert) => make("div", { class: "loud", role: "alert" }, alert));
  if (!study.warnings.length) return loud;
  const items = study.warnings.map(([scans, text]) => make("li", {}, make("b", {}, scans), `: ${text}.`));
  return [...loud, make("div", { class: "careful", role: "alert" }, make("b", {}, "Check the scans: the answer may mean nothing"), make("ul", {}, ...items))];
}

function row(diagnosis, rank, remove = null) {
  const explained = remove ? -1 : study.explained.indexOf(diagnosis.label);
  const bar = make("div", { class: "bar", role: "img", "aria-label": `score ${score(diagnosis)}` }, make("i", { width: `${100 * diagnosis.score}%` }));
  if (diagnosis.threshold !== null) bar.append(make("b", { left: `${100 * diagnosis.threshold}%`, title: `threshold ${percent(diagnosis.threshold)}` }));
  const badges = make("div", { class: "badges" });
  if (diagnosis.above) badges.append(make("span", { class: "above" }, "above threshold"));
  if (diagnosis.in_set) badges.append(make("span", {}, "in the prediction set"));
  if (!diagnosis.known) badges.append(make("span", {}, "not in the model's vocabulary"));
  if (study.calibrated && !diagnosis.calibrated) badges.append(make("span", {}, "not calibrated"));
  if (explained >= 0) badges.append(make("button", { type: "button", class: "quiet", onclick: () => viewer.show(explained) }, "show on the images"));
  const codes = diagnosis.codes.map((code) => {
    const name = make("summary", {}, make("code", {}, code.code), ` ${code.description ?? "not in this edition of ICD-10-CM"}`);
    const includes = code.terms.length ? make("p", {}, `Includes: ${code.terms.join("; ")}${code.more ? `; and ${code.more} more` : ""}`) : null;
    const path = code.path.length ? make("p", {}, code.path.join(" › ")) : null;
    return make("details", rank === 1 || !diagnosis.definition ? { open: "" } : {}, name, path, includes);
  });
  if (!codes.length) codes.push(make("p", { class: "soft" }, "no ICD-10-CM code known"));
  if (diagnosis.orpha.length) codes.push(make("p", {}, ...diagnosis.orpha.flatMap((code) => [make("code", {}, code), " "]), "rare disease, by Orphanet"));
  const removal = remove && make("button", { type: "button", "aria-label": `Remove ${diagnosis.label}`, onclick: remove }, "×");
  const number = rank ? make("span", { class: "rank" }, rank) : null;
  const head = make("div", { class: "head" }, number, make("span", { class: "label" }, diagnosis.label), make("span", { class: "score" }, score(diagnosis)), removal);
  const definition = diagnosis.definition && make("p", { class: "definition" }, diagnosis.definition.of && `${diagnosis.definition.of}: `, diagnosis.definition.text, make("small", {}, ` (${diagnosis.definition.source})`));
  return make("li", {}, head, bar, badges.children.length ? badges : null, ...codes, definition);
}

async function scoreNames(body) {
  const response = await request("names", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const answer = await response.json();
  $("name-error").hidden = !answer.reason;
  if (answer.reason) return void ($("name-error").textContent = sentence(answer.reason));
  $("name").value = "";
  $("typed").replaceChildren(...answer.diagnoses.map((diagnosis) => row(diagnosis, 0, () => scoreNames({ remove: diagnosis.label }))));
}

async function download() {
  const page = await (await request("report")).blob();
  const link = make("a", { href: URL.createObjectURL(page), download: "case.html" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- the slices ------------------------------------------------------------------------------------------------------

class Sheets {
  constructor(scans, arrived) {
    Object.assign(this, { scans, arrived, blobs: new Map(), decoded: new Map(), queue: [], fetching: 0, closed: false });
  }

  // The sheet as a bitmap if it is decoded; otherwise starts to decode it.
  get(scan, window, sheet) {
    const key = `${scan}/${window}/${sheet}`;
    const bitmap = this.decoded.get(key);
    if (!bitmap) return void this.decode(key);
    this.decoded.delete(key);
    this.decoded.set(key, bitmap); // the latest is the last
    return bitmap;
  }

  load(scan, window, sheet) {
    const { slices, per_sheet } = this.scans[scan];
    const order = [...Array(Math.ceil(slices / per_sheet)).keys()].sort((a, b) => Math.abs(a - sheet) - Math.abs(b - sheet));
    this.queue = order.map((one) => `${scan}/${window}/${one}`).filter((key) => !this.blobs.has(key));
    this.fetch();
  }

  async decode(key) {
    const blob = this.blobs.get(key);
    if (!(blob instanceof Blob) || blob.decoding) return;
    blob.decoding = true;
    const bitmap = await createImageBitmap(blob);
    blob.decoding = false;
    if (this.closed) return bitmap.close();
    this.decoded.set(key, bitmap);
    for (const [oldest, old] of this.decoded) {
      if (this.decoded.size <= DECODED) break;
      this.decoded.delete(oldest);
      old.close();
    }
    this.arrived();
  }

  async fetch() {
    while (!this.closed && this.fetching < FETCHES && this.queue.length) {
      const key = this.queue.shift();
      if (this.blobs.has(key)) continue;
      this.blobs.set(key, null);
      this.fetching++;
      request(`sheet/${key}`)
        .then((response) => response.blob())
        .then((blob) => { this.blobs.set(key, blob); this.arrived(); })
        .catch(() => this.blobs.delete(key))
        .finally(() => { this.fetching--; this.fetch(); });
    }
  }

  close() {
    this.closed = true;
    for (const bitmap of this.decoded.values()) bitmap.close();
    this.blobs.clear();
    this.decoded.clear();
  }
}

class Viewer {
  constructor({ scans, heaviest }) {
    this.scans = scans;
    this.at = scans.map((scan) => scan.key); // the slice of each scan
    this.windows = scans.map(() => 0);
    this.maps = new Map(); // disorder -> bytes
    this.disorder = 0;
    this.shows_map = true;
    this.small = document.createElement("canvas");
    this.sheets = new Sheets(scans, () => this.draw());
    this.frame = 0;
    const starts = scans.map((scan) => scan.map[0] * scan.map[1] * scan.map[2]);
    this.starts = starts.map((_, i) => starts.slice(0, i).reduce((a, b) => a + b, 0));
    $("scans").replaceChildren(...scans.map((scan, i) => this.tab(scan, i, i === heaviest)));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe($("viewport"));
    this.resized.observe($("curve"));
    $("map").setAttribute("aria-pressed", "true");
    this.choose(heaviest);
    this.explain(0);
  }

  close() {
    this.resized.disconnect();
    this.sheets.close();
    cancelAnimationFrame(this.frame);
  }

  tab(scan, i, heaviest) {
    const known = scan.modality === "modality unknown" ? null : scan.modality;
    const what = [known, scan.plane].filter(Boolean).join(", ") || "scan";
    const weight = make("span", { class: "weight", title: `weight in the case: ${percent(scan.weight)}` }, make("i", { width: `${100 * scan.weight}%` }));
    return make("button", { type: "button", role: "tab", class: heaviest ? "heaviest" : null, onclick: () => this.choose(i) },
      make("span", {}, `${i + 1}  ${what}`), make("small", { class: "soft" }, `${many(scan.slices, "slice")} · weight ${percent(scan.weight)}`), weight);
  }

  get scan() { return this.scans[this.chosen]; }

  choose(i) {
    this.chosen = i;
    [...$("scans").children].forEach((tab, j) => tab.setAttribute("aria-selected", i === j));
    $("scans").children[i].scrollIntoView({ block: "nearest", inline: "nearest" });
    const { slices, windows } = this.scan;
    $("position").max = slices - 1;
    $("scrub").hidden = slices === 1;
    $("key").hidden = $("curve").hidden = slices === 1 || Boolean(this.scan.volume);
    $("viewport").classList.toggle("single", slices === 1);
    $("windows").replaceChildren(...windows.map(({ name, range }, j) =>
      make("button", { type: "button", title: `${range[0]} to ${range[1]} HU`, onclick: () => this.window(j) }, name)));
    this.window(this.windows[i]);
    this.across();
  }

  // The two planes across the slices of a volume, through the peak of the map. A click goes to the slice at that place.
  across() {
    const views = this.scan?.planes[this.disorder] ?? [];
    $("across").hidden = !views.length;
    $("across").replaceChildren(...views.map((view) => {
      const { width, height, windows, edges } = view, line = make("line");
      const picture = make("svg", { viewBox: `0 0 ${width} ${height}` },
        make("image", { href: this.shows_map ? view.overlaid : view.plain, width, height }),
        ...windows.map(([x, y, w, h]) => make("rect", { x, y, width: w, height: h })), line,
        ...(edges ? [make("text", { x: width / 2, y: 20 }, edges[0]), make("text", { x: 14, y: height / 2 + 7 }, edges[1])] : []));
      const move = (event) => {
        if (event.type === "pointermove" && !event.buttons) return;
        const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
        const share = view.slices.down ? y / height : x / width;
        this.go(this.scan.slices * (view.slices.flipped ? 1 - share : share) - 0.5);
      };
      const name = `${view.plane[0].toUpperCase()}${view.plane.slice(1)}, ${view.slice} of ${view.of}`;
      return make("figure", { "aria-label": name, onpointerdown: move, onpointermove: move }, picture, make("figcaption", {}, name));
    }));
    this.draw();
  }

  // Marks the shown slice in the planes across.
  mark(scan, slice) {
    for (const [i, figure] of [...$("across").children].entries()) {
      const { width, height, slices } = scan.planes[this.disorder][i], share = (slice + 0.5) / scan.slices;
      const at = (slices.flipped ? 1 - share : share) * (slices.down ? height : width);
      const ends = slices.down ? { x1: 0, x2: width, y1: at, y2: at } : { x1: at, x2: at, y1: 0, y2: height };
      for (const [name, value] of Object.entries(ends)) figure.querySelector("line").setAttribute(name, value);
    }
  }

  window(j) {
    this.windows[this.chosen] = j;
    [...$("windows").children].forEach((button, k) => button.setAttribute("aria-pressed", j === k));
    this.go(this.at[this.chosen]);
  }

  go(slice) {
    slice = Math.min(Math.max(Math.round(slice), 0), this.scan.slices - 1);
    this.at[this.chosen] = slice;
    $("position").value = slice;
    this.sheets.load(this.chosen, this.windows[this.chosen], Math.floor(slice / this.scan.per_sheet));
    this.draw();
  }

  // Goes to the slice where the map of a disorder is brightest.
  show(disorder) {
    const scan = study.brightest[disorder], peak = this.scans[scan].peaks[disorder];
    this.explain(disorder);
    this.choose(scan);
    if (peak !== null) this.go(peak);
    $("viewport").scrollIntoView({ block: "nearest" });
  }

  async explain(disorder) {
    this.disorder = disorder;
    this.toggle(true);
    $("disorder").value = disorder;
    if (!this.maps.has(disorder)) {
      const bytes = await request(`maps/${disorder}`).then((response) => response.arrayBuffer()).catch(() => null);
      if (!bytes) return;
      this.maps.set(disorder, new Uint8Array(bytes));
    }
    this.draw();
  }

  toggle(shows = !this.shows_map) {
    this.shows_map = shows;
    this.across();
    $("map").setAttribute("aria-pressed", shows);
    $("legend").hidden = !shows;
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    if (this.sheets.closed) return;
    const scan = this.scan, slice = this.at[this.chosen], window = this.windows[this.chosen];
    const sheet = Math.floor(slice / scan.per_sheet), within = slice % scan.per_sheet;
    const bitmap = this.sheets.get(this.chosen, window, sheet);
    for (const near of [sheet + 1, sheet - 1]) if (this.sheets.blobs.get(`${this.chosen}/${window}/${near}`)) this.sheets.get(this.chosen, window, near);
    this.label(scan, slice, window);
    this.mark(scan, slice);
    this.curve(scan, slice);
    const shown = `${this.chosen}/${window}`;
    if (!bitmap && this.last === shown) return; // keep the previous slice until this one is loaded
    this.last = shown;
    const [context, width, height] = fitted($("slice"));
    context.clearRect(0, 0, width, height);
    if (!bitmap) return;
    const scale = Math.min(width / scan.width, height / scan.height);
    const [w, h] = [scan.width * scale, scan.height * scale], [x, y] = [(width - w) / 2, (height - h) / 2];
    context.imageSmoothingQuality = "medium";
    context.drawImage(bitmap, (within % scan.columns) * scan.width, Math.floor(within / scan.columns) * scan.height, scan.width, scan.height, x, y, w, h);
    const map = this.maps.get(this.disorder);
    if (this.shows_map && map) context.drawImage(this.coloured(map, scan, slice), x, y, w, h);
    this.outline(context, scan, slice, [x, y, w, h]);
    $("slice").dataset.shown = `${this.chosen}/${slice}`;
  }

  // The windows of a volume that the model read of a slice, as in the planes across.
  outline(context, scan, slice, [x, y, w, h]) {
    context.strokeStyle = "#6fd3ea";
    context.lineWidth = h / context.canvas.clientHeight > 1 ? 3 : 1.5;
    context.setLineDash([7, 5].map((length) => length * (context.lineWidth / 1.5)));
    for (const [[first, last], [top, bottom], [left, right]] of scan.read) {
      const whole = Math.min(bottom - top, right - left) > 0.97;
      if (first * scan.slices < slice + 1 && slice < last * scan.slices && !whole) context.strokeRect(x + left * w, y + top * h, (right - left) * w, (bottom - top) * h);
    }
  }

  // The map of one slice in colour, over the scan's part of the square that the model read.
  coloured(map, scan, slice) {
    const [, rows, columns] = scan.map, [top, left, height, width] = scan.part;
    const [below, above, share] = between(scan.taken, slice);
    const first = this.starts[this.chosen] + below * rows * columns, second = this.starts[this.chosen] + above * rows * columns;
    const value = (r, c) => (map[first + r * columns + c] * (1 - share) + map[second + r * columns + c] * share) / 255;
    this.small.width = this.small.height = GRID;
    const context = this.small.getContext("2d"), image = context.createImageData(GRID, GRID);
    for (let i = 0, at = 0; i < GRID; i++) {
      const y = top + ((i + 0.5) / GRID) * height, [r0, r1, rs] = cell(y * rows, rows);
      for (let j = 0; j < GRID; j++, at += 4) {
        const x = left + ((j + 0.5) / GRID) * width, [c0, c1, cs] = cell(x * columns, columns);
        const cropped = Math.min(x, y) < 0 || Math.max(x, y) > 1;
        const v = cropped ? 0 : (value(r0, c0) * (1 - cs) + value(r0, c1) * cs) * (1 - rs) + (value(r1, c0) * (1 - cs) + value(r1, c1) * cs) * rs;
        colour(v, image.data, at);
      }
    }
    context.putImageData(image, 0, 0);
    return this.small;
  }

  label(scan, slice, window) {
    $("scan-label").textContent = [`Scan ${scan.number}: ${scan.modality}`, scan.plane, scan.body_part].filter(Boolean).join(", ");
    $("slice-label").textContent = scan.slices === 1 ? "one slice" : `slice ${slice + 1} of ${scan.slices}${slice === scan.key && !scan.volume ? ", key slice" : ""}`;
    const { name, range } = scan.windows[window];
    $("window-label").textContent = [name && `${name}, ${range[0]} to ${range[1]} HU`.replaceAll("-", "−"), scan.spacing].filter(Boolean).join(" · ");
    const peak = scan.peaks[this.disorder], disorder = study.explained[this.disorder], words = [];
    if (this.shows_map && peak === null) words.push(`The map shows almost no evidence for ${disorder} in this scan.`);
    else if (this.shows_map && scan.slices > 1) {
      words.push(`The strongest evidence for ${disorder} in this scan is on`, make("button", { type: "button", onclick: () => this.go(peak) }, `slice ${peak + 1}`), "·");
    }
    if (scan.volume) words.push(...scan.volume);
    else if (scan.taken.length < scan.slices) words.push(`The model read ${scan.taken.length} of its slices, evenly spaced.`);
    if (scan.days) words.push(`${scan.days} days before the newest scan.`);
    words.push("A saliency map shows what the model used, which is not necessarily the lesion.");
    $("note").classList.toggle("long", Boolean(scan.volume));
    $("note").replaceChildren(...words.flatMap((word) => [word, " "]));
  }

  // The weight of each slice in its scan.
  curve(scan, slice) {
    if (scan.slices === 1 || scan.volume) return;
    const [context, width, height] = fitted($("curve"));
    context.clearRect(0, 0, width, height);
    const most = Math.max(...scan.attention), step = width / scan.slices;
    scan.taken.forEach((taken, i) => {
      const next = scan.taken[i + 1] ?? scan.slices, high = Math.max(0.04, scan.attention[i] / most) * height;
      context.fillStyle = scan.key === taken ? "#f0a860" : "#41637a";
      context.fillRect(taken * step, height - high, Math.max(1, (next - taken) * step - (step > 4 ? 1 : 0)), high);
    });
    context.fillStyle = "#e6ecf0";
    context.fillRect((slice + 0.5) * step - 1, 0, 2, height);
  }
}

// Of a slice: the slices that the model read below and above it, and its relative distance from the lower one.
function between(taken, slice) {
  let below = 0;
  while (below + 1 < taken.length && taken[below + 1] <= slice) below++;
  if (slice <= taken[below] || below + 1 === taken.length) return [below, below, 0];
  return [below, below + 1, (slice - taken[below]) / (taken[below + 1] - taken[below])];
}

function cell(position, count) {
  const at = Math.min(Math.max(position - 0.5, 0), count - 1), low = Math.floor(at);
  return [low, Math.min(low + 1, count - 1), at - low];
}

function colour(value, pixels, at) {
  const above = COLOURS.findIndex(([stop]) => stop >= value), [a, b] = [COLOURS[Math.max(0, above - 1)], COLOURS[Math.max(0, above)]];
  const share = b[0] > a[0] ? (value - a[0]) / (b[0] - a[0]) : 0;
  for (let channel = 1; channel < 4; channel++) pixels[at + channel - 1] = a[channel] + (b[channel] - a[channel]) * share;
  pixels[at + 3] = 255 * OPACITY * value ** 0.8;
}

// Resizes a canvas to its displayed size: [context, width, height] in pixels of the screen.
function fitted(canvas) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return [canvas.getContext("2d"), width, height];
}

// --- events ----------------------------------------------------------------------------------------------------------

for (const modality of settings.modalities) $("modality").append(make("option", { value: modality }, modality));
$("history-field").hidden = !settings.history;
$("alerts").replaceChildren(...settings.alerts.map((alert) => make("p", { class: "loud" }, alert)));
$("training").textContent = settings.training_data;
$("examples").lastElementChild.append(...settings.examples.map((example) =>
  make("li", {}, make("button", { type: "button", onclick: () => tryExample(example) }, example.title), make("small", { class: "soft" }, example.credit))));
$("limits").textContent = `Up to ${settings.megabytes.toLocaleString("en")} MB and ${many(settings.files, "file")}.`;
$("files").addEventListener("change", (event) => event.target.files.length && send(event.target.files));
$("folder").addEventListener("change", (event) => event.target.files.length && send(event.target.files));
$("stop").addEventListener("click", () => running?.stop());
$("new").addEventListener("click", () => leave());
$("report").addEventListener("click", download);
$("map").addEventListener("click", () => viewer.toggle());
$("key").addEventListener("click", () => viewer.go(viewer.scan.key));
$("disorder").addEventListener("change", (event) => viewer.explain(Number(event.target.value)));
$("position").addEventListener("input", (event) => viewer.go(Number(event.target.value)));
$("names").addEventListener("submit", (event) => {
  event.preventDefault();
  const list = $("name").value.split(";").map((name) => name.trim()).filter(Boolean);
  if (list.length) scoreNames({ names: list });
});
addEventListener("pagehide", () => (running ? running.stop() : token && forget(token)));
addEventListener("pageshow", (event) => event.persisted && location.reload());

addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (document.body.dataset.state !== "empty") return;
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? (await Promise.all(entries.map(below))).flat() : [...event.dataTransfer.files];
  send(files);
});

// All files of a dropped file or folder.
async function below(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    file.path = entry.fullPath;
    return [file];
  }
  const reader = entry.createReader(), entries = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    entries.push(...some);
  }
  return (await Promise.all(entries.map(below))).flat();
}

let scrolled = 0;
$("viewport").addEventListener("wheel", (event) => {
  if (viewer.scan.slices === 1 || event.ctrlKey) return;
  event.preventDefault();
  scrolled += event.deltaMode ? event.deltaY * 30 : event.deltaY;
  const steps = Math.trunc(scrolled / 30);
  scrolled -= steps * 30;
  if (steps) viewer.go(viewer.at[viewer.chosen] + Math.sign(steps) * Math.min(Math.abs(steps), 5));
}, { passive: false });

let dragged = null;
$("viewport").addEventListener("pointerdown", (event) => {
  dragged = { x: event.clientX, y: event.clientY, from: viewer.at[viewer.chosen] };
  if (event.pointerType === "mouse") event.target.setPointerCapture?.(event.pointerId);
});
$("viewport").addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const moved = event.pointerType === "mouse" ? event.clientY - dragged.y : event.clientX - dragged.x;
  const whole = event.pointerType === "mouse" ? $("viewport").clientHeight : $("viewport").clientWidth;
  viewer.go(dragged.from + (moved / whole) * Math.max(viewer.scan.slices, 8));
});
for (const name of ["pointerup", "pointercancel"]) $("viewport").addEventListener(name, () => (dragged = null));

addEventListener("keydown", (event) => {
  if (!viewer || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA|BUTTON|SUMMARY)$/.test(event.target.tagName)) return;
  const at = viewer.at[viewer.chosen];
  const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: viewer.scan.slices - 1, k: viewer.scan.key }[event.key];
  if (event.key === "m") viewer.toggle();
  else if (to !== undefined && viewer.scan.slices > 1) viewer.go(to);
  else return;
  event.preventDefault();
});
