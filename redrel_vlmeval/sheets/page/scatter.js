"use strict";
// Score against cost, with the efficient variants of each base joined.
(() => {
  const { h, s, data, byId, fixed, known, unique } = redrel;
  const COSTS = [["flops_ratio", "prefill FLOPs ratio", 3], ["average_image_tokens", "average image tokens per block", 1],
    ["kv_ratio", "KV cache ratio", 3]];
  const rows = data.rows.filter((row) => row.status === "ok" && known(row.value));
  const usable = COSTS.filter(([key]) => rows.some((row) => known(row[key])));
  if (!usable.length) {
    byId("scatter").append(h("p", { class: "soft" }, "No scored cell has efficiency records, so there is no cost to draw."));
    return;
  }
  const titles = unique(rows.filter((row) => usable.some(([key]) => known(row[key]))).map((row) => row.title));
  const state = { title: titles[0], cost: usable[0][0] };
  const draw = redrel.drawn(byId("scatter"), chart);
  const one = redrel.select("Benchmark", titles, (value) => { state.title = value; draw(); });
  const two = redrel.select("Cost", usable.map(([key, text]) => [key, text]), (value) => { state.cost = value; draw(); });
  byId("cost-filters").append(one.whole, two.whole);

  // Cheapest first; a point is efficient if none before it scores as high. What is shown as one cost counts as one.
  function frontier(points, cost, digits = 3) {
    const shown = (row) => Number(row[cost].toFixed(digits));
    let best = -Infinity;
    const found = [];
    for (const row of points.slice().sort((a, b) => shown(a) - shown(b) || b.value - a.value)) {
      if (row.value > best) { found.push(row); best = row.value; }
    }
    return found;
  }
  redrel.frontier = frontier;

  function chart(box) {
    const [cost, text, digits] = usable.find(([key]) => key === state.cost);
    const points = rows.filter((row) => row.title === state.title && known(row[cost]));
    const bases = unique(points.map((row) => row.base)), rules = unique(points.map((row) => row.rule).filter(Boolean)).sort((a, b) => data.looks[a] - data.looks[b]);
    const legend = byId("scatter-legend");
    if (!points.length) { legend.replaceChildren(); return h("p", { class: "soft" }, "Nothing was measured here."); }
    const most = Math.max(...points.map((row) => row[cost]));
    const low = cost.endsWith("ratio") ? Math.max(0, Math.floor(Math.min(...points.map((row) => row[cost])) * 10 - 0.5) / 10) : 0;
    const { root, x, y } = redrel.frame(box, { x: [low, most + (most - low) * 0.05], y: redrel.domain(points.map((row) => row.value)),
      xTicks: redrel.ticks(low, most * 1.05, 6), xTitle: text, yTitle: "score (points)", label: `${state.title}: score against ${text}` });
    const efficient = new Map(bases.map((base) => [base, frontier(points.filter((row) => row.base === base), cost, digits)]));
    bases.forEach((base, number) => {
      const own = efficient.get(base);
      const path = own.map((row, i) => (i ? `H${x(row[cost])}V${y(row.value)}` : `M${x(row[cost])} ${y(row.value)}`)).join("");
      root.append(s("path", { d: path, fill: "none", stroke: redrel.color(number), "stroke-width": 2, opacity: 0.55, class: "frontier" }));
    });
    const taken = points.map((row) => [x(row[cost]) - 9, y(row.value) - 9, 18, 18]);
    points.forEach((row) => root.append(mark(row, x(row[cost]), y(row.value), redrel.color(bases.indexOf(row.base)), efficient.get(row.base).includes(row), [cost, text, digits])));
    box.replaceChildren(root); // a text has a length only on the page
    for (const row of [...efficient.values()].flat()) label(root, redrel.short(row), x(row[cost]), y(row.value), taken, box.clientWidth);
    const grey = "var(--soft)";
    legend.replaceChildren(redrel.legend([
      ...(bases.length > 1 ? bases.map((base, i) => [() => redrel.line(redrel.color(i)), base]) : []),
      [() => redrel.marker("diamond", 13, 7, 5, grey), "not truncated"],
      ...rules.map((rule) => [() => redrel.marker(redrel.ruleShape(rule), 13, 7, 5, grey), rule]),
      [() => redrel.line(bases.length > 1 ? grey : redrel.color(0)), "efficient: nothing scores as high for less"],
    ]));
    return root;
  }

  function mark(row, x, y, color, efficient, [cost, text, digits]) {
    const base = row.model === row.base;
    const node = redrel.marker(base ? "diamond" : redrel.ruleShape(row.rule), x, y, base ? 6.5 : 5.5, color);
    const told = `${row.model}\n${fixed(row.value)} points, ${text} ${fixed(row[cost], digits)}\n${row.verdict || row.status}${efficient ? "\nefficient" : ""}`;
    const open = () => redrel.showRow(row.model, row.title);
    const button = s("g", { tabindex: 0, role: "button", class: "mark", "aria-label": told.replaceAll("\n", ". "), onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } } },
    s("circle", { cx: x, cy: y, r: 11, fill: "transparent" }), node);
    return redrel.tip(button, told);
  }

  // In one of these places beside its point, or not at all.
  function label(root, text, x, y, taken, width) {
    const node = s("text", { class: "label", "aria-hidden": "true" }, text);
    root.append(node);
    const wide = node.getComputedTextLength(), high = 13;
    const places = [[x - wide - 13, y - 9], [x + 13, y + 3], [x - wide / 2, y - 24], [x + 13, y - 16], [x - wide - 13, y + 4], [x - wide / 2, y + 11]];
    const free = places.find(([left, top]) => left > 48 && left + wide < width - 4 && top > 0
      && taken.every(([a, b, w, t]) => left + wide < a || left > a + w || top + high < b || top > b + t));
    if (!free) { node.remove(); return; }
    taken.push([...free, wide, high]);
    node.setAttribute("x", free[0]);
    node.setAttribute("y", free[1] + 11);
  }
  draw();
})();
