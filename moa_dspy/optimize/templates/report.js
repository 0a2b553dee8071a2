"use strict";
// Draws the plots and tables of a report from the data that the page holds, compressed, once.
(async () => {
  const $ = (id) => document.getElementById(id);
  const unpack = async (id) => {
    const raw = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  // Texts of models go into the page as text nodes only.
  const make = (tag, text, attributes) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    return node;
  };
  // Plotly reads a little markup in labels.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const wrapped = (text, width = 46) => {
    const [first, ...words] = String(text).split(" ");
    const lines = [first];
    for (const word of words) {
      if ((lines[lines.length - 1] + " " + word).length > width) lines.push(word);
      else lines[lines.length - 1] += " " + word;
    }
    return lines.map(plain).join("<br>");
  };
  // Names of models differ at their ends too: in a version, or a size.
  const cut = (text) => (text.length > 22 ? text.slice(0, 10) + "…" + text.slice(-11) : text);
  const percent = (share) => (share === null ? "—" : (100 * share).toFixed(1));
  const amount = (v) => (v === 0 ? "0" : v >= 100 ? Math.round(v).toLocaleString("en") : v >= 0.1 ? v.toFixed(2) : Number(v.toPrecision(2)).toString());
  const cost = (v, factor) => (v === null ? "unknown" : amount(factor * v));
  const data = JSON.parse(await unpack("data"));

  // ---- tables -------------------------------------------------------------------------------
  const paged = (prefix, size, rowsOf, draw) => {
    let page = 0;
    const show = () => {
      const rows = rowsOf();
      const pages = Math.max(1, Math.ceil(rows.length / size));
      page = Math.min(page, pages - 1);
      draw(rows.slice(page * size, (page + 1) * size));
      $(prefix + "-count").textContent = rows.length + " shown, page " + (page + 1) + " of " + pages;
      $(prefix + "-prev").disabled = page === 0;
      $(prefix + "-next").disabled = page >= pages - 1;
    };
    $(prefix + "-prev").onclick = () => { page -= 1; show(); };
    $(prefix + "-next").onclick = () => { page += 1; show(); };
    return () => { page = 0; show(); };
  };

  const trialTable = () => {
    const show = paged("trial", 50, () => {
      const wanted = $("trial-find").value.toLowerCase();
      return data.trials.filter((t) => t[0].toLowerCase().includes(wanted)).sort((a, b) => b[2] - a[2]);
    }, (rows) => {
      $("trial-rows").replaceChildren(...rows.map((t) => {
        const row = make("tr");
        if (t[0] === data.pick) row.className = "pick";
        row.append(make("th", t[0], { scope: "row", class: "mono" }), make("td", t[1].replace("_", " ")));
        for (const value of [percent(t[2]), cost(t[3], 1000), cost(t[4], 1), t[5].toFixed(1), percent(t[6]), t[7] + (t[8] ? " (stopped)" : "")])
          row.append(make("td", value, { class: "n" }));
        return row;
      }));
    });
    $("trial-find").oninput = show;
    show();
  };

  const RIGHT = 0.5;
  const isRight = (system, place) => system.scores[place] !== null && system.scores[place] >= RIGHT;
  const questionTable = () => {
    if (!data.questions.length) return;
    const systems = data.answers;
    const pick = systems.find((s) => s.architecture === data.pick) || systems[0];
    const single = systems.find((s) => s.label.includes("Best single agent")) || pick;
    const others = systems.filter((s) => s !== pick);
    const filters = {
      all: () => true,
      missed: (n) => !isRight(pick, n) && others.some((s) => isRight(s, n)),
      gained: (n) => isRight(pick, n) && !isRight(single, n),
      disagree: (n) => new Set(systems.map((s) => isRight(s, n))).size > 1,
      none: (n) => systems.every((s) => !isRight(s, n)),
      failed: (n) => systems.some((s) => s.failures[n] !== undefined || s.scores[n] === null),
    };
    const table = $("q-head").closest("table");
    if (systems.length > 10) table.className = "many";
    table.style.setProperty("--systems", systems.length);
    $("q-head").append(make("th", "Question", { scope: "col" }), ...systems.map((s) => {
      const head = make("th", s.label, { scope: "col", class: "sys" });
      head.title = s.architecture;
      return head;
    }));
    const cell = (system, n) => {
      const score = system.scores[n];
      const missing = system.failures[n] !== undefined || score === null;
      const text = missing ? "–" : score === 1 ? "✓" : score === 0 ? "✗" : percent(score);
      const kind = missing ? "na" : isRight(system, n) ? "yes" : "no";
      const said = missing ? "no answer" : "score " + percent(score) + " %";
      const node = make("td");
      const mark = make("span", text, { class: "cell " + kind, role: "img", "aria-label": said });
      node.append(mark);
      return node;
    };
    const texts = (n) => {
      const row = make("tr");
      const holder = make("td", null, { colspan: systems.length + 1 });
      const grid = make("div", null, { class: "texts" });
      const card = (title, text, kind) => {
        const node = make("div", null, { class: "text" });
        node.append(make("h4", title), make("p", text, { dir: "auto", tabindex: "0" }));
        if (kind) node.querySelector("h4").prepend(make("span", kind === "yes" ? "✓" : "✗", { class: "cell " + kind, "aria-hidden": "true" }), " ");
        return node;
      };
      grid.append(card("Question " + data.questions[n][0], data.questions[n][1]));
      if (data.questions[n][2]) grid.append(card("Expected", data.questions[n][2]));
      for (const s of systems) {
        const failure = s.failures[n];
        const text = failure !== undefined ? "No answer: " + failure : s.scores[n] === null ? "Not asked." : s.texts[n];
        grid.append(card(s.label === s.architecture ? s.label : s.label + ": " + s.architecture, text, isRight(s, n) ? "yes" : "no"));
      }
      holder.append(grid);
      row.append(holder);
      return row;
    };
    const show = paged("q", 25, () => {
      const keep = filters[$("q-filter").value];
      const wanted = $("q-find").value.toLowerCase();
      const has = (n) => !wanted || data.questions[n].some((t) => t.toLowerCase().includes(wanted)) || systems.some((s) => s.texts[n].toLowerCase().includes(wanted));
      return data.questions.map((_, n) => n).filter((n) => keep(n) && has(n));
    }, (rows) => {
      $("q-rows").replaceChildren(...rows.map((n) => {
        const row = make("tr");
        const head = make("th", null, { scope: "row", class: "q" });
        const text = data.questions[n][1];
        const button = make("button", text.length > 160 ? text.slice(0, 160) + "…" : text || data.questions[n][0], { type: "button", "aria-expanded": "false", dir: "auto" });
        button.onclick = () => {
          const open = button.getAttribute("aria-expanded") === "true";
          button.setAttribute("aria-expanded", String(!open));
          if (open) row.nextSibling.remove(); else row.after(texts(n));
        };
        head.append(button);
        row.append(head, ...systems.map((s) => cell(s, n)));
        return row;
      }));
    });
    $("q-filter").onchange = show;
    $("q-find").oninput = show;
    show();
  };

  // ---- plots --------------------------------------------------------------------------------
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const layout = (more) => {
    const ink = colour("ink"), line = colour("line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12.5 },
      margin: { l: 48, r: 16, t: 8, b: 44 }, showlegend: false, hovermode: "closest",
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("accent"), font: { color: ink }, align: "left" },
      ...more,
      xaxis: { ...axis, ...(more.xaxis || {}) }, yaxis: { ...axis, ...(more.yaxis || {}) },
    };
  };
  // At the foot of the figure, where no title of an axis is: on a narrow screen it has three lines.
  const below = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 };
  const room = () => (innerWidth < 600 ? 116 : 84);
  const config = { displayModeBar: false, responsive: true, doubleClick: false };
  const draw = (id, traces, more) => { if ($(id)) Plotly.react(id, traces, layout(more), config); };
  const hover = (t) => wrapped(t[0]) + "<br>" + percent(t[2]) + " % on val, " + cost(t[3], 1000) + " usd per 1,000, " + cost(t[4], 1) + " s" + (t[8] ? "<br>stopped after " + t[7] + " questions" : "");

  const plotSystems = () => {
    const rows = data.systems.slice().reverse();
    const label = (r) => wrapped(r[0], 22);
    draw("plot-systems", [{
      type: "scatter", mode: "markers", x: rows.map((r) => 100 * r[2]), y: rows.map(label),
      error_x: { type: "data", symmetric: false, array: rows.map((r) => (r[4] === null ? 0 : 100 * (r[4] - r[2]))), arrayminus: rows.map((r) => (r[3] === null ? 0 : 100 * (r[2] - r[3]))), color: colour("soft"), thickness: 2, width: 6 },
      marker: { size: 12, color: rows.map((r, n) => (n === rows.length - 1 ? colour("accent") : colour("dot"))) },
      hovertext: rows.map((r) => wrapped(r[1] || r[0]) + "<br>" + percent(r[2]) + " % [" + percent(r[3]) + ", " + percent(r[4]) + "]"), hoverinfo: "text",
    }], { xaxis: { title: { text: "score on test, %" } }, margin: { l: 8, r: 16, t: 8, b: 44 } });
  };

  const plotCost = (id, place, cost, title, scale) => {
    const known = data.trials.filter((t) => t[place] !== null);
    const whole = known.filter((t) => !t[8]), stopped = known.filter((t) => t[8]);
    const front = data.fronts[cost].map((n) => data.trials[n]);
    const pick = known.filter((t) => t[0] === data.pick);
    const points = (rows, name, marker) => ({
      type: "scatter", mode: "markers", name, marker, x: rows.map((t) => scale * t[place]), y: rows.map((t) => 100 * t[2]),
      hovertext: rows.map(hover), hoverinfo: "text",
    });
    const costs = known.map((t) => scale * t[place]);
    const isFree = costs.length > 0 && costs.every((v) => v === 0);
    const isLog = !isFree && costs.length > 0 && Math.min(...costs) > 0 && Math.max(...costs) / Math.min(...costs) > 30;
    draw(id, [
      points(stopped, "stopped early", { size: 7, color: "rgba(0,0,0,0)", line: { color: colour("dot"), width: 1 } }),
      points(whole, "measured", { size: 8, color: colour("dot"), opacity: 0.75 }),
      { type: "scatter", mode: "lines+markers", name: "Pareto front", x: front.map((t) => scale * t[place]), y: front.map((t) => 100 * t[2]), line: { shape: "hv", color: colour("warm"), width: 2 }, marker: { size: 9, color: colour("warm") }, hovertext: front.map(hover), hoverinfo: "text" },
      points(pick, "pick", { size: 15, symbol: "star", color: colour("accent") }),
    ], { showlegend: true, legend: below, margin: { l: 48, r: 16, t: 8, b: room() }, xaxis: { title: { text: title + (isFree ? " (nothing has a price)" : "") }, type: isLog ? "log" : "linear", rangemode: "tozero", visible: costs.length > 0 }, yaxis: { title: { text: "val, %" }, visible: costs.length > 0 }, annotations: costs.length ? [] : [{ text: title + ": unknown of every trial", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false }] });
  };

  const plotCriteria = () => {
    const rows = data.trials.filter((t) => t[9] !== null && !t[8]);
    draw("plot-criteria", [{
      type: "scatter", mode: "markers", cliponaxis: false, x: rows.map((t) => 100 * t[6]), y: rows.map((t) => 100 * t[9]), hovertext: rows.map(hover), hoverinfo: "text",
      marker: { size: 10, color: rows.map((t) => 100 * t[2]), colorscale: "Viridis", showscale: true, colorbar: { title: { text: "score, %" }, thickness: 12, outlinewidth: 0 }, line: { width: 1, color: colour("paper") } },
    }], { xaxis: { title: { text: "diversity of the answers read, %" }, rangemode: "nonnegative" }, yaxis: { title: { text: "their mean score alone, %" } } });
  };

  const plotAgents = () => {
    const rows = data.effects.slice().reverse();
    const names = rows.map((r) => plain(r[0]));
    const labels = rows.map((r) => wrapped(r[0].split(" ").map(cut).join(" "), 22));
    const dots = (place, name, color, symbol) => ({ type: "scatter", mode: "markers", name, x: rows.map((r) => (r[place] === null ? null : 100 * r[place])), y: names, marker: { size: 12, color, symbol }, hovertext: rows.map((r) => plain(r[0]) + ": " + name + " " + percent(r[place]) + " %, " + r[4] + " mixtures have it"), hoverinfo: "text" });
    const lines = rows.filter((r) => r[2] !== null && r[3] !== null).map((r) => ({ type: "line", x0: 100 * r[2], x1: 100 * r[3], y0: plain(r[0]), y1: plain(r[0]), line: { color: colour("line"), width: 3 }, layer: "below" }));
    // A line of text for each: plotly leaves out every second label where there is less room.
    if (rows.length > 10) $("plot-agents").style.height = 24 * rows.length + 120 + "px";
    draw("plot-agents", [dots(1, "alone", colour("dot"), "diamond"), dots(3, "mixtures without it", colour("warm"), "circle"), dots(2, "mixtures with it", colour("accent"), "circle")], { shapes: lines, showlegend: true, legend: below, margin: { l: 8, r: 16, t: 8, b: room() }, xaxis: { title: { text: "val, %" } }, yaxis: { tickmode: "array", tickvals: names, ticktext: labels } });
  };

  const MOST_NAMES = 12;
  const SIMILAR = [[0, "#edf3fa"], [1, "#08306b"]];
  const plotSimilarity = () => {
    const n = data.agents.length;
    if (n < 2) return;
    const names = data.agents.map(plain);
    const z = data.similarity.map((row) => row.map((v) => 100 * v));
    const isNamed = n <= MOST_NAMES;
    if (!isNamed) $("plot-similarity").style.height = Math.max(380, 9 * n + 40) + "px";
    const ticks = { showgrid: false, showticklabels: isNamed, ticks: "", tickmode: "array", tickvals: names, ticktext: data.agents.map((name) => plain(cut(name))) };
    // Dark text on light cells and white on dark ones: on each, a contrast of 4 to 1 or more.
    const texts = n > 8 ? [] : z.flatMap((row, y) => row.map((v, x) => ({ x: names[x], y: names[y], text: v.toFixed(0), showarrow: false, font: { color: v < 63 ? "#0b1119" : "#ffffff" } })));
    draw("plot-similarity", [{ type: "heatmap", x: names, y: names, z, zmin: 0, zmax: 100, colorscale: SIMILAR, xgap: isNamed ? 2 : 0, ygap: isNamed ? 2 : 0, hovertemplate: "%{x}<br>%{y}<br>%{z:.1f} % alike<extra></extra>", colorbar: { thickness: 12, outlinewidth: 0 } }],
      { annotations: texts, xaxis: { ...ticks, tickangle: -35 }, yaxis: { ...ticks, autorange: "reversed" }, margin: { l: 8, r: 8, t: 8, b: 8 } });
  };

  const plots = () => {
    plotSystems();
    plotCost("plot-usd", 3, "usd", "usd per 1,000 questions", 1000);
    plotCost("plot-seconds", 4, "seconds", "seconds", 1);
    plotCriteria();
    plotAgents();
    plotSimilarity();
  };

  trialTable();
  questionTable();
  const library = document.createElement("script");
  library.textContent = await unpack("plotly");
  document.head.append(library);
  plots();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plots);
  document.documentElement.dataset.drawn = "yes";
})();
