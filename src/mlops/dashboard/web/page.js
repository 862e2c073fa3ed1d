// The page: asks the endpoint for a digit, and shows the state of production each second.

import { bars, lines, nothing, roundUp } from "./charts.js";
import { paper } from "./draw.js";

const POLL_MILLISECONDS = 1000;
const PAUSE_MILLISECONDS = 500; // after a stroke, before the digit is read
const FEW_LABELS = 30; // the interval of fewer may run out of the chart
const $ = (id) => document.getElementById(id);
const percent = (share, digits = 1) => (share === null ? "–" : `${(share * 100).toFixed(digits)} %`);
const milliseconds = (value) => (value === null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** Set a text, if it is another: a live region speaks of what changes only. */
function tell(node, text) {
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
let asked = 0; // so that a late answer does not replace a newer one
let uploaded = null; // the file that the paper shows: what is asked about is itself, not its drawing
const sheet = paper($("paper"), $("pen"), {
  done() {
    clearTimeout(waiting);
    waiting = setTimeout(ask, PAUSE_MILLISECONDS);
  },
  ask,
  say: (text) => tell($("said"), text),
  changed(drawn) {
    uploaded = null;
    $("invitation").hidden = drawn;
    if (drawn) return;
    asked++;
    clearTimeout(waiting);
    refused("Draw a digit or upload a picture of one.");
  },
});

async function ask() {
  clearTimeout(waiting);
  if (!uploaded && sheet.empty()) return refused("The paper is empty: draw a digit first.");
  const mine = ++asked;
  const query = new URLSearchParams({ endpoint: $("endpoint").value, script: $("script").value });
  try {
    const body = uploaded ?? (await sheet.blob());
    const answer = await fetch(`score?${query}`, { method: "POST", body });
    const told = await answer.json();
    if (mine !== asked) return;
    if (answer.ok) answered(told);
    else refused(`${answer.status}: ${told.message}`);
  } catch (error) {
    if (mine === asked) refused(`No answer: ${error.message}. Does \`digits local\` still run?`);
  }
}

function refused(sentence) {
  tell($("digit"), "?");
  tell($("sentence"), sentence);
  tell($("by"), "");
  $("details").hidden = true;
}

function answered(told) {
  const { digit, confidence, foreign, probabilities } = told.predictions[0];
  const strange = foreign > 0.5;
  tell($("digit"), digit);
  $("digit").classList.toggle("strange", strange);
  const looks = strange ? "It looks foreign: do not trust this answer." : "It looks like the digits that the model knows.";
  tell($("sentence"), `${percent(confidence)} sure. ${looks}`);
  const unknown = $("script").value && told.script === null ? " It does not know this script, and left it out." : "";
  tell($("by"), `Model ${told.model_version} in ${told.deployment}, ${milliseconds(told.milliseconds)}.${unknown}`);
  $("details").hidden = false;
  tell($("foreign"), foreign.toFixed(3));
  $("meter").setAttribute("aria-valuenow", foreign);
  $("meter").firstChild.style.width = `${foreign * 100}%`;
  $("meter").classList.toggle("strange", strange);
  $("probabilities").tBodies[0].replaceChildren(
    ...probabilities.map((probability, number) => {
      const bar = make("span", "bar");
      bar.style.width = `${probability * 100}%`;
      const name = make("th", "", told.classes[number]);
      name.scope = "row";
      const row = make("tr", "", name, make("td", "", bar), make("td", "", percent(probability)));
      row.classList.toggle("best", told.classes[number] === digit);
      return row;
    }),
  );
}

$("ask").addEventListener("click", ask);
$("clear").addEventListener("click", sheet.clear);
$("script").addEventListener("change", () => (uploaded || !sheet.empty()) && ask());
$("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same file can be chosen again
  if (!file) return;
  await sheet.show(file).catch(sheet.clear); // the endpoint says what is wrong with it
  uploaded = file;
  ask();
});

// Charts ------------------------------------------------------------------------------------------

/** Put a chart, its legend and the same as a table into a section. */
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
  section.querySelector(".legend").replaceChildren(
    ...legend.map(([kind, text]) => make("li", "", make("span", `key ${kind}`), text)),
  );
  if (section.querySelector("details").open) {
    fill(section.querySelector("table"), rows(), head);
  }
}

/** Fill a table with rows of texts, the first of each being its header. */
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

/** Return whether a deployment is up that gets traffic. */
const answers = (state) => state.deployments.some(({ up, weight }) => up && weight);

/** Return the names of all deployments that there is something of; the place gives the colour. */
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
  chart("rates", `Requests a second over the last minute, now ${state.minute.rate}`,
    (width) => bars(width, columns, { top, words, format }),
    { legend, head: ["Seconds ago", ...names], rows: () => columns.map(({ parts }, i) => [seconds[i].ago, ...parts.map(({ value }) => value)]) });

  const series = [["p99_ms", "kind3"], ["median_ms", "kind2"]].map(([key, kind]) => ({
    kind,
    points: seconds.map((second, i) => ({ at: i / (seconds.length - 1), value: second[key] })),
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

  tell($("judged"), `each point is a window of ${state.window ?? "some"} digits, judged without labels; `
    + `in the alarm's colour from the alarm on. ${filling(state)}`);
  const points = windows.map((window, i) => ({
    at: place(i), name: name(window), value: window.evidence, alarm: window.drift,
  }));
  const limit = state.limit && { value: state.limit, name: "alarm" };
  const top = state.limit || 1000;
  const ticks = [1, 10, 100, 1000, 10000].filter((tick) => tick <= top);
  chart("evidence", windows.length ? `Evidence for drift by window; ${words2(state)}` : "No window was judged yet",
    windows.length ? (width) => lines(width, [{ kind: "kind0", points, dots: true }],
      { bottom: 1, top, ticks, scale: Math.log10, words, limit, format: (value) => `${+value.toPrecision(3)}` })
      : empty(state.reason || "No digits have been collected yet."),
    { head: ["Window ended", "Evidence", "Alarm", "Most unusual", "Strangers, estimated"],
      rows: () => windows.map((window) => [clock(window.ended), window.evidence.toPrecision(3),
        window.drift ? "yes" : "no", window.cause, percent(window.strangers)]) });

  const measured = windows.map((window, i) => {
    const [value, low, high] = window.accuracy ?? [null];
    return { at: place(i), name: name(window), value, low, high };
  });
  const estimated = windows.map((window, i) => ({ at: place(i), name: name(window), value: window.estimated }));
  const lowest = measured.map(({ low, value }, i) => (windows[i].labelled < FEW_LABELS ? value : low));
  const known = [...lowest, ...estimated.map(({ value }) => value)].filter((value) => value !== null);
  const bottom = Math.floor(Math.min(0.9, ...known) * 10) / 10;
  const series = [{ kind: "estimate", points: estimated }, { kind: "kind0", points: measured, dots: true }];
  chart("accuracies", state.accuracy ? `Accuracy by window; ${percent(state.accuracy[0])} of the labels of what answers now` : "Accuracy by window; no labels yet",
    known.length ? (width) => lines(width, series, { bottom, top: 1, words, format: (value) => percent(value, 0) })
      : empty("No window has labels or an estimate yet."),
    { legend: known.length ? [["kind0", "by true labels, with 95 % interval"], ["estimate", "estimated before they come"]] : [],
      head: ["Window ended", "Accuracy", "95 % interval", "Labels", "Estimated"],
      rows: () => windows.map((window) => [clock(window.ended), percent(window.accuracy?.[0] ?? null),
        window.accuracy ? `${percent(window.accuracy[1])} to ${percent(window.accuracy[2])}` : "–", window.labelled,
        percent(window.estimated)]) });

  const classes = Object.keys(state.classes).sort();
  const of = Object.values(state.classes).reduce((sum, value) => sum + value, 0);
  const share = (key) => (state.classes[key] ?? 0) / (of || 1);
  const columns = classes.map((key) => ({ name: key, parts: [{ kind: "kind0", name: "Answer", value: share(key) }] }));
  const expected = state.expected && Object.fromEntries(Object.keys(state.classes).map((key, i) => [key, state.expected[i]]));
  const marks = expected && classes.map((key) => expected[key]);
  chart("classes", `Share of each answer among ${count(of, "digit")}`,
    of ? (width) => bars(width, columns, { top: Math.max(0.2, roundUp(Math.max(...classes.map(share)) * 10) / 10), marks, named: true, format: (value) => percent(value, 0) })
      : empty("No digits have been collected yet."),
    { legend: [["kind0", "now"], ...(marks ? [["mark", "what the model was validated on"]] : [])], head: ["Digit", "Now", "Validated on"],
      rows: () => classes.map((key) => [key, percent(share(key)), percent(expected?.[key] ?? null)]) });
}

/** Say how far the last window is, if it is not full. */
function filling({ windows, window }) {
  const last = windows.at(-1)?.requests ?? window;
  return last < window ? `The last one has ${last} so far.` : "";
}
const drifts = ({ monitoring }) => (monitoring ? monitoring.drift : null);
/** Say since when it drifts; at least, where the first window drifts already. */
const since = ({ monitoring }) => `${monitoring.at_least ? "at least " : ""}since ${clock(Date.parse(monitoring.since) / 1000)}`;
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
    const state_ = known ? (known.up ? `${known.weight} % set` : "is starting") : "gone";
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
  if (list.digits === key) return; // the same as a second ago
  list.digits = key;
  const items = digits.map(({ image, digit, confidence, foreign }) => {
    const strange = foreign > 0.5;
    const item = make("li", strange ? "strange" : "", picture(image), make("b", "", digit), " ", make("small", "", `${Math.round(confidence * 100)}%`));
    if (strange) item.append(make("span", "hidden", " looks foreign"));
    return item;
  });
  list.replaceChildren(...(items.length ? items : [make("li", "nothing", "No digits have been collected yet.")]));
}

// State -------------------------------------------------------------------------------------------

function showFigures(state) {
  const { minute } = state;
  tell($("rate"), minute.rate.toFixed(minute.rate < 10 ? 1 : 0));
  tell($("asked"), `${count(minute.requests, "request")} in the last minute`);
  tell($("median"), milliseconds(minute.median_ms));
  tell($("p99"), `99 % within ${milliseconds(minute.p99_ms)}`);
  const failed = Object.entries(minute.statuses).filter(([status]) => status >= 500).reduce((sum, [, of]) => sum + of, 0);
  tell($("failed"), `${failed}`);
  tell($("statuses"), Object.entries(minute.statuses).map(([status, of]) => `${of} × ${status}`).join(", ") || "no requests");
  const latest = state.windows.at(-1)?.estimated ?? null;
  const estimate = latest === null ? "" : `; ${percent(latest)} now, by estimate`;
  tell($("accuracy"), percent(state.accuracy?.[0] ?? null));
  tell($("labelled"), state.accuracy
    ? `${percent(state.accuracy[1])} to ${percent(state.accuracy[2])}, ${count(state.labelled, "label")}${estimate}` : `no true labels yet${estimate}`);
  const drift = drifts(state);
  tell($("drift"), drift === null ? "unknown" : drift ? "yes" : "no");
  tell($("since"), drift === null ? state.reason || "nothing was collected yet" : drift ? since(state) : "in the latest window");
  $("drifttile").classList.toggle("alarm", drift === true);
  tell($("counts"), `${count(state.digits, "digit")} collected; ${state.doubled} sent twice and ${state.damaged} damaged `
    + `were left out; ${count(state.lost, "collected request")} lost since \`digits local\` began.`);
}

function showNotices(state) {
  const notices = [];
  if (!state.endpoint) notices.push(["plain", "Nothing is deployed yet.", "In another terminal: digits deploy apply --workspace local"]);
  else if (!answers(state)) notices.push(["plain", "No deployment has traffic yet.", "It is starting, or paused: digits deploy status --workspace local"]);
  if (drifts(state)) notices.push(["alarm", `Drift ${since(state)}.`, "Production looks unlike what the model was validated on. Look at the latest digits, then: digits monitor --workspace local"]);
  if (state.lost) notices.push(["alarm", `${count(state.lost, "collected request")} lost.`, `Scoring goes on. ${state.lost_reason}`]);
  const key = JSON.stringify(notices);
  if ($("notices").dataset.key === key) return;
  $("notices").dataset.key = key;
  $("notices").replaceChildren(...notices.map(([kind, what, more]) => make("p", `notice ${kind}`, make("b", "", what), ` ${more}`)));
}

function showChoices(state) {
  const options = (select, values) => {
    if (values.join() === [...select.options].map(({ value }) => value).join()) return;
    const chosen = select.value;
    select.replaceChildren(...values.map((value) => new Option(value || "not told", value)));
    select.value = values.includes(chosen) ? chosen : (values[0] ?? "");
  };
  options($("endpoint"), state.endpoints);
  options($("script"), ["", ...state.known_scripts]);
  $("endpoint").value = state.endpoint;
  $("choice").hidden = state.endpoints.length < 2;
  tell($("where"), state.endpoint ? `endpoint ${state.endpoint}, on this machine` : "on this machine");
}

function health(kind, text) {
  $("pill").className = `pill ${kind}`;
  tell($("health"), text);
}

function stateOfHealth(state) {
  if (drifts(state)) return ["alarm", "drift"];
  if (!state.endpoint) return ["", "nothing deployed"];
  return answers(state) ? ["good", "live"] : ["", "no deployment"];
}

async function poll() {
  if (!document.hidden) {
    const chosen = $("endpoint").value;
    const asked = fetch(`state?${new URLSearchParams({ endpoint: chosen })}`);
    const state = await asked.then((answer) => answer.json()).catch(() => null);
    if ($("endpoint").value !== chosen) return; // another was chosen meanwhile: this is not its state
    if (!state) {
      health("alarm", "digits local has stopped");
    } else {
      showChoices(state);
      showNotices(state);
      showFigures(state);
      showTraffic(state);
      showWindows(state);
      showDeployments(state);
      showDigits($("recent"), state.recent);
      showDigits($("strangest"), state.strangest);
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
