"use strict";

// What is wider than the screen says that it scrolls.
for (const scroll of document.querySelectorAll(".scroll")) {
  const tell = () => scroll.classList.toggle("wide", scroll.scrollWidth > scroll.clientWidth + 1);
  new ResizeObserver(tell).observe(scroll);
}

// Tables: a click on a heading sorts by its column; text from a to z first, numbers from the largest, nothing last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isText = column === 0;
    const first = isText ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") !== first ? first : isText ? "descending" : "ascending";
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("last"));
    rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isText ? a.localeCompare(b) : a - b);
    });
    table.tBodies[0].prepend(...rows);
  }));
}

// Pictures: what lies on each side of the line, where the line is, how strong the colours are.
for (const gallery of document.querySelectorAll(".gallery")) {
  for (const choice of gallery.querySelectorAll(".choice")) {
    choice.addEventListener("change", ({ target }) => { gallery.dataset[choice.dataset.side] = target.value; });
    gallery.dataset[choice.dataset.side] = choice.querySelector(":checked").value; // a browser may have kept it
  }
  gallery.querySelector(".strength").addEventListener("input", ({ target }) => {
    gallery.style.setProperty("--strength", target.value / 100);
  });
  for (const input of gallery.querySelectorAll(".stage input")) {
    const move = () => input.parentElement.style.setProperty("--cut", `${input.value}%`);
    input.addEventListener("input", move);
    move();
  }
  for (const button of gallery.querySelectorAll(".larger")) {
    button.addEventListener("click", () => {
      const isWide = button.closest("figure").classList.toggle("wide");
      button.setAttribute("aria-pressed", isWide);
    });
  }
}

// The confusion matrix, drawn from the counts beside it.
const FEW = 24; // classes that have room for numbers
const sum = (values) => values.reduce((total, value) => total + value, 0);

function orderOf(counts, order, number) {
  const all = counts.map((_, index) => index);
  const pixels = counts.map(sum);
  const predicted = all.map((column) => sum(counts.map((row) => row[column])));
  const confused = all.map((index) => pixels[index] + predicted[index] - 2 * counts[index][index]);
  const recall = all.map((index) => (pixels[index] ? counts[index][index] / pixels[index] : 2));
  const kept = all.slice().sort((a, b) => confused[b] - confused[a]).slice(0, number);
  const value = { given: (index) => index, recall: (index) => recall[index], pixels: (index) => -pixels[index] }[order];
  return kept.sort((a, b) => value(a) - value(b));
}

function cell(text, tag, ...kinds) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.classList.add(...kinds);
  if (tag === "th") made.scope = "row";
  return made;
}

function drawMatrix(matrix) {
  const { names, counts } = JSON.parse(matrix.querySelector("script").textContent);
  const chosen = (name) => matrix.querySelector(`select.${name}`).value;
  const byTruth = chosen("of") === "truth";
  const order = orderOf(counts, chosen("order"), Number(chosen("number")));
  const whole = byTruth ? counts.map(sum) : counts.map((_, column) => sum(counts.map((row) => row[column])));
  const table = document.createElement("table");
  table.classList.toggle("many", order.length > FEW);
  table.classList.toggle("few", order.length <= 8);
  const head = table.createTHead().insertRow();
  head.append(cell("", "td"));
  for (const column of order) {
    const made = document.createElement("th");
    made.scope = "col";
    made.append(cell(names[column], "span"));
    head.append(made);
  }
  const body = table.createTBody();
  for (const row of order) {
    const line = body.insertRow();
    line.append(cell(names[row], "th"));
    for (const column of order) {
      const total = whole[byTruth ? row : column];
      const share = total ? counts[row][column] / total : 0;
      const text = !total ? "–" : share >= 0.005 ? Math.round(100 * share) : share ? "·" : "";
      const made = cell(text, "td", ...(row === column ? ["right"] : []));
      made.style.setProperty("--share", share.toFixed(3));
      made.title = `${names[row]}, predicted as ${names[column]}: ${(100 * share).toFixed(2)} %, ${counts[row][column]} pixels`;
      line.append(made);
    }
  }
  matrix.querySelector(".scroll").replaceChildren(table);
}

for (const matrix of document.querySelectorAll(".matrix")) {
  const number = JSON.parse(matrix.querySelector("script").textContent).names.length;
  const which = matrix.querySelector("select.number");
  if (number > FEW) which.add(new Option(`the ${FEW} most confused`, FEW));
  which.add(new Option(`all ${number} classes`, number));
  matrix.querySelector(".which").hidden = number <= FEW;
  matrix.querySelector(".controls").addEventListener("change", () => drawMatrix(matrix));
  drawMatrix(matrix);
}
