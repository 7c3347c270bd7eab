// The page: sends a study, waits for its turn, shows slices with maps, and what the model says.
//
// - Of a file's name only the ending is sent. Files that belong together (.hdr and .img) share a number.
// - Slices come as sheets, those nearest to the shown one first, and are kept as they came; the few in use are decoded.
// - A map is a coarse grid for each slice that the model was shown. It is interpolated and coloured here, as
//   `radfm.eval.saliency` does, so that no choice of disorder or slice waits for the server.

const about = JSON.parse(document.getElementById("about").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = [[0, 88, 24, 130], [0.4, 212, 62, 80], [0.7, 250, 150, 40], [1, 252, 240, 130]];
const COVER = 0.62;
const GRID = 64; // places a side of a map that is drawn
const DECODED = 6; // sheets
const FETCHES = 3; // at once
const MEGA = 1e6;

let token = null, study = null, viewer = null, running = null;

// --- making elements -------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width") element.style.width = value;
    else if (name === "left") element.style.left = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);
const score = (one) => (one.calibrated ? percent(one.score) : one.score < 0.001 ? one.score.toExponential(0) : one.score.toFixed(3));
const state = (name) => (document.body.dataset.state = name);

// --- sending a study -------------------------------------------------------------------------------------------------

function named(files) {
  const natural = new Intl.Collator("en", { numeric: true });
  const sorted = [...files].map((file) => [file.webkitRelativePath || file.path || file.name, file]);
  sorted.sort((a, b) => natural.compare(a[0], b[0]));
  const numbers = new Map(), taken = new Set(), list = [];
  for (const [path, file] of sorted) {
    const leaf = path.split("/").pop();
    if (leaf.startsWith(".") || /^(thumbs\.db|desktop\.ini)$/i.test(leaf)) continue;
    const ending = (/(\.(nii|hdr|img)\.gz|\.[a-z0-9]{1,8})$/i.exec(leaf)?.[0] ?? "").toLowerCase();
    const stem = path.slice(0, path.length - ending.length);
    if (!numbers.has(stem)) numbers.set(stem, numbers.size + 1);
    let name = `${numbers.get(stem)}${ending}`;
    if (taken.has(name)) {
      numbers.set(stem, numbers.size + 1 + taken.size);
      name = `${numbers.get(stem)}${ending}`;
    }
    taken.add(name);
    list.push([name, file]);
  }
  return list;
}

async function send(files) {
  const list = named(files);
  const total = list.reduce((sum, [, file]) => sum + file.size, 0);
  if (!list.length) return refuse("No file was found in what you dropped.");
  if (list.length > about.files) return refuse(`These are ${many(list.length, "file")}, and this page takes up to ${about.files.toLocaleString("en")}: drop one series, or fewer.`);
  if (total > about.megabytes * MEGA) return refuse(`These are ${Math.round(total / MEGA).toLocaleString("en")} MB, and this page takes up to ${about.megabytes.toLocaleString("en")} MB: drop one series, or fewer.`);
  const header = { files: list.map(([name, file]) => [name, file.size]), modality: $("modality").value || null, history: $("history").value.trim() || null };
  const body = new Blob([JSON.stringify(header), "\n", ...list.map(([, file]) => file)]);
  $("why").hidden = true;
  state("busy");
  progress("Sending", 0, total, `${many(list.length, "file")}, ${(total / MEGA).toFixed(1)} MB`);
  const request = new XMLHttpRequest();
  running = { stop: () => request.abort() };
  request.upload.onprogress = (event) => progress("Sending", event.loaded, event.total);
  request.onload = () => {
    const said = parsed(request.responseText);
    if (request.status === 200) wait(said.study);
    else refuse(sentence(said?.why ?? "the server did not take the study"));
  };
  request.onerror = () => refuse("The connection broke while the study was sent. Try again, or drop fewer files.");
  request.onabort = () => state("empty");
  request.open("POST", "study");
  request.send(body);
}

async function wait(study_token) {
  const session = crypto.getRandomValues(new Uint32Array(4)).join("");
  const joined = await fetch("gradio_api/queue/join", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data: [study_token], fn_index: 0, session_hash: session }),
  }).catch(() => null);
  if (!joined?.ok) return refuse("The server takes no study at the moment. Try again in a minute.");
  const events = new EventSource(`gradio_api/queue/data?session_hash=${session}`);
  let now = {};
  const end = () => { events.close(); running = null; };
  running = { stop: () => { end(); forget(study_token); state("empty"); } };
  progress("Waiting", 0, 0);
  events.onerror = () => { end(); refuse("The connection to the server broke. Drop the study again."); };
  events.onmessage = async (event) => {
    const said = JSON.parse(event.data);
    if (said.msg === "estimation") progress("Waiting", 0, 0, said.rank ? `${many(said.rank, "study").replace("studys", "studies")} before yours` : "yours is next");
    if (said.msg === "process_starts") progress("Opening the study", 0, 0);
    if (said.msg === "process_generating" || said.msg === "process_completed") {
      if (!said.success) { end(); return refuse("Something went wrong with this study. Drop it again."); }
      now = followed(now, said.output.data?.[0]);
      stage(now);
    }
    if (said.msg === "unexpected_error") { end(); refuse("The server stopped. Drop the study again."); }
    if (said.msg === "process_completed") {
      end();
      if (now.stage !== "answered") return refuse(sentence(now.why || "the study was not answered"));
      token = study_token;
      const answer = await ask("answer").catch(() => null);
      answer ? open(await answer.json()) : refuse("The answer was let go. Drop the study again.");
    }
  };
}

// Gradio sends a value whole at first, then as changes: [["replace", ["done"], 12], ...].
function followed(value, said) {
  if (!Array.isArray(said)) return said ?? value;
  const next = { ...value };
  for (const [change, path, to] of said) change === "delete" ? delete next[path[0]] : (next[path[0]] = to);
  return next;
}

function stage({ stage, done, of }) {
  if (stage === "reading") progress("Reading", done, of, `${done.toLocaleString("en")} of ${many(of, "file")}`);
  if (stage === "looking") progress("Looking at the slices", 0, 0, many(of, "slice"));
  if (stage === "explaining") progress("Finding what speaks for the first disorders", 0, 0, many(of, "slice"));
  if (stage === "drawing") progress("Drawing slices", done, of, many(of, "slice"));
}

function progress(what, done, of, detail) {
  $("stage").textContent = what;
  $("done").parentElement.classList.toggle("endless", !of);
  $("done").style.width = of ? `${(100 * done) / of}%` : "";
  if (detail !== undefined) $("detail").textContent = detail || "\u00a0";
}

function refuse(why) {
  running = null;
  $("why").textContent = why;
  $("why").hidden = false;
  state("empty");
}

const parsed = (text) => { try { return JSON.parse(text); } catch { return null; } };
const sentence = (text) => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");
const forget = (which) => navigator.sendBeacon("forget", which);

async function ask(address, options = {}) {
  const response = await fetch(address, { ...options, headers: { "X-Study": token, ...options.headers } });
  if (response.status === 410) leave("This study was let go, since nobody asked for it. Drop it again.");
  if (!response.ok && response.status !== 422) throw new Error(response.status);
  return response;
}

function leave(why) {
  if (token) forget(token);
  viewer?.close();
  token = study = viewer = null;
  for (const id of ["files", "folder", "name", "history"]) $(id).value = "";
  $("typed").replaceChildren();
  $("why").hidden = true;
  state("empty");
  if (why) refuse(why);
}

// --- what the model says ---------------------------------------------------------------------------------------------

function open(answer) {
  study = answer;
  $("found").replaceChildren(...study.diagnoses.map((one, i) => row(one, i + 1)));
  $("typed").replaceChildren();
  $("unknown").hidden = true;
  $("means").firstElementChild.textContent = study.calibrated ? "Scores are probabilities" : "Scores rank disorders, and are no probabilities";
  $("means").lastElementChild.textContent = means();
  $("warnings").replaceChildren(...warnings());
  $("aside").hidden = !study.skipped.length;
  $("aside").firstElementChild.textContent = `${many(study.skipped.length, "file")} set aside`;
  $("aside").lastElementChild.replaceChildren(...study.skipped.map(([file, reason]) => make("li", {}, `file ${file}: ${reason}`)));
  const { reading, model } = study.seconds;
  $("facts").textContent = `${many(study.scans.length, "scan")}, ${many(study.slices, "slice")}: opened in ${reading.toFixed(1)} s, answered in ${model.toFixed(1)} s. The model's vocabulary has ${many(study.vocabulary, "disorder")}.`;
  $("disorder").replaceChildren(...study.explained.map((name, i) => make("option", { value: i }, name)));
  state("study");
  viewer = new Viewer(study);
  scrollTo(0, 0);
}

function means() {
  const words = study.unlike ? ["Of a study unlike the training data a score says which disorder is likelier, and not how likely; no threshold holds."] : [study.calibrated ? "Scores of the model's vocabulary are calibrated; those of other names are not." : "The model is not calibrated: a score says which disorder is likelier, and not how likely."];
  if (study.diagnoses.some((one) => one.threshold !== null)) words.push("A line on a bar is the disorder's threshold.");
  if (study.sets) {
    const share = `${Math.round(100 * study.sets.coverage)}%`;
    const holds = study.sets.guarantee === "all" ? `in ${share} of cases it has all disorders of the case` : `on average it has ${share} of a case's disorders`;
    words.push(`The set holds what cannot be ruled out: ${holds}, if patients are like those it was fitted to.`);
  }
  if (study.p !== null && !study.unlike) words.push(`The study is not unlike the training data: ${percent(study.p)} of validation cases are at least as far from it.`);
  return words.join(" ");
}

function warnings() {
  const list = [];
  if (!study.trained) list.push(["This model is untrained.", "Its scores, weights and maps mean nothing."]);
  if (study.synthetic_only) list.push([null, study.synthetic_only]);
  if (study.unlike) list.push(["This study is unlike the training data.", `Its scores mean little, and no threshold holds: ${study.unlike}.`]);
  return list.map(([title, why]) => make("div", { class: "loud", role: "alert" }, title && make("b", {}, title), why));
}

function row(one, rank, remove = null) {
  const explained = remove ? -1 : study.explained.indexOf(one.label);
  const bar = make("div", { class: "bar", role: "img", "aria-label": `score ${score(one)}` }, make("i", { width: `${100 * one.score}%` }));
  if (one.threshold !== null) bar.append(make("b", { left: `${100 * one.threshold}%`, title: `threshold ${percent(one.threshold)}` }));
  const badges = make("div", { class: "badges" });
  if (one.above) badges.append(make("span", { class: "above" }, "above threshold"));
  if (one.in_set) badges.append(make("span", {}, "in the set"));
  if (!one.known) badges.append(make("span", {}, "not in the model's vocabulary"));
  if (study.calibrated && !one.calibrated) badges.append(make("span", {}, "not calibrated"));
  if (explained >= 0) badges.append(make("button", { type: "button", class: "quiet", onclick: () => viewer.show(explained) }, "show on the images"));
  const codes = one.codes.map((code) => {
    const name = make("summary", {}, make("code", {}, code.code), ` ${code.description ?? "not in this edition of ICD-10-CM"}`);
    const includes = code.terms.length ? make("p", {}, `Includes: ${code.terms.join("; ")}${code.more ? `; and ${code.more} more` : ""}`) : null;
    const path = code.path.length ? make("p", {}, code.path.join(" › ")) : null;
    return make("details", rank === 1 || !one.definition ? { open: "" } : {}, name, path, includes);
  });
  if (!codes.length) codes.push(make("p", { class: "soft" }, "no ICD-10-CM code known"));
  const drop = remove && make("button", { type: "button", "aria-label": `Remove ${one.label}`, onclick: remove }, "×");
  const place = rank ? make("span", { class: "rank" }, rank) : null;
  const head = make("div", { class: "head" }, place, make("span", { class: "label" }, one.label), make("span", { class: "score" }, score(one)), drop);
  const said = one.definition && make("p", { class: "definition" }, one.definition.of && `${one.definition.of}: `, one.definition.text, make("small", {}, ` (${one.definition.source})`));
  return make("li", {}, head, bar, badges.children.length ? badges : null, ...codes, said);
}

async function names(body) {
  const response = await ask("names", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const said = await response.json();
  $("unknown").hidden = !said.why;
  if (said.why) return void ($("unknown").textContent = sentence(said.why));
  $("name").value = "";
  $("typed").replaceChildren(...said.diagnoses.map((one) => row(one, 0, () => names({ remove: one.label }))));
}

async function download() {
  const page = await (await ask("report")).blob();
  const link = make("a", { href: URL.createObjectURL(page), download: "case.html" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- the slices ------------------------------------------------------------------------------------------------------

class Sheets {
  constructor(scans, arrived) {
    Object.assign(this, { scans, arrived, blobs: new Map(), decoded: new Map(), wanted: [], fetching: 0, closed: false });
  }

  // The sheet, if it is there to be drawn; else it is on its way.
  get(scan, window, sheet) {
    const key = `${scan}/${window}/${sheet}`;
    const bitmap = this.decoded.get(key);
    if (!bitmap) return void this.decode(key);
    this.decoded.delete(key);
    this.decoded.set(key, bitmap); // the latest is the last
    return bitmap;
  }

  want(scan, window, sheet) {
    const { slices, per_sheet } = this.scans[scan];
    const order = [...Array(Math.ceil(slices / per_sheet)).keys()].sort((a, b) => Math.abs(a - sheet) - Math.abs(b - sheet));
    this.wanted = order.map((one) => `${scan}/${window}/${one}`).filter((key) => !this.blobs.has(key));
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
    while (!this.closed && this.fetching < FETCHES && this.wanted.length) {
      const key = this.wanted.shift();
      if (this.blobs.has(key)) continue;
      this.blobs.set(key, null);
      this.fetching++;
      ask(`sheet/${key}`)
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
    $("scrub").hidden = $("key").hidden = slices === 1;
    $("viewport").classList.toggle("lone", slices === 1);
    $("windows").replaceChildren(...windows.map(({ name, range }, j) =>
      make("button", { type: "button", title: `${range[0]} to ${range[1]} HU`, onclick: () => this.window(j) }, name)));
    this.window(this.windows[i]);
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
    this.sheets.want(this.chosen, this.windows[this.chosen], Math.floor(slice / this.scan.per_sheet));
    this.draw();
  }

  // Where the map of a disorder is brightest.
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
      const bytes = await ask(`maps/${disorder}`).then((response) => response.arrayBuffer()).catch(() => null);
      if (!bytes) return;
      this.maps.set(disorder, new Uint8Array(bytes));
    }
    this.draw();
  }

  toggle(shows = !this.shows_map) {
    this.shows_map = shows;
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
    this.words(scan, slice, window);
    this.curve(scan, slice);
    const shown = `${this.chosen}/${window}`;
    if (!bitmap && this.last === shown) return; // the slice before stays until this one is here
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
    $("slice").dataset.shown = `${this.chosen}/${slice}`;
  }

  // The map of one slice, in colour, over the scan's own part of the square that the model saw.
  coloured(map, scan, slice) {
    const [, rows, columns] = scan.map, [top, left, height, width] = scan.part;
    const [below, above, share] = between(scan.taken, slice);
    const first = this.starts[this.chosen] + below * rows * columns, second = this.starts[this.chosen] + above * rows * columns;
    const value = (r, c) => (map[first + r * columns + c] * (1 - share) + map[second + r * columns + c] * share) / 255;
    this.small.width = this.small.height = GRID;
    const context = this.small.getContext("2d"), image = context.createImageData(GRID, GRID);
    for (let i = 0, at = 0; i < GRID; i++) {
      const [r0, r1, rs] = cell((top + ((i + 0.5) / GRID) * height) * rows, rows);
      for (let j = 0; j < GRID; j++, at += 4) {
        const [c0, c1, cs] = cell((left + ((j + 0.5) / GRID) * width) * columns, columns);
        const v = (value(r0, c0) * (1 - cs) + value(r0, c1) * cs) * (1 - rs) + (value(r1, c0) * (1 - cs) + value(r1, c1) * cs) * rs;
        colour(v, image.data, at);
      }
    }
    context.putImageData(image, 0, 0);
    return this.small;
  }

  words(scan, slice, window) {
    $("what").textContent = [`Scan ${scan.number}: ${scan.modality}`, scan.plane, scan.body_part].filter(Boolean).join(", ");
    $("where").textContent = scan.slices === 1 ? "one slice" : `slice ${slice + 1} of ${scan.slices}${slice === scan.key ? ", key slice" : ""}`;
    const { name, range } = scan.windows[window];
    $("grey").textContent = [name && `${name}, ${range[0]} to ${range[1]} HU`.replaceAll("-", "−"), scan.spacing].filter(Boolean).join(" · ");
    const peak = scan.peaks[this.disorder], disorder = study.explained[this.disorder], words = [];
    if (this.shows_map && peak === null) words.push(`Next to nothing in this scan speaks for ${disorder}.`);
    else if (this.shows_map && scan.slices > 1) {
      words.push(`What speaks most for ${disorder} in this scan is on`, make("button", { type: "button", onclick: () => this.go(peak) }, `slice ${peak + 1}`), "·");
    }
    if (scan.taken.length < scan.slices) words.push(`The model was shown ${scan.taken.length} of its slices, evenly spaced.`);
    if (scan.days) words.push(`${scan.days} days before the newest scan.`);
    words.push("A map shows what the model used, which need not be the lesion.");
    $("says").replaceChildren(...words.flatMap((word) => [word, " "]));
  }

  // How much each slice counted for its scan.
  curve(scan, slice) {
    if (scan.slices === 1) return;
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

// Of an index among all slices: the taken ones below and above, and how far it is towards the upper one.
function between(taken, slice) {
  let below = 0;
  while (below + 1 < taken.length && taken[below + 1] <= slice) below++;
  if (slice <= taken[below] || below + 1 === taken.length) return [below, below, 0];
  return [below, below + 1, (slice - taken[below]) / (taken[below + 1] - taken[below])];
}

function cell(place, count) {
  const at = Math.min(Math.max(place - 0.5, 0), count - 1), low = Math.floor(at);
  return [low, Math.min(low + 1, count - 1), at - low];
}

function colour(value, pixels, at) {
  const above = COLOURS.findIndex(([stop]) => stop >= value), [a, b] = [COLOURS[Math.max(0, above - 1)], COLOURS[Math.max(0, above)]];
  const share = b[0] > a[0] ? (value - a[0]) / (b[0] - a[0]) : 0;
  for (let channel = 1; channel < 4; channel++) pixels[at + channel - 1] = a[channel] + (b[channel] - a[channel]) * share;
  pixels[at + 3] = 255 * COVER * value ** 0.8;
}

// A canvas as large as it is shown: its context, and its size in its own pixels.
function fitted(canvas) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return [canvas.getContext("2d"), width, height];
}

// --- hands -----------------------------------------------------------------------------------------------------------

for (const modality of about.modalities) $("modality").append(make("option", { value: modality }, modality));
$("history-field").hidden = !about.history;
$("drawn").hidden = !about.synthetic_only;
$("drawn").textContent = about.synthetic_only;
$("limits").textContent = `Up to ${about.megabytes.toLocaleString("en")} MB and ${many(about.files, "file")}.`;
$("files").addEventListener("change", (event) => event.target.files.length && send(event.target.files));
$("folder").addEventListener("change", (event) => event.target.files.length && send(event.target.files));
$("stop").addEventListener("click", () => running?.stop());
$("again").addEventListener("click", () => leave());
$("report").addEventListener("click", download);
$("map").addEventListener("click", () => viewer.toggle());
$("key").addEventListener("click", () => viewer.go(viewer.scan.key));
$("disorder").addEventListener("change", (event) => viewer.explain(Number(event.target.value)));
$("position").addEventListener("input", (event) => viewer.go(Number(event.target.value)));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const list = $("name").value.split(";").map((name) => name.trim()).filter(Boolean);
  if (list.length) names({ names: list });
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

async function below(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    file.path = entry.fullPath;
    return [file];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(below))).flat();
}

let rolled = 0;
$("viewport").addEventListener("wheel", (event) => {
  if (viewer.scan.slices === 1 || event.ctrlKey) return;
  event.preventDefault();
  rolled += event.deltaMode ? event.deltaY * 30 : event.deltaY;
  const steps = Math.trunc(rolled / 30);
  rolled -= steps * 30;
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
