(() => {
  "use strict";
  const table = document.getElementById("index");
  if (!table) return;
  const body = table.tBodies[0], cards = document.getElementById("cards"), tools = document.getElementById("tools");
  const rows = [...body.rows];
  const cardOf = new Map(rows.map((row) => [row, document.getElementById(row.dataset.id)]));
  const rowOf = new Map(rows.map((row) => [row.dataset.id, row]));
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
      return sign * (numeric ? x - y : x < y ? -1 : Number(x > y));
    });
    body.append(...rows);
    cards.append(...rows.map((row) => cardOf.get(row)));
  }

  function filter() {
    const classes = new Set([...tools.querySelectorAll("[name=class]:checked")].map((box) => box.value));
    const text = document.getElementById("find").value.trim().toLowerCase();
    const least = Number(document.getElementById("least").value), given = document.getElementById("given").value;
    let count = 0;
    for (const row of rows) {
      const data = row.dataset;
      const keep = classes.has(data.class) && data.name.toLowerCase().includes(text) && Number(data.prob) >= least
        && (given === "" || given === (data.label || "none"));
      if (row.hidden === keep) row.hidden = cardOf.get(row).hidden = !keep;
      count += keep;
    }
    document.getElementById("shown").value = count;
  }

  // Labels: of the list, over them those kept in this browser where it allows that; all in the CSV behind the link.
  const store = `applecider-batch labels ${table.dataset.run}`;
  const words = ["yes", "no", "unsure"], save = document.getElementById("save");
  const kept = new Map();
  try { for (const [id, label] of JSON.parse(localStorage.getItem(store) ?? "[]")) kept.set(id, label); } catch { /* not allowed here */ }

  function show(row, label) {
    row.dataset.label = label;
    row.querySelector(".given").textContent = label;
    for (const button of cardOf.get(row).querySelectorAll("[data-label]")) button.setAttribute("aria-pressed", button.dataset.label === label);
  }

  function write() {
    const cell = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const lines = rows.map((row) => row.dataset).filter((data) => data.label)
      .map((data) => `${cell(data.name)},${data.episode},${data.label}\n`);
    document.getElementById("labelled").value = lines.length;
    save.href = `data:text/csv;charset=utf-8,${encodeURIComponent(`objectId,episode,label\n${lines.join("")}`)}`;
  }

  function setLabel(row, label) {
    show(row, row.dataset.label === label ? "" : label);
    kept.set(row.dataset.id, row.dataset.label);
    try { localStorage.setItem(store, JSON.stringify([...kept])); } catch { /* not allowed here */ }
    write();
  }

  // Keys go on from the card that has the focus, else from the last one that had it.
  let last = null;
  function step(by) {
    const list = shownRows();
    if (!list.length) return;
    const at = list.indexOf(rowOf.get(document.activeElement.closest(".card")?.id) ?? last);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), list.length - 1);
    last = list[next];
    const card = cardOf.get(last);
    card.scrollIntoView({ block: "start" });
    card.focus({ preventScroll: true });
  }

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(button);
  });
  cards.addEventListener("click", (event) => {
    const button = event.target.closest("[data-label]");
    if (button) setLabel(rowOf.get(button.closest(".card").id), button.dataset.label);
  });
  for (const row of rows) {
    const label = kept.get(row.dataset.id) ?? row.dataset.label;
    if (label) show(row, label); else row.dataset.label = "";
  }
  write();
  tools.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
    const card = event.target.closest(".card"), word = words.find((w) => w[0] === event.key);
    if (card && word) setLabel(rowOf.get(card.id), word);
  });
  filter();  // a browser that goes back to the page fills in what was chosen
})();
