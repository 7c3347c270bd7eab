"use strict";
const all = JSON.parse(document.getElementById("rows").textContent);
const {models, metrics, rates} = all, several = models.length > 1, others = Object.keys(all.differences);
const FEW = 100;
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const curves = all.curves.map(bytes), scores = all.scores.map(one => one && {...one, bytes: bytes(one.bytes)});
const bandOf = cases => cases >= all.least[0] ? "head" : cases >= all.least[1] ? "body" : "tail";
const rows = all.rows.map(([name, codes, training, cases, figures], position) =>
  ({position, name, codes, training, cases, figures, band: bandOf(training), words: `${name} ${codes}`.toLowerCase()}));

const element = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const svg = (tag, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const minus = text => text.replaceAll("-", "−");
const share = thousandths => (thousandths / 1000).toFixed(3);
const signed = thousandths => minus((thousandths > 0 ? "+" : "") + share(thousandths));
const colour = model => `var(--model${model % all.colours})`;

function figureCell(figure, show = share, between = "–", significant = false) {
  const cell = element("td", undefined, {class: "n"});
  if (!figure) { cell.textContent = "–"; return cell }
  cell.append(element("span", minus(show(figure[0])), significant ? {class: "significant"} : {}), element("br"),
              element("small", minus(show(figure[1])) + between + minus(show(figure[2]))));
  return cell;
}

// A column has a name, a key that rows are sorted by, and a function that makes its cell.
function columns(metric) {
  const first = [
    {name: "disorder", text: true, key: row => row.name},
    {name: "training", key: row => row.training, cell: row => element("td", row.training.toLocaleString("en"), {class: "n"})},
    {name: "cases", key: row => row.cases, cell: row => element("td", row.cases.toLocaleString("en"), {class: "n"})},
  ];
  const value = (model, which) => ({
    name: several ? models[model] : metrics[which].replace(" at ", "\nat "),
    key: row => row.figures[model][which]?.[0] ?? null,
    cell: row => figureCell(row.figures[model][which]),
  });
  if (!several) return [...first, ...metrics.map((_, which) => value(0, which))];
  const differences = metric ? [] : others.map(name => ({
    name: `Δ ${name}`,
    key: row => all.differences[name][row.position]?.[0] ?? null,
    cell: row => {
      const difference = all.differences[name][row.position], p = difference ? difference[3] : null;
      const cell = figureCell(difference, signed, " to ", p !== null && p < .05);
      if (p !== null) cell.title = `p ${p} by DeLong's test, adjusted for the false discovery rate`;
      return cell;
    },
  }));
  return [...first, ...models.map((_, model) => value(model, metric)), ...differences];
}

const table = document.getElementById("table"), head = table.tHead, body = table.tBodies[0];
const find = document.getElementById("find"), band = document.getElementById("band");
const choice = document.getElementById("metric"), more = document.getElementById("more");
const state = {by: 1, down: true, shown: FEW, columns: columns(0), rows: []};

function order() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const {key, text} = state.columns[state.by], way = state.down ? -1 : 1;
  state.rows = rows.filter(row => (!band.value || row.band === band.value) && words.every(word => row.words.includes(word)));
  state.rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.position - b.position;  // without a value: last
    return way * (text ? x.localeCompare(y) : x - y) || a.position - b.position;
  });
  document.getElementById("count").textContent =
    state.rows.length < rows.length ? `${state.rows.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
}

function drawHead() {
  const line = element("tr");
  state.columns.forEach((column, position) => {
    const sort = position !== state.by ? "none" : state.down ? "descending" : "ascending";
    const cell = element("th", undefined, {"aria-sort": sort, scope: "col", ...(column.text ? {} : {class: "n"})});
    const button = element("button", column.name, {type: "button"});
    button.addEventListener("click", () => {
      state.down = position === state.by ? !state.down : !column.text;
      state.by = position;
      drawAll();
      head.rows[0].cells[position].firstChild.focus();
    });
    cell.append(button);
    line.append(cell);
  });
  head.replaceChildren(line);
}

function drawRow(row) {
  const line = element("tr"), name = element("th", undefined, {scope: "row"});
  const button = element("button", row.name, {type: "button", "aria-expanded": "false"});
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) line.nextSibling.remove(); else line.after(detail(row));
  });
  name.append(button, element("br"));
  if (row.codes) name.append(element("code", row.codes), " ");
  const tag = element("span", row.band, {class: `tag ${row.band}`});
  tag.prepend(element("i"));
  name.append(tag);
  line.append(name, ...state.columns.slice(1).map(column => column.cell(row)));
  return line;
}

function drawRows(from = 0) {
  const next = state.rows.slice(from, state.shown).map(drawRow);
  if (from) body.append(...next); else body.replaceChildren(...next);
  const left = state.rows.length - state.shown;
  more.hidden = left <= 0;
  more.textContent = left > FEW ? `Show ${FEW} of ${left.toLocaleString("en")} more` : `Show ${left} more`;
}

function drawAll() { state.shown = FEW; order(); drawHead(); drawRows() }

function detail(row) {
  const panel = element("div", undefined, {class: "panel"});
  panel.append(rocOf(row));
  panel.append(scoresOf(row));
  if (several) panel.append(metricsOf(row));
  const cell = element("td", undefined, {colspan: state.columns.length}), line = element("tr", undefined, {class: "detail"});
  cell.append(panel);
  line.append(cell);
  return line;
}

function rocOf(row) {
  const part = element("div"), side = 200, left = 38, top = 6, each = 3 * rates.length;
  part.append(element("h4", "ROC curve"));
  const picture = svg("svg", {viewBox: `0 0 ${left + side + 10} ${top + side + 34}`, role: "img", "aria-label": `ROC curve of ${row.name}`});
  const x = rate => left + side * rate, y = recall => top + side * (1 - recall / 254);
  for (const tick of [0, .5, 1]) {
    picture.append(svg("text", {x: x(tick), y: top + side + 14, "text-anchor": "middle"}, `${100 * tick}%`),
                   svg("text", {x: left - 5, y: y(254 * tick) + 4, "text-anchor": "end"}, `${100 * tick}%`));
  }
  picture.append(svg("text", {x: x(.5), y: top + side + 29, "text-anchor": "middle"}, "false positive rate"),
                 svg("path", {d: `M${x(0)},${y(254)}V${y(0)}H${x(1)}`, fill: "none", stroke: "var(--faint)"}),
                 svg("path", {d: `M${x(0)},${y(0)}L${x(1)},${y(254)}`, stroke: "var(--faint)", "stroke-dasharray": "4 3"}));
  const none = curves.every(curve => curve[row.position * each] === 255);
  curves.forEach((curve, model) => {
    const at = (position, which) => curve[row.position * each + 3 * position + which];
    if (at(0, 0) === 255) return;
    const path = which => rates.map((rate, position) => `${x(rate).toFixed(1)},${y(at(position, which)).toFixed(1)}`);
    picture.append(
      svg("polygon", {points: [...path(1), ...path(2).reverse()].join(" "), fill: colour(model), opacity: .16}),
      svg("polyline", {points: path(0).join(" "), fill: "none", stroke: colour(model), "stroke-width": 1.8}));
  });
  if (none) part.append(element("p", "Cannot be measured here.", {class: "soft"}));
  else part.append(picture);
  if (several && !none) part.append(keyOf(models, (_, model) => colour(model)));
  return part;
}

function keyOf(names, colourOf) {
  const key = element("div", undefined, {class: "key"});
  names.forEach((name, position) => {
    const one = element("span", name), mark = element("i");
    mark.style.background = colourOf(name, position);
    one.prepend(mark);
    key.append(one);
  });
  return key;
}

const COLOURS = ["var(--group-positive)", "var(--group-same)", "var(--group-other)"];

function scoresOf(row) {
  const part = element("div"), groups = all.groups, known = models.map((_, i) => i).filter(i => scores[i] && scores[i].counts[row.position][0]);
  if (!known.length) return part;
  part.append(element("h4", "Scores of positive and negative cases"));
  for (const model of known) {
    const {ends, counts, bytes: values} = scores[model], [low, high] = ends[row.position];
    const width = 420, height = 22 * groups.length + 24;
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Scores of ${row.name} by ${models[model]}`});
    groups.forEach((_, group) => {
      const at = which => values[(row.position * groups.length + group) * 5 + which], middle = 12 + 22 * group;
      if (at(0) === 255) return;
      const x = which => (8 + (width - 70) * at(which) / 254).toFixed(1);
      picture.append(
        svg("path", {d: `M${x(0)},${middle}H${x(4)}`, stroke: COLOURS[group], "stroke-width": 1.5}),
        svg("path", {d: `M${x(1)},${middle}H${x(3)}`, stroke: COLOURS[group], "stroke-width": 9}),
        svg("circle", {cx: x(2), cy: middle, r: 3.2, fill: "var(--page)", stroke: COLOURS[group], "stroke-width": 1.5}),
        svg("text", {x: width, y: middle + 4, "text-anchor": "end"}, `${counts[row.position][group].toLocaleString("en")}`));
    });
    const foot = height - 4, digits = number => minus(String(Number(number.toPrecision(3))));
    picture.append(svg("path", {d: `M8,${foot - 13}H${width - 62}`, stroke: "var(--faint)"}),
                   svg("text", {x: 8, y: foot}, digits(low)),
                   svg("text", {x: width - 62, y: foot, "text-anchor": "end"}, digits(high)));
    if (several) part.append(element("small", models[model]));
    part.append(picture);
  }
  part.append(keyOf(groups, (_, group) => COLOURS[group]),
              element("small", "Line: 5% to 95%; bar: 25% to 75%; dot: the median; at the right the number of cases."));
  return part;
}

function metricsOf(row) {
  const part = element("div", undefined, {class: "whole-width"}), grid = element("table"), line = element("tr");
  line.append(element("th", several ? "model" : ""), ...metrics.map(name => element("th", name, {class: "n"})));
  grid.append(element("thead"), element("tbody"));
  grid.tHead.append(line);
  models.forEach((name, model) => {
    const ofModel = element("tr");
    ofModel.append(element("th", name), ...row.figures[model].map(figure => figureCell(figure)));
    grid.tBodies[0].append(ofModel);
  });
  part.append(grid);
  return part;
}

find.addEventListener("input", drawAll);
band.addEventListener("change", drawAll);
if (choice) choice.addEventListener("change", () => {
  state.columns = columns(Number(choice.value));
  state.by = Math.min(state.by, state.columns.length - 1);
  drawAll();
});
more.addEventListener("click", () => { const from = state.shown; state.shown += FEW; drawRows(from) });
drawAll();
