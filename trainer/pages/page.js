"use strict";
(() => {
  const root = document.documentElement;
  const PRINTED = 680;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const finger = matchMedia("(hover: none)");

  // Colours: what a figure names, as it is here and now.
  const property = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function blend(scale, place) {
    const at = Math.min(Math.max(place, 0), 1) * (scale.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, scale.length - 1);
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const mixed = [0, 1, 2].map((i) =>
      Math.round(part(scale[low], i) + (at - low) * (part(scale[high], i) - part(scale[low], i)))
    );
    return `rgb(${mixed.join(",")})`;
  }

  function painter() {
    const scale = property("--scale").split(",").map((each) => each.trim());
    const colour = (text) => {
      const named = /^var\((--[a-z]+)\)$/.exec(text);
      if (named) return property(named[1]);
      const placed = /^scale\(([0-9.e-]+)\)$/.exec(text);
      return placed ? blend(scale, Number(placed[1])) : text;
    };
    const paint = (value, key) => {
      if (typeof value === "string") {
        if (key === "colorscale" && value === "scale") {
          return scale.map((each, i) => [i / (scale.length - 1), each]);
        }
        return colour(value);
      }
      if (Array.isArray(value)) return value.map((each) => paint(each));
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v, k)]));
    };
    return paint;
  }

  const AXIS = {
    gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)",
    tickcolor: "var(--line)", automargin: true, title: { font: { color: "var(--soft)" } },
    tickfont: { color: "var(--soft)" },
  };
  const THEME = {
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13, color: "var(--ink)" },
    paper_bgcolor: "var(--paper)", plot_bgcolor: "var(--paper)",
    margin: { l: 8, r: 12, t: 12, b: 8 }, showlegend: false, hovermode: "closest",
    hoverlabel: {
      bgcolor: "var(--card)", bordercolor: "var(--line)", align: "left", namelength: -1,
      font: { color: "var(--ink)", size: 13 },
    },
    xaxis: AXIS, yaxis: AXIS,
    newselection: { line: { color: "var(--ink)", width: 1 } },
    activeselection: { fillcolor: "var(--faint)" },
  };

  // Plots.
  function draw(plot, width) {
    const figure = plot.views[plot.view];
    const isNarrow = (width || plot.clientWidth) < figure.narrowBelow;
    const { data, layout } = { ...figure.wide, ...(isNarrow && figure.narrow) };
    const paint = painter();
    const drawn = paint({ data, layout });
    drawn.layout.shapes = [...(drawn.layout.shapes || []), ...paint(marksOf(figure))];
    drawn.layout.template = { layout: paint(THEME) };
    drawn.layout.autosize = true;
    if (width) drawn.layout.width = width;
    // A finger that moves over a plot scrolls the page.
    drawn.layout.dragmode = finger.matches || isNarrow ? false : figure.brushed ? "select" : "zoom";
    plot.style.minHeight = "";
    plot.dataset.narrow = isNarrow;
    return Plotly.react(plot, drawn.data, drawn.layout, {
      responsive: true, displaylogo: false, displayModeBar: finger.matches || isNarrow ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "autoScale2d"], doubleClick: "reset",
    });
  }

  // What is marked is the same in all plots, and nowhere by default.
  let marked = null;
  const marksOf = (figure) => (figure.marks && figure.marks[marked]) || [];

  function mark(plots, id, text) {
    marked = id;
    for (const plot of plots) {
      const has = (view) => view.marks && (view.marks[id] || []).length > 0;
      if (id !== null && !has(plot.views[plot.view]) && plot.views.some(has)) {
        show(plot, plot.views.findIndex(has));
      } else if (plot.views.some((view) => view.marks)) {
        draw(plot);
      }
      const line = plot.parentNode.querySelector(".marked-now");
      line.hidden = id === null || !plot.views.some(has);
      line.textContent = `Marked: ${text} `;
      const clear = document.createElement("button");
      clear.type = "button";
      clear.className = "unmark";
      clear.textContent = "Clear";
      line.append(clear);
    }
  }

  function show(plot, view) {
    plot.view = view;
    for (const each of plot.parentNode.querySelectorAll("[data-view]")) {
      each.setAttribute("aria-pressed", String(Number(each.dataset.view) === view));
    }
    // The axes of another view have other names on them.
    Plotly.purge(plot);
    draw(plot);
  }

  // A trace stays if it passes through what is selected at every place where anything is.
  function brush(plot) {
    const fade = (isKept) => {
      const opacity = plot.data.map((_, i) => (isKept(i) ? 1 : 0.06));
      Plotly.restyle(plot, { opacity });
    };
    plot.on("plotly_selected", (event) => {
      if (!event || !event.points) return;
      const places = new Map();
      for (const point of event.points) {
        if (!places.has(point.pointNumber)) places.set(point.pointNumber, new Set());
        places.get(point.pointNumber).add(point.curveNumber);
      }
      const kept = [...places.values()];
      fade((curve) => kept.every((curves) => curves.has(curve)));
    });
    plot.on("plotly_deselect", () => fade(() => true));
  }

  async function loadPlotly() {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser is too old (it has no DecompressionStream)");
    }
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function drawAll() {
    const plots = [...document.querySelectorAll(".plot")];
    try {
      if (plots.length) await loadPlotly();
    } catch (error) {
      for (const plot of plots) plot.textContent = `This plot cannot be drawn: ${error.message}.`;
      root.dataset.plots = "failed";
      return;
    }
    for (const plot of plots) {
      const figure = JSON.parse(plot.parentNode.querySelector("script").textContent);
      plot.views = [figure, ...(figure.views || [])];
      plot.view = 0;
      plot.textContent = "";
      await draw(plot);
      if (figure.brushed) brush(plot);
    }
    const first = document.querySelector("a[data-marked]");
    if (first) mark(plots, first.dataset.mark, first.dataset.meaning);
    const again = (width) => plots.forEach((plot) => draw(plot, width));
    dark.addEventListener("change", () => again());
    addEventListener("resize", () => {
      for (const plot of plots) {
        const isNarrow = plot.clientWidth < plot.figure.narrowBelow;
        if (String(isNarrow) !== plot.dataset.narrow) draw(plot);
      }
    });
    addEventListener("beforeprint", () => {
      root.dataset.theme = "light";
      again(PRINTED);
    });
    addEventListener("afterprint", () => {
      delete root.dataset.theme;
      again();
    });
    root.dataset.plots = "drawn";
  }

  // Tables: a click on a column's name sorts by it, a second one the other way round.
  function sort(button) {
    const head = button.parentNode;
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const isDown = head.getAttribute("aria-sort") === "ascending";
    for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const order = new Intl.Collator("en", { numeric: true });
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = a - b;
      const sign = isDown ? -1 : 1;
      return sign * (Number.isNaN(difference) ? order.compare(a, b) : difference);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  }

  async function copy(button) {
    const text = button.closest(".copyable").querySelector("code");
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().selectAllChildren(text);
      isCopied = document.execCommand("copy");
    }
    button.textContent = isCopied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-mark]");
    if (link && root.dataset.plots === "drawn") {
      mark([...document.querySelectorAll(".plot")], link.dataset.mark, link.dataset.meaning);
    }
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches(".copy")) copy(button);
    else if (button.matches(".unmark")) mark([...document.querySelectorAll(".plot")], null, "");
    else if (button.dataset.view) show(button.closest("figure").querySelector(".plot"), Number(button.dataset.view));
    else if (button.closest(".sortable thead")) sort(button);
  });
  drawAll();
})();
