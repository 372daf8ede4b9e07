// The measures of a benchmark's own: a plot of each measure with groups, and a table of all.

function ownSection(summary, colours) {
  const baselines = new Set(summary.rows.filter((row) => row.baseline).map((row) => row.system));
  const values = ((summary.own_measures || {}).values || []).filter((one) => one.mean !== null && !baselines.has(one.system));
  if (!values.length) return null;
  const budgets = [...new Set(values.map((one) => one.budget))];
  return h("section", {}, h("h2", {}, "Measures of the benchmark"), budgets.map((budget) => {
    const here = values.filter((one) => one.budget === budget);
    const names = [...new Set(here.map((one) => one.name))];
    const plots = names.map((name) => here.filter((one) => one.name === name && one.unit === "share"))
      .filter((of) => new Set(of.map((one) => one.group)).size > 1);
    return [
      h("h3", {}, `${whole(budget)} ${summary.unit}`),
      h("div", { class: "plots" }, plots.map((of) => h("figure", {}, groupPlot(of, colours), h("figcaption", {}, of[0].name)))),
      ownTable(here, colours),
    ];
  }));
}

function ownTable(values, colours) {
  const systems = [...new Set(values.map((one) => one.system))];
  const key = (one) => `${one.name}|${one.group}|${one.unit}`;
  const cell = (one) => {
    if (!one) return "–";
    if (one.unit !== "share") return fixed(one.mean, one.mean < 10 ? 3 : 0);
    const [low, high] = one.interval || [null, null];
    return rateCell({ value: one.mean, low, high, n: one.n }, { colour: colours.get(one.system), width: 76 });
  };
  const rows = [...new Map(values.map((one) => [key(one), one])).values()].map((first) => [
    `${first.name} ${first.group}${first.unit === "share" ? "" : `, ${first.unit}`}${first.low_is_better ? " (low)" : ""}`,
    whole(first.n), ...systems.map((system) => cell(values.find((one) => one.system === system && key(one) === key(first)))),
  ]);
  return plainTable("Percent with 95 % intervals clustered by conversation, or the unit that is named. (low): a small value is better.",
    ["measure", "n", ...systems], rows);
}

// A line for each system over the groups of one measure, from 0 to 100 %.
function groupPlot(values, colours) {
  const [width, height, left, right, top, bottom] = [430, 210, 34, 96, 10, 28];
  const groups = [...new Set(values.map((one) => one.group))];
  const x = (group) => left + ((groups.indexOf(group) + 0.5) / groups.length) * (width - left - right);
  const y = (value) => top + (1 - value) * (height - top - bottom);
  const parts = [0, 25, 50, 75, 100].map((tick) => [
    svg("line", { x1: left, x2: width - right, y1: y(tick / 100), y2: y(tick / 100), class: "grid" }),
    svg("text", { x: left - 6, y: y(tick / 100) + 4, class: "tick end" }, `${tick}`),
  ]);
  parts.push(groups.map((group) => svg("text", { x: x(group), y: height - 8, class: "tick middle" },
    group.length > 16 ? `${group.slice(0, 15)}…` : group, svg("title", {}, group))));
  const labels = [];
  for (const [system, colour] of colours) {
    const mine = values.filter((one) => one.system === system);
    if (!mine.length) continue;
    parts.push(svg("path", { d: mine.map((one, at) => `${at ? "L" : "M"}${x(one.group)},${y(one.mean)}`).join(""), stroke: colour, class: "line" }));
    for (const one of mine) {
      const [low, high] = one.interval || [one.mean, one.mean];
      parts.push(svg("line", { x1: x(one.group), x2: x(one.group), y1: y(low), y2: y(high), stroke: colour, class: "whisker" }));
      parts.push(svg("circle", { cx: x(one.group), cy: y(one.mean), r: 3.5, fill: colour, class: "point" },
        svg("title", {}, `${system}, ${one.group}: ${percent(one.mean)} [${percent(low)}, ${percent(high)}], n = ${one.n}`)));
    }
    const last = mine[mine.length - 1];
    labels.push({ system, colour, y: y(last.mean) });
  }
  for (const { system, colour, y: to } of spread(labels, 14)) {
    parts.push(svg("circle", { cx: width - right + 10, cy: to, r: 3, fill: colour }));
    parts.push(svg("text", { x: width - right + 17, y: to + 4, class: "name" }, system.length > 11 ? `${system.slice(0, 10)}…` : system));
  }
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": `${values[0].name}, with 95 % intervals` }, parts);
}
