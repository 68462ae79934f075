"use strict";
// What every page shares: elements made from text (never from markup), number formats, tooltip, theme.
const redrel = { data: JSON.parse(document.getElementById("data").textContent) };

(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }

  // A string child becomes a text node: what a question holds can never become markup.
  redrel.h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  redrel.s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  redrel.byId = (id) => document.getElementById(id);

  const known = (value) => value !== null && value !== undefined;
  redrel.known = known;
  redrel.fixed = (value, digits = 1) => (known(value) ? value.toFixed(digits).replace("-", "−") : "");
  redrel.signed = (value, digits = 1) => {
    if (!known(value)) return "";
    const text = redrel.fixed(Math.abs(value), digits);
    return Number(text) === 0 ? `±${text}` : (value < 0 ? "−" : "+") + text;
  };
  redrel.pText = (value) => {
    if (!known(value)) return "";
    if (value < 0.001) return "< .001";
    let digits = 2;
    const lost = (text) => Number(text) === 0 || (Number(text) < 0.05) !== (value < 0.05);
    while (digits < 9 && lost(value.toFixed(digits))) digits += 1;
    return value.toFixed(digits).replace(/^0/, "");
  };
  redrel.unique = (values) => [...new Set(values)];
  redrel.compare = (a, b) => {
    if (!known(a) || !known(b)) return known(a) ? -1 : known(b) ? 1 : 0;
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };

  // A labelled select whose first choice may stand for all.
  redrel.select = (label, choices, change, all) => {
    const options = [...(all ? [["", all]] : []), ...choices.map((c) => (Array.isArray(c) ? c : [c, c]))];
    const box = redrel.h("select", { "aria-label": label, onchange: () => change(box.value) },
      options.map(([value, text]) => redrel.h("option", { value }, text)));
    const whole = redrel.h("label", { hidden: options.length < (all ? 3 : 2) }, label, box);
    return { box, whole };
  };

  const tip = redrel.byId("tip");
  redrel.tip = (node, text) => {
    const show = (event) => {
      tip.textContent = typeof text === "function" ? text() : text;
      tip.hidden = false;
      const at = node.getBoundingClientRect();
      const x = event.type === "focus" ? at.left + at.width / 2 : event.clientX;
      const y = event.type === "focus" ? at.bottom : event.clientY;
      const own = tip.getBoundingClientRect();
      const left = Math.max(8, Math.min(x + 14, document.documentElement.clientWidth - own.width - 8));
      const below = y + 16 + own.height < window.innerHeight;
      Object.assign(tip.style, { left: `${left}px`, top: `${below ? y + 16 : Math.max(4, y - own.height - 12)}px` });
    };
    const hide = () => { tip.hidden = true; };
    for (const [name, does] of [["mousemove", show], ["focus", show], ["mouseleave", hide], ["blur", hide]]) {
      node.addEventListener(name, does);
    }
    return node;
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  // Theme: the system's, until the reader chooses; a page opened from a file may have no storage.
  const root = document.documentElement, button = redrel.byId("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = { get: () => { try { return localStorage.getItem("redrel-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("redrel-theme", value); } catch { /* not kept, still switched */ } } };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const listeners = [];
  redrel.onTheme = (redraw) => listeners.push(redraw);
  const told = () => { button.querySelector("span").textContent = dark() ? "Light" : "Dark"; listeners.forEach((f) => f()); };
  const choice = stored.get();
  if (choice === "dark" || choice === "light") root.dataset.theme = choice;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; stored.set(root.dataset.theme); told(); });
  system.addEventListener("change", told);
  told();
})();
