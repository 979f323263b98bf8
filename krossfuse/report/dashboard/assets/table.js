// The leaderboard: filtered, sorted, a page at a time.

const PAGE = 50, MOST_COLUMNS = 6;

class Leaderboard {
  constructor(model, state, changed, open) {
    Object.assign(this, {model, state, changed, open});
    this.rows = [];
  }

  filter() {
    const {model, state} = this;
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const probes = state.probe === "" ? null
      : model.measures.map((m, i) => m.probe === state.probe ? i : -1).filter(i => i >= 0);
    const fits = r => (state.data === "" || model.dataOf(r) === state.data)
      && (state.pair === "" || model.pairOf(r) === state.pair)
      && (state.method === "" || model.fusion[r] === state.method)
      && (state.low === null || model.dim[r] >= state.low) && (state.high === null || model.dim[r] <= state.high)
      && (!probes || probes.some(m => model.cell(r, m) >= 0))
      && words.every(word => model.text[r].includes(word));
    this.rows = this.order().filter(fits);
    this.columns = this.shownColumns();
    if (!state.sort && this.columns.length) {
      const m = this.columns[0];
      state.sort = {key: `m${m}`, down: model.measures[m].better !== "lower"};
      this.rows = this.order().filter(fits);
    }
  }

  shownColumns() {
    const {model, state} = this;
    const there = model.measures.map((m, i) => i).filter(i => state.probe === "" || model.measures[i].probe === state.probe);
    if (state.columns) return there.filter(i => state.columns.has(i));
    const seen = there.filter(i => this.rows.some(r => model.cell(r, i) >= 0));
    const main = seen.filter(i => model.measures[i].primary);
    return (main.length ? main : seen).slice(0, MOST_COLUMNS);
  }

  // All rows as they are sorted, which a filter keeps.
  order() {
    const {model, state} = this;
    if (!state.sort) return Array.from({length: model.n}, (_, r) => r);
    const name = `${state.sort.key} ${state.sort.down}`;
    if (!model.orders.has(name)) {
      const keys = Array.from({length: model.n}, (_, r) => r).map(this.sortValue(state.sort.key));
      const sign = state.sort.down ? -1 : 1, missing = v => v === "" || v !== v;
      const words = typeof keys.find(v => !missing(v)) === "string" ? new Intl.Collator("en", {numeric: true}).compare : null;
      model.orders.set(name, Array.from(keys.keys()).sort((a, b) => {
        const x = keys[a], y = keys[b];
        if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;
        return sign * (words ? words(x, y) : x - y) || a - b;
      }));
    }
    return model.orders.get(name);
  }

  sortValue(key) {
    const {model} = this;
    if (key === "label") return r => model.label[r];
    if (key === "data") return r => model.dataOf(r);
    if (key === "pair") return r => model.pairOf(r);
    if (key === "dim") return r => model.dim[r];
    if (key[0] === "m") return r => model.values[+key.slice(1)][r];
    const name = key.slice(1);
    return r => { const text = model.data.rows.numbers[r][name]; return text === undefined ? "" : parseFloat(text); };
  }

  render() {
    const {model, state} = this;
    const pages = Math.max(1, Math.ceil(this.rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shownRows = this.rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
    const numbers = model.numberKeys.filter(key => this.rows.some(r => model.data.rows.numbers[r][key] !== undefined));
    const heads = [["label", "method"]];
    if (new Set(model.boards.map(b => b.data)).size > 1) heads.push(["data", "data"]);
    if (new Set(model.boards.map(b => b.pair)).size > 1) heads.push(["pair", "pair"]);
    heads.push(["dim", "dim"], ...numbers.map(key => [`n${key}`, key]));
    const compared = this.columns.map(m => model.compare(state.baseline, m));
    const best = this.columns.map(m => this.best(m));
    $("head").replaceChildren(make("tr", {}, ...heads.map(([key, text]) => this.head(key, text)),
      ...this.columns.map(m => this.head(`m${m}`, model.measures[m].title))));
    $("rows").replaceChildren(...shownRows.map(r => make("tr", {class: state.baseline.includes(r) ? "baseline" : null},
      this.nameCell(r), ...heads.slice(1).map(([key]) => this.plainCell(r, key)),
      ...this.columns.map((m, i) => this.valueCell(r, m, compared[i], best[i])))));
    $("count").textContent = this.rows.length === model.n ? `${number(model.n)} rows`
      : `${number(this.rows.length)} of ${number(model.n)} rows`;
    $("nothing").hidden = this.rows.length > 0;
    $("pages").hidden = pages === 1;
    $("page").textContent = `page ${state.page + 1} of ${pages}`;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page === pages - 1;
    this.say(compared);
  }

  best(m) {
    const metric = this.model.measures[m];
    if (!metric.better) return new Map();
    const best = new Map();
    for (const r of this.rows) {
      const v = this.model.values[m][r], b = this.model.board[r];
      if (v === v && (!best.has(b) || (metric.better === "lower" ? v < best.get(b) : v > best.get(b)))) best.set(b, v);
    }
    return best;
  }

  head(key, text) {
    const {state} = this, on = state.sort && state.sort.key === key;
    const sort = () => {
      const better = key[0] === "m" ? this.model.measures[+key.slice(1)].better : "lower";
      state.sort = {key, down: on ? !state.sort.down : key[0] === "m" && better !== "lower"};
      state.page = 0;
      this.changed();
      document.querySelector(`#head button[data-key="${CSS.escape(key)}"]`)?.focus();
    };
    return make("th", {scope: "col", class: ["label", "data", "pair"].includes(key) ? "text" : null,
      "aria-sort": on ? (state.sort.down ? "descending" : "ascending") : "none"},
    make("button", {type: "button", "data-key": key, onclick: sort}, text,
      make("span", {"aria-hidden": "true", class: "arrow"}, on ? (state.sort.down ? "▾" : "▴") : "")));
  }

  nameCell(r) {
    const {model, state} = this, chosen = state.baseline.includes(r);
    return make("th", {scope: "row", class: "text name"},
      make("button", {type: "button", class: "open", onclick: () => this.open(r)}, model.label[r]),
      make("button", {type: "button", class: "base", "aria-pressed": String(chosen),
        "aria-label": `Compare the others with ${model.title(r)}`, title: "compare the others with this row",
        onclick: () => this.choose(r)}, chosen ? "baseline" : "compare"));
  }

  choose(r) {
    const {model, state} = this;
    state.chosen = state.baseline.includes(r) ? null : r;
    state.baseline = state.chosen === null ? model.defaultBaseline() : model.baselineOf(r);
    this.changed();
  }

  plainCell(r, key) {
    const {model} = this;
    if (key === "data" || key === "pair") return make("td", {class: "text"}, key === "data" ? model.dataOf(r) : model.pairOf(r));
    return make("td", {}, key === "dim" ? String(model.dim[r]) : model.data.rows.numbers[r][key.slice(1)] ?? "");
  }

  valueCell(r, m, compared, best) {
    const {model} = this, c = model.cell(r, m);
    if (c < 0) return make("td", {class: "missing"}, "–");
    const metric = model.measures[m], mean = model.values[m][r];
    return make("td", {class: mean === best.get(model.board[r]) ? "best" : null}, valueText(model, c, metric),
      differenceText(model, compared.get(c), metric));
  }

  // What the differences are to, and what they are worth.
  say(compared) {
    const {model, state} = this;
    const bases = state.baseline.filter(r => r >= 0);
    const names = [...new Set(bases.map(r => model.title(r)))];
    let paired = 0, unpaired = 0;
    for (const column of compared) {
      paired += column.paired;
      unpaired += column.size - column.paired;
    }
    const parts = [];
    if (!bases.length) parts.push("No row is compared with: “compare” in a row makes it the baseline.");
    else {
      parts.push(`Differences to ${names.join("; ")}: `
        + "▲ better, ▼ worse, ≈ no difference shown (95%, Holm over the compared rows of a data set).");
      if (paired) parts.push("Paired on the same test items.");
      if (unpaired) {
        parts.push(`${paired ? `${number(unpaired)} of ${number(paired + unpaired)}` : "They"} are not paired (marked ~): the page has no room for these`
          + " items' scores, so their intervals are wider. krossfuse report FOLDER --baseline ROW pairs them.");
      }
      if (!paired && !unpaired) parts.push("No row was measured on the same items as it.");
    }
    $("baseline").textContent = parts.join(" ");
    $("reset").hidden = state.chosen === null;
  }
}

function valueText(model, c, metric) {
  const {mean, low, high, interval, unknown} = model.cells, kind = model.data.texts[interval[c]];
  const mark = kind === "none" ? "" : unknown[c] ? "†" : kind === "items" ? "*" : "";
  const half = low[c] === null ? "" : ` ±${halfWidth(metric, mean[c], low[c], high[c])}`;
  return make("span", {class: "value"}, `${shown(metric, mean[c])}${half}${mark}`);
}

function differenceText(model, one, metric) {
  if (!one) return null;
  const [low, high] = model.interval(one);
  const verdict = VERDICTS[one.verdict];
  return make("span", {class: `difference ${verdict.replace(/ /g, "-")}`,
    title: `${verdict}, ${signed(metric, low)} to ${signed(metric, high)}, p: ${pText(one.p)}${one.paired ? "" : ", not paired"}`},
  `${one.paired ? "" : "~"}${signed(metric, one.difference)} `,
  make("span", {"aria-hidden": "true"}, MARKS[one.verdict]), make("span", {class: "spoken"}, verdict));
}

function pText(p) { return p < 0.001 ? "< 0.001" : p.toPrecision(2); }
