"use strict";
/* The overview: a cell for each head of each layer, whose colour shows one measure. */

const attention = (to) => ({
  read: (layer) => layer.attends[to],
  show: percent,
});

/** What the cells can show. ``low``: where the scale starts, "least" for the least value shown. */
const MEASURES = {
  effect: {
    title: "effect size of the map", low: 0, show: number, read: (layer) => layer.effect,
    text: "Effect size: the size of what the map adds to a head's output, ‖map·V‖, as a multiple of what the softmax gives, ‖softmax·V‖. Near 0 the map does nothing.",
  },
  negative: {
    title: "share of the sum below 0", low: "least", show: percent, read: (layer) => layer.negative,
    text: "Share of the visible entries of softmax plus map that are below 0: there a token is subtracted, which a softmax alone cannot do.",
  },
  map_negative: {
    title: "share of the map below 0", low: "least", show: percent, read: (layer) => layer.map_negative,
    text: "Share of the map's visible entries that are below 0. A map with random signs has 50 %: only the distance from that tells of training.",
  },
  moved: {
    title: "how far the adapter moves the head's output", low: 0, show: number, read: (layer) => layer.moved,
    text: "How far the adapter moves the head's output, before the output projection: ‖with − without‖ / ‖without‖. Changes of earlier layers count too.",
  },
  first: {
    title: "attention to the first token", low: 0, ...attention("first"),
    text: "Share of the softmax, with the adapter on, that goes to the first token of the text. Many heads rest there.",
  },
  previous: {
    title: "attention to the token before", low: 0, ...attention("previous"),
    text: "Share of the softmax, with the adapter on, that goes to the token just before.",
  },
  itself: {
    title: "attention to the token itself", low: 0, ...attention("itself"),
    text: "Share of the softmax, with the adapter on, with which tokens look at themselves.",
  },
  other: {
    title: "attention to other tokens", low: 0, ...attention("other"),
    text: "Share of the softmax, with the adapter on, that goes to other tokens than the first, the one before and the token itself.",
  },
};

/** The ends of a measure's scale over all runs and steps, so that colours can be compared. */
function rangeOf(measure, everyShown) {
  const values = everyShown.flatMap((shown) => shown.layers.flatMap((layer) => measure.read(layer) ?? []));
  const high = Math.max(...values, 0);
  return [measure.low === "least" ? Math.min(...values, high) : measure.low, high];
}

/** All numbers of a head as words. */
function wordsOf(layer, head) {
  const words = Object.values(MEASURES)
    .filter((measure) => measure.read(layer))
    .map((measure) => `${measure.title} ${measure.show(measure.read(layer)[head])}`);
  if (!layer.effect) words.unshift("no map here");
  return words.join(" · ");
}

/** The grid of one run: rows are heads where layers fit beside each other, else layers. */
class HeadsGrid {
  /**
   * @param layers of a run on a sentence
   * @param measure a value of MEASURES
   * @param range [low, high] of the colours
   * @param width in pixels that there is
   * @param at {layer, head} that the keyboard reaches
   * @param open {layer, head} that is open, or null
   * @param onOpen called with a layer and a head
   * @param onPoint the same, for one that is pointed at
   */
  constructor({ name, layers, measure, range, width, at, open, onOpen, onPoint }) {
    Object.assign(this, { name, layers, measure, range, onOpen, onPoint });
    this.heads = Math.max(...layers.map((layer) => layer.moved.length));
    this.beside = layers.length * 18 + 64 <= width;
    this.at = this.clamped(at);
    this.readout = element("p", { class: "readout" });
    this.cells = layers.map((layer, i) => layer.moved.map((_, head) => this.cell(layer, i, head, open)));
    this.element = element("div", { class: "heads" }, this.grid(width));
    this.cells[this.at.layer][this.at.head].tabIndex = 0;
    this.tell(this.at.layer, this.at.head);
  }

  clamped({ layer, head }) {
    const line = Math.min(Math.max(layer, 0), this.layers.length - 1);
    return { layer: line, head: Math.min(Math.max(head, 0), this.layers[line].moved.length - 1) };
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
    cell.addEventListener("pointerenter", () => this.onPoint(number, head));
    cell.addEventListener("focus", () => this.onPoint(number, head));
    cell.addEventListener("keydown", (event) => this.press(event, number, head));
    return cell;
  }

  grid(width) {
    const [lines, across] = this.beside ? [this.heads, this.layers.length] : [this.layers.length, this.heads];
    const side = Math.min(Math.floor((width - 56) / across) - 1, 36); // a label, and a gap for each
    const every = Math.ceil(20 / side);
    const grid = element("div", {
      role: "grid", "aria-label": `Heads of ${this.name}: ${this.measure.title}. Arrow keys move, Enter opens.`,
    });
    grid.style.gridTemplateColumns = `3.25rem repeat(${across}, ${Math.max(side, 4)}px)`;
    const [down, right] = this.beside ? ["head", "layer"] : ["layer", "head"];
    const label = (text) => element("span", { class: "label", "aria-hidden": "true" }, text);
    grid.append(label(`↓ ${down}`), ...Array.from({ length: across }, (_, i) =>
      label(i % every ? "" : String(i))));
    for (let line = 0; line < lines; line++) {
      const row = element("div", { role: "row" }, label(String(line)));
      for (let i = 0; i < across; i++) {
        const [layer, head] = this.beside ? [i, line] : [line, i];
        row.append(this.cells[layer][head] ?? element("span"));
      }
      grid.append(row);
    }
    return element("div", {}, element("p", { class: "label across", "aria-hidden": "true" }, `${right} →`), grid);
  }

  press(event, layer, head) {
    const along = this.beside ? [[1, 0], [0, 1]] : [[0, 1], [1, 0]];
    const [right, down] = along;
    const last = { layer: this.layers.length - 1, head: this.heads - 1 };
    const ends = this.beside ? { Home: [0, head], End: [last.layer, head] } : { Home: [layer, 0], End: [layer, last.head] };
    const steps = {
      ArrowRight: [layer + right[0], head + right[1]], ArrowLeft: [layer - right[0], head - right[1]],
      ArrowDown: [layer + down[0], head + down[1]], ArrowUp: [layer - down[0], head - down[1]], ...ends,
    };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") this.onOpen(layer, head);
    else if (event.key in steps) this.reach(...steps[event.key]).focus();
    else return;
    event.preventDefault();
  }

  /** Make a cell the one that the keyboard reaches. */
  reach(layer, head) {
    this.cells[this.at.layer][this.at.head].tabIndex = -1;
    this.at = this.clamped({ layer, head });
    const cell = this.cells[this.at.layer][this.at.head];
    cell.tabIndex = 0;
    return cell;
  }

  /** Show the numbers of a head. */
  tell(number, head) {
    const layer = this.layers[number];
    const found = layer?.moved[head] !== undefined;
    this.readout.replaceChildren(element("b", {}, `Layer ${number}, head ${head}`), ...(found
      ? [" (", element("bdi", {}, layer.name), `): ${wordsOf(layer, head)}`] : [": not in this model"]));
  }

  legend() {
    const [low, high] = this.range;
    const colours = Array.from({ length: 11 }, (_, i) => shareColour(i, 0, 10));
    return legend(colours, [low, (low + high) / 2, high].map(this.measure.show));
  }
}
