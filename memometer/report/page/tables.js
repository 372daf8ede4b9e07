// The report of each run, top to bottom.

function renderReport(content, root, state) {
  const runs = content.runs;
  const chosen = runs[Math.min(state.run, runs.length - 1)];
  const { summary } = chosen;
  const colours = palette(runs.flatMap((run) => run.summary.rows));
  const measure = summary.measures.find((one) => one.key === state.measure) || summary.measures[0];
  root.replaceChildren(
    ...[
      heading(chosen),
      runs.length > 1 && switcher("Run", runs.map((run, at) => [at, run.name]), state.run, (at) => ((state.run = at), again())),
      callouts(summary),
      mainTable(runs, colours),
      summary.measures.length > 1 &&
        switcher("Measure", summary.measures.map((one) => [one.key, one.label]), measure.key, (key) => ((state.measure = key), again())),
      ownSection(summary, colours),
      frontierSection(summary, measure, colours),
      categorySection(content, summary, measure, colours),
      labelSection(summary),
      content.between.length > 0 && forestSection("Differences between runs", content.between, summary, measure, state, again),
      forestSection("Paired differences", summary.comparisons, summary, measure, state, again),
      ...summary.judge_calibrations.map(calibrationSection),
      costSection(summary, colours),
      provenanceSection(content, chosen),
    ].filter(Boolean),
  );
  function again() {
    const at = window.scrollY;
    renderReport(content, root, state);
    window.scrollTo(0, at);
  }
}

function switcher(name, choices, now, change) {
  return h("div", { class: "switch", role: "group", "aria-label": name }, choices.map(([key, label]) =>
    h("button", { type: "button", "aria-pressed": String(key === now), onclick: () => change(key) }, label)));
}

function provenance(summary, name) {
  return (summary.provenance.find(([key]) => key === name) || [])[1] || "";
}

const isAlarm = (text) => /\b(ALARM|INVALID)\b/.test(text);

function heading(run) {
  const { summary } = run;
  const status = provenance(summary, "status");
  const alarm = status === "valid" && summary.warnings.some(isAlarm);
  const facts = ["data", "split", "reader", "judge", "begun"].map((name) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, provenance(summary, name).replace(/(sha256 .{12}).*/, "$1…"))));
  return h("header", { class: "heading" }, h("h1", {}, run.name, " ", alarm ? pill("alarm", "failed") : pill(status, status)), h("dl", { class: "facts" }, facts));
}

function callouts(summary) {
  const alarms = summary.warnings.filter(isAlarm);
  const notes = [...summary.withheld, ...summary.warnings.filter((text) => !isAlarm(text))];
  const list = (texts, kind, label) => texts.length > 0 &&
    h("ul", { class: `callouts ${kind}`, "aria-label": label }, texts.map((text) => h("li", {}, text)));
  return h("div", {}, list(alarms, "alarms", "Alarms"), list(notes, "", "Warnings"));
}

function systemCells(row, colours, run) {
  const dot = h("span", { class: "dot", style: `background:${colours.get(row.system) || "#8a8f98"}` });
  return [
    run && h("td", { class: "left muted" }, run),
    h("th", { scope: "row", class: "left system" }, dot, row.system),
    h("td", { class: "number" }, row.shown_budget),
  ];
}

function mainTable(runs, colours) {
  const several = runs.length > 1;
  const all = runs.flatMap((run) => run.summary.rows.map((row) => ({ row, run: several ? run.name : null })));
  const measures = [...new Map(runs.flatMap((run) => run.summary.measures).map((one) => [one.key, one])).values()].filter(
    (one) => all.some(({ row }) => row.scores[one.key]));
  const unit = runs[0].summary.unit;
  const read = all.some(({ row }) => row.calls);
  const rates = [
    ...measures.map((one) => ({ name: one.short, under: one.judged ? one.label : "", of: (row) => row.scores[one.key] })),
  ].filter((rate) => all.some(({ row }) => rate.of(row)));
  const gapOf = (row) => (measures.length ? row.gap[measures[0].key] : null);
  const gap = all.some(({ row }) => gapOf(row)) && {
    name: "of the gap", under: "none to oracle", title: `share of the gap from none to oracle that a system closes, by ${measures[0].label}`,
    of: (row) => (gapOf(row) || {}).value,
    text: (row) => gapOf(row) ? [h("b", {}, percent(gapOf(row).value)), gapOf(row).low !== null && h("span", { class: "bounds" }, `${percent(gapOf(row).low)}–${percent(gapOf(row).high)}`)] : "–",
  };
  const number = (name, of, title, kind) => ({ name, title, kind, of: (row) => of(row), text: (row) => whole(of(row)) });
  const numbers = [
    all.some(({ row }) => row.failed) && number("failed", (row) => row.failed, "the memory system failed: counts as wrong", "notice"),
    number("missing", (row) => row.missing, "a model call failed: excluded from the mean", "notice"),
  ].filter(Boolean);
  const costs = [
    ...(gap ? [gap] : []),
    number(`context ${unit}`, (row) => row.context, `mean ${unit} of recalled context`),
    ...(read ? [
      { name: "tokens", title: "mean prompt and reply tokens per question, with an equal share of the ingest", of: (row) => row.tokens,
        text: (row) => `${whole(row.tokens)}${row.unreported ? "+" : ""}` },
      { name: "calls", of: (row) => row.calls, text: (row) => fixed(row.calls, 1) },
      { name: "seconds", of: (row) => row.seconds, text: (row) => fixed(row.seconds, 2) },
      { name: "dollars", title: "all answers; see the cost table for the judge", of: (row) => (row.stages.answer || {}).usd,
        text: (row) => (row.stages.answer || { dollars: "–" }).dollars },
    ] : []),
  ];
  const columns = [
    several && { name: "run", left: true }, { name: "system", left: true }, { name: "budget", sorts: true },
    { name: "n", sorts: true, title: "answerable questions asked" },
    ...[...numbers, ...rates, ...costs].map((column) => ({ ...column, sorts: true })),
  ].filter(Boolean);
  const cell = (column, row) => h("td", { class: `number ${column.kind && column.of(row) ? column.kind : ""}` }, column.text(row));
  const rows = all.map(({ row, run }) => ({
    element: h("tr", { class: row.baseline ? "baseline" : null }, systemCells(row, colours, run), h("td", { class: "number" }, whole(row.questions)),
      numbers.map((column) => cell(column, row)),
      rates.map((rate) => rateCell(rate.of(row), { colour: colours.get(row.system), width: rates.length > 2 ? 46 : 140 })), costs.map((column) => cell(column, row))),
    values: [...(several ? [run] : []), row.system, row.budget, row.questions, ...numbers.map((column) => column.of(row)),
      ...rates.map((rate) => (rate.of(row) || {}).value), ...costs.map((column) => column.of(row))],
  }));
  return h("section", {}, h("h2", {}, runs[0].summary.scope),
    sortable("Percent, with 95 % intervals clustered by conversation. The baselines none and oracle are the lower and upper bound.", columns, rows));
}

function frontierSection(summary, measure, colours) {
  const points = (summary.frontier[measure.key] || []).filter((point) => point.tokens > 0);
  if (points.length < 2) return null;
  const areas = Object.entries(summary.areas[measure.key] || {});
  return h("section", {},
    h("h2", {}, `${capital(measure.label)} over tokens`),
    h("p", { class: "note" }, "Prompt and reply tokens of recall and answer, with an equal share of the ingest; without a reader, the recalled tokens. Dashed line: no system scores as much with fewer tokens."),
    h("figure", {}, frontierPlot(points, measure.label, colours)),
    areas.length > 0 && plainTable("Area under the budget curve: mean score over the logarithm of the budget",
      ["system", "budgets", measure.label, "n"],
      areas.map(([system, area]) => [system, area.budgets.map(whole).join(" to "),
        rateCell({ ...area, value: area.area }, { colour: colours.get(system), width: 140 }), whole(area.n)])),
    h("details", {}, h("summary", {}, "The points as a table"), plainTable("Tokens and score",
      ["system", "budget", "tokens", "of these ingest", measure.label, "n"],
      [...points].sort((a, b) => a.tokens - b.tokens).map((p) => [p.best ? `${p.system} *` : p.system,
        p.budget < 1e7 ? whole(p.budget) : "all", whole(p.tokens) + (p.unreported ? "+" : ""), whole(p.ingest_tokens),
        rateCell({ ...p, value: p.score }, { colour: colours.get(p.system) }), whole(p.n)]))));
}

function categorySection(content, summary, measure, colours) {
  const present = Object.keys(content.categories).filter((c) =>
    summary.rows.some((row) => (row.categories[c] || {})[measure.key]));
  if (!present.length) return null;
  const rows = summary.rows.map((row) => h("tr", { class: row.baseline ? "baseline" : null }, systemCells(row, colours),
    present.map((c) => rateCell((row.categories[c] || {})[measure.key], { colour: colours.get(row.system), width: 76 }))));
  return h("section", {}, h("h2", {}, `${capital(measure.label)} by category`),
    h("div", { class: "scroll" }, h("table", {},
      h("caption", {}, "Percent, on a scale from 0 to 100; an abstention is right if a question is unanswerable."),
      h("thead", {}, h("tr", {}, ["system", "budget"].map((name) => h("th", { scope: "col", class: "left" }, name)),
        present.map((c) => h("th", { scope: "col" }, `${c} ${content.categories[c]}`)))),
      h("tbody", {}, rows))));
}

function labelSection(summary) {
  const entries = Object.entries(summary.clean_and_flagged);
  if (!entries.length) return null;
  const cell = ({ accuracy, interval: ends, n }) =>
    accuracy === null ? "–" : rateCell({ value: accuracy, low: ends && ends[0], high: ends && ends[1], n }, { width: 140 });
  return h("section", {}, h("h2", {}, "Judge accuracy on clean and flagged questions"),
    plainTable("The gold answer of a flagged question is wrong.",
      ["system", "clean", "n", "flagged", "n"],
      entries.map(([name, { clean, flagged }]) => [name, cell(clean), whole(clean.n), cell(flagged), whole(flagged.n)])));
}

const MOST_ROWS = 24;

function forestSection(title, comparisons, summary, measure, state, again) {
  const of = comparisons.filter((c) => (c.grader || c.measure) === measure.key && c.difference !== null);
  if (!of.length) return null;
  const systems = [...new Set(of.flatMap((c) => [c.a.system, c.b.system]))];
  const leader = summary.rows.filter((row) => !row.baseline && row.scores[measure.key] && systems.includes(row.system))
    .sort((a, b) => b.scores[measure.key].value - a.scores[measure.key].value)[0];
  const chosen = state.system ?? (of.length > MOST_ROWS && leader ? leader.system : "");
  const all = of.filter((c) => !chosen || c.a.system === chosen || c.b.system === chosen);
  const select = h("select", { onchange: (event) => { state.system = event.target.value; again(); } },
    [["", "every system"], ...systems.map((name) => [name, name])].map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  const bound = reach(all);
  const place = (side) => (Number(side.budget) === 0 ? side.system : `${side.system} ${Number(side.budget) < 1e7 ? whole(Number(side.budget)) : "all"}`);
  const named = (side) => (side.run && side.run !== side.system ? `${side.run}: ` : "") + place(side);
  const rows = all.map((c) => {
    const clear = c.p_adjusted !== null && c.p_adjusted < 0.05;
    const found = { value: c.difference, low: c.low, high: c.high };
    const bounds = c.low === null ? "" : ` [${signed(c.low)}, ${signed(c.high)}]`;
    return h("tr", {},
      h("th", { scope: "row", class: "left pair" }, named(c.a), h("span", { class: "muted" }, " vs. "), named(c.b)),
      h("td", { class: "forest" }, interval(found, { least: -bound, most: bound, zero: 0, width: 240,
        colour: clear ? (c.difference > 0 ? "var(--good)" : "var(--bad)") : "var(--muted)" })),
      h("td", { class: "number" }, h("b", {}, signed(c.difference)), h("span", { class: "bounds" }, bounds)),
      h("td", { class: "number" }, pValue(c.p_adjusted)),
      h("td", { class: "number" }, `${whole(c.wins)} / ${whole(c.losses)} / ${whole(c.ties)}`),
      h("td", { class: "number" }, c.detectable === null || c.detectable === undefined ? "–" : percent(c.detectable)),
      h("td", { class: "number" }, `${whole(c.n)} in ${c.clusters}`));
  });
  const head = ["comparison", "points", "difference", "p (adjusted)", "won / lost / tied", "detectable", "n"];
  return h("section", {}, h("h2", {}, `${title}: ${measure.label}`),
    of.length > MOST_ROWS && h("label", { class: "inline" }, "Of ", select, ` ${whole(all.length)} of ${whole(of.length)} comparisons`),
    h("div", { class: "scroll" }, h("table", {},
    h("caption", {}, "Percentage points on the same questions, with 95 % intervals clustered by conversation. Intervals are of single comparisons; p is adjusted over all by this measure and budget (max-T over sign flips). Coloured: adjusted p below 0.05."),
    h("thead", {}, h("tr", {}, head.map((name, at) => h("th", { scope: "col", class: at < 2 ? "left" : "" }, name)))),
    h("tbody", {}, rows),
    h("tfoot", {}, h("tr", {}, h("td"), h("td", { class: "forest" }, forestAxis(bound, 240)), h("td", { colspan: 5 }))))));
}

function calibrationSection(c) {
  const rate = (found) => (found.rate === null ? "–" : rateCell({ ...found, value: found.rate }, { width: 140 }));
  const rows = [
    ...[["false accept", c.false_accept], ["false reject", c.false_reject]].filter(([, found]) => found),
    ...Object.entries(c.sets || {}),
  ];
  return h("section", {}, h("h2", {}, "Judge calibration ", pill(c.passed ? "passed" : "failed", c.passed ? "valid" : "failed")),
    h("p", { class: "note" }, `${c.judge}, prompt ${c.prompt} (${c.prompt_hash}), ${c.date}`),
    c.reasons && c.reasons.length > 0 && h("ul", { class: "callouts" }, c.reasons.map((text) => h("li", {}, text))),
    plainTable("Wrong verdicts, percent", ["set", "rate", "n", "missing"],
      rows.map(([name, found]) => [name, rate(found), whole(found.n), whole(found.missing || 0)])),
    c.stability && h("p", { class: "note" }, `${c.stability.flipped} of ${c.stability.n} labels differ in ${c.stability.repeats} repeats.`),
    c.parser && h("p", { class: "note" }, (c.parser.failed || []).length ? `The parser misreads ${c.parser.failed.join(", ")}.` : "The parser reads all test replies correctly."));
}

function costSection(summary, colours) {
  const rows = summary.rows.filter((row) => Object.keys(row.stages).length);
  if (!rows.length || !summary.total || summary.total.calls === null) return null;
  const names = ["ingest", "recall", "answer", "judge"];
  const sum = (a, b) => (a === null || b === null ? null : a + b);
  const cells = (stage) => {
    if (!stage || stage.calls === null) return [h("td", { class: "number muted", colspan: 4 }, "–")];
    const nothing = !stage.calls;
    const more = stage.unreported ? "+" : "";
    const tokens = `${whole(sum(stage.prompt_tokens, stage.completion_tokens))}${more}`;
    const cached = stage.cached_tokens ? `${whole(stage.cached_tokens)} of the prompt tokens were cached` : null;
    return [whole(stage.calls), h("span", { title: cached }, tokens, stage.cached_tokens ? h("sup", {}, "c") : null),
      stage.seconds === null ? "?" : fixed(stage.seconds, stage.seconds < 10 ? 1 : 0), stage.dollars].map((text, at) =>
      h("td", { class: `number ${nothing && at !== 2 ? "muted" : ""} ${at ? "" : "first"}` }, nothing && at !== 2 && text !== "?" ? "–" : text));
  };
  const total = summary.total;
  return h("section", {}, h("h2", {}, "Cost"),
    h("p", { class: "note" }, `All attempts: ${whole(total.calls)} calls, ${whole(sum(total.prompt_tokens, total.completion_tokens))} tokens, ` +
      `${total.seconds === null ? "unknown" : whole(total.seconds)} seconds, ${total.usd === null ? "dollars unknown" : total.dollars}. ` +
      "Ingest is paid once and shown at every budget. + at least; ? unknown; c partly from the provider’s cache."),
    h("div", { class: "scroll" }, h("table", { class: "cost" },
      h("thead", {},
        h("tr", {}, h("th", { colspan: 2 }), names.map((name) => h("th", { colspan: 4, scope: "colgroup", class: "group" }, name))),
        h("tr", {}, ["system", "budget"].map((name) => h("th", { scope: "col", class: "left" }, name)),
          names.map(() => ["calls", "tokens", "s", "$"].map((name, at) => h("th", { scope: "col", class: at ? "" : "first" }, name))))),
      h("tbody", {}, rows.map((row) => h("tr", { class: row.baseline ? "baseline" : null }, systemCells(row, colours),
        names.map((name) => cells(row.stages[name]))))))));
}

function provenanceSection(content, run) {
  return h("section", {}, h("h2", {}, "How the run was made"),
    h("dl", { class: "provenance" }, run.summary.provenance.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("details", {}, h("summary", {}, "Configuration"), h("pre", {}, JSON.stringify(run.config, null, 1))),
    content.notice && h("p", { class: "note" }, content.notice));
}
