"use strict";
// Axes, markers and colours of the figures; a figure is drawn anew for the width it has.
(() => {
  const { s, h, unique } = redrel;
  const COLORS = 7;
  redrel.color = (number) => `var(--c${number % COLORS})`;

  // Viridis, ten stops; told apart by every kind of colour vision, and in grey.
  const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
  // Orange, through near-white at the base, to blue, for differences; the same as palette.py's.
  const DIVERGING = ["8c3300", "c65911", "e8925a", "f5cdb0", "f4f2ee", "bcd9ee", "6faedb", "2b7fb8", "0b4a7a"];
  const rgb = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  function blend(stops, share) {
    const at = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    const [a, b] = [rgb(stops[low]), rgb(stops[low + 1])];
    return a.map((value, i) => Math.round(value + (b[i] - value) * (at - low)));
  }
  // Fill and a text colour that can be read on it.
  redrel.shade = (share, diverging) => {
    const own = blend(diverging ? DIVERGING : VIRIDIS, share);
    const [r, g, b] = own.map((v) => ((v / 255) <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    return { fill: `rgb(${own.join(" ")})`, text: light > 0.179 ? "#111" : "#fff" };
  };
  redrel.ramp = (diverging) => {
    const stops = (diverging ? DIVERGING : VIRIDIS).map((hex) => `#${hex}`).join(", ");
    return `linear-gradient(to right, ${stops})`;
  };

  redrel.ticks = (low, high, wanted = 5) => {
    const span = high - low || 1, raw = span / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * span; i += 1) found.push(Number((i * step).toPrecision(12)));
    return found;
  };

  // Markers differ in shape as well as in colour.
  const SHAPES = {
    ring: (x, y, r) => s("circle", { cx: x, cy: y, r: r * 1.35, "stroke-width": 2, "data-open": "" }),
    circle: (x, y, r) => s("circle", { cx: x, cy: y, r }),
    square: (x, y, r) => s("rect", { x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8 }),
    triangle: (x, y, r) => s("path", { d: `M${x} ${y - r * 1.15}L${x + r * 1.1} ${y + r * 0.85}H${x - r * 1.1}Z` }),
    diamond: (x, y, r) => s("path", { d: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}Z` }),
    cross: (x, y, r) => s("path", { d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`, "stroke-width": 2.4, "data-open": "" }),
    plus: (x, y, r) => s("path", { d: `M${x - r * 1.2} ${y}H${x + r * 1.2}M${x} ${y - r * 1.2}V${y + r * 1.2}`, "stroke-width": 2.4, "data-open": "" }),
    star: (x, y, r) => s("path", { d: `M${[...Array(10).keys()].map((i) => {
      const angle = (i * Math.PI) / 5, far = i % 2 ? r * 0.55 : r * 1.35;
      return `${x + far * Math.sin(angle)} ${y - far * Math.cos(angle)}`;
    }).join("L")}Z` }),
    down: (x, y, r) => s("path", { d: `M${x} ${y + r * 1.15}L${x + r * 1.1} ${y - r * 0.85}H${x - r * 1.1}Z` }),
  };
  const NAMES = ["circle", "square", "triangle", "diamond", "down"];
  // Of the rules, by the number that the page's data gives each; the first is the default's, drawn filled.
  const RULES = ["circle", "cross", "plus", "star", "square", "down", "triangle"];
  const turn = (number, looks) => (number < looks.length ? number : 1 + ((number - 1) % (looks.length - 1)));
  const look = (rule) => redrel.data.looks[rule] ?? 0;
  redrel.shapeOf = (number) => NAMES[number % NAMES.length];
  redrel.isDefault = (rule) => look(rule) === 0;
  redrel.ruleShape = (rule) => RULES[turn(look(rule), RULES)];
  redrel.marker = (shape, x, y, r, color, hollow) => {
    const node = SHAPES[shape](x, y, r);
    const open = hollow || node.hasAttribute("data-open");
    node.setAttribute("fill", open ? (node.hasAttribute("data-open") ? "none" : "var(--panel)") : color);
    node.setAttribute("stroke", open ? color : "var(--panel)");
    node.setAttribute("stroke-linejoin", "round"); // a mitre would make a star's points half as large again
    if (!node.hasAttribute("stroke-width")) node.setAttribute("stroke-width", hollow ? 2 : 1);
    return node;
  };
  const DASHES = [null, "2 3", "7 3", "5 3 1.5 3", "3 3", "9 3 2 3", "1 4"];
  redrel.dash = (rule) => DASHES[turn(look(rule), DASHES)];

  // A frame with grid, ticks and titles: x and y map values to pixels of the svg `root`.
  redrel.frame = (box, options) => {
    const width = Math.max(280, box.clientWidth), height = options.height || Math.round(Math.min(430, Math.max(270, width * 0.6)));
    const pad = { left: 46, right: options.right || 14, top: 14, bottom: 46 };
    const inner = { width: width - pad.left - pad.right, height: height - pad.top - pad.bottom };
    const scale = options.scale || ((value) => value);
    const [x0, x1] = options.x.map(scale), [y0, y1] = options.y;
    const x = (value) => pad.left + ((scale(value) - x0) / (x1 - x0 || 1)) * inner.width;
    const y = (value) => pad.top + (1 - (value - y0) / (y1 - y0 || 1)) * inner.height;
    const root = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": options.label });
    for (const tick of redrel.ticks(y0, y1)) {
      root.append(s("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(tick), y2: y(tick) }),
        s("text", { x: pad.left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    let last = -Infinity;
    for (const tick of options.xTicks) {
      const at = x(tick);
      root.append(s("line", { class: "axis", x1: at, x2: at, y1: height - pad.bottom, y2: height - pad.bottom + 5 }));
      if (at - last > 8 + 7 * String(tick).length) {
        root.append(s("text", { x: at, y: height - pad.bottom + 19, "text-anchor": "middle" }, String(tick)));
        last = at;
      }
    }
    root.append(s("line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom }),
      s("text", { x: pad.left + inner.width / 2, y: height - 6, "text-anchor": "middle" }, options.xTitle),
      s("text", { x: 0, y: 0, transform: `translate(11 ${pad.top + inner.height / 2}) rotate(-90)`, "text-anchor": "middle" }, options.yTitle));
    return { root, x, y, width, height, pad };
  };

  // Around all values, with air, and not beyond what a score can be.
  redrel.domain = (values, air = 0.08) => {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || 10) * air;
    return [low >= 0 ? Math.max(0, low - room) : low - room, high <= 100 ? Math.min(100.5, high + room) : high + room];
  };

  // The whole words where the box has room for them.
  redrel.wide = (box, words, few) => (box.clientWidth > 420 ? words : few);

  redrel.legend = (entries) => h("ul", { class: "legend" }, entries.map(([draw, text]) =>
    h("li", {}, s("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, draw()), text)));
  redrel.line = (color, dash) => s("line", { x1: 1, x2: 25, y1: 7, y2: 7, stroke: color, "stroke-width": 2, "stroke-dasharray": dash });

  // Draws now, and again whenever the box gets another width.
  redrel.drawn = (box, draw) => {
    let width = 0;
    const again = () => { width = box.clientWidth; box.replaceChildren(...[draw(box)].flat()); };
    new ResizeObserver(() => { if (box.clientWidth && box.clientWidth !== width) again(); }).observe(box);
    return again;
  };
  redrel.families = (rows, name) => unique(rows.map((row) => row[name]));
})();
