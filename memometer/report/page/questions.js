// The list of questions with filters, which draws only visible rows, and the open question next to it.

const ROW_HEIGHT = 46;
const VERDICTS = ["correct", "wrong", "missing", "failed"];

class Questions {
  constructor(content) {
    this.form = document.querySelector(".filters");
    this.list = document.getElementById("list");
    this.detail = document.getElementById("detail");
    this.field = (name) => document.getElementById(name);
    this.at = -1;
    this.items = [];
    this.take(content, true);
    this.form.addEventListener("input", () => this.filter());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("reset", () => setTimeout(() => this.filter()));
    this.list.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()));
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-at]");
      if (row) { this.choose(Number(row.dataset.at)); this.open(); }
    });
    new ResizeObserver(() => this.draw()).observe(this.list);
  }

  // New data: at the start, and during a run in progress.
  take(content, first) {
    this.content = content;
    this.unit = content.runs[0].summary.unit;
    this.answers = answersOf(content);
    this.sources = sourcesOf(content, this.answers);
    this.labels = new Map(this.sources.map((source) => [source.key, source.label]));
    this.bySource = new Map();
    for (const answer of this.answers) {
      if (!this.bySource.has(answer.source)) this.bySource.set(answer.source, new Map());
      this.bySource.get(answer.source).set(`${answer.question}/${answer.option_order}`, answer);
    }
    const grades = gradesOf(content, this.answers);
    const errors = [...new Set(this.answers.map((a) => errorOf(a).split(":")[0]).filter(Boolean))].sort();
    this.choices("a", [...this.sources.map((s) => [s.key, s.label]), ["", "every system"]]);
    this.choices("b", [["", "nothing"], ...this.sources.map((s) => [s.key, s.label])]);
    this.choices("grade", grades.map((grade) => [grade.key, grade.label]));
    this.choices("error", [["", "any or none"], ...errors.map((name) => [name, name])]);
    this.field("error-label").hidden = !errors.length;
    if (first) {
      const used = new Set(this.answers.map((answer) => String(answer.about.category)));
      this.chips("category", Object.entries(content.categories).filter(([c]) => used.has(c)).map(([c, name]) => [c, `${c} ${name}`]));
      this.chips("verdict", VERDICTS.map((verdict) => [verdict, verdict]));
    }
    this.filter();
  }

  // A reset selects the first choice.
  choices(name, all) {
    const select = this.field(name);
    const now = select.options.length ? select.value : all[0][0];
    select.replaceChildren(...all.map(([value, text], at) => h("option", { value, selected: at === 0 }, text)));
    select.value = all.some(([value]) => value === now) ? now : all[0][0];
  }

  chips(name, all) {
    const legend = this.field(name).querySelector("legend");
    this.field(name).replaceChildren(legend, ...all.map(([value, text]) =>
      h("label", { class: `chip ${value}` }, h("input", { type: "checkbox", value }), h("span", {}, text), h("small", {}))));
  }

  checked(name) {
    return new Set([...this.field(name).querySelectorAll("input:checked")].map((box) => box.value));
  }

  // Select the rows, [{answers: [one, or two to compare], verdicts}], and count each verdict.
  filter() {
    const selected = this.items[this.at];
    const value = (name) => this.field(name).value;
    const [a, b, grade] = [value("a"), value("b"), value("grade")];
    const comparing = a && b && a !== b;
    this.field("flipped").disabled = !comparing;
    this.field("flipped-label").hidden = !comparing;
    const flipped = comparing && this.field("flipped").checked;
    const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
    const [categories, verdicts] = [this.checked("category"), this.checked("verdict")];
    const [evidence, error] = [value("evidence"), value("error")];
    const counts = Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0]));
    const found = [];
    const listed = a ? [...(this.bySource.get(a) || new Map()).values()] : this.answers;
    for (const answer of listed) {
      const pair = [answer];
      if (comparing) {
        const other = this.bySource.get(b).get(`${answer.question}/${answer.option_order}`);
        if (!other) continue;
        pair.push(other);
      }
      if (categories.size && !categories.has(String(answer.about.category))) continue;
      if (evidence && !pair.some((one) => evidence === "some" ? ["some", "none"].includes(evidenceOf(one)) : evidenceOf(one) === evidence)) continue;
      if (error && !pair.some((one) => errorOf(one).split(":")[0] === error)) continue;
      if (!words.every((word) => pair.some((one) => one.searched.includes(word)))) continue;
      const judged = pair.map((one) => verdictOf(one, grade));
      if (flipped && !(judged.includes("correct") && judged.includes("wrong"))) continue;
      counts[judged[0]] += 1;
      if (verdicts.size && !verdicts.has(judged[0])) continue;
      found.push({ answers: pair, verdicts: judged });
    }
    this.items = found;
    for (const box of this.field("verdict").querySelectorAll("input")) {
      box.parentElement.querySelector("small").textContent = whole(counts[box.value]);
    }
    this.field("count").textContent = `${whole(found.length)} of ${whole(listed.length)}`;
    const same = (item) => selected && ["question", "option_order", "source"].every((name) => item.answers[0][name] === selected.answers[0][name]);
    this.at = found.findIndex(same);
    if (this.at < 0) this.list.scrollTop = 0;
    this.draw();
    if (!this.detail.hidden && this.at >= 0) this.show();
  }

  draw() {
    const height = this.list.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_HEIGHT) - 6);
    const last = Math.min(this.items.length, Math.ceil((this.list.scrollTop + height) / ROW_HEIGHT) + 6);
    const rows = [h("div", { class: "spacer", style: `height:${this.items.length * ROW_HEIGHT}px` })];
    for (let at = first; at < last; at++) rows.push(this.row(at));
    if (!this.items.length) rows.push(h("p", { class: "empty" }, "No question matches these filters."));
    this.list.replaceChildren(...rows);
    if (this.at >= first && this.at < last) this.list.setAttribute("aria-activedescendant", `row-${this.at}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  row(at) {
    const { answers, verdicts } = this.items[at];
    const [answer] = answers;
    const reply = answers.map((one) => errorOf(one) || one.answer || recallOf(one)).filter(Boolean).join("  |  ");
    return h("div", {
      class: "row", role: "option", id: `row-${at}`, "data-at": at, style: `top:${at * ROW_HEIGHT}px`,
      "aria-selected": String(at === this.at), "aria-posinset": at + 1, "aria-setsize": this.items.length,
    },
      h("span", { class: "glyphs" }, verdicts.map(glyph)),
      h("div", { class: "lines" },
        h("div", { class: "text" }, answer.about.text),
        h("div", { class: "meta" }, h("span", { class: "id" }, answer.question),
          answers.length === 1 && !this.field("a").value && h("span", { class: "source" }, this.labels.get(answer.source)),
          h("span", { class: "said" }, reply))));
  }

  choose(at) {
    if (!this.items.length) return;
    this.at = Math.max(0, Math.min(this.items.length - 1, at));
    const [top, height] = [this.at * ROW_HEIGHT, this.list.clientHeight];
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_HEIGHT > this.list.scrollTop + height) this.list.scrollTop = top + ROW_HEIGHT - height;
    this.draw();
    if (!this.detail.hidden) this.show();
  }

  open() {
    if (this.at < 0) return;
    this.show();
    this.detail.focus({ preventScroll: true });
  }

  close() {
    this.detail.hidden = true;
    document.querySelector(".panes").classList.remove("opened");
    history.replaceState(null, "", "#questions");
    this.draw();
    this.list.focus({ preventScroll: true });
  }

  // Open a question by its id; reset the filters if they exclude it.
  goTo(id) {
    const find = () => this.items.findIndex((item) => item.answers[0].question === id);
    let at = find();
    if (at < 0) {
      this.form.reset();
      this.filter();
      at = find();
    }
    if (at < 0) return false;
    this.choose(at);
    this.open();
    return true;
  }

  show() {
    const { answers } = this.items[this.at];
    history.replaceState(null, "", `#${encodeURIComponent(answers[0].question)}`);
    document.querySelector(".panes").classList.add("opened");
    this.detail.hidden = false;
    this.detail.replaceChildren(...questionDetail(this, answers).filter(Boolean));
    this.detail.scrollTop = 0;
    this.draw();
  }
}
