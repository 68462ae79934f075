"use strict";
// The flips browser: one question at a time, with the picture, the tokens that were kept and both answers.
(() => {
  const { h, s, data, byId, fixed, known, unique } = redrel;
  const { texts, questions, cells, pictures, cut, unread } = data.changes;
  const CHANGES = ["up", "down", "same"], PAGE = 100;
  const say = (number) => (known(number) ? texts[number] : null);
  const words = (change) => ["▲ up", "▼ down", "≈ same score"][change];
  const all = cells.flatMap((cell) => cell.flips.map((flip) => {
    const [question, change, hit, baseHit, answer, baseAnswer, kept, letter, baseLetter] = flip;
    return { cell, question, change, hit, baseHit, answer, baseAnswer, kept, letter, baseLetter, asked: questions[question] };
  }));
  const browser = byId("flip-browser");
  if (!all.length) {
    browser.append(h("p", { class: "soft" }, "No question changed its answer, or no variant could be paired with its base."));
    return;
  }
  const byQuestion = new Map();
  for (const item of all) byQuestion.set(item.question, [...(byQuestion.get(item.question) || []), item]);
  const settings = new Map(data.rows.map((row) => [row.model, redrel.short(row)]));
  const state = { at: 0, found: all, filters: {}, dim: true };

  const keep = (key) => (value) => { state.filters[key] = value; refilter(); };
  const count = h("output", { id: "flip-count", "aria-live": "polite" });
  const selects = {
    benchmark: redrel.select("Benchmark", unique(all.map((item) => item.cell.benchmark)), keep("benchmark"), "all"),
    model: redrel.select("Variant", unique(all.map((item) => item.cell.model)), keep("model"), "all"),
    change: redrel.select("Direction", CHANGES.map((name, i) => [String(i), ["▲ up: base wrong, variant right", "▼ down: base right, variant wrong", "≈ same score, other answer"][i]])
      .filter(([i]) => all.some((item) => String(item.change) === i)), keep("change"), "all"),
    category: redrel.select("Category", unique(all.map((item) => say(item.asked[5]))).filter(Boolean), keep("category"), "all"),
  };
  const search = h("input", { type: "search", "aria-label": "Find a question or answer", placeholder: "in questions and answers", oninput: () => { state.filters.text = search.value.trim().toLowerCase(); refilter(); } });
  byId("flip-filters").append(...Object.values(selects).map((one) => one.whole), h("label", {}, "Find", search), count);

  const list = h("ul", { role: "listbox", tabindex: 0, "aria-label": "Flips", id: "flip-list" });
  const pager = h("div", { class: "pager small" }), detail = h("article", { class: "flip", "aria-label": "Flip", tabindex: -1 });
  const back = h("button", { type: "button", "aria-label": "Previous flip", onclick: () => go(state.at - 1) }, "← Previous");
  const forth = h("button", { type: "button", "aria-label": "Next flip", onclick: () => go(state.at + 1) }, "Next →");
  const place = h("span", { class: "num soft", id: "flip-place" });
  browser.append(h("div", { class: "browser panel" }, h("div", { class: "side" }, list, pager), h("div", { class: "stage" }, h("div", { class: "step" }, back, place, forth), detail)));
  const partial = cells.filter((cell) => cell.total > cell.flips.length);
  if (partial.length) browser.append(h("p", { class: "small soft" }, `Not all fit into one page: of ${partial.length} variants the first ${Math.max(...partial.map((cell) => cell.flips.length))} flips are here. The leaderboard counts all of them.`));
  if (unread) browser.append(h("p", { class: "small soft" }, `The flips of ${unread} more variants and benchmarks are not here; 'redrel sheet' with '-o FOLDER/' writes all flips to flips.csv.`));
  if (cut) browser.append(h("p", { class: "small soft" }, `Texts longer than ${cut} characters end in “…”; the host's tables hold them whole.`));

  function matches(item) {
    const { benchmark, model, change, category, text } = state.filters;
    return (!benchmark || item.cell.benchmark === benchmark) && (!model || item.cell.model === model) && (!change || String(item.change) === change)
      && (!category || say(item.asked[5]) === category)
      && (!text || [item.asked[2], item.answer, item.baseAnswer].some((number) => known(number) && texts[number].toLowerCase().includes(text)) || item.asked[1] === text);
  }
  function refilter(wanted) {
    state.found = all.filter(matches);
    count.textContent = `${state.found.length} of ${all.length} flips`;
    const at = wanted ? state.found.indexOf(wanted) : 0;
    list.replaceChildren();
    go(Math.max(0, at));
  }
  function go(at) {
    const found = state.found;
    state.at = Math.max(0, Math.min(found.length - 1, at));
    back.disabled = state.at <= 0;
    forth.disabled = state.at >= found.length - 1;
    place.textContent = found.length ? `${state.at + 1} of ${found.length}` : "";
    fillList();
    detail.replaceChildren(...(found.length ? shown(found[state.at]) : [h("p", { class: "soft" }, "No flip matches these filters.")]));
  }
  function fillList() {
    const start = Math.floor(state.at / PAGE) * PAGE, own = state.found.slice(start, start + PAGE);
    if (list.dataset.start !== String(start) || list.childElementCount !== own.length) {
      list.dataset.start = start;
      list.replaceChildren(...own.map((item, i) => h("li", { role: "option", id: `flip-${start + i}`, onclick: () => { go(start + i); } },
        h("span", { class: `sign ${CHANGES[item.change]}`, "aria-label": CHANGES[item.change] }, words(item.change)[0]),
        h("span", { class: "what" }, say(item.asked[2]) || `index ${item.asked[1]}`), h("small", {}, settings.get(item.cell.model) || item.cell.model))));
      pager.replaceChildren(...(state.found.length > PAGE ? [h("button", { type: "button", class: "quiet", disabled: start === 0, onclick: () => go(start - PAGE) }, "‹"),
        h("span", { class: "num soft" }, `${start + 1}–${start + own.length} of ${state.found.length}`),
        h("button", { type: "button", class: "quiet", disabled: start + PAGE >= state.found.length, onclick: () => go(start + PAGE) }, "›")] : []));
    }
    for (const node of list.children) node.setAttribute("aria-selected", String(node.id === `flip-${state.at}`));
    const current = byId(`flip-${state.at}`);
    list.setAttribute("aria-activedescendant", current ? current.id : "");
    if (current) {
      const [top, bottom] = [current.offsetTop, current.offsetTop + current.offsetHeight]; // from the list's own edge
      if (top < list.scrollTop) list.scrollTop = top;
      else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    }
  }

  const verdict = (hit) => (hit === 1 ? "right" : hit === 0 ? "wrong" : `scored ${fixed(hit, 2)}`);
  function answerCard(title, model, text, hit, letter) {
    return h("div", { class: `answer ${hit === 1 ? "right" : hit === 0 ? "wrong" : ""}` },
      h("p", { class: "small soft" }, title, " ", h("span", { class: "mono" }, model)),
      h("p", { class: "said" }, text === null || text === "" ? h("em", { class: "soft" }, "(empty)") : text),
      h("p", { class: "small" }, hit === 1 ? "✓ " : hit === 0 ? "✗ " : "", verdict(hit), known(letter) && text !== letter ? `, read as ${letter}` : ""));
  }
  function shown(item) {
    const { asked, cell } = item, [, index, , options, , category] = asked, answer = say(asked[4]);
    const others = byQuestion.get(item.question).filter((other) => other.cell.base === cell.base);
    const tags = (letter) => [answer === letter && h("span", { class: "badge up" }, "✓ right answer"), item.baseLetter === letter && h("span", { class: "badge" }, "base"),
      item.letter === letter && h("span", { class: "badge" }, "variant")];
    return [
      h("p", { class: "head" }, h("span", { class: `badge ${CHANGES[item.change]}` }, `${words(item.change)}: ${verdict(item.baseHit)} → ${verdict(item.hit)}`),
        h("span", { class: "soft small" }, [cell.benchmark, `index ${index}`, say(category)].filter(Boolean).join(" · "))),
      h("div", { class: "columns" }, picture(item), h("div", { class: "asked" },
        h("p", { class: "question" }, say(asked[2]) || h("em", { class: "soft" }, "The host's table does not hold the question's text.")),
        options.length > 0 && h("ol", { class: "options" }, options.map(([letter, text]) => h("li", { class: answer === letter ? "is-right" : "" },
          h("b", {}, letter), h("span", {}, say(text)), tags(letter)))),
        !options.length && answer !== null && h("p", {}, h("span", { class: "soft" }, "Right answer: "), answer),
        h("div", { class: "answers" }, answerCard("base", cell.base, say(item.baseAnswer), item.baseHit, item.baseLetter),
          answerCard("variant", settings.get(cell.model) || cell.model, say(item.answer), item.hit, item.letter)))),
      others.length > 1 && h("div", { class: "others" }, h("span", { class: "soft small" }, `${others.length} variants answer this question differently:`), others.map((other) =>
        h("button", { type: "button", class: `chip ${CHANGES[other.change]}`, "aria-current": other === item ? "true" : null, onclick: () => open(other) },
          `${words(other.change)[0]} ${settings.get(other.cell.model) || other.cell.model}`))),
      // Whatever leads on from a flip stands here, side by side.
      h("p", { class: "flip-links small" }, h("a", { href: address(item) }, "Link to this flip"),
        [["variant", cell.model], ["base", cell.base]].map(([who, model]) => [who, data.explained[[model, cell.benchmark, index].join("/")]])
          .filter(([, page]) => page).map(([who, page]) => h("a", { href: page, class: "explain-link" }, `Explain the ${who}'s answer`))),
    ].filter(Boolean);
  }

  const MEAN = "#7a7468"; // CLIP's mean colour, with which pictures are padded to a square
  function picture(item) {
    const [tokens, kept, side, packed, why, stages, views = []] = item.kept || [null, null, 0, "", null, []];
    const mask = atob(packed);
    const files = item.asked[6].map((number) => pictures[number]);
    const note = [];
    if (known(tokens) && tokens > 0) {
      note.push(h("strong", {}, `${kept} of ${tokens} image tokens kept`), stages.length ? `, ${stages.map(([layer, left]) => `${stages.length > 1 ? `${left} ` : ""}${layer ? `after block ${layer}` : "before block 1"}`).join(", ")}.` : ".");
    } else if (!item.kept) note.push("This run left no record of the kept tokens.");
    if (known(why)) note.push(` ${say(why)}`);
    const overlaid = side > 0 ? files.length < 2 : views.length > 0 && (files.length > 0 || views.every(([shown]) => shown === 0));
    if (!files.length && !(known(tokens) && tokens === 0)) note.push(h("span", { class: "soft" }, data.meta.asked ? " Its picture is not among those in this page." : " Pictures are added by --pictures N."));
    const toggle = overlaid && files.length > 0 && h("label", { class: "check small" }, h("input", { type: "checkbox", checked: state.dim, onchange: (event) => {
      state.dim = event.target.checked;
      for (const overlay of browser.querySelectorAll(".overlay")) overlay.style.display = state.dim ? "" : "none";
    } }), "show tokens: outlined kept, hatched dropped");
    const told = `${kept} of ${tokens} image tokens kept`;
    return h("figure", { class: "picture" }, !overlaid ? files.map((file) => h("img", { src: file.src, alt: "The question's picture", class: file.w < 200 ? "pixels" : "" }))
      : side > 0 ? overlay(files[0], [[0, side, side, side, ...padded(files[0])]], mask, told) : layers(views).map(([number, kind, parts]) => {
        const held = parts.map((part) => places(part).filter((place) => bit(mask, place)).length).reduce((a, b) => a + b, 0);
        const all = parts.reduce((sum, [, rows, columns]) => sum + rows * columns, 0);
        return [overlay(files[number], parts, mask, `${kind}: ${held} of ${all} image tokens kept`), views.length > 1 && h("div", { class: "soft small" }, `${kind === "tiles" ? "in tiles" : "as a whole"}: ${held} of ${all}`)];
      }),
    h("figcaption", { class: "small" }, note, toggle));
  }
  // Views of one picture in one way: the whole of it, or its tiles side by side. A view is [picture, kind, first token,
  // rows, columns, tokens from row to row, and the box over the picture: left, top, right, bottom, 0 to 1].
  function layers(views) {
    const found = new Map();
    for (const [number, kind, ...part] of views) {
      const key = `${number} ${kind}`;
      if (!found.has(key)) found.set(key, [number, kind, []]);
      found.get(key)[2].push(part);
    }
    return [...found.values()];
  }
  const bit = (mask, place) => (mask.charCodeAt(place >> 3) >> (7 - (place & 7))) & 1;
  const places = ([first, rows, columns, stride]) => Array.from({ length: rows * columns }, (_, n) => first + Math.floor(n / columns) * stride + n % columns);
  // The box of a square that a picture was centred on.
  function padded(file) {
    if (!file) return [0, 0, 1, 1];
    const size = Math.max(file.w, file.h), left = -Math.floor((size - file.w) / 2), top = -Math.floor((size - file.h) / 2);
    return [left / file.w, top / file.h, (left + size) / file.w, (top + size) / file.h];
  }
  // The picture under its tokens, as the model was given it; dropped cells dimmed, kept ones outlined.
  function overlay(file, parts, mask, told) {
    const [width, height] = file ? [file.w, file.h] : [parts[0][2], parts[0][1]];
    const left = Math.min(0, ...parts.map((part) => part[4])) * width, top = Math.min(0, ...parts.map((part) => part[5])) * height;
    const wide = Math.max(1, ...parts.map((part) => part[6])) * width - left, high = Math.max(1, ...parts.map((part) => part[7])) * height - top;
    let dropped = "", edges = "";
    for (const [first, rows, columns, stride, l, t, r, b] of parts) {
      const across = (r - l) * width / columns, down = (b - t) * height / rows;
      const isKept = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && bit(mask, first + row * stride + column) === 1;
      for (let row = 0; row < rows; row += 1) {
        for (let column = 0; column < columns; column += 1) {
          const [x, y] = [l * width - left + column * across, t * height - top + row * down];
          if (!isKept(row, column)) { dropped += `M${x} ${y}h${across}v${down}h${-across}z`; continue; }
          if (!isKept(row - 1, column)) edges += `M${x} ${y}h${across}`;
          if (!isKept(row + 1, column)) edges += `M${x} ${y + down}h${across}`;
          if (!isKept(row, column - 1)) edges += `M${x} ${y}v${down}`;
          if (!isKept(row, column + 1)) edges += `M${x + across} ${y}v${down}`;
        }
      }
    }
    // Hatched as well as dark: on a black picture darkness alone tells nothing.
    const size = Math.max(wide, high), stroke = size / 130, gap = size / 48;
    const hatch = s("pattern", { id: "hatch", width: gap, height: gap, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      s("rect", { width: gap * 0.22, height: gap, class: "hatch" }));
    return s("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": told, class: file ? "" : "bare" }, hatch,
      file && s("rect", { width: wide, height: high, fill: MEAN }),
      file && s("image", { href: file.src, x: -left, y: -top, width: file.w, height: file.h, preserveAspectRatio: "none", class: file.w < 200 ? "pixels" : "" }),
      s("g", { class: "overlay", style: file && !state.dim ? { display: "none" } : {} },
        s("path", { d: dropped, class: "dropped", "shape-rendering": "crispEdges" }), s("path", { d: dropped, fill: "url(#hatch)" }),
        s("path", { d: edges, class: "edge under", "stroke-width": stroke * 2.2 }), s("path", { d: edges, class: "edge", "stroke-width": stroke })));
  }

  const address = (item) => `#flip=${[item.cell.model, item.cell.benchmark, item.asked[1]].map(encodeURIComponent).join("/")}`;
  function clear() {
    state.filters = {};
    search.value = "";
    for (const { box } of Object.values(selects)) box.value = "";
  }
  function open(item) {
    if (!state.found.includes(item)) { clear(); refilter(item); } else go(state.found.indexOf(item));
  }
  redrel.showFlips = (model, benchmark) => {
    clear();
    Object.assign(state.filters, { model, benchmark: selects.benchmark.whole.hidden ? "" : benchmark });
    selects.model.box.value = model;
    selects.benchmark.box.value = state.filters.benchmark;
    refilter();
    byId("flips").scrollIntoView();
    list.focus({ preventScroll: true });
  };
  function follow() {
    if (!location.hash.startsWith("#flip=")) return;
    const [model, benchmark, index] = location.hash.slice(6).split("/").map(decodeURIComponent);
    const item = all.find((one) => one.cell.model === model && one.cell.benchmark === benchmark && one.asked[1] === index);
    if (!item) return;
    open(item);
    byId("flips").scrollIntoView();
  }
  byId("flips").addEventListener("keydown", (event) => {
    if (event.target.closest("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    const inList = event.target === list, far = { Home: -Infinity, End: Infinity, PageUp: state.at - 10, PageDown: state.at + 10 }[event.key];
    const step = { ArrowLeft: -1, ArrowRight: 1, ...(inList ? { ArrowUp: -1, ArrowDown: 1 } : {}) }[event.key];
    if (step === undefined && !(inList && far !== undefined)) return;
    event.preventDefault();
    go(step === undefined ? far : state.at + step);
  });
  window.addEventListener("hashchange", follow);
  // Begins with a variant that has something to see: tokens kept, and tokens dropped.
  const telling = all.find((item) => item.kept && (item.kept[2] > 0 || item.kept[6]) && item.kept[1] > 0 && item.kept[1] < item.kept[0]);
  if (telling && !selects.model.whole.hidden) selects.model.box.value = state.filters.model = telling.cell.model;
  refilter();
  follow();
})();
