"use strict";
/* The overview: a cell for each head of each layer, whose colour shows one measure. */

const attention = (to, title, where) => ({
  title: `attention to ${title}`, show: percent, read: (layer) => layer.attends[to],
  text: `Share of the softmax, with the adapter on, ${where}`,
});

/** What the cells can show. The colours of one with ``least`` start at the least value shown, else at 0. */
const MEASURES = {
  effect: {
    title: "relative norm of the map", show: number, read: (layer) => layer.effect,
    text: "Relative norm: the size of what the map adds to a head's output, ‖map·V‖, as a multiple of what the softmax gives, ‖softmax·V‖. Near 0 the map does nothing.",
  },
  negative: {
    title: "share of the sum below 0", least: true, show: percent, read: (layer) => layer.negative,
    text: "Share of the visible entries of softmax plus map that are below 0: there a token is subtracted, which a softmax alone cannot do.",
  },
  moved: {
    title: "how far the adapter moves the head's output", show: number, read: (layer) => layer.moved,
    text: "How far the adapter moves the head's output, before the output projection: ‖with − without‖ / ‖without‖. Changes of earlier layers count too.",
  },
  first: attention("first", "the first token", "that goes to the first token of the text. Many heads rest there."),
  previous: attention("previous", "the token before", "that goes to the token just before."),
  itself: attention("itself", "the token itself", "with which tokens look at themselves."),
  other: attention("other", "other tokens",
    "that goes to other tokens than the first, the one before and the token itself."),
};

/** The ends of a measure's scale over all layers. */
function rangeOf(measure, layers) {
  const values = layers.flatMap((layer) => measure.read(layer) ?? []);
  return [measure.least ? Math.min(...values) : 0, Math.max(...values)];
}

/** All numbers of a head as words. */
function wordsOf(layer, head) {
  const words = Object.values(MEASURES)
    .filter((measure) => measure.read(layer))
    .map((measure) => `${measure.title} ${measure.show(measure.read(layer)[head])}`);
  if (!layer.effect) words.unshift("no map here");
  return words.join(" · ");
}

/** The grid of one run: a row for each head and a column for each layer. */
class HeadsGrid {
  /** ``at`` is the {layer, head} that the keyboard reaches; ``onOpen`` gets a layer and a head. */
  constructor({ name, layers, measure, width, at, open, onOpen }) {
    Object.assign(this, { name, layers, measure, range: rangeOf(measure, layers), onOpen });
    this.at = { layer: 0, head: 0 };
    this.readout = element("p", { class: "readout" });
    this.cells = layers.map((layer, i) => layer.moved.map((_, head) => this.cell(layer, i, head, open)));
    this.element = element("div", { class: "heads" }, this.grid(width));
    this.reach(at.layer, at.head);
    this.tell(this.at.layer, this.at.head);
  }

  cell(layer, number, head, open) {
    const value = this.measure.read(layer)?.[head];
    const missing = value === undefined;
    const said = missing ? "no map" : `${this.measure.title} ${this.measure.show(value)}`;
    const cell = element("div", {
      role: "gridcell", tabindex: "-1", class: missing ? "cell none" : "cell",
      "aria-label": `layer ${number}, head ${head}: ${said}`,
      "aria-selected": String(open?.layer === number && open?.head === head),
      "data-layer": number, "data-head": head, "data-value": missing ? "" : value,
    });
    if (!missing) cell.style.background = shareColour(value, ...this.range);
    cell.addEventListener("click", () => { this.reach(number, head); this.onOpen(number, head); });
    cell.addEventListener("pointerenter", () => this.tell(number, head));
    cell.addEventListener("focus", () => this.tell(number, head));
    cell.addEventListener("keydown", (event) => this.press(event, number, head));
    return cell;
  }

  grid(width) {
    const side = Math.min(Math.max(Math.floor((width - 64) / this.layers.length) - 1, 16), 36); // less a label
    const grid = element("div", {
      role: "grid", "aria-label": `Heads of ${this.name}: ${this.measure.title}. Arrow keys move, Enter opens.`,
    });
    grid.style.gridTemplateColumns = `3.25rem repeat(${this.layers.length}, ${side}px)`;
    const label = (text) => element("span", { class: "label", "aria-hidden": "true" }, text);
    grid.append(label("↓ head"), ...this.layers.map((_, i) => label(String(i))));
    for (let head = 0; this.cells.some((cells) => cells[head]); head++) {
      grid.append(element("div", { role: "row" }, label(String(head)),
        ...this.cells.map((cells) => cells[head] ?? element("span"))));
    }
    return element("div", {}, element("p", { class: "label across", "aria-hidden": "true" }, "layer →"), grid);
  }

  press(event, layer, head) {
    const places = {
      ArrowRight: [layer + 1, head], ArrowLeft: [layer - 1, head], ArrowDown: [layer, head + 1],
      ArrowUp: [layer, head - 1], Home: [0, head], End: [Infinity, head],
    };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") this.onOpen(layer, head);
    else if (event.key in places) this.reach(...places[event.key]).focus();
    else return;
    event.preventDefault();
  }

  /** Make the nearest cell the one that the keyboard reaches. */
  reach(wantedLayer, wantedHead) {
    this.cells[this.at.layer][this.at.head].tabIndex = -1;
    const layer = Math.min(Math.max(wantedLayer, 0), this.cells.length - 1);
    const head = Math.min(Math.max(wantedHead, 0), this.cells[layer].length - 1);
    this.at = { layer, head };
    this.cells[layer][head].tabIndex = 0;
    return this.cells[layer][head];
  }

  /** Show the numbers of a head. */
  tell(number, head) {
    const layer = this.layers[number];
    this.readout.replaceChildren(element("b", {}, `Layer ${number}, head ${head}`),
      " (", element("bdi", {}, layer.name), `): ${wordsOf(layer, head)}`);
  }

  legend() {
    const [low, high] = this.range;
    const colours = Array.from({ length: 11 }, (_, i) => shareColour(i, 0, 10));
    return legend(colours, [low, (low + high) / 2, high].map(this.measure.show));
  }
}
