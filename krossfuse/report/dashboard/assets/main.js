// Reads what the page holds (or what its server serves, and follows it), and joins filters, table and pictures.

function fromBase64(text) {
  const binary = atob(text.trim()), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unpack(element) {
  const stream = new Blob([fromBase64(element.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const state = {search: "", data: "", pair: "", method: "", low: null, high: null, probe: "", columns: null, sort: null,
  page: 0, chosen: null, baseline: []};
let model, table, charts, drawing = 0;

function changed() {
  table.filter();
  table.render();
  tickColumns();
  clearTimeout(drawing);
  drawing = setTimeout(() => charts.update(table.rows), 120); // pictures wait until the typing is done
}

function open(row) { openRow(model, row, state, r => table.choose(r)); }

function controls() {
  const bind = (id, event, set) => { $(id)[`on${event}`] = () => { set($(id).value); state.page = 0; changed(); }; };
  const dimension = text => text.trim() === "" || !isFinite(+text) ? null : +text;
  bind("search", "input", value => { state.search = value; });
  for (const name of ["data", "pair", "method", "probe"]) {
    bind(`filter-${name}`, "change", value => { state[name] = value; if (name === "probe") state.sort = null; });
  }
  bind("dim-low", "input", value => { state.low = dimension(value); });
  bind("dim-high", "input", value => { state.high = dimension(value); });
  $("previous").onclick = () => { state.page--; changed(); };
  $("next").onclick = () => { state.page++; changed(); };
  $("reset").onclick = () => { state.chosen = null; state.baseline = model.defaultBaseline(); changed(); };
  $("clear").onclick = () => {
    for (const id of ["search", "filter-data", "filter-pair", "filter-method", "filter-probe", "dim-low", "dim-high"]) $(id).value = "";
    Object.assign(state, {search: "", data: "", pair: "", method: "", low: null, high: null, probe: "", sort: null, page: 0});
    changed();
  };
  $("details-close").onclick = () => $("details").close();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.update(table.rows));
}

function fill() {
  const any = (id, values) => {
    const before = $(id).value;
    $(id).replaceChildren(make("option", {value: ""}, "all"), ...values.map(value => make("option", {value}, value)));
    $(id).value = values.includes(before) ? before : "";
    $(id).closest("label").hidden = values.length < 2;
  };
  const sorted = values => [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  any("filter-data", sorted(model.boards.map(b => b.data)));
  any("filter-pair", sorted(model.boards.map(b => b.pair)));
  any("filter-method", sorted(model.fusion));
  any("filter-probe", sorted(model.measures.map(m => m.probe)));
  $("columns").replaceChildren(...model.measures.map((metric, m) => make("label", {},
    make("input", {type: "checkbox", value: String(m), onchange: chooseColumns}), metric.title)));
}

function chooseColumns() {
  state.columns = new Set([...$("columns").querySelectorAll("input:checked")].map(box => +box.value));
  changed();
}

function tickColumns() {
  for (const box of $("columns").querySelectorAll("input")) box.checked = table.columns.includes(+box.value);
}

function show(data, scores) {
  const before = model && state.chosen !== null ? model.id[state.chosen] : null;
  const titles = model && state.columns ? new Set([...state.columns].map(m => model.measures[m].title)) : null;
  const sorted = model && state.sort?.key[0] === "m" ? model.measures[+state.sort.key.slice(1)]?.title : null;
  model = new Model(data, scores);
  const row = before === null ? -1 : model.id.indexOf(before);
  state.chosen = row < 0 ? null : row;
  state.baseline = row < 0 ? model.defaultBaseline() : model.baselineOf(row);
  if (titles) state.columns = new Set(model.measures.map((_, m) => m).filter(m => titles.has(model.measures[m].title)));
  if (sorted) {
    const m = model.measures.findIndex(metric => metric.title === sorted);
    state.sort = m < 0 ? null : {...state.sort, key: `m${m}`};
  }
  if (table) table.model = model; else table = new Leaderboard(model, state, changed, open);
  if (charts) { charts.model = model; charts.controls(); } else charts = new Charts(model, state, open);
  fill();
  summary();
  changed();
}

function summary() {
  const {data} = model, {finished, failed, unfinished} = data.runs;
  const rest = [failed ? `${number(failed)} failed` : "", unfinished ? `${number(unfinished)} running or killed` : ""].filter(Boolean);
  $("summary").textContent = [`${number(finished + failed + unfinished)} runs${rest.length ? ` (${rest.join(", ")})` : ""}`,
    `${number(model.n)} rows`, `${number(model.cells.row.length)} measurements`].join(", ");
  $("warnings").replaceChildren(...data.notes.map(note => make("p", {class: "warning"}, note)));
  $("unfinished").hidden = !data.unfinished.length;
  $("unfinished-rows").replaceChildren(...data.unfinished.map(row => make("tr", {}, ...row.map(text => make("td", {class: "text"}, text)))));
  $("notes").replaceChildren(...data.boards.map(board => make("details", {},
    make("summary", {}, [board.data, board.pair, ...board.common].filter(Boolean).join(" · ")),
    ...board.notes.map(note => make("p", {class: "note"}, note)))));
}

// --- A page that is served asks for what is new. -----------------------------------------------------------------

let version = "";
async function ask() {
  const answer = await fetch(`data?since=${encodeURIComponent(version)}`, {cache: "no-store"});
  if (answer.status === 204) return "";
  if (!answer.ok) throw new Error(await answer.text());
  const data = await answer.json();
  if (data.waiting) return data.waiting;
  const scores = await fetch(`scores?version=${data.version}`, {cache: "no-store"});
  if (!scores.ok) return ""; // newer points came in between: the next question gets both
  show(data, new Uint8Array(await scores.arrayBuffer()));
  version = data.version;
  return "";
}

async function follow() {
  try {
    const waiting = await ask();
    const running = version ? model.data.runs.unfinished : 0;
    $("live").textContent = waiting || `following ${location.host}${running ? `: ${number(running)} runs going on` : ""}`;
  } catch (error) {
    $("live").textContent = `no new points: ${error.message} (is krossfuse dashboard still running?)`;
  }
  setTimeout(follow, 2000);
}

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("this browser is older than 2023 and cannot unpack the page");
  controls();
  if (document.documentElement.dataset.follow !== undefined) return follow();
  const [data, scores] = await Promise.all([unpack($("data")), unpack($("scores"))]);
  show(JSON.parse(new TextDecoder().decode(data)), scores);
}

// For who looks under the bonnet, and for the tests.
window.krossfuse = {get table() { return table; }, paretoFront};

start().then(() => { document.documentElement.dataset.ready = ""; }, error => {
  $("warnings").replaceChildren(make("p", {class: "warning", role: "alert"}, `The page cannot be shown: ${error.message}`));
});
