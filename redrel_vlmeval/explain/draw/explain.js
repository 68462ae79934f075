"use strict";
// Maps over pictures: one set of choices for all explanations of the page, a stage for each of them.
(() => {
  const { h, data, byId, unique } = redrel;
  const { entries, ramp, states } = data;
  const NOTHING = 255, FULL = 254, WHERE = { decoder: "decoder", vision: "vision tower", projector: "projector" };
  const number = (value) => (value === 0 ? "0" : Math.abs(value) >= 0.01 && Math.abs(value) < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace("e-", "e−"));
  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const mapped = entries.filter((entry) => entry.maps.length);
  for (const node of document.querySelectorAll("[data-part]")) {
    node.hidden = node.dataset.part === "maps" ? !mapped.length : !entries.some((entry) => entry.flow);
  }

  const spelled = (map) => `${map.method} (${WHERE[map.where] || map.where})`;
  const methods = unique(mapped.flatMap((entry) => entry.maps.map(spelled)));
  const first = mapped.flatMap((entry) => entry.maps).find((map) => map.where === "decoder") || (mapped[0] && mapped[0].maps[0]);
  const state = { method: first && spelled(first), layer: 0, token: -1, opacity: 0.5, scale: "shared", picture: 0, grey: false };
  const mapOf = (entry) => entry.maps.find((map) => spelled(map) === state.method);
  const layersOf = () => unique(mapped.flatMap((entry) => (mapOf(entry) ? mapOf(entry).layers : []))).sort((a, b) => a - b);

  // One layer of one map as the canvas needs it.
  function picked(entry, layer = state.layer) {
    const map = mapOf(entry), sheet = map && map.sheets[Math.min(state.picture, map.sheets.length - 1)];
    const place = map ? map.layers.indexOf(layer) : -1;
    if (!sheet || place < 0) return null;
    const token = Math.max(0, map.tokens.indexOf(state.token));
    sheet.bytes = sheet.bytes || bytes(sheet.cells);
    sheet.mask = sheet.mask || bytes(sheet.inside);
    const size = sheet.shape[0] * sheet.shape[1], start = (token * map.layers.length + place) * size;
    return { map, sheet, token, place, cells: sheet.bytes.subarray(start, start + size), status: sheet.status[token][place],
      peak: sheet.peaks[token][place], sum: sheet.sums[token][place], picture: entry.images[Math.min(state.picture, entry.images.length - 1)],
      targets: (state.picture === 0 && entry.targets) || [],
      mean: (entry.pictures[Math.min(state.picture, entry.pictures.length - 1)] || {}).mean };
  }
  const tokenPeak = (entry) => {
    const map = mapOf(entry);
    if (!map) return 0;
    return Math.max(...map.sheets.flatMap((sheet) => sheet.peaks[Math.max(0, map.tokens.indexOf(state.token))]));
  };
  // The value that the darkest colour stands for.
  const top = (one) => (state.scale === "shared" ? Math.max(...mapped.map(tokenPeak)) : one.peak);

  const dots = () => window.devicePixelRatio || 1;
  // Pixels of the screen that a canvas is wide. It gets just as many: scaled again, fine hatching makes patterns that
  // look like values. Its style is cleared first, so that it can grow with its box.
  function room(canvas) {
    canvas.style.width = "";
    const border = canvas.offsetWidth - canvas.clientWidth;
    return Math.max(1, Math.floor((canvas.getBoundingClientRect().width - border) * dots() + 1e-3));
  }
  function draw(canvas, one, across) {
    const [width, height] = one.sheet.size, scale = across / width;
    canvas.width = across;
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.style.width = `${across / dots() + canvas.offsetWidth - canvas.clientWidth}px`;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = width >= 200;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (one.picture && one.picture.complete) {
      pen.filter = state.grey ? "grayscale(1)" : "none";
      pen.drawImage(one.picture, 0, 0, canvas.width, canvas.height);
      pen.filter = "none";
      if (state.grey) { pen.fillStyle = `rgb(255 255 255 / ${data.veil})`; pen.fillRect(0, 0, canvas.width, canvas.height); }
    }
    const [rows, columns] = one.sheet.shape, [left, upper, right, lower] = one.sheet.box;
    const x = (column) => Math.round((left + (column * (right - left)) / columns) * scale), y = (row) => Math.round((upper + (row * (lower - upper)) / rows) * scale);
    const whole = top(one), undefinedLayer = one.status === "no_gradient" || one.status === "pruned";
    const hatch = hatching(pen);
    if (undefinedLayer) { pen.fillStyle = hatch; pen.fillRect(0, 0, canvas.width, canvas.height); }
    for (let row = 0; row < rows && !undefinedLayer; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const cell = one.cells[row * columns + column];
        if (!one.sheet.mask[row * columns + column]) continue;
        if (cell === NOTHING) pen.fillStyle = hatch;
        else {
          const share = whole > 0 ? ((cell / FULL) * one.peak) / whole : 0;
          pen.fillStyle = shade(share, one.mean);
        }
        pen.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
      }
    }
    for (const [a, b, c, d] of one.targets) for (const [color, wide] of [["#fff", 3], ["#000", 1]]) {
      pen.strokeStyle = color;
      pen.lineWidth = wide * dots();
      pen.strokeRect(a * scale, b * scale, (c - a) * scale, (d - b) * scale);
    }
  }
  // As the key's and the report's: dark, the picture seen through it, light lines a pixel wide, five apart.
  function hatching(pen) {
    const tile = document.createElement("canvas"), size = Math.round(5 * Math.SQRT2 * dots());
    tile.width = tile.height = size;
    const own = tile.getContext("2d");
    own.fillStyle = "rgb(12 13 18 / 55%)";
    own.fillRect(0, 0, size, size);
    own.strokeStyle = "rgb(255 255 255 / 42%)";
    own.lineWidth = dots();
    own.beginPath();
    for (const at of [-size, 0, size]) { own.moveTo(at - size, 2 * size); own.lineTo(at + 2 * size, -size); }
    own.stroke();
    return pen.createPattern(tile, "repeat");
  }
  const light = (mean) => 0.2126 * mean[0] + 0.7152 * mean[1] + 0.0722 * mean[2];
  // The colour of a share, 0 to 1: the more, the darker; on a dark picture in colour, where that would be lost, the lighter.
  function shade(share, mean) {
    const step = Math.round(Math.min(1, share) * 255), dark = !state.grey && mean && light(mean) < 90;
    const [r, g, b] = ramp[dark ? 255 - step : step];
    return `rgb(${r} ${g} ${b} / ${ramp[step][3] * state.opacity})`;
  }
  // The colours as they look over the picture's mean, at this opacity.
  function key(one) {
    const canvas = byId("ramp"), pen = canvas.getContext("2d"), mean = (one && one.mean) || [255, 255, 255];
    const veiled = 255 * data.veil + (1 - data.veil) * light(mean);
    pen.fillStyle = `rgb(${(state.grey ? [veiled, veiled, veiled] : mean).join(" ")})`;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    ramp.forEach((_, i) => { pen.fillStyle = shade(i / 255, one && one.mean); pen.fillRect(i, 0, 1, 1); });
  }

  // What a cell says, under the pointer or the keyboard's cursor.
  function told(entry, one, cell) {
    const [rows, columns] = one.sheet.shape;
    if (cell < 0 || cell >= rows * columns || !one.sheet.mask[cell]) return "";
    const where = `row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
    if (states[one.status] && one.status !== "blank") return `${where}: ${states[one.status]}`;
    const value = one.cells[cell];
    return `${where}: ${value === NOTHING ? "token dropped" : number((value / FULL) * one.peak)}`;
  }
  function stage(entry) {
    const canvas = h("canvas", { tabindex: 0, role: "img" }), note = h("p", { class: "state", hidden: true }), readout = h("p", { class: "readout", "aria-live": "polite" });
    let cursor = 0;
    const cellAt = (event) => {
      const one = picked(entry), at = canvas.getBoundingClientRect();
      if (!one) return -1;
      const [rows, columns] = one.sheet.shape, [left, upper, right, lower] = one.sheet.box, [width, height] = one.sheet.size;
      const column = Math.floor(((((event.clientX - at.left) / at.width) * width - left) / (right - left)) * columns);
      const row = Math.floor(((((event.clientY - at.top) / at.height) * height - upper) / (lower - upper)) * rows);
      return row < 0 || column < 0 || row >= rows || column >= columns ? -1 : row * columns + column;
    };
    const point = (cell) => { const one = picked(entry); cursor = cell; readout.textContent = one && cell >= 0 ? told(entry, one, cell) : ""; };
    canvas.addEventListener("pointermove", (event) => point(cellAt(event)));
    canvas.addEventListener("pointerdown", (event) => point(cellAt(event)));
    canvas.addEventListener("pointerleave", () => { readout.textContent = ""; });
    canvas.addEventListener("keydown", (event) => {
      const one = picked(entry), columns = one ? one.sheet.shape[1] : 0;
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (!one || step === undefined) return;
      event.preventDefault();
      const next = Math.max(0, cursor) + step;
      if (next >= 0 && next < one.sheet.shape[0] * columns) point(next);
    });
    const said = entry.answer.join("").trim() || entry.reply;
    const box = h("article", { class: `stage panel${mapped.length === 1 ? " alone" : ""}`, "aria-label": entry.model },
      h("div", { class: "view" }, canvas, note, readout),
      h("div", {}, mapped.length > 1 && h("h3", {}, entry.model), h("p", {}, h("span", { class: "soft" }, "Answer explained: "), h("span", { class: "said" }, said),
        entry.right && h("span", { class: "soft" }, " · right: ", h("span", { class: "right" }, entry.right)),
        !entry.own && h("span", { class: "soft" }, ` (not the model's own, which is ${entry.reply ? `“${entry.reply}”` : "empty"})`)),
      h("p", { class: "question" }, entry.question), entry.variant && !entry.model.includes(entry.variant) && h("p", { class: "small soft" }, `Truncated: ${entry.variant}`)));
    const show = () => {
      const one = picked(entry);
      note.hidden = !one || !states[one.status];
      canvas.hidden = !one;
      readout.textContent = one ? "" : `no ${state.method} at layer ${state.layer}`;
      if (!one) return;
      note.textContent = states[one.status] || "";
      draw(canvas, one, room(canvas));
      canvas.setAttribute("aria-label", `${state.method}, layer ${state.layer}: highest value ${number(one.peak)}${states[one.status] ? `, ${states[one.status]}` : ""}. Arrow keys read cells.`);
    };
    return { box, show };
  }

  function card(entry) {
    const one = picked(entry), rows = [];
    const row = (name, text) => rows.push(h("dt", {}, name), h("dd", {}, text));
    row("map", one ? `${state.method}, layer ${state.layer}` : "none at this layer");
    if (one) {
      row("state", states[one.status] || "ok");
      row("sum, highest cell", `${number(one.sum)}, ${number(one.peak)}`);
      const known = entry.cards.filter((item) => item.where === one.map.where && item.method === one.map.method && item.layer === state.layer);
      for (const item of known) for (const [name, text] of Object.entries(findings(item))) row(name, text);
    }
    const kept = Object.entries(entry.kept);
    if (kept.length) row("image tokens kept", kept.map(([layer, tokens]) => `${tokens.length} after block ${layer}`).join(", "));
    for (const made of entry.changes) {
      const quoted = made.replies.map((reply) => (reply ? `“${reply}”` : "nothing"));
      row("answer", made.flip ? `it flips: ${quoted[0]} from ${made.models[0]}, ${quoted[1]} from ${made.models[1]}` : `the same from ${made.models.join(" and ")}: ${quoted[0]}`);
      const shares = one && one.map.where === "decoder" && made.shares[one.map.method], share = shares && shares[state.layer];
      if (redrel.known(share)) row("share on kept tokens", `${(100 * share).toFixed(1)} % on the ${made.kept} that ${made.models[1]} keeps`);
    }
    if (redrel.known(entry.locality)) row("locality", `${(100 * entry.locality).toFixed(1)} % of a token's attention lies on its own cell`);
    return h("div", { class: "panel card" }, h("h3", {}, entry.model), h("dl", { class: "facts" }, rows));
  }
  function findings(item) {
    const found = {}, two = (value) => value.toFixed(3);
    const auc = (test) => `AUC ${two(test.auc)}, random order ${two(test.random)}${redrel.known(test.oracle) ? `, oracle ${two(test.oracle)}` : ""}`;
    if (item.points_at) found["points at"] = { asked: "the object asked for", other: "another object", background: "background", none: "nothing" }[item.points_at] || item.points_at;
    if (item.deletion) found["deletion (low is good)"] = auc(item.deletion);
    if (item.insertion) found["insertion (high is good)"] = auc(item.insertion);
    const alike = (test) => `${redrel.known(test.rank) ? `rank correlation ${test.rank.toFixed(2)}` : "flat map"}, ${test.same_peak ? "same" : "another"} peak`;
    if (item.question_swap) found["under the other question"] = alike(item.question_swap);
    for (const test of item.randomisation || []) found[`weights shuffled, last ${test.blocks} of the blocks`] = alike(test);
    return found;
  }

  // Small pictures of every layer, drawn when they come into view.
  const buttons = [];
  function strips() {
    buttons.length = 0;
    const highest = (entry) => Math.max(...layersOf().map((layer) => (picked(entry, layer) || { sum: 0 }).sum), 1e-30);
    const all = Math.max(...mapped.map(highest)), canvases = [];
    byId("strips").replaceChildren(...mapped.map((entry) => {
      const most = state.scale === "shared" ? all : highest(entry);
      return h("div", {}, mapped.length > 1 && h("h3", {}, entry.model), h("div", { class: "strip" }, layersOf().map((layer) => {
        const one = picked(entry, layer);
        if (!one) return null;
        const canvas = h("canvas", { "aria-hidden": "true" });
        canvases.push([canvas, one]);
        const button = h("button", { type: "button", "aria-label": `Layer ${layer}${states[one.status] ? `, ${states[one.status]}` : ""}`, onclick: () => set({ layer }) }, canvas,
          h("span", {}, layer, states[one.status] ? h("span", { class: "soft" }, ` ${states[one.status]}`) : ""), h("i", { style: { width: `${Math.max(0, (100 * one.sum) / most)}%` } }));
        buttons.push([layer, button]);
        return button;
      })));
    }));
    // All are measured before the first is drawn: one layout, not one for each.
    const rooms = canvases.map(([canvas]) => room(canvas));
    canvases.forEach(([canvas, one], i) => draw(canvas, one, rooms[i]));
  }

  const stages = mapped.map(stage), slider = byId("layer");
  function show(all) {
    const layers = layersOf();
    if (!layers.includes(state.layer)) state.layer = layers.reduce((best, layer) => (Math.abs(layer - state.layer) < Math.abs(best - state.layer) ? layer : best), layers[0]);
    slider.max = layers.length - 1;
    slider.value = layers.indexOf(state.layer);
    slider.setAttribute("aria-valuetext", `layer ${state.layer}`);
    byId("layer-name").textContent = `${state.layer} of ${layers[layers.length - 1]}`;
    byId("back").disabled = state.layer === layers[0];
    byId("forth").disabled = state.layer === layers[layers.length - 1];
    for (const one of stages) one.show();
    if (all) strips();
    for (const [layer, button] of buttons) button.setAttribute("aria-pressed", String(layer === state.layer));
    byId("card").replaceChildren(...mapped.map(card));
    const shown = mapped.map((entry) => picked(entry)).filter(Boolean), shared = state.scale === "shared";
    byId("ramp-end").textContent = shown.length ? (shared || shown.length === 1 ? number(top(shown[0])) : "each layer's highest") : "";
    byId("ramp-name").textContent = unique(shown.map((one) => one.map.words)).join(" / ");
    key(shown[0]);
    byId("ramp-note").textContent = shared ? "one scale for all layers" : "a scale of its own for each layer";
  }
  function set(change) {
    const all = Object.keys(change).some((name) => name !== "layer");
    Object.assign(state, change);
    if ("method" in change) tokens();
    show(all);
  }

  // The token picker: the whole answer, or one of its tokens where the file has a map for each.
  function tokens() {
    const choices = unique(mapped.flatMap((entry) => (mapOf(entry) ? mapOf(entry).tokens : [])));
    if (!choices.includes(state.token)) state.token = -1;
    const words = mapped[0].answer, box = byId("tokens");
    box.hidden = choices.length < 2;
    box.replaceChildren(h("span", { class: "small soft" }, "Answer token"), ...choices.map((token) => h("button", { type: "button", "aria-pressed": String(token === state.token), "data-token": token,
      onclick: () => { set({ token }); for (const node of box.querySelectorAll("button")) node.setAttribute("aria-pressed", String(node.dataset.token === String(token))); } }, token < 0 ? "mean of all" : words[token] || `#${token + 1}`)),
    ...(data.left_out > 0 ? [h("span", { class: "small soft" }, `the last ${data.left_out} tokens' maps are in the .npz only`)] : []));
  }

  function controls() {
    const most = Math.max(...mapped.map((entry) => entry.pictures.length));
    const method = redrel.select("Method", methods, (value) => set({ method: value }));
    method.box.value = state.method;
    method.box.id = "method";
    method.whole.hidden = false;
    const scale = redrel.select("Colour scale", [["shared", "one for all layers"], ["layer", "each layer its own"]], (value) => set({ scale: value }));
    scale.box.id = "scale";
    const picture = redrel.select("Picture", Array.from({ length: most }, (_, i) => [String(i), String(i + 1)]), (value) => set({ picture: Number(value) }));
    const opacity = h("input", { type: "range", id: "opacity", min: 0, max: 100, value: 100 * state.opacity, oninput: () => { state.opacity = opacity.value / 100; show(false); }, onchange: () => show(true) });
    const grey = h("input", { type: "checkbox", checked: state.grey, id: "grey", onchange: () => set({ grey: grey.checked }) });
    byId("choices").append(method.whole, scale.whole, picture.whole, h("label", {}, "Map's opacity", opacity), h("label", {}, "Picture in grey", grey));
    slider.addEventListener("input", () => set({ layer: layersOf()[Number(slider.value)] }));
    const step = (by) => { const layers = layersOf(); set({ layer: layers[Math.max(0, Math.min(layers.length - 1, layers.indexOf(state.layer) + by))] }); };
    byId("back").addEventListener("click", () => step(-1));
    byId("forth").addEventListener("click", () => step(1));
  }

  function facts() {
    byId("facts").replaceChildren(...entries.map((entry) => h("div", { class: "panel" }, h("h3", {}, entry.model), h("dl", { class: "facts" },
      Object.entries(entry.provenance).map(([name, text]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, text)])))));
  }

  facts();
  if (mapped.length) {
    const waiting = [];
    for (const entry of entries) entry.images = entry.pictures.map(({ src }) => { const image = new Image(); image.src = src; waiting.push(image.decode().catch(() => null)); return image; });
    byId("stages").append(...stages.map(({ box }) => box));
    const strongest = () => {
      const scored = layersOf().map((layer) => [layer, picked(mapped[0], layer)]).filter(([, one]) => one && one.status === "ok");
      return scored.length ? scored.reduce((best, next) => (next[1].peak > best[1].peak ? next : best))[0] : layersOf()[0];
    };
    state.layer = strongest();
    controls();
    tokens();
    let width = "";
    const resized = () => {
      const now = `${byId("maps").clientWidth} ${dots()}`;
      if (now !== width) { width = now; show(true); }
    };
    Promise.all(waiting).then(() => {
      resized();
      new ResizeObserver(resized).observe(byId("maps"));
      window.addEventListener("resize", resized); // a zoom changes the pixels, perhaps not the width
      document.body.dataset.ready = "yes";
    });
  } else document.body.dataset.ready = "yes";
})();
