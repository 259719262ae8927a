"use strict";

const specs = JSON.parse(document.getElementById("specs").textContent);
// "ast" interprets Vega's expressions: the page's security policy forbids to compile them.
const options = {
  renderer: "svg",
  ast: true,
  actions: { export: true, source: false, compiled: false, editor: false },
};

for (const figure of document.querySelectorAll("figure[data-charts]")) {
  const box = figure.querySelector(".chart");
  const which = figure.querySelector("select.which");
  let chart = null;
  const draw = async () => {
    if (chart) chart.finalize();
    if (which) box.dataset.chart = which.value;
    const name = box.dataset.chart;
    chart = await vegaEmbed(box, specs[name], { ...options, downloadFileName: name });
    box.dataset.drawn = name;
  };
  // One after the other: a menu may change while a chart is being drawn.
  let last = draw();
  which?.addEventListener("change", () => { last = last.then(draw); });
}

/** Compare two cells: numbers by size, others as text; a cell without a value comes last. */
function compare(a, b, sign) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === "" || y === "") return (x === "") - (y === "");
  const difference = x - y;
  return sign * (Number.isNaN(difference) ? x.localeCompare(y, "en") : difference);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", before === first ? other : first);
      const sign = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      table.tBodies[0].append(...rows);
    });
  });
}

// A table that is wider than its place says so.
for (const box of document.querySelectorAll(".scroll")) {
  const look = () => box.classList.toggle("wide", box.scrollWidth > box.clientWidth);
  new ResizeObserver(look).observe(box);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = document.getElementById(button.dataset.of);
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // A page opened as a file may have no clipboard: then the selected text is copied.
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.firstChild.data = "Copied";
    setTimeout(() => { button.firstChild.data = "Copy"; }, 2000);
  });
}
