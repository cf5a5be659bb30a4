(() => {
  "use strict";
  const table = document.getElementById("index");
  if (!table) return;
  const body = table.tBodies[0], cards = document.getElementById("cards"), tools = document.getElementById("tools");
  const rows = [...body.rows];
  const cardOf = (row) => document.getElementById(row.dataset.id);
  const shownRows = () => [...body.rows].filter((row) => !row.hidden);

  function sortBy(button) {
    const header = button.closest("th"), numeric = "number" in button.dataset, key = button.dataset.key;
    const start = numeric && key !== "mag" && key !== "rank" ? "descending" : "ascending";
    const other = { ascending: "descending", descending: "ascending" };
    const now = header.getAttribute("aria-sort");
    const direction = now === "none" ? start : other[now];
    for (const th of table.tHead.rows[0].cells) if (th.hasAttribute("aria-sort")) th.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.dataset[key];
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // null last in both directions
      return sign * (numeric ? x - y : x.localeCompare(y));
    });
    for (const row of rows) { body.append(row); cards.append(cardOf(row)); }
  }

  function filter() {
    const classes = new Set([...tools.querySelectorAll("[name=class]:checked")].map((box) => box.value));
    const text = document.getElementById("find").value.trim().toLowerCase();
    const least = Number(document.getElementById("least").value);
    let count = 0;
    for (const row of rows) {
      const data = row.dataset;
      const keep = classes.has(data.class) && data.name.toLowerCase().includes(text) && Number(data.prob) >= least;
      row.hidden = cardOf(row).hidden = !keep;
      count += keep;
    }
    document.getElementById("shown").value = count;
  }

  // Labels: kept in this browser where it allows that, and always in the CSV behind the link.
  const store = `applecider-batch labels ${table.dataset.run}`;
  const labels = new Map();
  try { for (const [id, label] of JSON.parse(localStorage.getItem(store) ?? "[]")) labels.set(id, label); } catch { /* not allowed here */ }
  const words = new Set(["yes", "no", "unsure"]), save = document.getElementById("save");

  function showLabels() {
    const lines = ["objectId,episode,label"];
    for (const row of table.tBodies[0].rows) {
      const label = labels.get(row.dataset.id);
      if (label) lines.push([row.dataset.name, row.dataset.episode, label].join(","));
      for (const button of cardOf(row).querySelectorAll("[data-label]")) button.setAttribute("aria-pressed", button.dataset.label === label);
    }
    document.getElementById("labelled").value = lines.length - 1;
    save.href = `data:text/csv;charset=utf-8,${encodeURIComponent(lines.join("\n") + "\n")}`;
  }

  function setLabel(id, label) {
    if (labels.get(id) === label) labels.delete(id); else labels.set(id, label);
    try { localStorage.setItem(store, JSON.stringify([...labels])); } catch { /* not allowed here */ }
    showLabels();
  }

  let current = -1;
  function step(by) {
    const list = shownRows();
    if (!list.length) return;
    current = Math.min(Math.max(current + by, 0), list.length - 1);
    const card = cardOf(list[current]);
    card.scrollIntoView({ block: "start" });
    card.focus({ preventScroll: true });
  }

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(button);
  });
  cards.addEventListener("click", (event) => {
    const button = event.target.closest("[data-label]");
    if (button) setLabel(button.closest(".card").id, button.dataset.label);
  });
  showLabels();
  tools.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
    const card = event.target.closest(".card"), word = [...words].find((w) => w[0] === event.key);
    if (card && word) setLabel(card.id, word);
  });
})();
