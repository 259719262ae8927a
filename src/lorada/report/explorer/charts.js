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
function settingName(key) {
  return { with: "adapter on", without: "adapter off" }[key] ?? `${cut(visible(key), 20)} alone`;
}

/** The parts that are shown alone: where there is one, it is all. */
function alone(run) {
  return run.parts.length > 1 ? run.parts : [];
}

/** Lists of the likeliest next tokens with bars, one list for each setting. */
class NextTokens {
  constructor(run, next, width) {
    Object.assign(this, { run, next, width });
    const order = ["with", "without", ...alone(run)].filter((key) => next[key]);
    this.settings = order.map((key) => ({ key, name: settingName(key), tokens: next[key] }));
  }

  svg() {
    const { settings } = this;
    const columns = Math.max(1, Math.min(settings.length, Math.floor(this.width / 210)));
    const [wide, line] = [this.width / columns, 22];
    const rows = Math.max(...settings.map((one) => one.tokens.length));
    const tall = rows * line + 40;
    const made = canvasOfSvg(this.width, tall * Math.ceil(settings.length / columns), "Likeliest next tokens");
    const before = new Map(this.next.without ?? []);
    const colours = SERIES[theme()];
    settings.forEach((setting, i) => {
      const [left, top] = [(i % columns) * wide, Math.floor(i / columns) * tall];
      const group = drawn("g", { transform: `translate(${left} ${top})`, "data-setting": setting.key });
      group.append(drawn("text", { x: 0, y: 16, "font-weight": 600 }, setting.name));
      const [start, room] = [88, wide - 88 - 76];
      setting.tokens.forEach(([token, share], row) => {
        const y = 26 + row * line;
        const middle = { y: y + 9, "dominant-baseline": "middle" };
        group.append(
          drawn("text", { x: start - 6, ...middle, "text-anchor": "end" }, short(token, 11)),
          drawn("rect", { x: start, y, width: Math.max(share * room, 1), height: 17, fill: colours[1] },
            drawn("title", {}, `${seen(token)}: ${percent(share)}`)),
          drawn("text", { x: start + room + 54, ...middle, "text-anchor": "end" }, percent(share)));
        if (setting.key === "without" || !before.has(token)) return;
        const x = start + before.get(token) * room;
        group.append(drawn("path", { d: `M${x} ${y - 2}v21`, stroke: colours[2], "stroke-width": 2.5 }));
      });
      made.append(group);
    });
    return made;
  }

  rows() {
    const lines = this.settings.flatMap((one) => one.tokens.map(([token, share]) => [one.name, exact(token), share]));
    return [["setting", "token", "probability"], ...lines];
  }
}

/** Lines of the change through the layers: of all parts together, and of each alone. */
class ChangeLines {
  constructor(run, change, width, most) {
    this.marks = marks(most);
    Object.assign(this, { run, width, most: this.marks.at(-1) });
    const order = ["all", ...alone(run)].filter((key) => change[key]);
    this.lines = order.map((key) => ({ key, name: key === "all" ? "all together" : settingName(key), values: change[key] }));
    this.layers = Math.min(...this.lines.map((line) => line.values.length));
    this.line = element("p", { class: "readout", "aria-live": "polite" });
    this.at = this.layers - 1;
    this.element = element("div", {
      class: "chart", tabindex: "0", role: "slider", "aria-label": "Layer whose numbers are shown",
      "aria-valuemin": 0, "aria-valuemax": this.layers - 1, "aria-valuenow": this.at,
    });
    this.element.addEventListener("keydown", (event) => this.press(event));
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerdown", (event) => this.point(event));
    this.tell(this.at);
  }

  place() {
    const [left, right, top, bottom] = [56, 12, 12, 44];
    const wide = this.width - left - right;
    const x = (i) => left + (this.layers > 1 ? i / (this.layers - 1) : 0.5) * wide;
    return { left, top, wide, tall: 220, bottom, x, y: (value) => top + 220 * (1 - value / this.most) };
  }

  svg() {
    const { left, top, wide, tall, bottom, x, y } = this.place();
    const key = this.lines.length * 18;
    const made = canvasOfSvg(this.width, top + tall + bottom + key, "Change of the hidden state through the layers");
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
    return made;
  }

  draw() {
    const { top, tall, x } = this.place();
    this.mark = drawn("path", { stroke: "currentColor", "stroke-opacity": 0.6, "stroke-dasharray": "3 3" });
    this.markAt = (i) => this.mark.setAttribute("d", `M${x(i)} ${top}v${tall}`);
    this.markAt(this.at);
    const picture = this.svg();
    picture.append(this.mark);
    picture.setAttribute("aria-hidden", "true");
    this.element.replaceChildren(picture);
  }

  point(event) {
    const { left, wide } = this.place();
    const x = event.clientX - this.element.getBoundingClientRect().left;
    this.tell(Math.round((x - left) / wide * (this.layers - 1)));
  }

  press(event) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -this.layers, End: this.layers }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.tell(this.at + step);
  }

  tell(at) {
    this.at = Math.min(Math.max(at, 0), this.layers - 1);
    const words = this.lines.map((line) => `${line.name} ${number(line.values[this.at])}`);
    const text = `after layer ${this.at}: ${words.join(" · ")}`;
    this.element.setAttribute("aria-valuenow", this.at);
    this.element.setAttribute("aria-valuetext", text);
    this.line.textContent = text;
    this.markAt?.(this.at);
  }

  rows() {
    const line = (_, i) => [i, ...this.lines.map((one) => one.values[i])];
    return [["layer", ...this.lines.map((one) => one.name)], ...Array.from({ length: this.layers }, line)];
  }
}
