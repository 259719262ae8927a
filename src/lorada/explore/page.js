"use strict";
/* The page: what is chosen, and the drawing of it. */

const { sentences, run } = JSON.parse(document.getElementById("data").textContent);
const part = (id) => document.getElementById(id);
const chosen = { sentence: 0, measure: null, at: { layer: 0, head: 0 }, open: null };
/** What the pictures of the open head show together: the marked pair of tokens. */
const view = {
  at: null,
  pictures: [],
  tell: null,
  mark(query, key) { this.at = { query, key }; this.changed(); },
  changed() {
    for (const picture of this.pictures) picture.draw();
    this.tell(this.at);
  },
};

const shown = () => run.shown[chosen.sentence];

function drawHeads() {
  const measure = MEASURES[chosen.measure];
  const { layers } = shown();
  const grid = new HeadsGrid({
    name: run.name, layers, measure, width: part("heads").clientWidth, at: chosen.at, open: chosen.open, onOpen: open,
  });
  part("heads").replaceChildren(grid.element, grid.legend(), grid.readout);
  part("measure-text").textContent = measure.text;
}

/** Open a head, or another one. */
async function open(layer, head) {
  const before = chosen.open;
  chosen.open = chosen.at = { layer, head };
  for (const cell of document.querySelectorAll("#heads [role=gridcell]")) {
    const here = Number(cell.dataset.layer) === layer && Number(cell.dataset.head) === head;
    cell.setAttribute("aria-selected", String(here));
  }
  await drawDetail();
  if (before) return;
  part("detail").scrollIntoView({ block: "start" });
  part("detail-title").focus({ preventScroll: true });
}

let drawing = 0;

async function drawDetail() {
  if (!chosen.open) return;
  const mine = ++drawing;
  const { layer, head } = chosen.open;
  const pictures = await picturesOf(shown().layers[layer], head);
  if (mine !== drawing) return; // something else was chosen meanwhile
  view.pictures = [];
  const detail = headDetail(pictures, sentences[chosen.sentence].tokens, view);
  view.tell = detail.tell;
  part("detail").hidden = false;
  part("detail-title").textContent = `Layer ${layer}, head ${head}`;
  part("detail-pictures").replaceChildren(detail.element);
  view.changed();
  part("detail").dataset.shown = [chosen.sentence, layer, head].join(" ");
}

function drawNext() {
  const tables = nextTokens(run, shown().next);
  part("next").replaceChildren(...(tables.length ? [element("div", { class: "tables" }, ...tables)]
    : ["This model predicts neither a next token nor a class."]));
}

function drawChange() {
  const { change } = shown();
  part("change").replaceChildren(change.all?.length ? changeLines(run, change, part("change").clientWidth)
    : "There are no hidden states to compare.");
}

function drawSentence() {
  part("tokens").replaceChildren(...sentences[chosen.sentence].tokens.map((token) => element("li", {}, quoted(token))));
}

function drawAll() {
  drawHeads();
  drawNext();
  drawChange();
  return drawDetail();
}

function fillMenus() {
  const has = (measure) => run.shown.some((one) => one.layers.some(measure.read));
  const measures = Object.entries(MEASURES).filter(([, measure]) => has(measure));
  chosen.measure = measures[0][0];
  part("measure").replaceChildren(...measures.map(([key, one]) => element("option", { value: key }, one.title)));
  part("sentence").replaceChildren(...sentences.map(({ text }, i) =>
    element("option", { value: i }, cut(visible(text), 60))));
}

function listen() {
  const onChange = (id, act) => part(id).addEventListener("change", (event) => act(event.target.value));
  onChange("sentence", (value) => {
    chosen.sentence = Number(value);
    view.at = null;
    drawSentence();
    drawAll();
  });
  onChange("measure", (value) => { chosen.measure = value; drawHeads(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's bars come and go without it
    width = innerWidth;
    drawAll();
  });
}

fillMenus();
listen();
drawSentence();
drawAll();
document.documentElement.dataset.ready = "yes";
