"use strict";
/* Charts: the next token's probabilities, and the change through the layers. */

const SERIES = [
  ["#1b1b1b", "#f0f0f0"], ["#0064a8", "#56b4e9"], ["#b34a00", "#f0983c"], ["#007a5a", "#35c99b"],
  ["#9a3f7d", "#e09bc6"], ["#7a6200", "#e3cf4a"], ["#5a5aa8", "#a9a9f5"],
].map((pair) => `light-dark(${pair})`);
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2"];

/** The names that the page gives to the settings of the next token's probabilities. */
function settingName(run, key) {
  const name = cut(visible(key), 20);
  const alone = run.head && key !== run.head ? `${name} and ${run.head}` : `${name} alone`;
  return { with: "adapter on", without: "adapter off" }[key] ?? alone;
}

/** The parts that are shown alone, where there are several, and a trained head. */
function alone(run) {
  return [...(run.parts.length > 1 ? run.parts : []), ...(run.head ? [run.head] : [])];
}

/** Tables of the likeliest next tokens with bars, one for each setting that has any. */
function nextTokens(run, next) {
  const before = new Map(next.without ?? []);
  const settings = ["with", "without", ...alone(run)].filter((key) => next[key]?.length);
  return settings.map((key) => element("table", { class: "next", "data-setting": key },
    element("caption", {}, settingName(run, key)),
    ...next[key].map(([token, share]) => {
      const bar = element("td", { class: "bar" }, element("div", { style: `width: ${100 * share}%` }));
      if (key !== "without" && before.has(token)) bar.append(element("i", { style: `left: ${100 * before.get(token)}%` }));
      const name = element("th", { scope: "row" }, element("bdi", {}, short(token, 11)));
      return element("tr", {}, name, bar, element("td", {}, percent(share)));
    })));
}

/** The change through the layers, of all parts together and of each alone. */
function changeLines(run, change, width) {
  const keys = ["all", ...alone(run)].filter((key) => change[key]);
  const lines = keys.map((key) => ({ key, name: key === "all" ? "all together" : settingName(run, key), values: change[key] }));
  const layers = change.all.length;
  const most = Math.max(...lines.flatMap((line) => line.values)) || 1;
  const [left, right, top, tall, bottom] = [56, 12, 12, 220, 44];
  const wide = width - left - right;
  const x = (i) => left + (layers > 1 ? i / (layers - 1) : 0.5) * wide;
  const y = (value) => top + tall * (1 - value / most);
  const height = top + tall + bottom + lines.length * 18;
  const made = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "font-size": 12, fill: "currentColor" },
    drawn("title", {}, "Change of the hidden state through the layers"));
  const small = { "font-size": 11 };
  for (const value of [0, most / 2, most]) {
    made.append(drawn("path", { d: `M${left} ${y(value)}h${wide}`, stroke: "currentColor", "stroke-opacity": 0.2 }),
      drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", ...small }, number(value)));
  }
  const every = Math.ceil(layers / Math.max(wide / 34, 1));
  for (let i = 0; i < layers; i += every) {
    made.append(drawn("text", { x: x(i), y: top + tall + 16, "text-anchor": "middle", ...small }, String(i)));
  }
  made.append(drawn("text", { x: left + wide / 2, y: top + tall + 34, "text-anchor": "middle", ...small }, "after layer"));
  lines.forEach((line, i) => {
    const colour = SERIES[i % SERIES.length];
    const style = { style: `stroke: ${colour}`, fill: "none", "stroke-width": 2, "stroke-dasharray": DASHES[i % DASHES.length] };
    const points = line.values.map((value, at) => `${x(at)} ${y(value)}`);
    const low = top + tall + bottom + i * 18;
    made.append(drawn("path", { d: `M${points.join("L")}`, ...style, "data-line": line.key }),
      drawn("path", { d: `M${left} ${low}h34`, ...style }),
      drawn("text", { x: left + 42, y: low + 4 }, line.name));
    if (layers === 1) made.append(drawn("circle", { cx: x(0), cy: y(line.values[0]), r: 2.5, style: `fill: ${colour}` }));
  });
  return element("div", { class: "chart" }, made);
}
