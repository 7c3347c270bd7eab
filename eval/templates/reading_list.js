"use strict";
const {key, columns} = JSON.parse(document.getElementById("content").textContent);
const articles = [...document.querySelectorAll("article")];
const EMPTY = () => ({disorders: [], normal: false, unsure: false, comment: ""});
let answers = {};
try { answers = JSON.parse(localStorage.getItem(key)) || {} } catch { answers = {} }
const answerOf = article => answers[article.dataset.case] ??= EMPTY();
const isFilled = answer => answer.disorders.length > 0 || answer.normal || answer.unsure;

function show(article) {
  const answer = answerOf(article), form = article.querySelector("form");
  form.normal.checked = answer.normal;
  form.unsure.checked = answer.unsure;
  form.comment.value = answer.comment;
  article.classList.toggle("done", isFilled(answer));
  article.querySelector(".chips").replaceChildren(...answer.disorders.map(name => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-label", `Remove ${name}`);
    button.addEventListener("click", () => change(article, {disorders: answer.disorders.filter(one => one !== name)}));
    item.append(button);
    return item;
  }));
}

function showCount() {
  const filled = articles.filter(article => isFilled(answerOf(article))).length;
  document.getElementById("count").textContent = `${filled} of ${articles.length} filled in`;
}

function change(article, changes) {
  Object.assign(answerOf(article), changes);
  try { localStorage.setItem(key, JSON.stringify(answers)) } catch { /* a browser may keep nothing of a local file */ }
  show(article);
  showCount();
}

function add(article, text) {
  const known = answerOf(article).disorders;
  const names = text.split(";").map(name => name.trim().replace(/\s+/g, " ")).filter(Boolean);
  const added = names.filter(name => !known.some(one => one.toLowerCase() === name.toLowerCase()));
  if (added.length) change(article, {disorders: [...known, ...new Set(added)], normal: false, unsure: false});
}

for (const article of articles) {
  const form = article.querySelector("form");
  const addTyped = () => { add(article, form.add.value); form.add.value = "" };
  form.addEventListener("submit", event => { event.preventDefault(); addTyped() });
  form.add.addEventListener("change", addTyped);
  for (const one of ["normal", "unsure"]) {
    const other = one === "normal" ? "unsure" : "normal";
    form[one].addEventListener("change", () => change(article,
      form[one].checked ? {[one]: true, [other]: false, disorders: []} : {[one]: false}));
  }
  form.comment.addEventListener("input", () => { answerOf(article).comment = form.comment.value; change(article, {}) });
  for (const button of article.querySelectorAll("details button"))
    button.addEventListener("click", () => add(article, button.dataset.name));
  show(article);
}
showCount();

document.getElementById("clear").addEventListener("click", () => {
  if (!confirm("Delete all that is filled in on this page?")) return;
  answers = {};
  for (const article of articles) change(article, {});
});

document.getElementById("save").addEventListener("click", () => {
  const quoted = text => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const rows = articles.map(article => {
    const {disorders, normal, unsure, comment} = answerOf(article);
    const row = {case_id: article.dataset.case, disorders: unsure ? "unknown" : disorders.join("; "),
                 icd10cm: "", normal: normal ? "1" : "", comment};
    return columns.map(column => quoted(row[column])).join(",");
  });
  const file = new Blob([[columns.join(","), ...rows].join("\r\n") + "\r\n"], {type: "text/csv"});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
