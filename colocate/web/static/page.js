// The dashboard: what the server sends of one run is put on the page. It only reads.

const RUNS_MS = 3000;
const ANEW_MS = 2000;
const LEGIBLE_PX = 16;
const MOST_ROWS = 500;
const INK = "#444444"; // of the figure's marks
const BUTTONS = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

let shown = null; // the run's name
let source = null;
let last = 0; // the number of the newest event line on the page
let over = false;
let colours = {};
let figure = null;

// --- small things

function element(tag, { text = "", title = "", cls = "", ...style } = {}, ...children) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (title) made.title = title;
  if (cls) made.className = cls;
  Object.assign(made.style, style);
  made.append(...children);
  return made;
}

const put = (id, text) => { byId(id).textContent = text; };
const known = Number.isFinite; // a figure may be null, and a broken file may hold anything
const seconds = (value) => (known(value) ? `${value.toFixed(1)} s` : "–");
const milliseconds = (value) => (known(value) ? `${value.toFixed(value < 10 ? 2 : 0)} ms` : "–");
const percent = (value) => (known(value) ? `${(100 * value).toFixed(2)} %` : "–");
const whole = (value) => Math.round(value).toLocaleString("en-GB");
const clock = (iso) => iso.slice(11);
const day = (iso) => iso.slice(0, 16).replace("T", " ");
const colour = (name) => colours[name] ?? colours[""] ?? "#cccccc";

function onTop(background) { // black or white, whichever is legible on it
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(background.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

function list(cores) { // 0-2,4
  const parts = [];
  for (const core of [...cores].sort((a, b) => a - b)) {
    const before = parts.at(-1);
    if (before && before[1] === core - 1) before[1] = core;
    else parts.push([core, core]);
  }
  return parts.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
}

// --- the picture

function draw() {
  if (!figure || !window.Plotly) return;
  const layout = { ...figure.layout, autosize: true, uirevision: shown };
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: "#9aa5b1", activecolor: "#5d6672" };
  delete layout.width;
  delete layout.height;
  const data = dark.matches ? figure.data.map((trace) => (trace.marker?.color === INK ? { ...trace, marker: { ...trace.marker, color: "#c9d1d9" } } : trace)) : figure.data;
  if (dark.matches) {
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { ...layout.font, color: "#e6e9ed" };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      layout[key] = { ...layout[key], gridcolor: "#30363d", linecolor: "#5d6672", zerolinecolor: "#30363d", tickcolor: "#5d6672" };
    }
  }
  window.Plotly.react("picture", data, layout, { responsive: true, displaylogo: false, modeBarButtons: BUTTONS });
}

// --- cores and jobs

function showCores(cores) { // [[number, [[holder, share], ...], busy or null], ...]
  const columns = cores.length <= 4 ? Math.min(2, cores.length) : Math.min(8, Math.ceil(Math.sqrt(cores.length)));
  const height = cores.length <= 4 ? 76 : cores.length <= 16 ? 52 : 30;
  const box = byId("cores");
  box.style.setProperty("--columns", columns);
  box.style.setProperty("--height", `${height}px`);
  box.replaceChildren(...cores.map(([number, holders, busy]) => {
    const names = holders.map(([name]) => name).join(", ") || "free";
    const cell = element("div", { cls: "core", title: `core ${number}: ${names}${known(busy) ? `, ${Math.round(100 * busy)} % busy` : ""}` });
    cell.dataset.core = number;
    const whole = holders.reduce((sum, [, share]) => sum + share, 0);
    for (const [name, share] of holders.length ? holders : [["", 1]]) {
      const background = colour(name);
      const text = name ? ((height * share) / whole < LEGIBLE_PX ? "" : name) : "free";
      cell.append(element("div", { text, background, color: onTop(background), flexGrow: share, flexBasis: 0 }));
    }
    cell.append(element("b", { text: known(busy) && columns < 5 ? `core ${number} · ${Math.round(100 * busy)} %` : columns < 5 ? `core ${number}` : `${number}` }));
    return cell;
  }));
}

function showJobs(jobs) { // [[name, state, remark, share or null], ...]
  byId("jobs").replaceChildren(...jobs.map(([name, state, remark, share]) => {
    const row = element("div", { cls: "job" },
      element("i", { background: colour(name) }),
      element("span", { text: name }),
      element("span", { text: remark ? `${state} · ${remark}` : state, cls: "note number" }));
    row.dataset.job = name;
    if (known(share)) row.append(element("div", { cls: "bar" }, element("div", { width: `${100 * share}%`, background: colour(name) })));
    return row;
  }));
}

// --- what the server sends

const handlers = {
  picture(document) {
    figure = document;
    draw();
  },

  status(now) {
    showCores(Object.entries(now.cores ?? {}).map(([core, held]) => [core, held.holders.map((name) => [name, 1]), held.busy]));
    showJobs(Object.entries(now.jobs ?? {}).map(([name, job]) => {
      const remarks = [];
      if (job.cores.length) remarks.push(`on ${list(job.cores)}`);
      if (job.state !== "finished" && known(job.eta_s)) remarks.push(`${Math.ceil(job.eta_s)} s left`);
      return [name, job.state, remarks.join(" · "), job.state === "finished" ? 1 : job.progress];
    }));
    put("why", now.reason ? `${now.policy}: ${now.reason}` : "");
    put("p95-name", "p95 now");
    put("p95", milliseconds(now.service?.p95_ms));
    put("qps", known(now.service?.qps) ? `${whole(now.service.qps)} /s` : "–");
    put("qps-note", known(now.service?.cpu_cores) ? `memcached uses ${now.service.cpu_cores.toFixed(2)} cores` : "");
  },

  verdict(told) {
    if (told.fault) {
      showState("broken");
      put("facts", told.fault);
      return;
    }
    colours = told.colours;
    showState(told.state);
    const promise = `p${told.percentile} ≤ ${told.slo_ms} ms${told.latency_source ? ` by ${told.latency_source}` : ""}`;
    put("title", told.begin ? day(told.begin) : shown);
    put("facts", [told.policies?.length > 1 ? told.policies.join(", then ") : told.policy, told.source, told.scenario, promise].filter(Boolean).join(" · "));
    put("makespan-name", told.final || told.state !== "in progress" ? "makespan" : "running for");
    put("makespan", seconds(told.state === "in progress" ? told.elapsed_s : told.makespan_s));
    put("makespan-note", told.final ? (told.complete ? "all jobs have ended" : "not all jobs have ended") : told.state === "in progress" ? "in progress" : "no result file: graded from the log");
    put("ratio", percent(told.slo_violation_ratio));
    byId("ratio").classList.toggle("bad", told.violations > 0);
    put("ratio-note", `${told.violations} of ${told.intervals} intervals${told.final ? "" : ", provisional"}`);
    put("p95-note", known(told.p95_ms?.median) ? `median ${milliseconds(told.p95_ms.median)}, most ${milliseconds(told.p95_ms.max)}` : "");
    put("moves", `${told.core_moves}`);
    put("moves-note", `core sets; ${told.pauses} ${told.pauses === 1 ? "pause" : "pauses"}`);
    byId("totals").dataset.final = told.final;
    byId("totals").dataset.totals = JSON.stringify(told);
    put("cores-name", told.state === "in progress" ? "Cores by owner" : "Cores by owner, over the run");
    if (told.state === "in progress") return;
    showCores(Object.entries(told.owners).map(([core, held]) => [core, held, null]));
    showJobs(Object.entries(told.jobs).map(([name, job]) => [name, job.state, known(job.run_s) ? `${seconds(job.run_s)}, ${job.threads} ${job.threads === 1 ? "thread" : "threads"}` : "", null]));
    put("why", "");
    put("p95-name", "p95, median");
    put("p95", milliseconds(told.p95_ms?.median));
    put("qps", known(told.qps?.median) ? `${whole(told.qps.median)} /s` : "–");
    put("qps-note", known(told.qps?.max) ? `median; most ${whole(told.qps.max)} /s` : "");
  },

  change(line) {
    if (line.n <= last) return;
    last = line.n;
    const row = byId("events").insertRow(0);
    row.dataset.n = line.n;
    row.insertCell().textContent = clock(line.time);
    row.insertCell().append(element("i", { background: line.target === "scheduler" ? "transparent" : colour(line.target) }), said(line));
    row.insertCell().append(element("div", { text: line.reason || line.comment, title: line.reason || line.comment, cls: "two-lines" }));
    const [before, after] = line.latency_ms;
    row.insertCell().textContent = known(before) && known(after) ? `${before.toFixed(2)} → ${after.toFixed(2)} ms` : "";
    row.cells[3].className = "note number";
    row.cells[3].title = "p95 when it happened, and a second later";
    if (byId("events").rows.length > MOST_ROWS) byId("events").deleteRow(-1);
    put("events-note", `${byId("events").rows.length === last ? last : `the last ${byId("events").rows.length} of ${last}`}`);
  },

  end() {
    over = true;
    source?.close();
    byId("gone").hidden = true;
    refreshRuns();
  },
};

function said(line) {
  switch (line.kind) {
    case "update_cores": return `${line.target} ${line.before.length ? `${list(line.before)} → ` : "to "}${list(line.cores)}`;
    case "start": return line.cores.length ? `${line.target} starts on ${list(line.cores)}, ${line.threads} ${line.threads === 1 ? "thread" : "threads"}` : `${line.target} starts`;
    case "end": return `${line.target} ends`;
    case "pause": return `${line.target} pauses`;
    case "unpause": return `${line.target} goes on`;
    default: return line.target;
  }
}

function showState(state) {
  put("state", state);
  byId("state").dataset.state = state;
}

// --- which run

function open(name) {
  source?.close();
  if (name !== shown) {
    last = 0;
    figure = null;
    colours = {};
    window.Plotly?.purge("picture");
    for (const id of ["events", "cores", "jobs"]) byId(id).replaceChildren();
    for (const id of ["facts", "why", "events-note", "makespan-note", "ratio-note", "p95-note", "qps-note", "moves-note"]) put(id, "");
    for (const id of ["makespan", "ratio", "p95", "qps", "moves"]) put(id, "–");
    showState("none");
    put("title", name);
  }
  shown = name;
  over = false;
  const mine = source = new EventSource(`/runs/${encodeURIComponent(name)}/events`);
  mine.onopen = () => { byId("gone").hidden = true; };
  mine.onerror = () => { // it connects again by itself, except after an answer that is no stream
    byId("gone").hidden = false;
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => { if (source === mine) open(name); }, ANEW_MS);
  };
  for (const [kind, handle] of Object.entries(handlers)) {
    mine.addEventListener(kind, (message) => { if (source === mine) handle(JSON.parse(message.data)); });
  }
}

async function refreshRuns() {
  let runs;
  try {
    runs = await (await fetch("/api/runs")).json();
    if (over || !source) byId("gone").hidden = true;
  } catch {
    byId("gone").hidden = false;
    return;
  }
  choose(runs);
  byId("runs").replaceChildren(...runs.map((run) => {
    const row = element("tr", { cls: run.name === shown ? "shown" : "", title: `${run.name}: ${run.state}` },
      element("td", { text: run.begin ? day(run.begin) : run.name }),
      element("td", { text: [run.policy, run.source === "simulated" ? "(sim.)" : ""].filter(Boolean).join(" ") }),
      element("td", { text: seconds(run.makespan_s), cls: "number" }),
      element("td", { text: percent(run.ratio), cls: "number" }));
    const report = element("a", { text: "report", title: "what came of it, in one page" });
    report.href = `/runs/${encodeURIComponent(run.name)}/report`;
    report.target = "_blank";
    report.rel = "noopener";
    report.addEventListener("click", (event) => event.stopPropagation());
    row.append(element("td", {}, run.state === "in progress" ? element("span", { text: "running", cls: "note" }) : report));
    row.dataset.name = run.name;
    row.addEventListener("click", () => { location.hash = encodeURIComponent(run.name); });
    return row;
  }));
}

function choose(runs) { // the one in the address, else the newest, preferably one in progress
  const asked = decodeURIComponent(location.hash.slice(1));
  const running = runs.find((run) => run.state === "in progress");
  const wanted = runs.find((run) => run.name === asked) ?? (shown && !(over && running) ? null : running ?? runs[0]);
  const again = over && running && running.name === shown; // a run that was thought to have broken off goes on
  if (wanted && (wanted.name !== shown || again)) open(wanted.name);
}

addEventListener("hashchange", refreshRuns);
dark.addEventListener("change", draw);
await refreshRuns();
setInterval(refreshRuns, RUNS_MS);
