// Small parts of all views.

const SVG = "http://www.w3.org/2000/svg";
const GLYPHS = { correct: "✓", wrong: "✗", missing: "?", failed: "!" };

// An element. Text is never parsed as HTML, because models wrote some of it.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value) => (100 * value).toFixed(1);
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(100 * value).toFixed(1);

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function pValue(p) {
  return p === null || p === undefined ? "–" : p < 0.0001 ? "<0.0001" : p.toFixed(4);
}

function glyph(verdict) {
  return h("span", { class: `glyph ${verdict}`, role: "img", "aria-label": verdict, title: verdict }, GLYPHS[verdict]);
}

function pill(text, kind) {
  return h("span", { class: `pill ${kind || ""}` }, text);
}

// A small drawing of a value with its interval, {value, low, high}, on a scale from `least` to `most`.
function interval(found, { least = 0, most = 1, zero = null, width = 46, colour = "currentColor" } = {}) {
  const x = (value) => 3 + ((Math.min(most, Math.max(least, value)) - least) / (most - least)) * (width - 6);
  const marks = [svg("line", { x1: 3, x2: width - 3, y1: 7, y2: 7, class: "rail" })];
  if (zero !== null) marks.push(svg("line", { x1: x(zero), x2: x(zero), y1: 0, y2: 14, class: "zero" }));
  if (found.low !== null && found.low !== undefined) {
    marks.push(svg("line", { x1: x(found.low), x2: x(found.high), y1: 7, y2: 7, stroke: colour, "stroke-width": 2.5 }));
  }
  marks.push(svg("circle", { cx: x(found.value), cy: 7, r: 3, fill: colour }));
  return svg("svg", { width, height: 14, viewBox: `0 0 ${width} 14`, class: "interval", "aria-hidden": "true" }, marks);
}

// The tooltip of a rate: n, and the bounds if answers are missing.
function bounded(found) {
  if (!found.n) return null;
  const range = found.missing && found.worst !== null && found.worst !== undefined
    ? `; ${percent(found.worst)} to ${percent(found.best)} if the ${found.missing} missing answers were wrong or right` : "";
  return `n = ${whole(found.n)}${range}`;
}

// With fewer questions than this a rate is shown without an interval.
const FEWEST_WITH_INTERVAL = 10;

function rateCell(found, options) {
  if (!found) return h("td", { class: "number muted" }, "–");
  if (found.n && found.n < FEWEST_WITH_INTERVAL) found = { ...found, low: null, high: null };
  const bounds = found.low === null || found.low === undefined ? (found.n ? `n ${found.n}` : "") : `${percent(found.low)}–${percent(found.high)}`;
  return h(
    "td",
    { class: "rate", title: bounded(found) },
    h("div", {}, interval(found, options), h("b", {}, percent(found.value)), h("span", { class: "bounds" }, bounds)),
  );
}

// A table that is sorted by a click on a header: columns [{name, title, left, value}], rows [{cells, values}].
function sortable(caption, columns, rows) {
  const body = h("tbody", {}, rows.map((row) => row.element));
  const heads = columns.map((column, at) => {
    if (!column.sorts) return h("th", { scope: "col", class: column.left ? "left" : null }, column.name);
    const button = h("button", { type: "button", title: column.title }, column.name, column.under && h("small", {}, column.under));
    const head = h("th", { scope: "col", class: column.left ? "left" : null, "aria-sort": "none" }, button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const last = down ? -Infinity : Infinity;
      const of = (row) => row.values[at] ?? last;
      const order = (a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0);
      body.append(...[...rows].sort((a, b) => (down ? -order(a, b) : order(a, b))).map((row) => row.element));
    });
    return head;
  });
  return h("div", { class: "scroll" }, h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), body));
}

function plainTable(caption, headers, rows, { left = 1 } = {}) {
  const place = (at) => (at < left ? "left" : "number");
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, headers.map((name, at) => h("th", { scope: "col", class: place(at) }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) =>
        cell instanceof HTMLTableCellElement ? cell : h("td", { class: place(at) }, cell))))),
    ),
  );
}
