"use strict";
/* Charts of one run: the next token's probabilities, and the change through the layers. */

const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2"];

/** Marks of an axis from 0 to at least ``most``: [0, step, …], at most six. */
function marks(most) {
  const size = 10 ** Math.floor(Math.log10(most || 1));
  const step = size * [0.2, 0.25, 0.5, 1, 2].find((one) => (most || 1) / (size * one) <= 5);
  return Array.from({ length: Math.ceil((most || 1) / step - 1e-9) + 1 }, (_, i) => i * step);
}

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

/** Lines of the change through the layers: of all parts together, and of each alone. */
class ChangeLines {
  constructor(run, change, width, most) {
    this.marks = marks(most);
    Object.assign(this, { width, most: this.marks.at(-1) });
    const order = ["all", ...alone(run)].filter((key) => change[key]);
    this.lines = order.map((key) => ({ key, name: key === "all" ? "all together" : settingName(run, key), values: change[key] }));
    this.layers = Math.min(...this.lines.map((line) => line.values.length));
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.slider = element("input", {
      type: "range", min: 0, max: this.layers - 1, value: this.layers - 1, "aria-label": "Layer whose numbers are shown",
    });
    this.slider.addEventListener("input", () => this.tell());
    this.element = element("div", { class: "chart" }, this.picture(), this.slider, this.readout);
    this.tell();
  }

  picture() {
    const [left, right, top, tall, bottom] = [56, 12, 12, 220, 44];
    const wide = this.width - left - right;
    const x = (i) => left + (this.layers > 1 ? i / (this.layers - 1) : 0.5) * wide;
    const y = (value) => top + tall * (1 - value / this.most);
    const made = emptyPicture(this.width, top + tall + bottom + this.lines.length * 18,
      "Change of the hidden state through the layers");
    const faint = { stroke: "currentColor", "stroke-opacity": 0.2 };
    const small = { "font-size": 11 };
    for (const value of this.marks) {
      const at = y(value);
      made.append(drawn("path", { d: `M${left} ${at}h${wide}`, ...faint }),
        drawn("text", { x: left - 6, y: at + 4, "text-anchor": "end", ...small }, number(value)));
    }
    const every = Math.ceil(this.layers / Math.max(wide / 34, 1));
    for (let i = 0; i < this.layers; i += every) {
      made.append(drawn("text", { x: x(i), y: top + tall + 16, "text-anchor": "middle", ...small }, String(i)));
    }
    made.append(drawn("text", { x: left + wide / 2, y: top + tall + 34, "text-anchor": "middle", ...small }, "after layer"));
    this.lines.forEach((line, i) => {
      const colour = SERIES[theme()][i % SERIES.light.length];
      const style = { stroke: colour, fill: "none", "stroke-width": 2, "stroke-dasharray": DASHES[i % DASHES.length] };
      const points = line.values.map((value, at) => `${x(at)} ${y(value)}`);
      const low = top + tall + bottom + i * 18;
      made.append(drawn("path", { d: `M${points.join("L")}`, ...style, "data-line": line.key }),
        drawn("path", { d: `M${left} ${low}h34`, ...style }),
        drawn("text", { x: left + 42, y: low + 4 }, line.name));
      for (const [at, value] of line.values.entries()) {
        made.append(drawn("circle", { cx: x(at), cy: y(value), r: 2.5, fill: colour },
          drawn("title", {}, `${line.name}, layer ${at}: ${number(value)}`)));
      }
    });
    this.mark = drawn("path", { stroke: "currentColor", "stroke-opacity": 0.6, "stroke-dasharray": "3 3" });
    this.markAt = (i) => this.mark.setAttribute("d", `M${x(i)} ${top}v${tall}`);
    made.append(this.mark);
    return made;
  }

  /** Show the numbers of the layer that the slider is at. */
  tell() {
    const at = Number(this.slider.value);
    const words = this.lines.map((line) => `${line.name} ${number(line.values[at])}`);
    this.readout.textContent = `after layer ${at}: ${words.join(" · ")}`;
    this.slider.setAttribute("aria-valuetext", this.readout.textContent);
    this.markAt(at);
  }
}
