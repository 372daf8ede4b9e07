// The plots: plain SVG on a fixed grid that scales with the page.

const COLOURS = ["#4269d0", "#e15759", "#3ca951", "#b07aa1", "#d58a00", "#2a9d9d", "#9c6b4e", "#7a5cff", "#c2477f"];

// The same colour for a system in every plot; baselines are grey.
function palette(rows) {
  const colours = new Map();
  let next = 0;
  for (const row of rows) {
    if (colours.has(row.system)) continue;
    colours.set(row.system, row.baseline ? "#8a8f98" : COLOURS[next++ % COLOURS.length]);
  }
  return colours;
}

function logTicks(least, most) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++) {
    for (const factor of [1, 2, 5]) {
      const tick = factor * 10 ** power;
      if (tick >= least * 0.999 && tick <= most * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

function ticks(least, most, wanted) {
  const rough = (most - least) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(least / step) * step; tick <= most + step / 1000; tick += step) found.push(tick);
  return found;
}

// Labels next to the last point of each line, moved apart if they would overlap.
function spread(labels, height) {
  labels.sort((a, b) => a.y - b.y);
  for (let at = 1; at < labels.length; at++) labels[at].y = Math.max(labels[at].y, labels[at - 1].y + height);
  for (let at = labels.length - 2; at >= 0; at--) labels[at].y = Math.min(labels[at].y, labels[at + 1].y - height);
  return labels;
}

// Score over mean total tokens a question, on a logarithmic axis; a line joins a system's budgets.
function frontierPlot(points, label, colours) {
  const shown = points.filter((point) => point.tokens > 0);
  const [width, height, left, right, top, bottom] = [860, 400, 46, 128, 14, 46];
  const least = Math.min(...shown.map((point) => point.tokens)) / 1.25;
  const most = Math.max(...shown.map((point) => point.tokens)) * 1.25;
  const low = Math.max(0, Math.floor(Math.min(...shown.map((p) => p.low ?? p.score)) * 10 - 0.001) / 10);
  const high = Math.min(1, Math.ceil(Math.max(...shown.map((p) => p.high ?? p.score)) * 10 + 0.001) / 10);
  const x = (tokens) => left + (Math.log(tokens / least) / Math.log(most / least)) * (width - left - right);
  const y = (score) => top + (1 - (score - low) / (high - low || 1)) * (height - top - bottom);
  const parts = [];
  for (const tick of ticks(low * 100, high * 100, 6)) {
    parts.push(svg("line", { x1: left, x2: width - right, y1: y(tick / 100), y2: y(tick / 100), class: "grid" }));
    parts.push(svg("text", { x: left - 8, y: y(tick / 100) + 4, class: "tick end" }, `${Math.round(tick)}`));
  }
  for (const tick of logTicks(least, most)) {
    parts.push(svg("line", { x1: x(tick), x2: x(tick), y1: height - bottom, y2: height - bottom + 4, class: "axis" }));
    const text = tick >= 1000 ? `${tick / 1000}K` : `${tick}`;
    parts.push(svg("text", { x: x(tick), y: height - bottom + 18, class: "tick middle" }, text));
  }
  parts.push(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
  const middle = (left + width - right) / 2;
  parts.push(svg("text", { x: middle, y: height - 8, class: "tick middle" }, "mean tokens per question, with a share of the ingest"));
  const best = shown.filter((point) => point.best).sort((a, b) => a.tokens - b.tokens);
  if (best.length > 1) {
    const path = best.map((p, at) => (at ? `H${x(p.tokens)}V${y(p.score)}` : `M${x(p.tokens)},${y(p.score)}`)).join("");
    parts.push(svg("path", { d: `${path}H${width - right}`, class: "best" }));
  }
  const labels = [];
  for (const [system, colour] of colours) {
    const mine = shown.filter((point) => point.system === system).sort((a, b) => a.budget - b.budget);
    if (!mine.length) continue;
    const path = mine.map((p, at) => `${at ? "L" : "M"}${x(p.tokens)},${y(p.score)}`).join("");
    parts.push(svg("path", { d: path, stroke: colour, class: "line" }));
    for (const p of mine) {
      if (p.low !== null) {
        parts.push(svg("line", { x1: x(p.tokens), x2: x(p.tokens), y1: y(p.low), y2: y(p.high), stroke: colour, class: "whisker" }));
      }
      const bounds = p.low === null ? "" : ` [${percent(p.low)}, ${percent(p.high)}]`;
      const budget = p.budget < 1e7 ? whole(p.budget) : "all";
      const tooltip = `${system} at ${budget}: ${percent(p.score)}${bounds}, ${whole(p.tokens)} tokens, n = ${p.n}`;
      parts.push(svg("circle", { cx: x(p.tokens), cy: y(p.score), r: 4, fill: colour, class: "point" }, svg("title", {}, tooltip)));
    }
    const last = mine[mine.length - 1];
    labels.push({ system, colour, x: x(last.tokens), at: y(last.score), y: y(last.score) });
  }
  for (const { system, colour, x: from, at, y: to } of spread(labels, 15)) {
    const start = width - right + 12;
    parts.push(svg("path", { d: `M${from + 6},${at}L${start - 4},${to}`, stroke: colour, class: "leader" }));
    parts.push(svg("circle", { cx: start + 3, cy: to, r: 3.5, fill: colour }));
    parts.push(svg("text", { x: start + 11, y: to + 4, class: "name" }, system));
  }
  const title = `${label} over mean tokens per question, with 95 % intervals`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": title }, parts);
}

// One bound for all rows of a forest plot, so that they share a scale.
function reach(comparisons) {
  const ends = comparisons.flatMap((c) => [c.difference, c.low ?? 0, c.high ?? 0]).map(Math.abs);
  return Math.max(0.05, Math.ceil(Math.max(...ends) * 20) / 20);
}

function forestAxis(bound, width) {
  const x = (value) => 3 + ((value + bound) / (2 * bound)) * (width - 6);
  const marks = ticks(-100 * bound, 100 * bound, 4).map((tick) => [
    svg("line", { x1: x(tick / 100), x2: x(tick / 100), y1: 0, y2: 4, class: "axis" }),
    svg("text", { x: x(tick / 100), y: 16, class: "tick middle" }, `${tick > 0 ? "+" : ""}${Math.round(tick)}`),
  ]);
  return svg("svg", { width, height: 20, viewBox: `0 0 ${width} 20`, class: "interval", "aria-hidden": "true" }, marks);
}
