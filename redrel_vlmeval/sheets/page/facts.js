"use strict";
// What every cell ran on, and the cells without a score.
(() => {
  const { h, data, byId, unique } = redrel;
  const open = data.rows.filter((row) => row.status !== "ok");
  if (open.length) {
    byId("unfinished").append(h("h3", {}, `Cells without a score (${open.length})`), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cells without a score" },
      h("table", {}, h("thead", {}, h("tr", {}, ["Model", "Benchmark", "State", "Why"].map((title) => h("th", { scope: "col" }, title)))),
        h("tbody", {}, open.map((row) => h("tr", {}, h("th", { scope: "row" }, row.model), h("td", {}, row.title), h("td", {}, redrel.badge(row)), h("td", { class: "why" }, row.note)))))));
  } else byId("unfinished").append(h("p", {}, "Every cell that was begun has a score."));

  const { columns, rows } = data.provenance;
  const text = (value) => (value === null ? "not known" : String(value));
  const told = (i) => unique(rows.map((row) => row[i]).filter((value) => value !== null));
  const same = columns.filter((name, i) => !["model", "benchmark"].includes(name) && rows.length > 1 && told(i).length === 1);
  const rest = columns.map((name, i) => [name, i]).filter(([name]) => !same.includes(name));
  if (!rows.length) {
    byId("facts").append(h("p", { class: "soft" }, "No run left a record of what it ran on."));
    return;
  }
  if (same.length) {
    byId("facts").append(h("h3", {}, "The same wherever it is known"), h("div", { class: "panel" }, h("dl", { class: "facts" },
      same.map((name) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, text(told(columns.indexOf(name))[0]))]))));
  }
  byId("facts").append(h("details", { open: rows.length <= 12 || null }, h("summary", {}, `Cell by cell (${rows.length})`), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Provenance of each cell" },
    h("table", { class: "wide" }, h("thead", {}, h("tr", {}, rest.map(([name]) => h("th", { scope: "col" }, name.replaceAll("_", " "))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, rest.map(([name, i]) => h(name === "model" ? "th" : "td", { scope: name === "model" ? "row" : null }, text(row[i]))))))))));
})();
