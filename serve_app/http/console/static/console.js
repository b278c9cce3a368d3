// The console. Every address is relative to the page, so it works below any path. Texts go into the page as text, never as HTML;
// HTML comes from this server alone, which escapes what it shows.

import { bidirectional, element, preview, records, row, svg } from "./elements.js";
import { install } from "./moves.js";

const SECONDS = 10;
const STORED = `iris-api-key:${location.pathname}`;
const TEXTS = { csv: "text/csv", ndjson: "application/x-ndjson", jsonl: "application/x-ndjson" };
const TYPES = { ...TEXTS, parquet: "application/vnd.apache.parquet" };
const byId = (id) => document.getElementById(id);
const needsKey = document.body.dataset.needsKey === "yes";

let digest = null; // of the model that the page shows
let answersAddress = null;
let table = null;

// --- requests

async function ask(path, options = {}, closes = [401, 403]) {
  const key = sessionStorage.getItem(STORED);
  const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  if (closes.includes(response.status)) close();
  return response;
}

async function problemOf(response) {
  const text = await response.text();
  try {
    const problem = JSON.parse(text);
    const errors = (problem.errors ?? []).slice(0, 10).map((error) => `${error.field}: ${error.message}`);
    return [problem.detail ?? text, ...errors].join(" — ");
  } catch {
    return text || `The server answered ${response.status}.`;
  }
}

async function html(path) {
  const response = await ask(path);
  if (!response.ok) throw new Error(await problemOf(response));
  return new DOMParser().parseFromString(await response.text(), "text/html").body;
}

function say(text) {
  byId("message").textContent = text;
}

// --- the key

function close() {
  sessionStorage.removeItem(STORED);
  byId("content").hidden = true;
  byId("forget").hidden = true;
  byId("access").hidden = !needsKey;
  digest = null;
}

async function open() {
  try {
    await show();
    byId("content").hidden = false;
    byId("access").hidden = true;
    byId("forget").hidden = !needsKey;
    say("");
  } catch (error) {
    say(error.message);
    byId("key").focus();
  }
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED, byId("key").value.trim());
  byId("key").value = "";
  open();
});

byId("forget").addEventListener("click", () => {
  close();
  for (const id of ["view", "try", "answer", "rows", "answers", "card"]) byId(id).replaceChildren();
  say("The key is forgotten.");
  byId("key").focus();
});

// --- the view: a part is replaced only when it has changed, so that focus and open details stay

async function show() {
  const parts = (await html("ui/view")).querySelector("#parts");
  const shown = byId("parts");
  if (shown === null) {
    byId("view").replaceChildren(document.adoptNode(parts));
  } else {
    for (const part of [...parts.children]) replace(byId(part.id), part);
    Object.assign(shown.dataset, parts.dataset);
  }
  if (byId("parts").dataset.digest !== digest) await showForm();
}

function replace(old, part) {
  const open = [...old.querySelectorAll("details[open]")].map((details) => details.id);
  for (const id of open) part.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
  if (old.isEqualNode(part)) return;
  const focused = old.contains(document.activeElement) ? selectorOf(document.activeElement) : null;
  const scrolled = [...old.querySelectorAll(".scroll")].map((region) => [region.scrollLeft, region.scrollTop]);
  old.replaceWith(document.adoptNode(part));
  part.querySelectorAll(".scroll").forEach((region, at) => region.scrollTo(...(scrolled[at] ?? [0, 0])));
  if (focused) part.querySelector(focused)?.focus();
}

function selectorOf(element) {
  if (element.dataset.move) return `[data-move="${element.dataset.move}"]`;
  if (element.dataset.card) return `[data-card="${element.dataset.card}"]`;
  if (element.tagName === "SUMMARY") return `#${CSS.escape(element.parentElement.id)} > summary`;
  return element.classList.contains("scroll") ? `.scroll[aria-label="${CSS.escape(element.getAttribute("aria-label"))}"]` : null;
}

async function showForm() {
  const form = await html("ui/form");
  const values = new Map([...document.querySelectorAll("#row [data-name]")].map((field) => [field.dataset.name, field.value]));
  const replaced = digest !== null;
  for (const field of form.querySelectorAll("[data-name]")) {
    const value = values.get(field.dataset.name);
    if (value !== undefined && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value))) {
      field.value = value;
    }
  }
  byId("try").replaceChildren(...[...form.childNodes].map((node) => document.adoptNode(node)));
  byId("row")?.addEventListener("submit", predict);
  digest = byId("parts").dataset.digest;
  if (!replaced) return;
  byId("answer").replaceChildren();
  byId("card").replaceChildren();
  const version = byId("parts").dataset.version;
  say(version ? `The model was replaced: version ${version} answers now.` : "No model answers any more.");
}

setInterval(async () => {
  if (!byId("refresh").checked || document.hidden || byId("content").hidden) return;
  try {
    await show();
  } catch (error) {
    say(`The page could not be refreshed: ${error.message}`);
  }
}, SECONDS * 1000);

// --- one prediction

function valueOf(field) {
  if (field.dataset.control === "choice") return JSON.parse(field.value);
  if (field.value === "" && field.dataset.nullable === "yes") return null;
  return field.dataset.control === "number" ? Number(field.value) : field.value;
}

async function predict(event) {
  event.preventDefault();
  const written = byId("row-json");
  const fields = [...document.querySelectorAll("#row [data-name]")];
  const body = written ? written.value : JSON.stringify(Object.fromEntries(fields.map((field) => [field.dataset.name, valueOf(field)])));
  const target = byId("answer");
  try {
    const response = await ask("predict", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (!response.ok) throw new Error(await problemOf(response));
    const text = await response.text();
    target.replaceChildren(...answerParts(JSON.parse(text), text, body, response.headers.get("x-model-version")));
  } catch (error) {
    target.replaceChildren(element("p", error.message, "refused"));
  }
}

function answerParts(answer, text, body, version) {
  const main = answer.prediction ?? answer.cluster;
  const parts = [];
  if (main !== undefined && typeof main !== "object") {
    const line = element("p", "", "lead");
    line.append("Version ", element("bdi", version), " predicts ", element("b", String(main), "prediction"), ".");
    parts.push(line);
  }
  const probabilities = Object.entries(answer.probabilities ?? {}).filter(([, share]) => typeof share === "number");
  if (probabilities.length) parts.push(shares(probabilities));
  const details = element("details");
  details.append(element("summary", "Request and response"), element("pre", body), element("pre", text));
  details.open = parts.length === 0;
  return [...parts, details];
}

function shares(probabilities) {
  const rows = probabilities.map(([name, share]) => {
    const chart = svg("svg", { class: "share", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
    chart.append(svg("rect", { width: 100 * share, height: 6 }));
    const [label, number, bar] = [element("th"), element("td", share.toFixed(4), "number"), element("td")];
    label.scope = "row";
    label.append(bidirectional(name));
    bar.append(chart);
    return row(label, number, bar);
  });
  const view = element("table");
  view.append(element("caption", "Probabilities"), ...rows);
  return view;
}

// --- a table

async function choose(file) {
  table = file ?? null;
  byId("score").disabled = table === null;
  byId("answers").replaceChildren();
  byId("rows").replaceChildren();
  if (table === null) return;
  const type = typeOf(table);
  if (!type) {
    byId("score").disabled = true;
    byId("rows").append(element("p", "Choose a file whose name ends in .csv, .ndjson, .jsonl or .parquet.", "refused"));
    return;
  }
  if (!Object.values(TEXTS).includes(type)) {
    byId("rows").append(element("p", `${table.name}: ${table.size} bytes`));
    return;
  }
  const start = await table.slice(0, 65536).text();
  byId("rows").append(preview(type === TYPES.csv ? records(start) : start.split(/\r?\n/).map((line) => [line]), `First rows of ${table.name}`));
}

function typeOf(file) {
  return TYPES[file.name.split(".").pop().toLowerCase()];
}

byId("file").addEventListener("change", (event) => choose(event.target.files[0]));
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(type, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}

byId("table").addEventListener("submit", async (event) => {
  event.preventDefault();
  const target = byId("answers");
  byId("score").disabled = true;
  target.replaceChildren(element("p", "The table is sent …"));
  try {
    const headers = { "Content-Type": typeOf(table), Accept: "text/csv" };
    const response = await ask("predict/batch", { method: "POST", body: table, headers });
    if (!response.ok) throw new Error(await problemOf(response));
    const answers = await response.blob();
    if (answersAddress) URL.revokeObjectURL(answersAddress);
    answersAddress = URL.createObjectURL(answers);
    const link = element("a", `Download the answers of version ${response.headers.get("x-model-version")}`);
    link.href = answersAddress;
    link.download = table.name.replace(/\.[^.]*$/, "") + "-answers.csv";
    const line = element("p");
    line.append(link);
    target.replaceChildren(line, preview(records(await answers.slice(0, 65536).text()), "First answers"));
  } catch (error) {
    target.replaceChildren(element("p", error.message, "refused"));
  } finally {
    byId("score").disabled = false;
  }
});

// --- the model card, which may hold anything: a frame without scripts, forms and origin

async function showCard(wanted) {
  try {
    const response = await ask(`ui/card?digest=${encodeURIComponent(wanted)}`);
    if (!response.ok) throw new Error(await problemOf(response));
    const frame = element("iframe");
    frame.title = "Model card";
    frame.setAttribute("sandbox", "");
    frame.srcdoc = await response.text();
    byId("card").replaceChildren(frame);
    byId("card-title").scrollIntoView();
  } catch (error) {
    byId("card").replaceChildren(element("p", error.message, "refused"));
  }
}

byId("show-card").addEventListener("click", () => showCard(digest));
byId("view").addEventListener("click", (event) => {
  const wanted = event.target.closest("[data-card]")?.dataset.card;
  if (wanted) showCard(wanted);
});

install({ ask, problemOf, say, show });
if (!needsKey || sessionStorage.getItem(STORED)) open();
