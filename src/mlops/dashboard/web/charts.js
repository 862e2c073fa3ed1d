// Charts as inline SVG. Colours are set in style.css, by class.

const LEFT = 40, RIGHT = 12, TOP = 10, BOTTOM = 20, HEIGHT = 150; // pixels

/** Return an SVG element with attributes and children. */
function element(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Return a round number at or above the largest value. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

/** A frame with an axis of values; x and y convert a share of the width, and a value, to pixels. */
function frame(width, { bottom = 0, top, ticks, format = String, scale = (value) => value }) {
  const span = scale(top) - scale(bottom) || 1;
  const x = (share) => LEFT + share * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM
    - ((scale(Math.min(Math.max(value, bottom), top)) - scale(bottom)) / span) * (HEIGHT - TOP - BOTTOM);
  const svg = element("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  for (const value of ticks ?? [bottom, (bottom + top) / 2, top]) {
    svg.append(
      element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
    );
  }
  return { svg, x, y };
}

/** Words below the axis: at the left, and at the right. */
function ends({ svg, x }, words) {
  const y = HEIGHT - 4;
  svg.append(element("text", { x: x(0), y }, words[0]));
  svg.append(element("text", { x: x(1), y, "text-anchor": "end" }, words[1]));
}

/** Stacked bars. `columns`: [{name, parts: [{value, kind, name}]}], of equal width; marks: a value
 * a column that is shown as a line across it. */
export function bars(width, columns, { words, marks, named, ...axis }) {
  const place = frame(width, axis);
  const step = 1 / Math.max(columns.length, 1);
  const gap = named ? 4 : 1;
  columns.forEach(({ name, parts }, number) => {
    const [left, right] = [place.x(number * step) + gap / 2, place.x((number + 1) * step) - gap / 2];
    let below = 0;
    for (const part of parts) {
      const [from, to] = [place.y(below), place.y((below += part.value))];
      if (from - to <= 0) continue;
      const box = { class: `fill ${part.kind}`, x: left, y: to, width: right - left, height: from - to, rx: 1.5 };
      place.svg.append(element("rect", box, element("title", {}, `${part.name} ${name}: ${axis.format(part.value)}`)));
    }
    const middle = (left + right) / 2;
    if (marks) {
      const y = place.y(marks[number]);
      place.svg.append(element("line", { class: "mark", x1: left - 1, x2: right + 1, y1: y, y2: y }));
    }
    if (named) {
      const fits = Math.max(1, Math.floor((right - left) / 6.5)); // letters
      const label = name.length > fits ? `${name.slice(0, Math.max(1, fits - 1))}…` : name;
      place.svg.append(element("text", { x: middle, y: HEIGHT - 4, "text-anchor": "middle" }, label, element("title", {}, name)));
    }
  });
  if (words) ends(place, words);
  place.svg.columns = columns.map(({ name, parts }, number) => ({
    x: place.x((number + 0.5) * step),
    text: `${name}: ${parts.map((part) => `${parts.length > 1 ? `${part.name || "none"} ` : ""}${axis.format(part.value)}`).join(", ")}`
      + (marks ? ` (expected ${axis.format(marks[number])})` : ""),
  }));
  return place.svg;
}

/** Lines over time. `series`: [{kind, name, dots, points: [{at: 0 to 1, value, low, high, alarm, name}]}]; a
 * point without a value breaks its line; low and high draw an interval; `limit` a line across. */
export function lines(width, series, { words, limit, ...axis }) {
  const place = frame(width, axis);
  if (limit) {
    const y = place.y(limit.value);
    place.svg.append(
      element("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
      element("text", { class: "alarm", x: LEFT + 4, y: y + 13 }, limit.name),
    );
  }
  for (const { kind, points, dots } of series) {
    let path = "";
    let open = false;
    for (const [number, { at, value }] of points.entries()) {
      const alone = !open && (points[number + 1]?.value ?? null) === null;
      if (value !== null && alone && !dots) {
        place.svg.append(element("circle", { class: `fill ${kind}`, cx: place.x(at), cy: place.y(value), r: 3 }));
      }
      if (value !== null) path += `${open ? "L" : "M"}${place.x(at).toFixed(1)} ${place.y(value).toFixed(1)}h0`;
      open = value !== null;
    }
    place.svg.append(element("path", { class: `line ${kind}`, d: path }));
    for (const point of points) {
      if (!dots || point.value === null) continue;
      const [x, y] = [place.x(point.at), place.y(point.value)];
      if (point.low !== undefined) {
        const whisker = { class: `line thin ${kind}`, x1: x, x2: x, y1: place.y(point.low), y2: place.y(point.high) };
        place.svg.append(element("line", whisker));
      }
      place.svg.append(
        point.alarm // a diamond: colour is not the only sign
          ? element("path", { class: "fill alarm dot", d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z` })
          : element("circle", { class: `fill ${kind} dot`, cx: x, cy: y, r: 3.5 }),
      );
    }
  }
  ends(place, words);
  place.svg.columns = series[0].points.map(({ at, name, alarm }, number) => ({
    x: place.x(at),
    text: `${name}: ${series.map(({ name: what, points }) => `${what} ${points[number].value === null ? "–" : axis.format(points[number].value)}`).join(", ")}`
      + (alarm ? ", alarm" : ""),
  }));
  return place.svg;
}

/** Show the values under the pointer; they stay when the chart is redrawn. */
export function track(plot, svg) {
  const mark = element("g", { class: "hover" }, element("line", { y1: TOP, y2: HEIGHT - BOTTOM }), element("text", { y: TOP + 2 }));
  const show = () => {
    const { pointer } = plot;
    mark.remove();
    if (pointer === undefined || !svg.columns?.length) return;
    const near = (a, b) => (Math.abs(a.x - pointer) <= Math.abs(b.x - pointer) ? a : b);
    const { x, text } = svg.columns.reduce(near);
    const [line, words] = mark.children;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    words.setAttribute("x", x > plot.clientWidth / 2 ? x - 6 : x + 6);
    words.setAttribute("text-anchor", x > plot.clientWidth / 2 ? "end" : "start");
    words.textContent = text;
    svg.append(mark);
  };
  plot.onpointermove = (event) => {
    plot.pointer = event.clientX - plot.getBoundingClientRect().left;
    show();
  };
  plot.onpointerleave = () => {
    plot.pointer = undefined;
    show();
  };
  show();
}

/** A sentence instead of a chart without data. */
export function nothing(sentence) {
  const words = document.createElement("p");
  words.className = "nothing";
  words.textContent = sentence;
  return words;
}
