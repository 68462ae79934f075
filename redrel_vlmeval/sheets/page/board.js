"use strict";
// The leaderboard: sorted and filtered in place, each row opens to its comparison in words.
(() => {
  const { h, s, data, byId, fixed, signed, pText, known, unique } = redrel;
  const rows = data.rows;
  const KINDS = { better: "▲ better", worse: "▼ worse", same: "≈ not separable", base: "base", none: "not tested" };
  // Terms of an opened row that have a note.
  const DETAILS = [["Rule", "rule"], ["Backend", "backend"], ["Tokens kept", "kept"], ["p, uncorrected", "p"]];
  redrel.badge = (row) => (row.status !== "ok" ? h("span", { class: `badge ${row.status}` }, row.status)
    : h("span", { class: `badge ${row.kind}` }, KINDS[row.kind]));
  // The setting alone names a variant beside its base; a replaced run keeps the name of its folder.
  const folder = (model) => (model.endsWith("]") ? ` ${model.slice(model.indexOf(" [") + 1)}` : "");
  redrel.short = (row) => (row.model === row.base ? "not truncated" : row.setting ? row.setting + folder(row.model) : row.model);
  const bases = unique(rows.map((row) => row.base)).length;
  const best = new Map();
  for (const row of rows) if (row.status === "ok" && known(row.value)) best.set(row.title, Math.max(row.value, best.get(row.title) ?? -Infinity));

  const ratio = (value) => (known(value) ? h("span", { class: "ratio" }, h("i", { style: { width: `${Math.min(100, value * 100)}%` } }), fixed(value, 3)) : "");
  const reach = Math.max(1, ...rows.flatMap((row) => [row.low, row.high, row.delta].filter(known).map(Math.abs)));
  function forest(row) {
    if (!known(row.delta)) return "";
    const x = (value) => 50 + (value / reach) * 48;
    return h("span", { class: "forest" }, s("svg", { viewBox: "0 0 100 16", "aria-hidden": "true", preserveAspectRatio: "none" },
      s("line", { x1: 50, x2: 50, y1: 0, y2: 16, class: "zero" }),
      known(row.low) && s("line", { x1: x(row.low), x2: x(row.high), y1: 8, y2: 8, class: `span ${row.kind}` }),
      s("rect", { x: x(row.delta) - 1.6, y: 3, width: 3.2, height: 10, class: `dot ${row.kind}` })),
    h("span", { class: "delta" }, signed(row.delta)),
    known(row.low) && h("span", { class: "ci" }, `${signed(row.low)} … ${signed(row.high)}`));
  }
  const flips = (row) => (known(row.up) && row.up + row.down > 0
    ? h("button", { type: "button", class: "link", onclick: () => redrel.showFlips(row.model, row.benchmark),
      "aria-label": `${row.up} up, ${row.down} down: show these flips` }, `${row.up} ▲ ${row.down} ▼`)
    : known(row.up) ? "0" : "");

  // title, key to sort by, cell, class, whether large values come first, the notes that tell what it means
  const several = unique(rows.map((row) => row.title)).length > 1;
  const columns = [
    ["Model", (r) => r.model, name, "name", false, ["model"]],
    several && ["Benchmark", (r) => r.title, (r) => r.title, "", false, null],
    ["Score", (r) => r.value, (r) => (r.status !== "ok" ? "–" : r.value === best.get(r.title) ? h("strong", { title: "the best" }, fixed(r.value)) : fixed(r.value)), "r", true, ["score"]],
    ["Difference, 95 % CI", (r) => r.delta, forest, "", true, ["delta", "interval"]],
    ["Verdict", (r) => Object.keys(KINDS).indexOf(r.kind) + (r.status === "ok" ? 0 : 9), (r) => redrel.badge(r), "", false, ["verdict"]],
    ["p (Holm)", (r) => r.holm, (r) => pText(r.holm), "r", false, ["p (Holm)"]],
    ["Flips", (r) => (known(r.up) ? r.up + r.down : null), flips, "r", true, ["flips"]],
    ["L", (r) => r.L, (r) => r.L ?? "", "r", false, ["L"]],
    ["K", (r) => r.K, (r) => r.K ?? "", "r", false, ["K"]],
    ["Avg tokens", (r) => r.average_image_tokens, (r) => fixed(r.average_image_tokens), "r", false, ["average tokens"]],
    ["FLOPs ratio", (r) => r.flops_ratio, (r) => ratio(r.flops_ratio), "r", false, ["FLOPs ratio"]],
    ["KV ratio", (r) => r.kv_ratio, (r) => ratio(r.kv_ratio), "r", false, ["KV ratio"]],
  ].filter(Boolean);

  // Names may break behind an underscore, not within a word.
  const breakable = (text) => text.split(/(?<=_)/).flatMap((part) => [h("wbr"), part]);
  function name(row) {
    const more = h("button", { type: "button", class: "quiet more", "aria-expanded": "false", "aria-label": `Details of ${row.model} on ${row.title}`,
      onclick: () => toggle(row, more) }, "›");
    const told = row.model === row.base ? h("strong", {}, breakable(row.model))
      : [bases > 1 && h("span", { class: "of" }, breakable(row.base)), " ", h("span", { class: "setting" }, breakable(redrel.short(row)))];
    return h("span", { class: "who", title: row.model }, more, h("span", {}, told, row.note && h("span", { class: "flag", title: row.note, "aria-label": "has a note" }, "*")));
  }

  const state = { sort: null, falling: false, open: new Set(), filters: {} };
  const lines = rows.map((row) => ({ row, line: null, detail: null }));
  function toggle(row, button) {
    const own = lines.find((entry) => entry.row === row);
    if (own.detail) { own.detail.remove(); own.detail = null; button.setAttribute("aria-expanded", "false"); return; }
    const facts = [["Model", row.model], ["In words", row.verdict], ["Note", row.note], ["Questions", row.n], ["Metric", row.metric], [DETAILS[0][0], row.rule],
      ["Numbers as they stand", row.raw.map(([metric, value]) => `${metric}: ${value}`).join(", ")], [DETAILS[1][0], row.backend], [DETAILS[2][0], known(row.kept) && `${fixed(row.kept)} of ${fixed(row.image_tokens)} after the last stage`],
      [DETAILS[3][0], pText(row.p)]];
    own.detail = h("tr", { class: "detail" }, h("td", { colspan: columns.length }, h("dl", { class: "facts" },
      facts.filter(([, value]) => value || value === 0).map(([term, value]) => [h("dt", {}, term), h("dd", {}, String(value))]))));
    own.line.after(own.detail);
    button.setAttribute("aria-expanded", "true");
  }
  function line(entry) {
    if (!entry.line) {
      entry.line = h("tr", { class: entry.row.model === entry.row.base ? "is-base" : "", "data-model": entry.row.model },
        columns.map(([, , cell, kind], number) => h(number ? "td" : "th", { class: kind, scope: number ? null : "row" }, cell(entry.row))));
    }
    return entry.line;
  }

  const meaning = (names) => (names || []).map((one) => data.notes[one]).join("; ");
  const heads = columns.map(([title, , , kind, large, note], number) => {
    const button = h("button", { type: "button", title: meaning(note) || null, onclick: () => order(number, large) }, title);
    return h("th", { scope: "col", class: kind, "aria-sort": "none" }, button);
  });
  function order(number, large) {
    state.falling = state.sort === number ? !state.falling : large;
    state.sort = number;
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== number ? "none" : state.falling ? "descending" : "ascending"));
    show();
  }

  const body = h("tbody");
  byId("board").classList.toggle("long", rows.length > 30);
  byId("board").append(h("table", { id: "board-table" }, h("thead", {}, h("tr", {}, heads)), body));
  const count = h("output", { "aria-live": "polite" });
  const search = h("input", { type: "search", "aria-label": "Find a model", placeholder: "l5_k128", oninput: () => { state.filters.text = search.value.trim().toLowerCase(); show(); } });
  const keep = (key) => (value) => { state.filters[key] = value; show(); };
  const kinds = [["better", "better"], ["same", "not separable"], ["worse", "worse"], ["none", "not tested"], ["open", "no score"]];
  const selects = [
    redrel.select("Benchmark", unique(rows.map((r) => r.title)), keep("title"), "all"),
    redrel.select("Base", unique(rows.map((r) => r.base)), keep("base"), "all"),
    redrel.select("Ranking", unique(rows.map((r) => r.rule).filter(Boolean)), keep("rule"), "all"),
    redrel.select("Verdict", kinds.filter(([kind]) => rows.some((r) => matchesKind(r, kind))), keep("kind"), "all"),
  ];
  byId("board-filters").append(h("label", {}, "Find", search), ...selects.map((one) => one.whole), count);

  function matchesKind(row, kind) {
    return kind === "open" ? row.status !== "ok" : row.status === "ok" && row.kind === kind;
  }
  function matches(row) {
    const { text, title, base, rule, kind } = state.filters;
    return (!text || `${row.model} ${row.title}`.toLowerCase().includes(text)) && (!title || row.title === title)
      && (!base || row.base === base) && (!rule || row.rule === rule) && (!kind || matchesKind(row, kind));
  }
  function show() {
    let found = lines.filter(({ row }) => matches(row));
    if (state.sort !== null) {
      const key = columns[state.sort][1];
      // Rows without a value stay at the end in both directions.
      found = found.slice().sort((a, b) => {
        const [x, y] = [key(a.row), key(b.row)];
        return known(x) && known(y) && state.falling ? redrel.compare(y, x) : redrel.compare(x, y);
      });
    }
    body.replaceChildren(...found.flatMap((entry) => [line(entry), entry.detail].filter(Boolean)));
    if (!found.length) body.append(h("tr", {}, h("td", { colspan: columns.length, class: "soft" }, "No row matches these filters.")));
    count.textContent = `${found.length} of ${rows.length} rows`;
  }
  show();

  redrel.showRow = (model, title) => {
    const own = lines.find(({ row }) => row.model === model && row.title === title);
    if (!own) return;
    if (!matches(own.row)) {
      state.filters = {};
      search.value = "";
      selects.forEach(({ box }) => { box.value = ""; });
      show();
    }
    own.line.scrollIntoView({ block: "center" });
    const more = own.line.querySelector(".more");
    if (!own.detail) toggle(own.row, more);
    more.focus({ preventScroll: true });
  };

  // The words of the headers and of an opened row, with what they mean.
  const terms = columns.map(([title, , , , , note]) => [title, meaning(note)]).concat(DETAILS.map(([title, note]) => [title, meaning([note])]));
  byId("notes").append(...terms.filter(([, text]) => text).flatMap(([title, text]) => [h("dt", {}, title), h("dd", {}, text)]));
  byId("glance-cards").append(...data.glance.map((entry) => h("article", { class: "panel card" }, h("div", {},
    h("h3", {}, entry.base, h("span", { class: "soft" }, ` on ${entry.title}`)),
    h("p", { class: "big num" }, fixed(entry.value), h("small", {}, known(entry.n) ? ` points, ${entry.n} questions` : " points"))), h("div", {},
    h("p", { class: "tally" }, ["better", "same", "worse", "none"].filter((kind) => entry[kind]).map((kind) =>
      h("span", { class: `badge ${kind}` }, `${entry[kind]} ${KINDS[kind]}`))),
    h("p", { class: "small soft" }, entry.best
      ? [`Cheapest shown to lose less than ${entry.margin} points: `, h("button", { type: "button", class: "link", onclick: () => redrel.showRow(entry.best.model, entry.title) }, entry.best.setting),
        `: ${signed(entry.best.delta)}${known(entry.best.low) ? ` (95\u00a0%\u00a0CI ${signed(entry.best.low)} to ${signed(entry.best.high)})` : ""}, at ${fixed(entry.best.flops_ratio, 3)} of the prefill FLOPs.`]
      : entry.why)))));
  byId("glance").hidden = !data.glance.length;
})();
