// One question: its evidence, and each answer with the recalled turns.

const FOLD_FROM = 24;

function questionDetail(view, answers) {
  const { content } = view;
  const [{ about, question, option_order }] = answers;
  const conversation = content.conversations[about.conversation];
  const recalled = answers.map((answer) => new Set(positions(answer.recalled)));
  const category = `${about.category} ${content.categories[about.category]}`;
  return [
    h("header", { class: "asked" },
      h("div", { class: "meta" },
        h("a", { href: `#${encodeURIComponent(question)}`, class: "id", title: "A link to this question" }, question),
        h("span", {}, category), option_order !== "free" && h("span", {}, option_order),
        h("button", { type: "button", class: "quiet close", "aria-label": "Close (Esc)", onclick: () => view.close() }, "✕")),
      h("h2", {}, about.text),
      h("dl", { class: "gold" },
        about.gold !== null && [h("dt", {}, "gold"), h("dd", {}, about.gold)],
        about.gold === null && [h("dt", {}, "gold"), h("dd", { class: "muted" }, "none: the conversation does not contain the answer")],
        about.trap && [h("dt", {}, "trap"), h("dd", {}, about.trap)])),
    evidence(view, about, conversation, answers, recalled),
    h("div", { class: `answers ${answers.length > 1 ? "two" : ""}` }, answers.map((answer, at) =>
      answerColumn(view, answer, conversation, recalled[at]))),
    others(view, question, option_order, answers),
  ];
}

function evidence(view, about, conversation, answers, recalled) {
  if (!about.evidence.length && !about.unresolved.length) return h("p", { class: "note" }, "No evidence turn is labelled for this question.");
  return h("section", { class: "evidence", "aria-label": "Evidence" }, h("h3", {}, "Evidence"),
    about.evidence.map((at) => turnLine(conversation.turns[at], conversation, {
      kind: answers.every((answer) => answer.recall_unknown) ? "" : recalled.every((set) => set.has(at)) ? "hit" : recalled.some((set) => set.has(at)) ? "half" : "miss",
        badges: answers.filter((answer) => !answer.recall_unknown).map((answer) => (answers.length > 1 ? `${view.labels.get(answer.source)}: ` : "") +
        (recalled[answers.indexOf(answer)].has(at) ? "recalled" : "missed")),
    })),
    about.unresolved.map((text) => h("p", { class: "note" }, `The evidence label “${text}” matches no turn.`)));
}

function turnLine([id, session, speaker, text], conversation, { kind = "", badges = [] } = {}) {
  return h("div", { class: `turn ${kind}` },
    h("span", { class: "turn-id", title: conversation.sessions[session] }, id),
    h("span", { class: "turn-text" }, h("b", {}, speaker), " ", text),
    badges.map((badge) => h("span", { class: `badge ${badge.endsWith("missed") ? "missed" : badge.endsWith("recalled") ? "found" : ""}` }, badge)));
}

function answerColumn(view, answer, conversation, recalled) {
  const grade = view.field("grade").value;
  const facts = [
    answer.f1 !== undefined && `F1 ${percent(answer.f1)}`,
    answer.evidence_recall !== undefined && `evidence ${percent(answer.evidence_recall)}`,
    answer.tokens !== undefined && `${whole(answer.tokens)} ${view.unit} recalled`,
    answer.total_tokens && `${whole(answer.total_tokens)} tokens in all`,
    answer.calls > 1 && `${answer.calls} calls`,
    answer.seconds !== undefined && `${answer.seconds.toFixed(2)} s`,
    answer.attempt > 1 && `attempt ${answer.attempt}`,
    answer.status && `status ${answer.status}`,
    answer.truncated && "cut at the token limit",
  ].filter(Boolean);
  return h("section", { class: "answer", "aria-label": view.labels.get(answer.source) },
    h("h3", {}, glyph(verdictOf(answer, grade)), view.labels.get(answer.source)),
    errorOf(answer)
      ? h("p", { class: "error" }, answer.memory_error ? "The memory system failed: " : "No result: ", errorOf(answer))
      : h("blockquote", {}, answer.answer ?? h("span", { class: "muted" }, "no reader")),
    answer.raw_answer && h("p", { class: "note" }, `Raw reply: ${answer.raw_answer}`),
    h("p", { class: "facts-line" }, facts.join(" · ")),
    (answer.failed || []).map((error) => h("p", { class: "note" }, `An earlier attempt failed: ${error}`)),
    verdictLines(answer),
    roundsTable(answer),
    transcript(answer, conversation, recalled));
}

function verdictLines(answer) {
  return (answer.verdicts || []).map(([name, repeat, label, raw, reason]) =>
    h("p", { class: "verdict" }, glyph(label), h("span", {}, label), raw && h("code", {}, raw), reason && h("span", { class: "muted" }, reason),
      h("span", { class: "muted by" }, name, repeat ? `, repeat ${repeat}` : "")));
}

function roundsTable(answer) {
  if (!answer.rounds) return null;
  return h("table", { class: "rounds" }, h("tbody", {}, answer.rounds.map(([status, lookup, context, total], at) =>
    h("tr", {}, h("td", {}, `round ${at + 1}`), h("td", {}, status), h("td", { class: "muted" }, lookup && `looks for: ${lookup}`),
      h("td", { class: "number" }, `${whole(context)} shown, ${whole(total)} in all`)))));
}

// The recalled turns by session, with recalled and missed evidence; long passages are folded.
function transcript(answer, conversation, recalled) {
  const labelled = new Set(answer.about.evidence);
  const cited = new Set(answer.cited || []);
  const shown = [...new Set([...recalled, ...labelled])].sort((a, b) => a - b);
  const kindOf = (at) => (labelled.has(at) ? (recalled.has(at) ? "hit" : "miss") : "");
  const line = (at) => turnLine(conversation.turns[at], conversation, {
    kind: kindOf(at),
    badges: [labelled.has(at) && (recalled.has(at) ? "evidence recalled" : "evidence missed"), cited.has(at) && "cited"].filter(Boolean),
  });
  const near = (at) => labelled.has(at) || cited.has(at) || labelled.has(at - 1) || labelled.has(at + 1);
  const parts = [];
  let session = null;
  let folded = [];
  const unfold = () => {
    const turns = folded;
    folded = [];
    if (!turns.length) return;
    const button = h("button", { type: "button", class: "fold" }, `${whole(turns.length)} more recalled turns`);
    button.addEventListener("click", () => button.replaceWith(...lines(turns)));
    parts.push(button);
  };
  const lines = (turns) => turns.flatMap((at) => {
    const date = conversation.turns[at][1] === session ? [] : [h("div", { class: "session" }, conversation.sessions[conversation.turns[at][1]])];
    session = conversation.turns[at][1];
    return [...date, line(at)];
  });
  for (const at of shown) {
    if (shown.length > FOLD_FROM && !near(at)) { folded.push(at); continue; }
    unfold();
    parts.push(...lines([at]));
  }
  unfold();
  if (answer.recall_unknown) return h("p", { class: "note" }, "The recalled turns are unknown.");
  const title = recalled.size ? `Recalled: ${whole(recalled.size)} turns` : "Nothing was recalled";
  return h("details", { class: "transcript", open: true }, h("summary", {}, title), parts);
}

function others(view, question, option_order, answers) {
  const grade = view.field("grade").value;
  const rows = view.sources.map((source) => view.bySource.get(source.key).get(`${question}/${option_order}`)).filter(Boolean);
  if (rows.length < 2) return null;
  const shown = new Set(answers);
  return h("section", { class: "others" }, h("h3", {}, "Every answer to this question"),
    h("table", {}, h("tbody", {}, rows.map((answer) => h("tr", { class: shown.has(answer) ? "now" : null },
      h("td", {}, glyph(verdictOf(answer, grade))),
      h("td", { class: "left" }, view.labels.get(answer.source)),
      h("td", { class: "left" }, errorOf(answer) || answer.answer || "–"),
      h("td", { class: "number" }, recallOf(answer)))))));
}
