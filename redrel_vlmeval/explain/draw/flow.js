"use strict";
// Shares of attention and gradient by group, and the margin after a cut; a benchmark's with their bands.
(() => {
  const { h, s, data, byId } = redrel;
  const DASHES = { bos: "1.5 3", sys: "8 3", img: null, user: "7 3 2 3", out: "10 2" };
  const TITLES = { attention: "Share of attention", gradient: "Share of gradient", causal: "Margin when the picture is cut after a block (logits)" };

  function path(values, x, y) {
    let text = "", open = false;
    values.forEach((value, i) => {
      if (!redrel.known(value)) { open = false; return; }
      text += `${open ? "L" : "M"}${x(i)} ${y(value)}`;
      open = true;
    });
    return text;
  }
  function band(low, high, x, y) {
    if (!low || !high) return null;
    return `M${low.map((value, i) => `${x(i)} ${y(value)}`).join("L")}L${high.map((value, i) => `${x(i)} ${y(value)}`).reverse().join("L")}Z`;
  }
  const column = (rows, place) => (rows ? rows.map((row) => (Array.isArray(row) ? row[place] : row)) : null);

  function chart(flow, name) {
    const [mean, low, high] = flow.curves[name], causal = name === "causal", start = causal ? 0 : 1;
    const values = causal ? [mean, low, high].filter(Boolean).flat() : [0, 1];
    const range = [Math.min(0, ...values), Math.max(...values)], air = causal ? 0.06 * (range[1] - range[0] || 1) : 0.02;
    const count = mean.length, box = h("div", { class: "chart" });
    const lines = causal ? [["causal", 0, "var(--c2)"]] : flow.groups.map((group, place) => [group, place, data.looks[group]]).filter(([group]) => flow.shown.includes(group));
    const told = (i) => (causal ? (i === count - 1 ? `not cut: ${redrel.fixed(mean[i], 2)}` : `cut after block ${i}: ${redrel.fixed(mean[i], 2)}`)
      : [`block ${i + 1}`, ...lines.map(([group, place]) => `${data.groups[group]}: ${redrel.known(mean[i][place]) ? (100 * mean[i][place]).toFixed(1) + " %" : "none"}`)].join("\n"));
    const again = redrel.drawn(box, () => {
      const frame = redrel.frame(box, { label: TITLES[name], height: 250, x: [start - 0.3, start + count - 0.7], y: [range[0] - air, range[1] + air],
        xTicks: Array.from({ length: count }, (_, i) => i + start), xTitle: causal ? "no image token after block" : "decoder block", yTitle: causal ? "logits" : "share" });
      const x = (i) => frame.x(i + start);
      const said = causal ? marks(flow.flat, mean[count - 1], frame, count) : null;
      for (const [group, place, color] of lines) {
        const filled = band(column(low, place), column(high, place), x, frame.y);
        if (filled) frame.root.append(s("path", { d: filled, fill: color, opacity: 0.2 }));
        frame.root.append(s("path", { d: path(column(mean, place), x, frame.y), fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": DASHES[group], "data-group": group }));
      }
      if (said) frame.root.append(said);
      const wide = (frame.width - frame.pad.left - frame.pad.right) / count;
      for (let i = 0; i < count; i += 1) {
        const spot = s("rect", { x: x(i) - wide / 2, y: frame.pad.top, width: wide, height: frame.height - frame.pad.top - frame.pad.bottom, fill: "transparent", tabindex: 0, role: "img", "aria-label": told(i) });
        frame.root.append(redrel.tip(spot, told(i)));
      }
      return frame.root;
    });
    again();
    return h("figure", {}, h("figcaption", {}, TITLES[name]), box);
  }

  // Behind the causal curve, as in the figure: the margin with nothing cut, from where on it is flat, its interval. Returns its words.
  const UNCUT = { stroke: "var(--soft)", "stroke-width": 1.2, "stroke-dasharray": "5 3" };
  const FLAT = { stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "1.5 3" };
  const SPAN = { fill: "var(--ink)", opacity: 0.12 };
  function marks(flat, uncut, frame, count) {
    const { left, right, top, bottom } = frame.pad, lower = frame.height - bottom;
    if (flat.span) {
      const [from, to] = flat.span.map(frame.x);
      frame.root.append(s("rect", { ...SPAN, x: from, y: top, width: to - from, height: lower - top, "data-mark": "interval" }));
    }
    frame.root.append(s("line", { ...UNCUT, x1: left, x2: frame.width - right, y1: frame.y(uncut), y2: frame.y(uncut), "data-mark": "uncut" }));
    const known = redrel.known(flat.layer), at = known ? frame.x(flat.layer) : frame.width - right, after = known && flat.layer < count / 2;
    if (known) frame.root.append(s("line", { ...FLAT, x1: at, x2: at, y1: top, y2: lower, "data-mark": "flat" }));
    return flat.text && s("text", { class: "label", x: at + (after ? 6 : -6), y: lower - 8, "text-anchor": after ? "start" : "end" }, flat.text);
  }
  const marked = ({ curves, flat }) => (curves.causal ? [
    [() => s("line", { ...UNCUT, x1: 1, x2: 25, y1: 7, y2: 7 }), "not cut"],
    redrel.known(flat.layer) && [() => s("line", { ...FLAT, x1: 1, x2: 25, y1: 7, y2: 7 }), "flat from here"],
    flat.span && [() => s("rect", { ...SPAN, x: 1, y: 1, width: 24, height: 12 }), "its 95 % interval"]].filter(Boolean) : []);
  const tokens = (count) => `${count} token${count === 1 ? "" : "s"}`;

  const shown = data.entries.filter((entry) => entry.flow);
  byId("flows").append(...shown.map((entry) => h("div", { class: "panel" },
    h("h3", {}, entry.model, entry.questions ? h("span", { class: "soft" }, ` on ${entry.benchmark}, mean of ${entry.questions} questions, 95 % bootstrap bands`) : h("span", { class: "soft" }, `, answer “${entry.answer.join("").trim() || entry.reply}”`)),
    h("div", { class: "three" }, Object.keys(TITLES).filter((name) => entry.flow.curves[name]).map((name) => chart(entry.flow, name))),
    redrel.legend([...entry.flow.shown.map((group) => [() => redrel.line(data.looks[group], DASHES[group]), `${data.groups[group]} (${tokens(entry.flow.sizes[group])})`]), ...marked(entry.flow)]))));
})();
