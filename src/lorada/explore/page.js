"use strict";
/* The page: what is chosen, and the drawing of it. */

const { sentences, runs } = JSON.parse(document.getElementById("data").textContent);
const part = (id) => document.getElementById(id);
const chosen = {
  sentence: 0,
  steps: runs.map((run) => run.steps.length - 1),
  measure: null,
  at: { layer: 0, head: 0 },
  open: null,
};
/** What the pictures of the open head show together: the marked pair of tokens. */
const view = {
  at: null,
  pictures: [],
  mark(query, key) { this.at = { query, key }; this.changed(); },
  changed() {
    for (const picture of this.pictures) picture.draw();
    for (const detail of details) detail.tell(this.at);
  },
};
let details = [];

const shownBy = (run, i) => run.shown[chosen.steps[i]][chosen.sentence];
const everyShown = () => runs.flatMap((run) => run.shown.map((step) => step[chosen.sentence]));
const stepName = (step) => step === null ? "finished" : `step ${step}`;

function heading(run, i) {
  const step = run.steps.length > 1 ? `, ${stepName(run.steps[chosen.steps[i]])}` : "";
  return element("h3", {}, element("bdi", {}, run.name), step);
}

/** The width in pixels of one run's figure; two stand beside each other where there is room. */
function widthOfRun(box) {
  const beside = runs.length > 1 && box.clientWidth >= 860;
  box.classList.toggle("beside", beside);
  return Math.floor(beside ? (box.clientWidth - 32) / runs.length : box.clientWidth);
}

function drawHeads() {
  const measure = MEASURES[chosen.measure];
  const range = rangeOf(measure, everyShown());
  const width = widthOfRun(part("heads"));
  const grids = [];
  const onPoint = (layer, head) => { for (const grid of grids) grid.tell(layer, head); };
  part("heads").replaceChildren(...runs.map((run, i) => {
    const grid = new HeadsGrid({
      name: run.name, layers: shownBy(run, i).layers, measure, range, width,
      at: chosen.at, open: chosen.open, onOpen: open, onPoint,
    });
    grids.push(grid);
    return element("figure", {}, heading(run, i), grid.element, grid.legend(), grid.readout);
  }));
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
  const { tokens } = sentences[chosen.sentence];
  const same = everyShown().map((shown) => shown.layers[layer]).filter(Boolean);
  const loaded = await Promise.all(runs.map((run, i) => {
    const found = shownBy(run, i).layers[layer];
    return found?.moved[head] === undefined ? null : picturesOf(found, head, same);
  }));
  if (mine !== drawing) return; // something else was chosen meanwhile
  const differences = loaded.flatMap((one) => one?.filter((picture) => picture.title === "Difference") ?? []);
  const most = Math.max(...differences.map((picture) => picture.most));
  for (const picture of differences) picture.most = most;
  view.pictures = [];
  details = [];
  const shown = runs.map((run, i) => {
    if (!loaded[i]) return element("p", {}, element("bdi", {}, run.name), ` has no layer ${layer} with a head ${head}.`);
    const detail = runDetail(heading(run, i), loaded[i], tokens, view);
    details.push(detail);
    return detail.element;
  });
  part("detail").hidden = false;
  part("detail-title").textContent = `Layer ${layer}, head ${head}`;
  part("detail-runs").replaceChildren(...shown);
  view.changed();
  part("detail").dataset.shown = [chosen.sentence, ...chosen.steps, layer, head].join(" ");
}

function drawNext() {
  widthOfRun(part("next"));
  part("next").replaceChildren(...runs.map((run, i) => {
    const tables = nextTokens(run, shownBy(run, i).next);
    if (!tables.length) return element("p", {}, element("bdi", {}, run.name), " predicts neither a next token nor a class.");
    return element("figure", {}, heading(run, i), element("div", { class: "tables" }, ...tables));
  }));
}

function drawChange() {
  const width = widthOfRun(part("change"));
  const most = Math.max(0, ...everyShown().flatMap((shown) => Object.values(shown.change).flat()));
  part("change").replaceChildren(...runs.map((run, i) => {
    const { change } = shownBy(run, i);
    if (!change.all?.length) return element("p", {}, element("bdi", {}, run.name), ": no hidden states to compare.");
    return element("figure", {}, heading(run, i), changeLines(run, change, width, most));
  }));
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
  const has = (measure) => runs.some((run) => run.shown.flat().some((shown) => shown.layers.some(measure.read)));
  const measures = Object.entries(MEASURES).filter(([, measure]) => has(measure));
  chosen.measure = measures[0][0];
  part("measure").replaceChildren(...measures.map(([key, one]) => element("option", { value: key }, one.title)));
  part("sentence").replaceChildren(...sentences.map(({ text }, i) =>
    element("option", { value: i }, cut(visible(text), 60))));
  for (const [i, run] of runs.entries()) {
    if (run.steps.length < 2) continue;
    const slider = element("input", { type: "range", min: 0, max: run.steps.length - 1, step: 1, value: chosen.steps[i] });
    const said = element("output");
    const tell = () => {
      said.textContent = stepName(run.steps[chosen.steps[i]]);
      slider.setAttribute("aria-valuetext", said.textContent);
    };
    slider.addEventListener("input", () => { chosen.steps[i] = Number(slider.value); tell(); drawAll(); });
    tell();
    part("steps").append(element("label", {}, element("span", {}, "Training of ", element("bdi", {}, run.name)), slider, said));
  }
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
