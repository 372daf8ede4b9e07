// What the page knows: the content, and for each answer what is looked at often.

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

// Every answer of every run, with the run, the question and the text to search beside it.
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

// What was asked of whom at which budget: [{key, run, system, budget, label}].
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

// By what an answer may be called correct: every judge that graded anything, F1, evidence.
function gradesOf(content, answers) {
  const names = new Set(answers.flatMap((answer) => (answer.verdicts || []).map(([name]) => name)));
  const certified = new Set(content.runs.flatMap((run) => run.summary.measures.map((measure) => measure.key)));
  const grades = [...names].map((name) => ({
    key: name,
    label: certified.has(name) ? name : `${name}, not certified`,
  }));
  if (answers.some((answer) => answer.f1 !== undefined)) grades.push({ key: "f1", label: "F1 of 50 or more" });
  return [...grades, { key: "evidence", label: "all evidence recalled" }];
}

// correct, wrong, ungraded (a model's call failed, or nobody could tell) or failed (the memory did). An unanswerable question has no gold answer: the official score (F1) takes the place of a judge.
function verdictOf(answer, grade) {
  if (answer.memory_error) return "failed";
  if (answer.error) return "ungraded";
  if (grade === "evidence") {
    return answer.evidence_recall === undefined ? "ungraded" : answer.evidence_recall === 1 ? "correct" : "wrong";
  }
  if (grade === "f1" || answer.about.gold === null) {
    return answer.f1 === undefined ? "ungraded" : answer.f1 >= 0.5 ? "correct" : "wrong";
  }
  const labels = (answer.verdicts || []).filter(([name, , label]) => name === grade && label !== "ungraded");
  if (!labels.length) return "ungraded";
  return labels.filter(([, , label]) => label === "correct").length * 2 > labels.length ? "correct" : "wrong";
}

const errorOf = (answer) => answer.memory_error || answer.error || "";

const recallOf = (answer) =>
  answer.evidence_recall === undefined ? "" : `${(100 * answer.evidence_recall).toFixed(0)} % of the evidence`;

function evidenceOf(answer) {
  const share = answer.evidence_recall;
  return share === undefined ? "" : share === 1 ? "all" : share === 0 ? "none" : "some";
}
