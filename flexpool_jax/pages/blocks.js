"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

// Building blocks. All text goes in as text, so that no name is read as HTML.

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
const compact = (value) => (value === null ? "–" : value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }));
const words = (name) => name.replaceAll("_", " ");

function section(id, title, ...children) {
  document.getElementById("contents").append(el("li", {}, el("a", { href: `#${id}` }, title)));
  const node = el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...children);
  main.append(node);
  return node;
}

function table(caption, header, rows, className = "") {
  const head = header && el("thead", {}, el("tr", {}, ...header.map((text) => el("th", { scope: "col" }, text))));
  const body = el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, i) =>
    i === 0 ? el("th", { scope: "row" }, cell) : cell instanceof Node && cell.tagName === "TD" ? cell : el("td", {}, cell)))));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: className }, el("caption", {}, caption), head, body));
}

function choice(label, options, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => el("option", { value }, text)));
  return { select, node: el("label", {}, label, select) };
}

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

const highest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
const lowest = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);

// Colours: blue below the centre, red above it, light in the middle.

const STOPS = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]];

function colour(value, centre, reach) {
  const place = 2 + 2 * Math.max(-1, Math.min(1, (value - centre) / (reach || 1)));
  const below = Math.min(3, Math.floor(place));
  return STOPS[below].map((low, i) => Math.round(low + (STOPS[below + 1][i] - low) * (place - below)));
}

// Of evidence, laid over an image: nothing where it is 0.
const [TAKES, ADDS] = ["43, 131, 255", "224, 44, 40"];
const overlay = (value, reach, strength) => `rgba(${value < 0 ? TAKES : ADDS}, ${strength * Math.abs(value) / reach})`;

function scale(centre, reach, middle, colours) {
  const stops = colours.join(", ");
  return el("div", { class: "scale" }, el("i", { style: `background: linear-gradient(to right, ${stops})` }),
    el("span", {}, el("span", {}, number(centre - reach, 3)), el("span", {}, middle), el("span", {}, number(centre + reach, 3))));
}

// A map whose values are read off with the pointer or the arrow keys.

function heatMap(describe) {
  const canvas = el("canvas", { class: "heat", tabindex: 0, role: "application", "aria-roledescription": "map" });
  const output = el("output", { "aria-live": "polite" });
  const state = { row: 0, column: 0, height: 1, width: 1, draw: null };
  const cell = () => canvas.width / state.width;

  function show() {
    const context = canvas.getContext("2d");
    state.draw(context, cell());
    context.lineWidth = 2;
    for (const [style, inset] of [["#000", 1], ["#ff0", 3]]) {
      context.strokeStyle = style;
      context.strokeRect(state.column * cell() + inset, state.row * cell() + inset, cell() - 2 * inset, cell() - 2 * inset);
    }
    output.textContent = describe(state.row, state.column);
  }
  function move(row, column) {
    state.row = Math.max(0, Math.min(state.height - 1, row));
    state.column = Math.max(0, Math.min(state.width - 1, column));
    show();
  }
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(state.row + step[0], state.column + step[1]);
  });
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  function point(event) {
    const box = canvas.getBoundingClientRect();
    move(Math.floor((event.clientY - box.top) / box.height * state.height), Math.floor((event.clientX - box.left) / box.width * state.width));
  }
  return {
    canvas, output,
    update(height, width, label, draw) {
      Object.assign(state, { height, width, draw });
      const size = Math.max(1, Math.floor(640 / Math.max(height, width)));
      canvas.width = size * width;
      canvas.height = size * height;
      canvas.setAttribute("aria-label", `${label}. ${height} rows, ${width} columns; the arrow keys move, the value is read out.`);
      move(state.row, state.column);
    },
  };
}

function paint(context, values, height, width, size, toColour, left = 0, top = 0) {
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      context.fillStyle = toColour(values[row * width + column]);
      context.fillRect(left + column * size, top + row * size, size, size);
    }
  }
}

// Charts

const DASHES = ["", "7 4", "2 3", "10 3 2 3"];
const ink = (place) => `var(--series${place % 8 + 1})`;
// 32 series differ in colour or dashes.
const stroke = (place) => ({ style: `stroke: ${ink(place)}`, "stroke-dasharray": DASHES[(place + Math.floor(place / 8)) % 4] });
const swatch = (place) => el("svg", { viewBox: "0 0 36 12", "aria-hidden": "true" }, el("line", { class: "line", ...stroke(place), x1: 0, x2: 36, y1: 6, y2: 6 }));

function niceTicks(low, high) {
  const step = [1, 2, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10((high - low) / 5))).find((s) => (high - low) / s <= 6);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

function chart(title, series, { x, y, markers = false, range = null }) {
  // As wide as there is room for, so that its text is not scaled down on a phone.
  const [width, height, left, right, top, bottom] = [Math.min(640, main.clientWidth), 300, 62, 14, 12, 44];
  const points = series.flatMap((one) => [one.points, ...(one.faint || [])].flat());
  const extent = (index) => {
    const values = points.map((point) => point[index]);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
    return [low, high];
  };
  const [x0, x1] = range || extent(0);
  const [y0, y1] = range || extent(1);
  const px = (value) => left + (value - x0) / (x1 - x0) * (width - left - right);
  const py = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of niceTicks(x0, x1)) {
    svg.append(el("line", { class: "grid", x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }),
      el("text", { x: px(tick), y: height - bottom + 17, "text-anchor": "middle" }, number(tick)));
  }
  for (const tick of niceTicks(y0, y1)) {
    svg.append(el("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }),
      el("text", { x: left - 7, y: py(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  svg.append(el("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x),
    el("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, y));
  const path = (found) => found.map(([a, b], i) => `${i ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`).join("");
  const places = series.map((one, i) => one.place ?? i);
  series.forEach((one, i) => svg.append(...(one.faint || []).map((found) => el("path", { class: "line faint", style: `stroke: ${ink(places[i])}`, d: path(found) }))));
  series.forEach((one, i) => {
    svg.append(el("path", { class: "line", ...stroke(places[i]), d: path(one.points) }));
    if (markers || one.points.length <= 30) {
      svg.append(...one.points.map(([a, b]) => el("circle", { cx: px(a), cy: py(b), r: 3.5, style: `fill: ${ink(places[i])}` }, el("title", {}, `${number(a)}: ${number(b)}`))));
    }
  });
  return el("figure", {}, svg, el("div", { class: "legend" }, ...series.map((one, i) => el("span", {}, swatch(places[i]), one.label))));
}

// What a chart of curves shows, in numbers.
function ends(caption, head, series) {
  const values = (one) => one.points.map((point) => point[1]);
  return table(caption, [head, "first", "last", "lowest", "highest"], series.map((one) =>
    [one.label, ...[values(one)[0], values(one).at(-1), Math.min(...values(one)), Math.max(...values(one))].map((value) => number(value))]));
}

// A line for each row: its mean, its interval, and single values beneath. Labels stand above, where a phone has room for them.
function intervals(title, rows, { x, zero = false }) {
  const [step, top, bottom, margin] = [44, 4, 44, 12];
  // A drawing that is wider than its place is scaled down, so that its longest label fits.
  const longest = Math.max(...rows.map((row) => row.label.length));
  const width = Math.max(Math.min(640, main.clientWidth), 2 * margin + 7.2 * longest);
  const height = top + step * rows.length + bottom;
  const values = rows.flatMap((row) => [row.mean - (row.half_width || 0), row.mean + (row.half_width || 0), ...row.values, row.published ?? row.mean]);
  let [low, high] = [Math.min(...values, ...(zero ? [0] : [])), Math.max(...values, ...(zero ? [0] : []))];
  // Equal accuracies can differ by rounding.
  const room = (high - low > 1e-9 ? high - low : 1) / 20;
  [low, high] = [low - room, high + room];
  const px = (value) => margin + (value - low) / (high - low) * (width - 2 * margin);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of niceTicks(low, high)) {
    svg.append(el("line", { class: zero && tick === 0 ? "grid zero" : "grid", x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }),
      el("text", { x: px(tick), y: height - bottom + 17, "text-anchor": "middle" }, number(tick)));
  }
  svg.append(el("text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, x));
  rows.forEach((row, i) => {
    const y = top + step * i + 26;
    svg.append(el("text", { class: "label", x: margin, y: y - 11 }, row.label),
      ...row.values.map((value) => el("circle", { class: "single", cx: px(value), cy: y + 9, r: 3, style: `fill: ${ink(row.place)}` })));
    if (row.half_width) svg.append(el("path", { class: "line", style: `stroke: ${ink(row.place)}`, d: `M${px(row.mean - row.half_width)} ${y}H${px(row.mean + row.half_width)}` }));
    svg.append(el("circle", { cx: px(row.mean), cy: y, r: 5, class: row.half_width === null ? "hollow" : "", style: `fill: ${ink(row.place)}; stroke: ${ink(row.place)}` },
      el("title", {}, row.half_width === null ? number(row.mean) : `${number(row.mean)} ± ${number(row.half_width, 2)}`)));
    if (row.published !== undefined && row.published !== null) {
      const place = px(row.published);
      svg.append(el("path", { class: "published", d: `M${place} ${y - 6}L${place + 6} ${y}L${place} ${y + 6}L${place - 6} ${y}Z` }, el("title", {}, `the paper: ${number(row.published)}`)));
    }
  });
  return el("figure", {}, svg);
}
