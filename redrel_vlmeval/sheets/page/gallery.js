"use strict";
// What is answered right without the picture: a card for each question, with the picture that nobody was shown.
(() => {
  const { h, data, byId, fixed, known } = redrel;
  const runs = data.gallery, place = byId("blind-gallery");
  if (!place) return;
  const cards = h("div", { class: "gallery" }), told = h("p", { class: "small soft", id: "blind-told" });
  const choice = redrel.select("Run", runs.map((run, i) => [String(i), `${run.benchmark}: ${run.model}`]), (i) => show(runs[i]));
  place.append(h("div", { class: "filters" }, choice.whole), told, cards);

  function card(run, asked) {
    const right = (name) => (name === asked.answer ? "is-right" : "");
    const files = (asked.pictures || []).map((number) => data.changes.pictures[number]);
    const none = !asked.pictures ? (data.meta.asked ? "Its picture is not among those in this page." : "Pictures are added by --pictures N.")
      : !files.length ? "The question has no picture." : "";
    return h("figure", { class: "card-blind panel" },
      files.length ? files.map((file) => h("img", { src: file.src, alt: "The picture, which was not shown to the model", class: file.w < 200 ? "pixels" : "" }))
        : h("p", { class: "small soft nothing" }, none),
      h("figcaption", {},
        h("p", { class: "question" }, asked.text || h("em", { class: "soft" }, "The host's table does not hold the question's text.")),
        asked.options.length > 0 && h("ol", { class: "options" }, asked.options.map(([name, text]) => h("li", { class: right(name) }, h("b", {}, name), h("span", {}, text)))),
        h("p", {}, h("span", { class: "soft" }, "Answered: "), h("strong", {}, asked.said || "(empty)"),
          known(asked.letter) && asked.letter !== asked.said && ` (read as ${asked.letter})`,
          !asked.options.length && known(asked.answer) && [h("span", { class: "soft" }, "; right: "), asked.answer]),
        h("p", { class: "small soft" }, [run.benchmark, `index ${asked.index}`, asked.category].filter(Boolean).join(" · "))));
  }
  function show(run) {
    const all = run.questions.length, more = all < run.right ? `; ${all} of them here, from the categories with the highest share first, all in the sheet Blind questions` : "";
    told.textContent = `${run.model}: ${run.right} of ${run.n} questions of ${run.benchmark} (${fixed(run.rate)} %) are right with no image token${more}.`;
    cards.replaceChildren(...run.questions.map((asked) => card(run, asked)));
  }
  show(runs[0]);
})();
