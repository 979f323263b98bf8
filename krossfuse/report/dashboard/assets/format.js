// Values as the report writes them, and elements whose texts are never read as markup.

function scaleOf(metric) { return metric.percent ? 100 : 1; }

function digits(metric, value) {
  if (metric.percent) return 1;
  const size = Math.abs(value);
  return size >= 0.1 || size === 0 || !isFinite(size) ? 2 : Math.min(8, 1 - Math.floor(Math.log10(size)));
}

function shown(metric, value) { return (value * scaleOf(metric)).toFixed(digits(metric, value)); }

function signed(metric, value) {
  const text = shown(metric, value);
  return text.startsWith("-") ? `−${text.slice(1)}` : `+${text}`;
}

function halfWidth(metric, value, low, high) {
  return ((high - low) / 2 * scaleOf(metric)).toFixed(digits(metric, value));
}

function axisTitle(metric) { return metric.unit ? `${metric.title} (${metric.unit})` : metric.title; }

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== ""));
  return element;
}

function $(id) { return document.getElementById(id); }

// Plotly reads a few tags in texts; a name is no tag.
function plain(text) { return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); }

function number(value) { return value.toLocaleString("en"); }
