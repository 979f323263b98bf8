// A row opened: its measurements, configuration, protocol and pictures.

function openRow(model, row, state, choose) {
  const rows = model.data.rows, dialog = $("details");
  const measured = model.measures.map((_, m) => m).filter(m => model.cell(row, m) >= 0);
  const numbers = Object.entries(rows.numbers[row]).map(([key, value]) => `${key} = ${value}`);
  const about = [model.dataOf(row), model.pairOf(row), `${model.dim[row]} dimensions`, ...numbers, `config ${rows.digest[row]}`];
  const map = model.data.kernels.find(one => one.row === row);
  $("details-title").textContent = model.label[row];
  $("details-body").replaceChildren(
    make("p", {class: "muted"}, about.join(" · ")),
    make("p", {}, make("button", {type: "button", onclick: () => { dialog.close(); choose(row); }},
      state.baseline.includes(row) ? "No longer the baseline" : "Compare the others with this row")),
    make("h3", {}, "Measurements"),
    make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Measurements of this row"},
      make("table", {}, make("thead", {}, make("tr", {}, ...["measurement", "value", "difference", "its 95% interval", "p", "over", "seeds", "test items", "seconds"]
        .map((text, i) => make("th", {scope: "col", class: i === 0 ? "text" : null}, text)))),
      make("tbody", {}, ...measured.map(m => measurement(model, row, m, state))))),
    ...kernelPictures(map),
    ...block("Configuration (of one of its runs)", model.texts(rows.config[row])),
    ...block("Method as it describes itself", model.texts(rows.method[row])),
    make("h3", {}, "Protocol"),
    ...measured.map(m => make("details", {}, make("summary", {}, model.measures[m].title),
      make("pre", {tabindex: "0"}, model.texts(model.cells.protocol[model.cell(row, m)]).join("\n") || "nothing is said"))),
    ...block("Runs", [rows.runs[row]]), ...block("Versions", model.texts(rows.versions[row])));
  dialog.showModal();
  if (map) drawKernels(map, $("row-kernels"));
}

function measurement(model, row, m, state) {
  const c = model.cell(row, m), metric = model.measures[m], cells = model.cells;
  const one = model.compare(state.baseline, m).get(c);
  return make("tr", {}, make("th", {scope: "row", class: "text"}, metric.title),
    make("td", {}, valueText(model, c, metric)),
    make("td", {}, differenceText(model, one, metric) ?? "–"),
    make("td", {}, one ? model.interval(one).map(end => signed(metric, end)).join(" to ") : "–"),
    make("td", {}, one ? pText(one.p) : "–"),
    make("td", {}, model.data.texts[cells.interval[c]].replace(/\+/g, " and ")),
    make("td", {}, cells.seeds[c]), make("td", {}, cells.items[c] ? number(cells.items[c]) : "–"),
    make("td", {}, cells.seconds[c].toFixed(2)));
}

function block(title, lines) {
  if (!lines.length || !lines.join("")) return [];
  return [make("h3", {}, title), make("pre", {tabindex: "0"}, lines.join("\n"))];
}

function kernelPictures(map) {
  if (!map) return [];
  return [make("h3", {}, "Kernels"), make("p", {class: "muted"}, kernelNote(map)), make("div", {id: "row-kernels", class: "chart"})];
}
