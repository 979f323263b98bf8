// What the page knows, by row and measurement; and comparisons with any row.

const NONE = 0, BETTER = 1, WORSE = 2, DIFFERENT = 3;
const VERDICTS = ["no difference shown", "better", "worse", "different"];
const MARKS = ["≈", "▲", "▼", "≠"];

class Model {
  constructor(data, scores) {
    Object.assign(this, {data, scores, measures: data.measures, boards: data.boards, cells: data.cells});
    const rows = data.rows;
    this.n = rows.board.length;
    this.cellAt = new Int32Array(this.n * this.measures.length).fill(-1);
    const {row, measure} = data.cells;
    for (let c = 0; c < row.length; c++) this.cellAt[row[c] * this.measures.length + measure[c]] = c;
    this.label = rows.label.map(i => data.texts[i]);
    this.fusion = rows.fusion.map(i => data.texts[i]);
    this.dim = rows.dim;
    this.board = rows.board;
    this.numberKeys = [...new Set(rows.numbers.flatMap(numbers => Object.keys(numbers)))];
    this.name = this.label.map((label, r) => [label, ...Object.entries(rows.numbers[r]).map(([k, v]) => `${k}=${v}`)]
      .join(", "));
    this.id = this.name.map((name, r) => JSON.stringify([this.dataOf(r), this.pairOf(r), name, this.dim[r]]));
    this.text = this.name.map((name, r) => [name, this.dim[r], this.dataOf(r), this.pairOf(r), this.fusion[r],
      rows.digest[r], rows.runs[r]].join(" ").toLowerCase());
    this.boardRows = this.boards.map(() => []);
    for (let r = 0; r < this.n; r++) this.boardRows[this.board[r]].push(r);
    this.values = this.measures.map((_, m) => Float64Array.from({length: this.n}, (_, r) => {
      const c = this.cell(r, m);
      return c < 0 || this.cells.mean[c] === null ? NaN : this.cells.mean[c];
    }));
    this.comparisons = new Map();
    this.orders = new Map();
  }

  cell(row, measure) { return this.cellAt[row * this.measures.length + measure]; }
  dataOf(row) { return this.boards[this.data.rows.board[row]].data; }
  pairOf(row) { return this.boards[this.data.rows.board[row]].pair; }
  title(row) { return `${this.name[row]} (${this.dim[row]})`; }
  texts(numbers) { return numbers.map(i => this.data.texts[i]); }

  // Baselines by board: where a row is chosen, rows of the same name and dimension stand for it on the other boards.
  baselineOf(row) {
    return this.boards.map((_, b) => b === this.board[row] ? row
      : this.boardRows[b].find(r => this.name[r] === this.name[row] && this.dim[r] === this.dim[row]) ?? -1);
  }

  defaultBaseline() { return this.data.compared.length ? this.data.compared[0].base : this.boards.map(() => -1); }

  // The scores of a cell averaged over its seeds, (subsets, items); null where the page has no room for them.
  scoresOf(c) {
    const {packed, offset, subsets, items, draws} = this.cells;
    if (offset[c] < 0) return null;
    const n = subsets[c] * Math.max(1, items[c]), at = offset[c];
    const values = new Float64Array(n);
    if (packed[c] === "bits") {
      for (let i = 0; i < n; i++) values[i] = this.scores[at + (i >> 3)] >> (7 - (i & 7)) & 1;
    } else if (packed[c] === "counts") {
      for (let i = 0; i < n; i++) values[i] = this.scores[at + i] / draws[c];
    } else {
      const view = new DataView(this.scores.buffer, this.scores.byteOffset + at);
      for (let i = 0; i < n; i++) values[i] = view.getFloat32(4 * i, true);
    }
    return values;
  }

  // Comparisons of one measurement with a baseline: by cell, its difference and verdict.
  compare(baseline, measure) {
    const key = `${baseline.join()} ${measure}`;
    if (!this.comparisons.has(key)) {
      if (this.comparisons.size > 60) this.comparisons.clear();
      const found = new Map();
      baseline.forEach((base, board) => {
        if (base >= 0) this.compareBoard(board, base, measure, found);
      });
      found.paired = [...found.values()].filter(one => one.paired).length;
      this.comparisons.set(key, found);
    }
    return this.comparisons.get(key);
  }

  compareBoard(board, base, measure, found) {
    const made = this.data.compared.find(entry => entry.base[board] === base);
    if (made) {
      this.madeBefore(made);
      for (const r of this.boardRows[board]) {
        const c = this.cell(r, measure), place = c < 0 ? undefined : made.at.get(c);
        if (place === undefined) continue;
        found.set(c, {difference: made.difference[place], low: made.low[place], high: made.high[place],
          p: made.p[place], verdict: made.verdict[place], paired: true});
      }
      return;
    }
    const cells = this.cells, own = this.cell(base, measure), metric = this.measures[measure];
    if (own < 0 || (metric.relative && this.fusion[base] === "cross_modal")) return;
    const baseScores = this.scoresOf(own), family = [], all = [];
    for (const r of this.boardRows[board]) {
      const c = this.cell(r, measure);
      if (r === base || c < 0 || cells.group[c] !== cells.group[own]) continue;
      const one = this.difference(c, own, baseScores);
      if (!one.spread.known) continue;
      family.push(c);
      all.push(one);
    }
    const p = holm(all.map(one => pValue(one.centre, one.spread)));
    family.forEach((c, i) => {
      const one = all[i], level = this.data.level;
      let verdict = p[i] > 1 - level || one.centre === 0 ? NONE
        : one.centre > 0 === (metric.better !== "lower") ? BETTER : WORSE;
      if (verdict !== NONE && !metric.better) verdict = DIFFERENT;
      found.set(c, {difference: one.difference, centre: one.centre, spread: one.spread, p: p[i], verdict,
        paired: one.paired});
    });
  }

  madeBefore(made) { made.at ??= new Map(made.cell.map((c, i) => [c, i])); }

  difference(a, b, scoresOfB) {
    const cells = this.cells, n = Math.max(1, cells.items[a]), subsets = cells.subsets[a];
    const seeds = [a, b].map(c => cells.parts[c][0]).filter(Boolean);
    if (cells.packed[a] === "bits" && cells.packed[b] === "bits" && cells.offset[a] >= 0 && subsets === 1 && n > 1) {
      const one = hitsDifference(this.scores, cells.offset[a], cells.offset[b], n);
      return {difference: one.difference, centre: one.centre, paired: true, spread: spreadOf(one.items, n, seeds)};
    }
    const x = scoresOfB && this.scoresOf(a);
    if (x) {
      const one = pairedDifference(x, scoresOfB, subsets, n, cells.hits[a] && cells.hits[b], cells.draws[a]);
      return {difference: one.difference, centre: one.centre, paired: true,
        spread: spreadOf(one.items, n, [...seeds, ...one.parts])};
    }
    const difference = cells.mean[a] - cells.mean[b], parts = [...seeds];
    const [s, t] = [a, b].map(c => cells.parts[c][1]);
    if (s && t) parts.push([s[0] + t[0], s[1] + t[1], Math.min(s[2], t[2])]);
    return {difference, centre: difference, paired: n === 1 && subsets === 1,
      spread: spreadOf(cells.variance[a] + cells.variance[b], n, parts)};
  }

  // The interval of a comparison, computed when it is looked at.
  interval(comparison) {
    if (comparison.low === undefined) {
      const {variance: v, freedom} = comparison.spread;
      const half = v === 0 ? 0 : tQuantile(this.data.level, freedom) * Math.sqrt(v);
      comparison.low = comparison.centre - half;
      comparison.high = comparison.centre + half;
    }
    return [comparison.low, comparison.high];
  }
}
