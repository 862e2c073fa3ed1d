// The page: sends digits to the endpoint, and shows the state of production every second.

import { bars, lines, nothing, roundUp, track } from "./charts.js";
import { paper } from "./draw.js";

const POLL_MILLISECONDS = 1000;
const PAUSE_MILLISECONDS = 500; // after a stroke, before the digit is sent
const FEW_LABELS = 30; // below, the interval may exceed the chart
// The address ends in a secret, which the skip link removes.
const [, SECRET = sessionStorage.getItem("secret")] = location.hash.match(/^#secret=(.+)/) ?? [];
sessionStorage.setItem("secret", SECRET);
const HEADERS = { Authorization: `Bearer ${SECRET}` };
const $ = (id) => document.getElementById(id);
const percent = (share, digits = 1) => (share === null ? "–" : `${(share * 100).toFixed(digits)} %`);
const milliseconds = (value) => (value === null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const ITEM = document.body.dataset.item; // what params.yaml calls one image
const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** Set a text if it differs: screen readers announce changes of a live region. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Return an element with a class and children. */
function make(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Try a digit -------------------------------------------------------------------------------------

let waiting; // for the end of a stroke
let asked = 0; // number of the last request: a late answer does not replace a newer one
let uploaded = null; // the uploaded file, which is sent instead of the drawing
let tried = null; // the request id of the answer that is shown
const sheet = paper($("paper"), $("pen"), {
  done() {
    clearTimeout(waiting);
    waiting = setTimeout(ask, PAUSE_MILLISECONDS);
  },
  ask,
  say: (text) => setText($("said"), text),
  changed(drawn) {
    uploaded = null;
    $("invitation").hidden = drawn;
    if (drawn) return;
    asked++;
    clearTimeout(waiting);
    refused(`Draw a ${ITEM} or upload a picture of one.`);
  },
});

async function ask() {
  clearTimeout(waiting);
  if (!uploaded && sheet.empty()) return refused(`The paper is empty: draw a ${ITEM} first.`);
  const mine = ++asked;
  const query = new URLSearchParams({ endpoint: $("endpoint").value, script: $("script").value });
  try {
    const body = uploaded ?? (await sheet.blob());
    const response = await fetch(`score?${query}`, { method: "POST", headers: HEADERS, body });
    const answer = await response.json();
    if (mine !== asked) return;
    if (response.ok) answered(answer);
    else refused(`${response.status}: ${answer.message}`);
  } catch (error) {
    if (mine === asked) refused(`No answer: ${error.message}. Is \`digits local\` running?`);
  }
}

function refused(sentence) {
  setText($("digit"), "?");
  setText($("sentence"), sentence);
  setText($("by"), "");
  $("digit").className = "digit";
  $("details").hidden = $("correction").hidden = true;
  setText($("labelsaved"), "");
}

function answered(answer) {
  const { digit, confidence, ood_score, probabilities } = answer.predictions[0];
  const anomalous = ood_score > 0.5;
  const warnings = answer.warnings ?? [];
  setText($("digit"), digit);
  $("digit").classList.toggle("anomalous", anomalous || warnings.length > 0);
  $("digit").classList.toggle("word", digit.length > 2);
  tried = answer.request_id;
  $("truth").replaceChildren(...answer.classes.map((name) => new Option(name, name, false, name === digit)));
  $("written").value = $("script").value || $("written").options[0]?.value || "";
  $("correction").hidden = !$("written").value;
  setText($("labelsaved"), "");
  const note = anomalous ? "Out of distribution: do not rely on this answer." : "In distribution.";
  const notes = [note, ...warnings.map((warning) => `Warning: ${warning}.`)];
  setText($("sentence"), `Confidence ${percent(confidence)}. ${notes.join(" ")}`);
  const unknown = $("script").value && answer.script === null ? " It does not know this script and ignored it." : "";
  setText($("by"), `Model ${answer.model_version} in ${answer.deployment}, ${milliseconds(answer.milliseconds)}.${unknown}`);
  $("details").hidden = false;
  setText($("ood_score"), ood_score.toFixed(3));
  $("meter").setAttribute("aria-valuenow", ood_score);
  $("meter").firstChild.style.width = `${ood_score * 100}%`;
  $("meter").classList.toggle("anomalous", anomalous);
  $("probabilities").tBodies[0].replaceChildren(
    ...probabilities.map((probability, number) => {
      const bar = make("span", "bar");
      bar.style.width = `${probability * 100}%`;
      const name = make("th", "", answer.classes[number]);
      name.scope = "row";
      name.title = name.textContent;
      const row = make("tr", "", name, make("td", "", bar), make("td", "", percent(probability)));
      row.classList.toggle("best", answer.classes[number] === digit);
      return row;
    }),
  );
  showSteps(answer.steps ?? {});
}

/** Show the image that the model received, and how the picture was read. */
function showSteps(steps) {
  const pictures = Object.entries(steps).map(([name, rows]) => greyPicture(name, rows));
  $("seen").hidden = !pictures.length; // another project's endpoint may send none
  $("saw").replaceChildren(...pictures.slice(-1));
  $("steps").replaceChildren(...pictures.slice(0, -1));
  $("steps").parentElement.hidden = pictures.length < 2;
}

/** Return a canvas with rows of grey values, with its name below. */
function greyPicture(name, rows) {
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [rows[0].length, rows.length];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  const shades = new Uint8ClampedArray(rows.flat().flatMap((value) => [value, value, value, 255]));
  canvas.getContext("2d").putImageData(new ImageData(shades, canvas.width), 0, 0);
  return make("figure", "", canvas, make("figcaption", "", name));
}

async function saveLabel(event) {
  event.preventDefault();
  const query = new URLSearchParams({ endpoint: $("endpoint").value, request_id: tried, label: $("truth").value, script: $("written").value });
  try {
    const response = await fetch(`label?${query}`, { method: "POST", headers: HEADERS });
    const { label, message } = await response.json();
    setText($("labelsaved"), response.ok ? `Saved: it was ${label}. digits monitor --labelled writes it for training.` : `Not saved: ${message}`);
  } catch (error) {
    setText($("labelsaved"), `Not saved: ${error.message}`);
  }
}

$("correction").addEventListener("submit", saveLabel);
$("ask").addEventListener("click", ask);
$("clear").addEventListener("click", sheet.clear);
$("script").addEventListener("change", () => (uploaded || !sheet.empty()) && ask());
$("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same file can be chosen again
  if (!file) return;
  await sheet.show(file).catch(sheet.clear); // the endpoint reports an invalid file
  uploaded = file;
  ask();
});

// Charts ------------------------------------------------------------------------------------------

/** Show a chart with its legend and a table of its values in a section. */
function chart(name, label, draw, { legend = [], head, rows }) {
  const section = document.querySelector(`[data-chart=${name}]`);
  if (!section.querySelector(".plot")) {
    const title = section.querySelector("h2");
    const table = make("table");
    const scroll = make("div", "scroll", table);
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", `${title.textContent} as a table`);
    section.append(make("ul", "legend"), make("div", "plot"), make("details", "", make("summary", "", "As a table"), scroll));
  }
  const plot = section.querySelector(".plot");
  const drawn = draw(plot.clientWidth);
  drawn.setAttribute("aria-label", label);
  plot.replaceChildren(drawn);
  track(plot, drawn);
  section.querySelector(".legend").replaceChildren(
    ...legend.map(([kind, text]) => make("li", "", make("span", `key ${kind}`), text)),
  );
  if (section.querySelector("details").open) {
    fill(section.querySelector("table"), rows(), head);
  }
}

/** Fill a table with rows of texts; the first text of a row is its header. */
function fill(table, rows, head) {
  if (head && !table.tHead) {
    table.createTHead().append(make("tr", "", ...head.map((text) => Object.assign(make("th", "", text), { scope: "col" }))));
    table.createTBody();
  }
  table.tBodies[0].replaceChildren(
    ...rows.map(([first, ...others]) => {
      const name = make("th", "", first);
      name.scope = "row";
      return make("tr", "", name, ...others.map((cell) => make("td", "", cell)));
    }),
  );
}

/** Return whether a running deployment has traffic. */
const answers = (state) => state.deployments.some(({ up, weight }) => up && weight);

/** Return the names of all deployments to show; the index gives the colour. */
function deploymentsOf(state) {
  const named = [...state.deployments.map(({ name }) => name), ...Object.keys(state.minute.deployments)];
  return [...new Set(named)];
}

function showTraffic(state) {
  const { seconds } = state.minute;
  const names = deploymentsOf(state);
  const legend = names.map((name, number) => [`kind${number % 4}`, name || "no deployment"]);
  const columns = seconds.map((second) => ({
    name: `${second.ago} s ago`,
    parts: names.map((name, number) => ({ kind: `kind${number % 4}`, name, value: second.deployments[name] ?? 0 })),
  }));
  const total = (column) => column.parts.reduce((sum, { value }) => sum + value, 0);
  const words = ["a minute ago", "now"];
  const top = Math.max(2, roundUp(Math.max(...columns.map(total))));
  const format = (value) => `${Math.round(value * 10) / 10}`;
  chart("rates", `Requests a second over the last minute, ${count(state.minute.requests, "request")} in all`,
    (width) => bars(width, columns, { top, words, format }),
    { legend, head: ["Seconds ago", ...names], rows: () => columns.map(({ parts }, i) => [seconds[i].ago, ...parts.map(({ value }) => value)]) });

  const series = [["p99_ms", "kind3", "99th percentile"], ["median_ms", "kind2", "median"]].map(([key, kind, name]) => ({
    kind,
    name,
    points: seconds.map((second, i) => ({ at: i / (seconds.length - 1), value: second[key], name: `${second.ago} s ago` })),
  }));
  const slowest = Math.max(...seconds.map((second) => second.p99_ms ?? 0));
  chart("latency", `Latency over the last minute: median ${milliseconds(state.minute.median_ms)}, 99th percentile ${milliseconds(state.minute.p99_ms)}`,
    (width) => lines(width, series, { top: roundUp(slowest || 10), words, format }),
    { legend: [["kind2", "median"], ["kind3", "99th percentile"]], head: ["Seconds ago", "Median ms", "p99 ms"],
      rows: () => seconds.map((second) => [second.ago, second.median_ms ?? "–", second.p99_ms ?? "–"]) });
}

function showWindows(state) {
  const { windows } = state;
  const words = windows.length ? [clock(windows[0].ended), clock(windows.at(-1).ended)] : ["", ""];
  const place = (i) => (windows.length > 1 ? i / (windows.length - 1) : 0.5);
  const empty = (sentence) => () => nothing(sentence);
  const name = (window) => `Window of ${clock(window.ended)}`;

  setText($("judged"), `each point is a window of ${state.window ?? "some"} ${ITEM}s, tested without labels; `
    + `a red diamond while the alarm is active. ${filling(state)} ${ending(state)}`);
  const points = windows.map((window, i) => ({
    at: place(i), name: name(window), value: window.evidence, alarm: window.drift,
  }));
  const limit = state.limit && { value: state.limit, name: "alarm" };
  const top = state.limit || 1000;
  const ticks = [1, 10, 100, 1000, 10000].filter((tick) => tick <= top);
  chart("evidence", windows.length ? `Evidence for drift by window; ${words2(state)}` : "No window has been tested yet",
    windows.length ? (width) => lines(width, [{ kind: "kind0", name: "evidence", points, dots: true }],
      { bottom: 1, top, ticks, scale: Math.log10, words, limit, format: (value) => `${+value.toPrecision(3)}` })
      : empty(state.reason || `No ${ITEM}s have been collected yet.`),
    { head: ["Window ended", "Evidence", "Alarm", "Lowest p-value", "Out of distribution, estimated"],
      rows: () => windows.map((window) => [clock(window.ended), window.evidence.toPrecision(3),
        window.drift ? "yes" : "no", window.signal, percent(window.ood_share)]) });

  const measured = windows.map((window, i) => {
    const [value, low, high] = window.accuracy ?? [null];
    return { at: place(i), name: name(window), value, low, high };
  });
  const estimated = windows.map((window, i) => ({ at: place(i), name: name(window), value: window.estimated }));
  const lowest = measured.map(({ low, value }, i) => (windows[i].labelled < FEW_LABELS ? value : low));
  const known = [...lowest, ...estimated.map(({ value }) => value)].filter((value) => value !== null);
  const bottom = Math.floor(Math.min(0.9, ...known) * 10) / 10;
  const series = [{ kind: "estimate", name: "estimated", points: estimated }, { kind: "kind0", name: "by labels", points: measured, dots: true }];
  chart("accuracies", state.accuracy ? `Accuracy by window; ${percent(state.accuracy[0])} of the active models` : "Accuracy by window; no labels yet",
    known.length ? (width) => lines(width, series, { bottom, top: 1, words, format: (value) => percent(value, 0) })
      : empty("No window has labels or an estimate yet."),
    { legend: known.length ? [["kind0", "by true labels, with 95 % interval"], ["estimate", "estimated without labels"]] : [],
      head: ["Window ended", "Accuracy", "95 % interval", "Labels", "Estimated"],
      rows: () => windows.map((window) => [clock(window.ended), percent(window.accuracy?.[0] ?? null),
        window.accuracy ? `${percent(window.accuracy[1])} to ${percent(window.accuracy[2])}` : "–", window.labelled,
        percent(window.estimated)]) });

  const counts = new Map(state.classes); // in the order of params.yaml
  const classes = [...counts.keys()];
  const of = [...counts.values()].reduce((sum, value) => sum + value, 0);
  const share = (key) => (counts.get(key) ?? 0) / (of || 1);
  const columns = classes.map((key) => ({ name: key, parts: [{ kind: "kind0", name: "Prediction", value: share(key) }] }));
  const expected = state.expected && Object.fromEntries(classes.map((key, i) => [key, state.expected[i]]));
  const marks = expected && classes.map((key) => expected[key]);
  chart("classes", `Share of each prediction among ${count(of, ITEM)}`,
    of ? (width) => bars(width, columns, { top: Math.max(0.2, roundUp(Math.max(...classes.map(share)) * 10) / 10), marks, named: true, format: (value) => percent(value, 0) })
      : empty(`No ${ITEM}s have been collected yet.`),
    { legend: [["kind0", "now"], ...(marks ? [["mark", "validation data"]] : [])], head: [ITEM, "Now", "Validation"],
      rows: () => classes.map((key) => [key, percent(share(key)), percent(expected?.[key] ?? null)]) });
}

/** Return a sentence about the last window if it is incomplete. */
function filling({ windows, window }) {
  const last = windows.at(-1)?.requests ?? window;
  return last < window ? `The last window has ${last} so far.` : "";
}
const drifts = ({ monitoring }) => (monitoring ? monitoring.drift : null);
/** Return the onset of the alarm; "at least" if the first window is already part of it. */
const since = ({ monitoring }) => `${monitoring.onset_censored ? "at least " : ""}since ${clock(Date.parse(monitoring.since) / 1000)}`;
/** Return when the alarm can end: calm windows halve the evidence at best, and it ends at 1. */
function ending(state) {
  const { evidence } = state.windows.at(-1) ?? {};
  if (!drifts(state)) return `The alarm is raised when the evidence reaches ${state.limit ?? "the limit"}.`;
  const calm = Math.max(1, Math.ceil(Math.log2(evidence)));
  return `The alarm ends when the evidence, now ${+evidence.toPrecision(3)}, is back at 1: after ${count(calm, "window")} without drift at the earliest.`;
}
const CAUSES = {
  ood_confidence: `${ITEM}s unlike the training data, or low confidence`,
  brightness: "their brightest pixel", ink: "their amount of ink", width: "their width", height: "their height",
  row: "their vertical position", column: "their horizontal position", classes: "the mix of predictions",
};
const why = ({ monitoring }) => monitoring.contributing_signals.map((name) => CAUSES[name] ?? name).join("; ");
const words2 = (state) => (drifts(state) ? `drift ${since(state)}` : "no drift");

function showDeployments(state) {
  const { minute } = state;
  const names = deploymentsOf(state).filter(Boolean);
  const rows = names.map((name, number) => {
    const known = state.deployments.find((one) => one.name === name);
    const seen = minute.deployments[name];
    const share = minute.requests ? (seen?.requests ?? 0) / minute.requests : 0;
    const bar = make("span", `bar kind${number % 4}`);
    bar.style.width = `${share * 100}%`;
    const mark = make("i");
    mark.style.left = `${known?.weight ?? 0}%`;
    const state_ = known ? (known.up ? `weight ${known.weight} %` : "is starting") : "deleted";
    const title = make("span", "", make("b", "", name), make("small", "", ` ${state_}`), make("span", "share", bar, mark));
    return [title, `${percent(share, 0)} (${seen?.requests ?? 0})`, milliseconds(seen?.median_ms ?? null),
      milliseconds(seen?.p99_ms ?? null), seen?.failed ?? 0];
  });
  fill($("deployments"), rows);
  const scripts = Object.entries(state.scripts);
  $("scripts").hidden = !scripts.length;
  fill($("scripts"), scripts.map(([name, [share, low, high, of]]) => [name, percent(share), `${percent(low)} to ${percent(high)}`, of]));
}

/** Return a canvas with one collected image: base64 of size * size bytes, white on black. */
function picture(base64) {
  const size = Math.sqrt(atob(base64).length);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const pixels = canvas.getContext("2d").createImageData(size, size);
  [...atob(base64)].forEach((letter, i) => {
    const paper = 255 - letter.charCodeAt(0);
    pixels.data.set([paper, paper, paper, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function showDigits(list, digits) {
  const key = JSON.stringify(digits);
  if (list.digits === key) return; // unchanged since the last second
  list.digits = key;
  const items = digits.map(({ image, digit, confidence, ood_score, tryout }) => {
    const anomalous = ood_score > 0.5;
    const item = make("li", anomalous ? "anomalous" : "", picture(image), make("b", "", digit), " ", make("small", "", `${Math.round(confidence * 100)}%`));
    if (anomalous) item.append(make("small", "mark", "OOD"));
    if (tryout) item.append(make("small", "mark", "try-out"));
    return item;
  });
  list.replaceChildren(...(items.length ? items : [make("li", "nothing", `No ${ITEM}s have been collected yet.`)]));
}

// State -------------------------------------------------------------------------------------------

function showFigures(state) {
  const { minute } = state;
  const rate = minute.requests / 60;
  setText($("rate"), minute.requests.toLocaleString("en"));
  setText($("asked"), `${rate.toFixed(rate < 0.1 ? 2 : rate < 10 ? 1 : 0)} a second on average`);
  setText($("median"), milliseconds(minute.median_ms));
  setText($("p99"), minute.requests ? `99 % within ${milliseconds(minute.p99_ms)}` : "no requests");
  const failed = Object.entries(minute.statuses).filter(([status]) => status >= 500).reduce((sum, [, of]) => sum + of, 0);
  setText($("failed"), `${failed}`);
  setText($("statuses"), Object.entries(minute.statuses).map(([status, of]) => `${of.toLocaleString("en")} × ${status}`).join(", ") || "no requests");
  const latest = state.windows.at(-1)?.estimated ?? null;
  const estimate = latest === null ? "" : `; estimated now: ${percent(latest)}`;
  setText($("accuracy"), percent(state.accuracy?.[0] ?? null));
  setText($("labelled"), state.accuracy
    ? `${percent(state.accuracy[1])} to ${percent(state.accuracy[2])}, ${count(state.labelled, "label")}${estimate}` : `no true labels yet${estimate}`);
  const drift = drifts(state);
  setText($("drift"), drift === null ? "unknown" : drift ? "yes" : "no");
  setText($("since"), drift === null ? state.reason || "no data has been collected yet" : drift ? `${since(state)}: ${why(state)}` : "in the latest window");
  $("drifttile").classList.toggle("alarm", drift === true);
  setText($("counts"), `${count(state.digits, ITEM)} collected; omitted: ${state.duplicate} duplicate, ${state.corrupted} corrupted and ${count(state.elsewhere, "line")} stored elsewhere; ${count(state.tryouts, "try-out")}; `
    + `${count(state.lost, "collected request")} lost since the start of \`digits local\`.`);
}

function showNotices(state) {
  const notices = [];
  if (!state.endpoint) notices.push(["plain", "Nothing is deployed yet.", "In another terminal:", "digits deploy apply --workspace local"]);
  else if (!answers(state)) notices.push(["plain", "No deployment has traffic yet.", "It is starting or paused:", "digits deploy status --workspace local"]);
  if (drifts(state)) notices.push(["alarm", `Drift ${since(state)}.`, `Requests differ from the validation data: ${why(state)}. ${ending(state)} For the report:`, "digits monitor --workspace local --out look"]);
  if (state.lost) notices.push(["alarm", `${count(state.lost, "collected request")} lost.`, `Scoring continues. ${state.lost_reason}`]);
  const key = JSON.stringify(notices);
  if ($("notices").dataset.key === key) return;
  $("notices").dataset.key = key;
  $("notices").replaceChildren(...notices.map(([kind, what, more, command]) => {
    const notice = make("p", `notice ${kind}`, make("b", "", what), ` ${more} `);
    if (command) notice.append(make("code", "", command), " ", copying(command));
    return notice;
  }));
}

/** Return a button that copies a command. */
function copying(command) {
  const button = make("button", "copy", "Copy");
  button.type = "button";
  button.setAttribute("aria-label", `Copy ${command}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command);
    setText(button, "Copied");
  });
  return button;
}

function showChoices(state) {
  const options = (select, values) => {
    if (values.join() === [...select.options].map(({ value }) => value).join()) return;
    const chosen = select.value;
    select.replaceChildren(...values.map((value) => new Option(value || "detect automatically", value)));
    select.value = values.includes(chosen) ? chosen : (values[0] ?? "");
  };
  options($("endpoint"), state.endpoints);
  options($("script"), ["", ...state.known_scripts]);
  options($("written"), state.known_scripts);
  $("endpoint").value = state.endpoint;
  $("choice").hidden = state.endpoints.length < 2;
  setText($("where"), state.endpoint ? `endpoint ${state.endpoint}, on this machine` : "on this machine");
}

function health(kind, text) {
  $("pill").className = `pill ${kind}`;
  setText($("health"), text);
}

function stateOfHealth(state) {
  if (drifts(state)) return ["alarm", "drift"];
  if (!state.endpoint) return ["", "nothing deployed"];
  return answers(state) ? ["good", "live"] : ["", "no deployment"];
}

async function poll() {
  if (!document.hidden) {
    const chosen = $("endpoint").value;
    const asked = fetch(`state?${new URLSearchParams({ endpoint: chosen })}`, { headers: HEADERS });
    const answer = await asked.catch(() => null);
    const state = await answer?.json().catch(() => null);
    if ($("endpoint").value !== chosen) return; // another endpoint was chosen in the meantime
    document.body.classList.toggle("stale", !state);
    if (answer?.status === 401) {
      health("alarm", state.message);
    } else if (!state) {
      health("alarm", "digits local has stopped");
    } else {
      showChoices(state);
      showNotices(state);
      showFigures(state);
      showTraffic(state);
      showWindows(state);
      showDeployments(state);
      showDigits($("recent"), state.recent);
      showDigits($("most_anomalous"), state.most_anomalous);
      health(...stateOfHealth(state));
    }
  }
}

async function live() {
  try {
    await poll();
  } finally {
    setTimeout(live, POLL_MILLISECONDS);
  }
}
live();
