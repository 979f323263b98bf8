// Pictures of the rows that the filters leave, by Plotly, which is unpacked when the first of them is looked at.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5A2B", "#882255", "#6A6AD0", "#7A8B00"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagon"];
const FEW = 120, MOST_POINTS = 1500, MOST_CURVES = 12, MOST_AXES = 10, MOST_LINES = 1500;

let plotly = null;
function withPlotly() {
  plotly ??= unpack($("plotly")).then(bytes => {
    document.head.append(make("script", {}, new TextDecoder().decode(bytes)));
    return window.Plotly;
  });
  return plotly;
}

const webGL = (() => {
  try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; }
})();

class Charts {
  constructor(model, state, open) {
    Object.assign(this, {model, state, open, rows: [], visible: new Set(), stale: new Set()});
    this.draw = {dimension: this.dimension, shots: this.shots, trade: this.trade, pareto: this.pareto,
      parallel: this.parallel, kernels: this.kernels};
    this.watcher = new IntersectionObserver(entries => {
      for (const {target, isIntersecting} of entries) {
        this.visible[isIntersecting ? "add" : "delete"](target.id);
        if (isIntersecting) this.refresh(target.id);
      }
    }, {rootMargin: "200px"});
    for (const name of Object.keys(this.draw)) this.watcher.observe($(name));
    this.controls();
  }

  // Which measurement an axis shows: choices that stay where they are when the data change.
  controls() {
    const {model} = this, all = model.measures.map((_, m) => m), plainOnes = all.filter(m => model.measures[m].shots === "");
    const first = plainOnes.find(m => model.measures[m].primary) ?? all[0];
    choices("dimension-y", all, model, first, () => this.renew("dimension"));
    const shot = all.filter(m => model.measures[m].shots !== "");
    const families = [...new Set(shot.map(m => shotFamily(model.measures[m])))];
    options($("shots-y"), families.map(f => [f, f.split("\u0000").filter(Boolean).join(", ")]), families[0],
      () => this.renew("shots"));
    $("shots").hidden = !families.length;
    const trades = model.data.trades.map(([a, b], i) => [String(i), `${model.measures[a].title} against ${model.measures[b].title}`]);
    options($("trade-y"), trades, "0", () => this.renew("trade"));
    $("trade").hidden = !trades.length;
    choices("pareto-x", all, model, "dim", () => this.renew("pareto"), [["dim", "dimension"], ["seconds", "seconds of the probe"]]);
    choices("pareto-y", all, model, first, () => this.renew("pareto"));
    choices("parallel-colour", all, model, first, () => this.renew("parallel"));
    options($("kernels-row"), model.data.kernels.map((map, i) => [String(i), `${model.title(map.row)}, ${model.dataOf(map.row)}`]),
      "0", () => this.renew("kernels"));
    $("kernels").hidden = !model.data.kernels.length;
  }

  update(rows) {
    this.rows = rows;
    for (const name of Object.keys(this.draw)) this.renew(name);
  }

  renew(name) { this.stale.add(name); this.refresh(name); }

  async refresh(name) {
    if (!this.visible.has(name) || !this.stale.has(name) || $(name).hidden) return;
    this.stale.delete(name);
    try {
      await withPlotly();
      await this.draw[name].call(this, $(`${name}-chart`));
    } catch (error) {
      $(`${name}-chart`).textContent = `This picture cannot be drawn: ${error.message}`;
    }
  }

  method(row) { return this.model.fusion[row]; }

  groups(rows) {
    const methods = [...new Set(this.model.fusion)], by = new Map();
    for (const r of rows) {
      const key = this.method(r);
      if (!by.has(key)) by.set(key, []);
      by.get(key).push(r);
    }
    return [...by].map(([name, own]) => {
      const i = methods.indexOf(name);
      return {name, rows: own, colour: COLOURS[i % COLOURS.length], symbol: SYMBOLS[i % SYMBOLS.length]};
    });
  }

  value(row, key) {
    if (key === "dim") return this.model.dim[row];
    if (key === "seconds") {
      let seconds = 0, n = 0;
      this.model.measures.forEach((_, m) => {
        const c = this.model.cell(row, m);
        if (c >= 0) { seconds += this.model.cells.seconds[c]; n++; }
      });
      return n ? seconds / n : NaN;
    }
    return this.model.values[+key][row] * scaleOf(this.model.measures[+key]);
  }

  axis(key) {
    return key === "dim" ? "dimension" : key === "seconds" ? "seconds of the probe" : axisTitle(this.model.measures[+key]);
  }

  bars(rows, key) {
    if (rows.length > FEW || !/^\d+$/.test(key)) return undefined;
    const {low, high} = this.model.cells, s = scaleOf(this.model.measures[+key]);
    const cells = rows.map(r => this.model.cell(r, +key));
    return {type: "data", symmetric: false, thickness: 1, width: 0,
      array: cells.map((c, i) => low[c] === null ? 0 : Math.max(0, high[c] * s - this.value(rows[i], key))),
      arrayminus: cells.map((c, i) => low[c] === null ? 0 : Math.max(0, this.value(rows[i], key) - low[c] * s))};
  }

  // Every so manieth of many rows, in the order of y, so that those drawn are spread as all are.
  thinned(rows, y) {
    if (rows.length <= MOST_POINTS) return rows;
    const order = [...rows].sort((a, b) => this.value(a, y) - this.value(b, y));
    return Array.from({length: MOST_POINTS}, (_, i) => order[Math.round(i * (order.length - 1) / (MOST_POINTS - 1))]);
  }

  drawn(rows) {
    return rows.length > MOST_POINTS ? `${number(MOST_POINTS)} of ${number(rows.length)} rows drawn` : `${number(rows.length)} rows`;
  }

  points(all, x, y) {
    const rows = this.thinned(all, y), count = rows.length;
    return this.groups(rows).map(group => ({
      type: "scatter", mode: "markers", name: plain(group.name),
      x: group.rows.map(r => this.value(r, x)), y: group.rows.map(r => this.value(r, y)), customdata: group.rows,
      error_x: count > FEW ? undefined : this.bars(group.rows, x), error_y: count > FEW ? undefined : this.bars(group.rows, y),
      text: group.rows.map(r => plain(`${this.model.title(r)}, ${this.model.dataOf(r)}`)),
      hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
      marker: {color: group.colour, symbol: group.symbol, size: count > FEW ? 5 : 8, opacity: count > FEW ? 0.6 : 0.9}}));
  }

  there(...keys) { return this.rows.filter(r => keys.every(key => isFinite(this.value(r, key)))); }

  dimension(place) {
    const y = $("dimension-y").value, rows = this.there(y), lower = this.model.measures[+y].better === "lower";
    const lines = this.groups(rows).map(group => {
      const best = new Map();
      for (const r of group.rows) {
        const v = this.value(r, y), d = this.model.dim[r];
        if (!best.has(d) || (lower ? v < best.get(d) : v > best.get(d))) best.set(d, v);
      }
      const dims = [...best.keys()].sort((a, b) => a - b);
      return {type: "scatter", mode: "lines", x: dims, y: dims.map(d => best.get(d)), line: {color: group.colour, width: 2},
        hoverinfo: "skip", showlegend: false, name: plain(group.name)};
    });
    return this.plot(place, [...lines, ...this.points(rows, "dim", y)], "dimension", this.axis(y),
      `${this.drawn(rows)}; lines: the best of a method at each dimension, of all rows`, {xaxis: powers(rows.map(r => this.model.dim[r]))});
  }

  shots(place) {
    const {model} = this, family = $("shots-y").value;
    const columns = model.measures.map((_, m) => m).filter(m => model.measures[m].shots !== "" && shotFamily(model.measures[m]) === family)
      .sort((a, b) => model.measures[a].shots - model.measures[b].shots);
    const rows = this.rows.filter(r => columns.some(m => model.cell(r, m) >= 0));
    const last = r => Math.max(...columns.map(m => model.values[m][r]).filter(isFinite));
    const kept = [...rows].sort((a, b) => last(b) - last(a)).slice(0, MOST_CURVES);
    const metric = model.measures[columns[0]], s = scaleOf(metric);
    const curves = kept.map((r, i) => {
      const own = columns.filter(m => model.cell(r, m) >= 0), cells = own.map(m => model.cell(r, m));
      const {low, high, mean} = model.cells;
      return {type: "scatter", mode: "lines+markers", name: plain(model.title(r)), customdata: own.map(() => r),
        x: own.map(m => +model.measures[m].shots), y: cells.map(c => mean[c] * s),
        error_y: {type: "data", symmetric: false, thickness: 1, width: 0,
          array: cells.map(c => high[c] === null ? 0 : (high[c] - mean[c]) * s),
          arrayminus: cells.map(c => low[c] === null ? 0 : (mean[c] - low[c]) * s)},
        line: {color: COLOURS[i % COLOURS.length], dash: i < COLOURS.length ? "solid" : "dash"},
        marker: {symbol: SYMBOLS[i % SYMBOLS.length], size: 8}};
    });
    return this.plot(place, curves, "shots a class", `${metric.metric.replace(/_/g, " ")}${metric.unit ? ` (${metric.unit})` : ""}`,
      kept.length < rows.length ? `the best ${kept.length} of ${rows.length} rows` : `${rows.length} rows`,
      {xaxis: powers(columns.map(m => +model.measures[m].shots))});
  }

  trade(place) {
    const [y, x] = this.model.data.trades[+$("trade-y").value].map(String), rows = this.there(x, y);
    const parents = this.state.baseline.filter(r => r >= 0 && isFinite(this.value(r, x)));
    const shapes = parents.slice(0, 4).map(r => ({type: "line", x0: this.value(r, x), x1: this.value(r, x), yref: "paper",
      y0: 0, y1: 1, line: {color: "#888", width: 1, dash: "dash"}}));
    return this.plot(place, this.points(rows, x, y), this.axis(x), this.axis(y),
      `${this.drawn(rows)}${shapes.length ? "; dashed: the baseline" : ""}`, {shapes});
  }

  better(key) { return /^\d+$/.test(key) ? this.model.measures[+key].better : "lower"; }

  pareto(place) {
    const x = $("pareto-x").value, y = $("pareto-y").value, rows = this.there(x, y);
    const front = paretoFront(rows.map(r => [this.value(r, x), this.value(r, y)]), this.better(x), this.better(y)).map(i => rows[i]);
    const line = {type: "scatter", mode: "lines+markers", name: "Pareto front", customdata: front,
      x: front.map(r => this.value(r, x)), y: front.map(r => this.value(r, y)),
      text: front.map(r => plain(`${this.model.title(r)}, ${this.model.dataOf(r)}`)),
      hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra>Pareto front</extra>",
      line: {color: inherited("--text"), width: 1.5, shape: "hv"}, marker: {color: inherited("--text"), size: 7, symbol: "circle-open"}};
    $("pareto-list").replaceChildren(...front.slice(0, 50).map(r => make("li", {},
      make("button", {type: "button", class: "open", onclick: () => this.open(r)}, this.model.title(r)),
      ` ${this.model.dataOf(r)}: ${this.value(r, x).toPrecision(4)}, ${this.value(r, y).toPrecision(4)}`)));
    const side = key => ({higher: "more is better", lower: "less is better"})[this.better(key)] ?? "neither side is better";
    return this.plot(place, [...this.points(rows, x, y), line], this.axis(x), this.axis(y),
      `${number(front.length)} of ${number(rows.length)} rows are on the front (${this.drawn(rows)}); across: ${side(x)}, up: ${side(y)}`, {xaxis: x === "dim" ? powers(rows.map(r => this.model.dim[r])) : {}});
  }

  parallel(place) {
    const {model} = this, m = +$("parallel-colour").value, all = this.there(String(m));
    const up = model.measures[m].better === "lower" ? 1 : -1;
    const rows = all.length <= MOST_LINES ? all
      : [...all].sort((a, b) => up * (model.values[m][a] - model.values[m][b])).slice(0, MOST_LINES);
    if (!webGL) {
      place.textContent = "Parallel coordinates need WebGL, which this browser does not offer here.";
      return undefined;
    }
    const narrow = place.clientWidth < 560;
    const words = values => { // these texts are not read as markup
      const names = [...new Set(values)];
      return {values: values.map(v => names.indexOf(v)), tickvals: names.map((_, i) => i), ticktext: names.map(name => cut(name, narrow ? 12 : 24))};
    };
    const axes = [{label: "method", ...words(rows.map(r => model.fusion[r]))}];
    if (new Set(rows.map(r => model.dataOf(r))).size > 1) axes.push({label: "data", ...words(rows.map(r => model.dataOf(r)))});
    axes.push({label: "dim", values: rows.map(r => model.dim[r])});
    for (const key of model.numberKeys) {
      const values = rows.map(r => parseFloat(model.data.rows.numbers[r][key] ?? "NaN"));
      if (new Set(values.filter(isFinite)).size > 1) {
        const least = Math.min(...new Set(values.filter(isFinite)));
        axes.push({label: plain(key), values: values.map(v => isFinite(v) ? v : least)});
      }
    }
    const measured = [m, ...model.measures.map((_, i) => i).filter(i => i !== m && model.measures[i].primary)];
    for (const i of measured) {
      if (axes.length < MOST_AXES && rows.every(r => model.cell(r, i) >= 0)) {
        axes.push({label: plain(cut(model.measures[i].title, 28)), values: rows.map(r => this.value(r, String(i)))});
      }
    }
    const colours = rows.map(r => this.value(r, String(m)));
    return this.plot(place, [{type: "parcoords", dimensions: axes, labelangle: -12, labelside: "bottom",
      line: {color: colours, colorscale: "Viridis", showscale: true, colorbar: {title: {text: ""}, thickness: 12}}}], "", "",
    `${rows.length < all.length ? `the best ${number(rows.length)} of ${number(all.length)}` : number(rows.length)} rows, coloured by ${model.measures[m].title}; drag along an axis to pick a range`, {margin: {l: narrow ? 80 : 130, r: 50, t: 56, b: 90}, showlegend: false});
  }

  kernels(place) {
    const map = this.model.data.kernels[+$("kernels-row").value];
    $("kernels-note").textContent = kernelNote(map);
    return drawKernels(map, place);
  }

  async plot(place, traces, x, y, note, more = {}) {
    const Plotly = await withPlotly();
    const note_ = place.parentElement.querySelector(".said");
    note_.textContent = note;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${place.parentElement.querySelector("h3").textContent}: ${note}`);
    await Plotly.react(place, traces, look({xaxis: {title: {text: plain(x)}}, yaxis: {title: {text: plain(y)}}}, more, place),
      traces.some(trace => trace.type === "parcoords") ? SAVE : CONFIG);
    if (!place.clickable) {
      place.clickable = true;
      place.on("plotly_click", event => {
        const row = event.points[0].customdata;
        if (Number.isInteger(row)) this.open(row);
      });
    }
  }
}

// These buttons and no others: Plotly's own list has one that uploads the picture.
const SAVE = {displaylogo: false, responsive: true, modeBarButtons: [["toImage"]]};
const CONFIG = {...SAVE, modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]]};

function inherited(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function cut(text, most) { return text.length > most ? `${text.slice(0, most - 1)}…` : text; }

// A logarithmic axis whose ticks are powers of two.
function powers(values) {
  const low = Math.floor(Math.log2(Math.min(...new Set(values)))), high = Math.ceil(Math.log2(Math.max(...new Set(values))));
  if (!isFinite(low) || !isFinite(high)) return {};
  const step = Math.max(1, Math.ceil((high - low) / 8)), ticks = [];
  for (let power = low; power <= high; power += step) ticks.push(2 ** power);
  return {type: "log", tickvals: ticks, ticktext: ticks.map(tick => String(tick))};
}

function shotFamily(metric) {
  return [metric.probe.replace(/_/g, " "), metric.metric.replace(/_/g, " "), metric.label_set, metric.modality, metric.form, metric.other].join("\u0000");
}

function look(base, more, place) {
  const text = inherited("--text"), grid = inherited("--line"), narrow = place.clientWidth < 560;
  const axis = {gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: text, size: 12, family: "system-ui, sans-serif"},
    margin: {l: 56, r: 16, t: 34, b: 48}, modebar: {bgcolor: "rgba(0,0,0,0)", color: inherited("--strong"), activecolor: text}, height: narrow ? 420 : 440, hovermode: "closest", ...more,
    legend: narrow ? {orientation: "h", y: -0.25} : {}, showlegend: true,
    xaxis: {...axis, ...base.xaxis, ...more.xaxis}, yaxis: {...axis, ...base.yaxis, ...more.yaxis}};
}

// Rows that no other row is as good as on both axes and better than on one.
function paretoFront(points, betterX, betterY) {
  const x = betterX === "higher" ? -1 : 1, y = betterY === "lower" ? 1 : -1, front = [];
  const order = points.map((_, i) => i).sort((a, b) => x * (points[a][0] - points[b][0]) || y * (points[a][1] - points[b][1]));
  let best = Infinity;
  for (const i of order) {
    if (y * points[i][1] < best) { front.push(i); best = y * points[i][1]; }
  }
  return front;
}

function kernelNote(map) {
  const classes = new Set(map.classes).size;
  return `${map.classes.length} of ${map.of} test items of ${classes} classes (${map.label_set}), ordered by class; one colour scale`;
}

const KERNEL_NAMES = {cross_modal: "cross-modal", sum: "sum of kernels", product: "product of kernels", fused: "fused embedding"};

async function drawKernels(map, place) {
  const Plotly = await withPlotly(), n = map.classes.length, names = Object.keys(map.kernels);
  const columns = place.clientWidth < 560 ? 1 : Math.min(3, names.length), lines = Math.ceil(names.length / columns);
  const layout = {grid: {rows: lines, columns, pattern: "independent", xgap: 0.08, ygap: 0.22}, annotations: []};
  const traces = names.map((name, k) => {
    const bytes = fromBase64(map.kernels[name]), z = [];
    for (let i = 0; i < n; i++) z.push(Array.from(bytes.subarray(i * n, (i + 1) * n), v => map.low + v / 255 * (map.high - map.low)));
    const tail = k ? String(k + 1) : "";
    layout[`xaxis${tail}`] = {visible: false, constrain: "domain"};
    layout[`yaxis${tail}`] = {visible: false, autorange: "reversed", scaleanchor: `x${tail}`, constrain: "domain"};
    layout.annotations.push({text: plain(KERNEL_NAMES[name] ?? `expert: ${name}`), showarrow: false, xref: `x${tail} domain`, yref: `y${tail} domain`,
      x: 0.5, y: 1.02, yanchor: "bottom"});
    const pairs = map.classes.map(a => map.classes.map(b => plain(`${a} / ${b}`)));
    return {type: "heatmap", z, text: pairs, xaxis: `x${tail}`, yaxis: `y${tail}`, zmin: map.low, zmax: map.high, colorscale: "Viridis",
      showscale: k === 0, colorbar: {thickness: 10}, hovertemplate: "%{text}: %{z:.3f}<extra></extra>"};
  });
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `Kernel matrices ${names.join(", ")}: ${kernelNote(map)}`);
  const base = look({}, {}, place);
  await Plotly.react(place, traces, {...base, ...layout, xaxis: {...layout.xaxis}, yaxis: {...layout.yaxis}, showlegend: false,
    margin: {l: 8, r: 8, t: 58, b: 8}, height: lines * (place.clientWidth / columns * 0.9 + 24)}, CONFIG);
}

function options(select, pairs, chosen, changed) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", {value}, text)));
  select.value = pairs.some(([value]) => value === before) ? before : chosen ?? "";
  select.onchange = changed;
}

function choices(id, measures, model, chosen, changed, more = []) {
  options($(id), [...more, ...measures.map(m => [String(m), model.measures[m].title])], String(chosen), changed);
}
