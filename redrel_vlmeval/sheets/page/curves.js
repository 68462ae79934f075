"use strict";
// Grids of L and K as coloured tables, and the paper's Fig. 6 as lines.
(() => {
  const { h, s, data, byId, fixed, signed, known, unique } = redrel;

  function heatMaps() {
    const grids = data.grids;
    if (!grids.length) {
      byId("heat").append(h("p", { class: "soft" }, "No variant with one stage l<L>_k<K> has a score, so there is no grid."));
      return;
    }
    const titleOf = (grid) => `${grid.base} on ${grid.benchmark}${grids.some((g) => g.base === grid.base && g.benchmark === grid.benchmark && g.metric !== grid.metric) ? `, ${grid.metric}` : ""}`;
    const state = { title: titleOf(grids[0]), show: "delta" };
    const one = redrel.select("Model and benchmark", unique(grids.map(titleOf)), (value) => { state.title = value; draw(); });
    const two = redrel.select("Number", [["delta", "difference"], ["score", "score"]], (value) => { state.show = value; draw(); });
    byId("grid-filters").append(one.whole, two.whole);

    function draw() {
      const shown = grids.filter((grid) => titleOf(grid) === state.title), base = shown[0].baseline;
      // Colours turn at the base, whichever number stands in the cells; without one they run from low to high.
      const turns = known(base), differs = state.show === "delta" && turns;
      const values = shown.flatMap((grid) => grid.values.flat()).filter(known).map((value) => (turns ? value - base : value));
      const reach = Math.max(1, ...values.map(Math.abs));
      const [low, high] = turns ? [-reach, reach] : [Math.min(...values), Math.max(...values)];
      const share = (value) => (high > low ? ((turns ? value - base : value) - low) / (high - low) : 0.5);
      const form = turns ? signed : fixed;
      byId("heat").replaceChildren(
        h("div", { class: "key" }, h("span", {}, form(low)), h("span", { class: "ramp", style: { background: redrel.ramp(turns) } }), h("span", {}, `${form(high)} points${turns ? " to the base" : ""}`),
          turns && h("span", {}, `not truncated: ${fixed(base)}`),
          state.show === "delta" && !turns && h("span", {}, "the base has no score here: scores shown")),
        h("div", { class: "heats" }, shown.map((grid) => table(grid, base, differs, share))));
    }
    function table(grid, base, differs, share) {
      const cells = (line, layer) => line.map((value, i) => {
        if (!known(value)) return h("td", { class: "empty", title: `l${layer}_k${grid.keeps[i]} was not run` }, h("span", { "aria-label": "not run" }, "·"));
        const { fill, text } = redrel.shade(share(value), known(base));
        const told = `L = ${layer}, K = ${grid.keeps[i]}, ${grid.rule}: ${fixed(value)} points${known(base) ? `, ${signed(value - base)} to the base` : ""}`;
        return h("td", { style: { background: fill, color: text }, title: told }, differs ? signed(value - base) : fixed(value));
      });
      return h("figure", { class: "heat" }, h("figcaption", {}, h("strong", {}, grid.rule)),
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "L \\ K"), grid.keeps.map((keep) => h("th", { scope: "col" }, keep)))),
          h("tbody", {}, grid.values.map((line, i) => h("tr", {}, h("th", { scope: "row" }, grid.layers[i]), cells(line, grid.layers[i])))))));
    }
    draw();
  }

  function lines() {
    const all = data.curves;
    if (!all.length) {
      byId("over-k").append(h("p", { class: "soft" }, "No variant with one stage l<L>_k<K> has a score, so there is no curve."));
      return;
    }
    const titleOf = (curve) => `${curve.base} on ${curve.benchmark}`;
    const state = { title: titleOf(all[0]), category: "" };
    const pick = redrel.select("Model and benchmark", unique(all.map(titleOf)), (value) => { state.title = value; refill(); draw(); });
    const holder = h("span", { class: "holder" });
    byId("curve-filters").append(pick.whole, holder);
    function refill() {
      const own = all.filter((curve) => titleOf(curve) === state.title).map((curve) => curve.category);
      if (!own.includes(state.category)) state.category = own[0];
      const box = redrel.select("Questions", own.map((name) => [name, name || "all"]), (value) => { state.category = value; draw(); });
      box.box.value = state.category;
      holder.replaceChildren(box.whole);
    }
    const current = () => all.find((curve) => titleOf(curve) === state.title && curve.category === state.category);
    const drawK = redrel.drawn(byId("over-k"), (box) => panel(box, current(), { along: 1, by: 0, names: ["L", "K"], title: "image tokens kept, K", log: true, legend: "legend-k" }));
    const drawL = redrel.drawn(byId("over-l"), (box) => panel(box, current(), { along: 0, by: 1, names: ["K", "L"], title: redrel.wide(box, "decoder block L after which image tokens are dropped", "decoder block L"), legend: "legend-l" }));
    const size = h("output");
    byId("curve-filters").append(size);
    const draw = () => {
      drawK();
      drawL();
      const { n, category } = current();
      size.textContent = [n && `n = ${n}`, category && "categories are not tested: no intervals"].filter(Boolean).join("; ");
    };
    refill();
    draw();
  }

  function panel(box, curve, { along, by, names, title, log, legend }) {
    const at = unique(curve.points.map((p) => p[along])).sort((a, b) => a - b), series = unique(curve.points.map((p) => p[by])).sort((a, b) => a - b);
    const rules = unique(curve.points.map((p) => p[2])).sort((a, b) => data.looks[a] - data.looks[b]);
    const first = at.find((value) => value > 0) || 1, wide = log && at.at(-1) / first > 8; // as in accuracy.py
    // K doubles from tick to tick where it spans much, with a linear foot so that 0 has a place.
    const scale = wide ? (value) => Math.log2(1 + value / first) : (value) => value;
    const room = (scale(at.at(-1)) - scale(at[0])) * 0.05 || 1;
    const spread = curve.points.flatMap((p) => [p[3], p[4], p[5]]).concat([curve.baseline]).filter(known);
    const ends = wide ? [at[0] - (at[0] === 0 ? first * 0.12 : 0), at.at(-1) * 1.12] : [at[0] - room, at.at(-1) + room];
    const { root, x, y, width, pad } = redrel.frame(box, { x: ends, y: redrel.domain(spread, 0.05), scale, xTicks: at, xTitle: title + (wide ? " (log scale)" : ""), yTitle: "score (points)",
      height: Math.min(400, Math.max(280, box.clientWidth * 0.68)), label: `${curve.base} on ${curve.benchmark}: score over ${names[1]}, a line for each ${names[0]}` });
    if (known(curve.baseline)) {
      root.append(s("line", { class: "base", x1: pad.left, x2: width - pad.right, y1: y(curve.baseline), y2: y(curve.baseline) }));
    }
    // Each line stands a little beside the others, so that points on the same score can be told apart.
    const lines = series.flatMap((value) => rules.map((rule) => [value, rule])).filter(([value, rule]) => curve.points.some((p) => p[by] === value && p[2] === rule));
    const beside = (value, rule) => (lines.findIndex((one) => one[0] === value && one[1] === rule) - (lines.length - 1) / 2) * Math.min(3, 24 / lines.length);
    const shapeAt = (value) => (names[0] === "L" && value === 0 ? "ring" : redrel.shapeOf(series.indexOf(value)));
    series.forEach((value, number) => rules.forEach((rule) => {
      const own = curve.points.filter((p) => p[by] === value && p[2] === rule).sort((a, b) => a[along] - b[along]);
      if (!own.length) return;
      const color = redrel.color(number), plain = redrel.isDefault(rule), shape = plain ? shapeAt(value) : redrel.ruleShape(rule), shift = beside(value, rule);
      root.append(s("path", { d: own.map((p, i) => `${i ? "L" : "M"}${x(p[along]) + shift} ${y(p[3])}`).join(""), fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": redrel.dash(rule) }));
      for (const p of own) root.append(point(p, x(p[along]) + shift, y, color, shape, names, value, p[along], curve));
    }));
    byId(legend).replaceChildren(redrel.legend([
      ...series.map((value, i) => [() => s("g", {}, redrel.line(redrel.color(i)), redrel.marker(shapeAt(value), 13, 7, 4.5, redrel.color(i))), `${names[0]} = ${value}`]),
      ...rules.filter((rule) => !redrel.isDefault(rule)).map((rule) => [() => redrel.marker(redrel.ruleShape(rule), 13, 7, 5, "var(--soft)", true), rule]),
      ...(known(curve.baseline) ? [[() => s("line", { class: "base", x1: 1, x2: 25, y1: 7, y2: 7, stroke: "var(--soft)", "stroke-dasharray": "6 4" }), `not truncated: ${fixed(curve.baseline)}`]] : []),
    ]));
    return root;
  }
  function point(p, x, y, color, shape, names, value, other, curve) {
    const [, , rule, score, low, high] = p;
    const bar = known(low) && s("path", { d: `M${x} ${y(low)}V${y(high)}M${x - 4} ${y(low)}H${x + 4}M${x - 4} ${y(high)}H${x + 4}`, stroke: color, "stroke-width": 1.3, opacity: 0.75, fill: "none" });
    const told = `${names[0]} = ${value}, ${names[1]} = ${other}, ${rule}\n${fixed(score)} points${known(curve.baseline) ? `, ${signed(score - curve.baseline)} to the base` : ""}${known(low) ? `\n95 % interval ${fixed(low)} … ${fixed(high)}` : ""}`;
    return redrel.tip(s("g", { tabindex: 0, role: "img", class: "mark", "aria-label": told.replaceAll("\n", ". ") }, bar || null, s("circle", { cx: x, cy: y(score), r: 10, fill: "transparent" }),
      redrel.marker(shape, x, y(score), 4.6, color, !redrel.isDefault(rule))), told);
  }
  heatMaps();
  lines();
})();
