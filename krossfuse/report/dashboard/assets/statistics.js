// The statistics of krossfuse.results.inference and .significance, for a baseline that is chosen in the page.

function logGamma(x) {
  // Lanczos (1964) with g = 7.
  const c = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  x -= 1;
  let sum = c[0];
  for (let i = 1; i < 9; i++) sum += c[i] / (x + i);
  const t = x + 7.5;
  return 0.5 * Math.log(2 * Math.PI) + (x + 0.5) * Math.log(t) - t + Math.log(sum);
}

const logBetas = new Map();
function logBeta(a, b) {
  const key = `${a} ${b}`;
  if (!logBetas.has(key)) logBetas.set(key, logGamma(a + b) - logGamma(a) - logGamma(b));
  return logBetas.get(key);
}

// The regularised incomplete beta function by its continued fraction (Lentz's method).
function incompleteBeta(a, b, x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(b, a, 1 - x);
  const front = Math.exp(logBeta(a, b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  let c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (Math.abs(d) < 1e-300 ? 1e-300 : d);
  let f = d;
  for (let m = 1; m < 500; m++) {
    for (const step of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
      -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 + step * d;
      d = 1 / (Math.abs(d) < 1e-300 ? 1e-300 : d);
      c = 1 + step / c;
      if (Math.abs(c) < 1e-300) c = 1e-300;
      f *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-14) break;
  }
  return front * f;
}

// Two-sided p-value of Student's t.
function tTail(t, freedom) {
  return incompleteBeta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

const quantiles = new Map();
function tQuantile(level, freedom) {
  const key = `${level} ${freedom}`;
  if (quantiles.has(key)) return quantiles.get(key);
  let low = 0, high = 1;
  while (tTail(high, freedom) > 1 - level) high *= 2;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (tTail(middle, freedom) > 1 - level) low = middle; else high = middle;
  }
  quantiles.set(key, high);
  return high;
}

// Variance and degrees of freedom: inference.Spread. A part is [variance, residual, draws].
function spreadOf(items, n, parts) {
  let drawn = 0, residual = 0, squares = 0;
  for (const [variance, rest, draws] of parts) {
    drawn += variance;
    residual += rest;
    if (variance > 0) squares += variance * variance / (draws - 1);
  }
  const total = Math.max(0, items - residual) + drawn;
  if (total <= 0) return {variance: 0, freedom: Infinity, known: n > 1 || parts.length > 0};
  const share = drawn / total;
  let inverse = n < 2 ? 0 : (1 - share) ** 2 / (n - 1);
  if (drawn > 0) {
    const f = drawn * drawn / squares;
    inverse += Math.min(1, (1 + 3 / f ** 3) * share ** 1.5) / f;
  }
  return {variance: total, freedom: inverse > 0 ? 1 / inverse : Infinity, known: n > 1 || parts.length > 0};
}

function pValue(centre, spread) {
  if (!spread.known || centre === 0) return 1;
  if (spread.variance === 0) return 0;
  return tTail(centre / Math.sqrt(spread.variance), spread.freedom);
}

function variance(values) {
  const n = values.length;
  if (n < 2) return 0;
  let mean = 0, squares = 0;
  for (const v of values) mean += v;
  mean /= n;
  for (const v of values) squares += (v - mean) ** 2;
  return squares / (n - 1) / n;
}

// The paired difference of two methods: x and y are scores (subsets, items), averaged over their seeds.
function pairedDifference(x, y, subsets, items, hits, seeds) {
  const byItem = new Float64Array(items), bySubset = new Float64Array(subsets);
  const d = new Float64Array(subsets * items);
  for (let t = 0, k = 0; t < subsets; t++) {
    for (let i = 0; i < items; i++, k++) {
      const difference = x[k] - y[k];
      d[k] = difference;
      byItem[i] += difference / subsets;
      bySubset[t] += difference / items;
    }
  }
  let centre = 0, squares = 0, fourths = 0;
  for (const v of byItem) { centre += v; squares += v * v; fourths += v ** 4; }
  centre /= items;
  const difference = centre, parts = [];
  if (subsets > 1) {
    const part = [variance(bySubset), 0, subsets];
    if (items > 1) {
      let rest = 0;
      for (let t = 0, k = 0; t < subsets; t++)
        for (let i = 0; i < items; i++, k++) rest += (d[k] - bySubset[t] - byItem[i] + difference) ** 2;
      part[1] = rest / ((subsets - 1) * (items - 1)) / (subsets * items);
    }
    parts.push(part);
  }
  let own = variance(byItem);
  if (items > 1 && hits) {
    const size = squares > 0 ? Math.sqrt(fourths / squares) : 1 / (seeds * subsets);
    const total = items + 0.5; // a quarter of an item more of each sign
    centre *= items / total;
    own = Math.max(0, (squares + 0.5 * size * size) / total - centre * centre) / total;
  }
  return {difference, centre, items: own, parts};
}

const BITS = Uint8Array.from({length: 256}, (_, byte) => { let n = 0; for (; byte; byte >>= 1) n += byte & 1; return n; });

// pairedDifference of the hits of one seed and subset, eight items to a byte from two places on.
function hitsDifference(bytes, a, b, items) {
  let more = 0, less = 0;
  for (let k = 0, end = (items + 7) >> 3; k < end; k++) {
    const x = bytes[a + k], y = bytes[b + k];
    more += BITS[x & ~y & 255];
    less += BITS[y & ~x & 255];
  }
  // Every difference is 1, 0 or -1, so a typical one is 1; a quarter of an item more of each sign.
  const difference = (more - less) / items, total = items + 0.5, centre = difference * items / total;
  return {difference, centre, items: Math.max(0, (more + less + 0.5) / total - centre * centre) / total};
}

// Holm's step-down adjusted p-values.
function holm(p) {
  const order = Array.from(p.keys()).sort((a, b) => p[a] - p[b]);
  const adjusted = new Float64Array(p.length);
  let largest = 0;
  order.forEach((i, rank) => {
    largest = Math.max(largest, Math.min(1, (p.length - rank) * p[i]));
    adjusted[i] = largest;
  });
  return adjusted;
}
