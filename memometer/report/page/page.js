// The page: its views, keyboard shortcuts, and updates of runs in progress.

const POLL_MS = 2000;

const byId = (id) => document.getElementById(id);

function viewOf(hash, content) {
  let name = hash.slice(1);
  try { name = decodeURIComponent(name); } catch { /* an incomplete address is used as it is */ }
  return content.questions[name] ? { question: name } : { tab: name === "questions" ? "questions" : "report" };
}

function showTab(name) {
  for (const tab of ["report", "questions"]) {
    byId(tab).hidden = tab !== name;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    byId(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  document.body.dataset.view = name;
}

async function start() {
  let content = await embedded();
  if (!content) content = await (await fetch("data.json")).json();
  const state = { run: 0, measure: null };
  const names = content.runs.map((run) => run.name).join(" and ");
  document.title = `${names} · memometer`;
  byId("brand").replaceChildren(h("b", {}, "memometer"), " ", h("span", { class: "muted" }, names));
  renderReport(content, byId("report"), state);
  const questions = new Questions(content);

  const follow = () => {
    const view = viewOf(location.hash, content);
    showTab(view.question ? "questions" : view.tab);
    if (view.question) questions.goTo(view.question);
    else questions.draw();
  };
  window.addEventListener("hashchange", follow);
  for (const tab of ["report", "questions"]) {
    byId(`tab-${tab}`).addEventListener("click", () => { history.replaceState(null, "", `#${tab}`); follow(); });
    byId(`tab-${tab}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = byId(tab === "report" ? "tab-questions" : "tab-report");
      other.focus();
      other.click();
    });
  }
  document.addEventListener("keydown", (event) => pressed(event, questions));
  byId("keys").addEventListener("click", () => byId("help").showModal());
  themes();
  follow();
  if (content.live) watch(content, (news) => {
    Object.assign(content, news);
    renderReport(content, byId("report"), state);
    questions.take(content, false);
  });
}

function pressed(event, questions) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const inside = document.activeElement;
  const searching = inside === byId("search");
  const moving = document.body.dataset.view === "questions";
  const typing = inside && ["INPUT", "SELECT", "TEXTAREA"].includes(inside.tagName) && inside.type !== "checkbox";
  const done = () => event.preventDefault();
  if (event.key === "Escape") {
    if (typing) { inside.blur(); byId("list").focus(); }
    else if (!byId("detail").hidden && moving) questions.close();
    return;
  }
  if (searching && event.key === "ArrowDown") { done(); byId("list").focus(); questions.choose(questions.at + 1); return; }
  if (searching && event.key === "Enter") { done(); questions.choose(Math.max(0, questions.at)); questions.open(); return; }
  if (typing) return;
  if (event.key === "?") { done(); byId("help").showModal(); }
  else if (event.key === "/") {
    done();
    if (!moving) byId("tab-questions").click();
    byId("search").focus();
    byId("search").select();
  } else if (moving) {
    const arrows = inside === document.body || inside === byId("list");
    if (event.key === "j" || (arrows && event.key === "ArrowDown")) { done(); questions.choose(questions.at + 1); }
    else if (event.key === "k" || (arrows && event.key === "ArrowUp")) { done(); questions.choose(questions.at - 1); }
    else if (arrows && event.key === "Home") { done(); questions.choose(0); }
    else if (arrows && event.key === "End") { done(); questions.choose(Infinity); }
    else if (arrows && event.key === "Enter") { done(); questions.choose(Math.max(0, questions.at)); questions.open(); }
  }
}

function themes() {
  const kinds = ["system", "light", "dark"];
  byId("theme").addEventListener("click", () => {
    const now = kinds[(kinds.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3];
    document.documentElement.dataset.theme = now;
    byId("theme").textContent = `Theme: ${now}`;
  });
}

// Poll for updates of the runs.
async function watch(content, take) {
  const live = byId("live");
  live.hidden = false;
  let stamp = content.stamp;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    try {
      const response = await fetch(`data.json?since=${encodeURIComponent(stamp)}`);
      if (response.status === 200) {
        const news = await response.json();
        stamp = news.stamp;
        take(news);
      }
      const answers = content.runs.reduce((sum, run) => sum + run.rows.length, 0);
      live.replaceChildren(h("span", { class: "pulse" }), `live · ${whole(answers)} answers`);
    } catch {
      live.textContent = "The server has stopped; this is its last update.";
    }
  }
}

start().catch((error) => {
  document.querySelector("main").replaceChildren(h("p", { class: "empty" }, `This page could not be read: ${error.message}`));
  throw error;
});
