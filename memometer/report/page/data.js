// The data of the page, and values that are derived from each answer.

const WHITE_SPACE = /\s+/g;

async function embedded() {
  const text = document.getElementById("content").textContent.trim();
  if (!text) return null;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// "0-12,15" -> [0, 1, ..., 12, 15]
function positions(ranges) {
  const found = [];
  for (const part of (ranges || "").split(",")) {
    if (!part) continue;
    const [first, last] = part.split("-").map(Number);
    for (let at = first; at <= (last ?? first); at++) found.push(at);
  }
  return found;
}

// Every answer of every run, with its run, its question and the text to search.
function answersOf(content) {
  const answers = [];
  content.runs.forEach((run, number) => {
    for (const row of run.rows) {
      const question = content.questions[row.question];
      const words = [row.question, question.text, question.gold, question.trap, row.answer];
      answers.push({
        ...row,
        run: number,
        source: `${number}/${row.system}/${row.budget}`,
        about: question,
        searched: words.filter(Boolean).join("\n").toLowerCase().replace(WHITE_SPACE, " "),
      });
    }
  });
  return answers;
}

// Every system at every budget of every run: [{key, label}].
function sourcesOf(content, answers) {
  const found = new Map();
  for (const answer of answers) {
    if (found.has(answer.source)) continue;
    const budget = answer.budget < 1e7 ? answer.budget.toLocaleString("en") : "all";
    const label = answer.budget === 0 ? answer.system : `${answer.system} · ${budget}`;
    found.set(answer.source, {
      key: answer.source,
      label: content.runs.length > 1 && content.runs[answer.run].name !== answer.system ? `${content.runs[answer.run].name} · ${label}` : label,
    });
  }
  return [...found.values()];
}

// Criteria for a correct answer: every grader, F1, evidence.
function gradesOf(content, answers) {
  const names = new Set(answers.flatMap((answer) => (answer.verdicts || []).map(([name]) => name)));
  const calibrated = new Set(content.runs.flatMap((run) => run.summary.measures.map((measure) => measure.key)));
  const grades = [...names].map((name) => ({
    key: name,
    label: calibrated.has(name) ? name : `${name}, not calibrated`,
  }));
  if (answers.some((answer) => answer.f1 !== undefined)) grades.push({ key: "f1", label: "F1 of 50 or more" });
  return [...grades, { key: "evidence", label: "all evidence recalled" }];
}

// correct, wrong, missing (a model call failed, or there is no label) or failed (the memory system did). An unanswerable question has no gold answer; its official score (F1) is used instead of a judge.
function verdictOf(answer, grade) {
  if (answer.memory_error) return "failed";
  if (answer.error) return "missing";
  if (grade === "evidence") {
    return answer.evidence_recall === undefined ? "missing" : answer.evidence_recall === 1 ? "correct" : "wrong";
  }
  if (grade === "f1" || answer.about.gold === null) {
    return answer.f1 === undefined ? "missing" : answer.f1 >= 0.5 ? "correct" : "wrong";
  }
  const labels = (answer.verdicts || []).filter(([name, , label]) => name === grade && label !== "missing");
  if (!labels.length) return "missing";
  return labels.filter(([, , label]) => label === "correct").length * 2 > labels.length ? "correct" : "wrong";
}

const errorOf = (answer) => answer.memory_error || answer.error || "";

const recallOf = (answer) =>
  answer.evidence_recall === undefined ? "" : `${(100 * answer.evidence_recall).toFixed(0)} % of the evidence`;

function evidenceOf(answer) {
  const share = answer.evidence_recall;
  return share === undefined ? "" : share === 1 ? "all" : share === 0 ? "none" : "some";
}
