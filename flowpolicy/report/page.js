"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const root = document.documentElement;
  const ROWS = 100;

  // ---- small things ------------------------------------------------------------------------------------------------

  function make(tag, about = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(about)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") node.textContent = value;
      else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else if (name === "class") node.className = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const line = (index) => colour(`--c${index % 8}`);
  const faded = (index, alpha) => line(index) + Math.round(255 * alpha).toString(16).padStart(2, "0");
  const fixed = (value, digits) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

  function short(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  }

  function bytes(name) {
    const text = atob(document.getElementById(name).textContent);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  const urls = new Map();
  function film(name) {
    if (!urls.has(name)) urls.set(name, URL.createObjectURL(new Blob([bytes(name)], { type: "video/mp4" })));
    return urls.get(name);
  }

  // What is not yet in sight is not yet drawn.
  const waiting = new Map();
  const sight = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        sight.unobserve(entry.target);
        const draw = waiting.get(entry.target);
        waiting.delete(entry.target);
        draw();
      }
    },
    { rootMargin: "300px" },
  );
  function whenSeen(node, draw) {
    waiting.set(node, draw);
    sight.observe(node);
  }

  // ---- theme -------------------------------------------------------------------------------------------------------

  const plots = new Set();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function kept() {
    try {
      return localStorage.getItem("flowpolicy-theme");
    } catch {
      return null;
    }
  }
  function theme(name) {
    root.dataset.theme = name;
    for (const plot of plots) plot.redraw(false, true);
  }
  function toggle() {
    const name = root.dataset.theme === "dark" ? "light" : "dark";
    theme(name);
    try {
      localStorage.setItem("flowpolicy-theme", name);
    } catch {
      // a page that was opened from a file may keep nothing
    }
  }
  theme(kept() || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => kept() || theme(dark.matches ? "dark" : "light"));

  // ---- charts ------------------------------------------------------------------------------------------------------

  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const plot = entry.target.plot;
      const width = Math.floor(entry.contentRect.width);
      if (plot && width > 0 && width !== plot.width) plot.setSize({ width, height: plot.height });
    }
  });

  function plot(node, options, data) {
    const drawn = new uPlot({ padding: [8, 12, 0, 0], width: Math.max(200, Math.floor(node.clientWidth)), ...options }, data, node);
    node.plot = drawn;
    plots.add(drawn);
    resized.observe(node);
    return drawn;
  }
  function forget(node) {
    if (!node.plot) return;
    resized.unobserve(node);
    plots.delete(node.plot);
    node.plot.destroy();
    node.plot = null;
  }

  function axis(more = {}) {
    return {
      stroke: () => colour("--quiet"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
      values: (u, splits) => splits.map((value) => (value === null ? "" : short(value))),
      ...more,
    };
  }
  const yAxis = { size: 50, gap: 4, space: 30 };
  const xAxis = { size: 26, gap: 4, space: 60 };

  function legend(names) {
    return make(
      "div",
      { class: "keys" },
      ...names.map((name, index) => {
        const mark = make("i");
        mark.style.background = `var(--c${index % 8})`;
        return make("span", {}, mark, name);
      }),
    );
  }

  function chartOf(block) {
    const area = make("div", { class: "plot" });
    const node = make(
      "div",
      { class: "panel chart" },
      make("h3", { text: block.title }),
      make("p", { class: "about", text: [block.explanation, block.logY ? "Logarithmic." : ""].filter(Boolean).join(" ") }),
      area,
      block.xLabel ? make("div", { class: "keys", text: block.xLabel }) : null,
    );
    if (block.type === "histogram") {
      whenSeen(area, () => histogram(area, block));
    } else {
      if (block.lines.length > 1) node.append(legend(block.lines.map((one) => one.name)));
      whenSeen(area, () => curves(area, block));
    }
    return node;
  }

  function curves(area, block) {
    const series = [{}];
    const bands = [];
    const tables = [];
    block.lines.forEach((one, index) => {
      const columns = [one.x];
      const add = (values, about) => {
        columns.push(values);
        series.push({ spanGaps: true, ...about });
      };
      if (one.faint) add(one.faint, { stroke: () => faded(index, 0.3), width: 1, points: { show: false } });
      if (one.low) {
        add(one.high, { stroke: () => "transparent", points: { show: false } });
        add(one.low, { stroke: () => "transparent", points: { show: false } });
        bands.push({ series: [series.length - 2, series.length - 1], fill: () => faded(index, 0.18) });
      }
      add(one.y, {
        stroke: () => line(index),
        fill: undefined,
        width: 1.8,
        points: { show: block.points, size: 7, fill: () => line(index) },
      });
      tables.push(columns);
    });
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const xs = data[0];
    const scales = { x: { time: false, ...(block.logX ? { distr: 3, log: 2 } : {}) }, y: { distr: block.logY ? 3 : 1 } };
    if (block.logX) scales.x.range = (u, low, high) => [low / 1.25, high * 1.25];
    if (block.fromZero) scales.y.range = (u, low, high) => [0, block.to || high * 1.08 || 1];
    plot(
      area,
      {
        height: 190,
        scales,
        series,
        bands,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { size: 6 } },
        axes: [axis({ ...xAxis, ...(block.logX ? { splits: () => xs } : {}) }), axis(yAxis)],
        plugins: [reading(block.lines.map((one) => one.name))],
      },
      data,
    );
  }

  function histogram(area, block) {
    const edges = block.edges;
    const middles = block.counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
    plot(
      area,
      {
        height: 150,
        scales: { x: { time: false, range: () => [edges[0], edges[edges.length - 1]] }, y: { range: (u, low, high) => [0, high || 1] } },
        series: [
          {},
          {
            stroke: () => line(0),
            fill: () => faded(0, 0.55),
            width: 0,
            paths: uPlot.paths.bars({ size: [1, Infinity], gap: 1 }),
            points: { show: false },
          },
        ],
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        axes: [axis(xAxis), axis(yAxis)],
        plugins: [reading(["count"])],
      },
      [middles, block.counts],
    );
  }

  // The values below the pointer, in the title of the chart.
  function reading() {
    return {
      hooks: {
        setCursor: (u) => {
          const at = u.cursor.idx;
          const shown = [];
          if (at !== null && at !== undefined) {
            for (let i = 1; i < u.series.length; i++) {
              if (u.series[i].points.show !== false || u.series[i].width > 1 || u.series.length === 2) {
                if (u.data[i][at] !== null && u.data[i][at] !== undefined) shown.push(short(u.data[i][at]));
              }
            }
            shown.unshift(`${short(u.data[0][at])}:`);
          }
          u.root.parentNode.title = shown.slice(0, 9).join("  ");
        },
      },
    };
  }

  // ---- tables ------------------------------------------------------------------------------------------------------

  function grade(text) {
    const word = String(text).toLowerCase();
    if (/^(success|ok|resolved)/.test(word)) return word.startsWith("resolved") ? "" : "good";
    if (/^(failure|error)/.test(word)) return "bad";
    if (/^warning/.test(word)) return "warn";
    return "";
  }

  function domain(column, rows, place) {
    const cells = rows.map((row) => row[place]).filter((cell) => cell !== null && cell !== undefined);
    const ends = cells.flatMap((cell) => cell.filter((value) => value !== null));
    const low = ends.reduce((a, b) => Math.min(a, b), Infinity);
    const high = ends.reduce((a, b) => Math.max(a, b), -Infinity);
    if (column.unit === " %" && low >= 0 && high <= 100) return [0, 100];
    if (low < 0 && high > 0) return [-Math.max(-low, high), Math.max(-low, high)];
    return high > low ? [Math.min(0, low), Math.max(0, high)] : [low - 1, high + 1];
  }

  function cellOf(column, value, ends) {
    const node = make("td", { class: column.kind });
    if (value === null || value === undefined) {
      node.classList.add("none");
      node.textContent = "–";
      return node;
    }
    if (column.kind === "number") {
      const least = 10 ** -column.digits;
      node.textContent = column.name === "p" && value < least ? `< ${least}` : fixed(value, column.digits);
    }
    else if (column.kind === "interval") {
      const [mean, low, high] = value;
      const digits = column.digits;
      const sign = column.unit === " points" && mean > 0 ? "+" : "";
      node.append(make("span", { class: "mean", text: `${sign}${fixed(mean, digits)}${column.unit}` }));
      if (low !== null) node.append(make("span", { class: "ends", text: `[${fixed(low, digits)}, ${fixed(high, digits)}]` }));
      const place = (at) => `${Math.min(100, Math.max(0, (100 * (at - ends[0])) / (ends[1] - ends[0])))}%`;
      const range = make("span", { class: "range" });
      if (low !== null) {
        const band = make("i");
        band.style.left = place(low);
        band.style.right = `calc(100% - ${place(high)})`;
        range.append(band);
      }
      if (ends[0] < 0 && ends[1] > 0) {
        const zero = make("u");
        zero.style.left = place(0);
        range.append(zero);
      }
      const mark = make("b");
      mark.style.left = place(mean);
      range.append(mark);
      node.append(range);
    } else if (column.kind === "jump") {
      value.forEach(([name, step], index) => {
        if (index) node.append(" ");
        node.append(make("button", { class: "tool", text: `${name} @ ${step}`, on: { click: () => jump(name, step) } }));
      });
    } else {
      const mark = column.kind === "verdict" ? grade(value) : "";
      if (mark) node.classList.add(mark);
      if (String(value).length > 60) node.classList.add("wide");
      if (String(value).length < 48) node.classList.add("brief");
      node.textContent = value;
    }
    return node;
  }

  const plain = (value) => (Array.isArray(value) ? value.join(" ") : value === null || value === undefined ? "" : String(value));

  function compareCells(a, b, down) {
    const [x, y] = [Array.isArray(a) ? a[0] : a, Array.isArray(b) ? b[0] : b];
    const [left, right] = [x === null || x === undefined, y === null || y === undefined];
    if (left || right) return left - right; // what is missing comes last, either way
    const order = typeof x === "number" && typeof y === "number" ? x - y : plain(x).localeCompare(plain(y), "en", { numeric: true });
    return down ? -order : order;
  }

  // A table of rows {cells, ...}; ``keep`` chooses rows, ``pick`` is told of the one that was chosen.
  function grid(columns, rows, { keep = () => true, pick = null, pickable = () => false, filter = null, tools = [] } = {}) {
    const used = columns.map((_, place) => place).filter((place) => rows.some((row) => row.cells[place] !== null));
    const ends = new Map(
      used
        .filter((place) => columns[place].kind === "interval")
        .map((place) => [place, domain(columns[place], rows.map((row) => row.cells), place)]),
    );
    const search = make("input", { class: "filter", type: "search", placeholder: "Filter", "aria-label": "Filter rows" });
    const count = make("span", { class: "count", "aria-live": "polite" });
    const body = make("tbody");
    const head = make("tr");
    const more = make("button", { class: "tool more-rows", on: { click: () => ((shown += 10 * ROWS), draw()) } });
    let shown = ROWS;
    let sorted = null;
    let down = false;
    let visible = rows;
    for (const place of used) {
      const column = columns[place];
      const button = make("button", {
        text: column.name,
        title: column.help || null,
        on: {
          click: () => {
            down = sorted === place ? !down : column.kind === "interval" || column.kind === "number" ? sorted === place : false;
            sorted = place;
            for (const cell of head.children) cell.removeAttribute("aria-sort");
            button.parentNode.setAttribute("aria-sort", down ? "descending" : "ascending");
            update();
          },
        },
      });
      head.append(make("th", { class: column.kind, scope: "col" }, button));
    }
    const texts = new Map();
    const textOf = (row) => {
      if (!texts.has(row)) texts.set(row, row.cells.map(plain).join(" ").toLowerCase());
      return texts.get(row);
    };
    function update() {
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      visible = rows.filter((row) => keep(row) && wanted.every((word) => textOf(row).includes(word)));
      if (sorted !== null) visible = [...visible].sort((a, b) => compareCells(a.cells[sorted], b.cells[sorted], down));
      draw();
    }
    function draw() {
      body.replaceChildren(
        ...visible.slice(0, shown).map((row) => {
          const able = pickable(row);
          const node = make(
            "tr",
            able ? { class: "pick", tabindex: 0, "aria-selected": "false" } : {},
            ...used.map((place) => cellOf(columns[place], row.cells[place], ends.get(place))),
          );
          if (able) {
            node.addEventListener("click", () => pick(row));
            node.addEventListener("keydown", (event) => event.key === "Enter" && pick(row));
          }
          row.node = node;
          return node;
        }),
      );
      count.textContent = visible.length === rows.length ? `${rows.length.toLocaleString("en-US")} rows` : `${visible.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
      more.hidden = visible.length <= shown;
      more.textContent = `Show ${Math.min(10 * ROWS, visible.length - shown)} more`;
      none.hidden = visible.length > 0;
      filter?.(visible);
    }
    search.addEventListener("input", update);
    const none = make("p", { class: "empty", text: "Nothing fits the filter." });
    const bar = make("div", { class: "toolbar" }, ...tools, rows.length > 6 || tools.length ? search : null, count);
    const node = make(
      "div",
      {},
      rows.length > 6 || tools.length ? bar : null,
      make("div", { class: `panel scroll${rows.length > 12 ? " tall" : ""}` }, make("table", {}, make("thead", {}, head), body), none, more),
    );
    update();
    return { node, update, visible: () => visible, search };
  }

  // ---- episodes ----------------------------------------------------------------------------------------------------

  let player = null; // the one that keys speak to
  let jump = () => {};

  function traceOf(name) {
    const stored = JSON.parse(document.getElementById(name).textContent);
    const rows = stored.rows || Array.from({ length: stored.steps }, (_, i) => i);
    const groups = stored.groups.map((group) => {
      const raw = atob(group.data);
      const points = rows.length;
      const columns = group.low.map((low, dim) => {
        const scale = (group.high[dim] - low) / 65534;
        const values = new Array(points);
        for (let i = 0; i < points; i++) {
          const place = 2 * (dim * points + i);
          const step = raw.charCodeAt(place) + 256 * raw.charCodeAt(place + 1);
          values[i] = step === 65535 ? null : low + step * scale;
        }
        return values;
      });
      return { name: group.name, columns };
    });
    return { ...stored, rows, groups };
  }

  function episodesOf(block) {
    const rows = block.episodes;
    const able = (row) => row.film !== null || row.trace !== null;
    const filmed = rows.filter((row) => row.film !== null);
    const outcomes = new Set(rows.map((row) => row.outcome));
    let only = "";
    let chosen = null;
    let step = 0;
    let trace = null;
    let speed = 1;
    let marks = [];

    const MOST = 24;
    let most = MOST;
    const named = block.columns[0].name === "episode";
    for (const row of rows) {
      row.title = [row.cells[named ? 0 : 1], row.outcome].filter((part) => part !== "").join(", ");
      row.about = named ? row.title : `${row.cells[0]}: episode ${row.title}`;
    }

    const stage = make("div", { class: "panel player", hidden: !rows.some(able) });
    const gallery = make("div", { class: "gallery" });
    const buttons = new Map();
    const choices = [["", "All"]];
    if (outcomes.has("failure")) choices.push(["failure", "Failures"]);
    if (outcomes.has("success")) choices.push(["success", "Successes"]);
    if (filmed.length && filmed.length < rows.length) choices.push(["film", "Filmed"]);
    const flaggedAt = block.columns.findIndex((column) => column.name === "flagged");
    if (flaggedAt >= 0 && rows.some((row) => row.cells[flaggedAt] !== null)) choices.push(["flagged", "Flagged"]);
    const keep = (row) =>
      !only || (only === "film" ? row.film !== null : only === "flagged" ? row.cells[flaggedAt] !== null : row.outcome === only);
    function choose(which) {
      only = which;
      for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(name === which));
      table.update();
    }
    const tools = choices.length > 1 ? choices : [];
    for (const [which, text] of tools) {
      buttons.set(which, make("button", { class: "tool", text, "aria-pressed": String(which === ""), on: { click: () => choose(which) } }));
    }
    const table = grid(block.columns, rows, {
      keep,
      pick: (row) => (select(row), stage.scrollIntoView({ block: "nearest" })),
      pickable: able,
      filter: (visible) => {
        thumbs(visible.filter((row) => row.film !== null));
        mark();
      },
      tools: [...buttons.values()],
    });

    function thumbs(found) {
      const nodes = found.slice(0, most).map((row) => {
        if (!row.thumb) {
          const video = make("video", { muted: true, playsinline: true, preload: "metadata", tabindex: -1, "aria-hidden": "true" });
          video.muted = true;
          video.addEventListener("loadedmetadata", () => (video.currentTime = 0.6 * (video.duration || 0)), { once: true });
          const caption = make("span", { text: row.title });
          if (row.outcome) caption.className = row.outcome === "failure" ? "bad" : "good";
          row.thumb = make("button", { class: "thumb", "aria-pressed": "false", title: row.about, on: { click: () => select(row) } }, video, caption);
          whenSeen(row.thumb, () => (video.src = film(row.film)));
        }
        return row.thumb;
      });
      if (found.length > most) {
        nodes.push(make("button", { class: "tool", text: `${found.length - most} more`, on: { click: () => ((most += MOST), thumbs(found), mark()) } }));
      }
      gallery.replaceChildren(...nodes);
      gallery.hidden = found.length < 2;
    }
    function mark() {
      for (const row of rows) {
        const on = String(row === chosen);
        if (row.node && row.node.className === "pick") row.node.setAttribute("aria-selected", on);
        if (row.thumb) row.thumb.setAttribute("aria-pressed", on);
      }
    }

    const video = make("video", { controls: true, playsinline: true, muted: true, preload: "auto" });
    video.muted = true;
    const slider = make("input", { type: "range", min: 0, value: 0, "aria-label": "Step" });
    const now = make("span", { class: "now" });
    const title = make("h3");
    const speeds = [0.25, 0.5, 1, 2, 4].map((rate) =>
      make("button", { class: "tool", text: `${rate}×`, "aria-pressed": String(rate === 1), on: { click: () => pace(rate) } }),
    );
    const controls = make(
      "div",
      { class: "row" },
      make("button", { class: "tool", text: "◂ step", title: "one step back (←)", on: { click: () => seek(step - 1) } }),
      make("button", { class: "tool", text: "step ▸", title: "one step on (→)", on: { click: () => seek(step + 1) } }),
      ...speeds,
      now,
    );
    const traces = make("div", { class: "traces" });
    const seamNote = make("p", { class: "caption seams" });
    const left = make("div", { class: "stage" }, title, video, slider, controls, seamNote);
    stage.append(left, traces);

    function pace(rate) {
      speed = rate;
      video.playbackRate = rate;
      speeds.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === `${rate}×`)));
    }
    function move(to, told = true) {
      step = Math.max(0, Math.min(to, trace ? trace.steps - 1 : Math.max(0, to)));
      for (const each of marks) each(step);
      now.textContent = trace ? `step ${step} of ${trace.steps}` : video.duration ? `${video.currentTime.toFixed(2)} s` : "";
      if (told) slider.value = step;
    }
    function seek(to) {
      move(to);
      if (chosen?.film) {
        video.pause();
        video.currentTime = (step + 0.5) / (trace ? trace.rate : 20);
      }
    }
    function follow() {
      if (chosen?.film) move(Math.floor(video.currentTime * (trace ? trace.rate : 20) + 1e-6));
    }
    function tick() {
      follow();
      if (!video.paused && !video.ended) requestAnimationFrame(tick);
    }
    video.addEventListener("play", tick);
    for (const event of ["seeked", "timeupdate", "loadedmetadata"]) video.addEventListener(event, follow);
    slider.addEventListener("input", () => seek(Number(slider.value)));

    function select(row, at = null) {
      if (!row || !able(row)) return;
      chosen = row;
      for (const area of traces.querySelectorAll(".plot")) forget(area);
      traces.replaceChildren();
      marks = [];
      trace = row.trace === null ? null : traceOf(row.trace);
      title.replaceChildren(make("span", { text: row.about }));
      if (row.outcome) title.firstChild.className = row.outcome === "failure" ? "bad" : "good";
      video.hidden = row.film === null;
      slider.hidden = row.film !== null || !trace;
      speeds.forEach((button) => (button.hidden = row.film === null));
      stage.classList.toggle("alone", row.film === null || !trace);
      if (row.film !== null) {
        video.src = film(row.film);
        video.playbackRate = speed;
        if (at !== null) video.addEventListener("loadedmetadata", () => seek(at), { once: true });
      } else {
        video.pause();
        video.removeAttribute("src");
      }
      if (trace) {
        slider.max = trace.steps - 1;
        trace.groups.forEach((group) => traces.append(traceNode(group, trace)));
      } else if (row.film !== null) {
        traces.append(make("p", { class: "empty", text: "No trace was recorded beside this video; videos that flowpolicy eval records now have one." }));
        stage.classList.remove("alone");
      }
      const said = [];
      if (trace?.decisions.length > 1) said.push("Dashed lines are seams of chunks, where the policy decided anew; too many are not drawn. Click a trace to go there.");
      for (const [where, what] of (trace?.flags || []).slice(0, 3)) said.push(`${what} at step ${where}.`);
      seamNote.textContent = said.join(" ");
      move(at ?? 0);
      mark();
    }

    function traceNode(group, trace) {
      const area = make("div", { class: "plot" });
      const many = group.columns.length;
      const values = group.columns.map((_, dim) => make("b"));
      const keys = make("div", { class: "keys" });
      group.columns.slice(0, 12).forEach((_, dim) => {
        const square = make("i");
        square.style.background = `var(--c${dim % 8})`;
        keys.append(make("span", {}, square, many > 1 ? `${dim} ` : "", values[dim]));
      });
      if (many > 12) keys.append(make("span", { text: `and ${many - 12} more` }));
      const node = make("div", { class: "trace" }, make("div", { class: "head" }, make("h3", { text: group.name }), keys), area);
      const here = make("div", { class: "here" });
      const draw = () => {
        if (!area.isConnected || area.plot) return;
        const drawn = plot(
          area,
          {
            height: 118,
            scales: { x: { time: false, range: () => [0, Math.max(1, trace.steps - 1)] } },
            series: [{}, ...group.columns.map((_, dim) => ({ stroke: () => line(dim), width: 1.4, points: { show: false } }))],
            legend: { show: false },
            cursor: { show: false, drag: { x: false, y: false } },
            axes: [axis(xAxis), axis(yAxis)],
            hooks: { drawClear: [(u) => seams(u, trace)] },
          },
          [trace.rows, ...group.columns],
        );
        drawn.over.append(here);
        const at = (event) => {
          const box = drawn.over.getBoundingClientRect();
          seek(Math.round(drawn.posToVal(event.clientX - box.left, "x")));
        };
        drawn.over.addEventListener("pointerdown", (event) => (drawn.over.setPointerCapture(event.pointerId), at(event)));
        drawn.over.addEventListener("pointermove", (event) => event.buttons && at(event));
        drawn.hooks.setSize = [...(drawn.hooks.setSize || []), () => show(step)];
        show(step);
      };
      function show(to) {
        const row = nearest(trace.rows, to);
        values.forEach((value, dim) => (value.textContent = short(group.columns[dim][row])));
        if (area.plot) here.style.transform = `translateX(${area.plot.valToPos(to, "x")}px)`;
      }
      marks.push(show);
      whenSeen(area, draw);
      return node;
    }

    function play() {
      if (chosen?.film) video.paused ? video.play() : video.pause();
    }
    function next(by) {
      const list = table.visible().filter(able);
      const place = list.indexOf(chosen);
      select(list[Math.max(0, Math.min(list.length - 1, place + by))]);
    }
    player = {
      play,
      next,
      by: (steps) => seek(step + steps),
      faster: (by) => {
        const rates = [0.25, 0.5, 1, 2, 4];
        pace(rates[Math.max(0, Math.min(4, rates.indexOf(speed) + by))]);
      },
      failures: () => buttons.has("failure") && choose(only === "failure" ? "" : "failure"),
      search: table.search,
    };
    jump = (name, at) => {
      const row = rows.find((one) => one.cells[0] === name);
      if (!row) return;
      if (able(row)) {
        select(row, at);
        stage.scrollIntoView({ block: "center" });
      } else {
        table.search.value = name;
        table.update();
        table.node.scrollIntoView({ block: "center" });
      }
    };
    select(filmed.find((row) => row.outcome === "failure") || filmed[0] || rows.find(able));
    return make("div", {}, stage, gallery, block.hint ? make("p", { class: "note block", text: block.hint }) : null, make("div", { class: "block" }, table.node));
  }

  function nearest(rows, step) {
    let low = 0;
    let high = rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (rows[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  function seams(u, trace) {
    const { ctx } = u;
    const { top, height } = u.bbox;
    const stroke = (at) => {
      const x = Math.round(u.valToPos(at, "x", true)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
    };
    ctx.save();
    ctx.lineWidth = devicePixelRatio;
    ctx.strokeStyle = colour("--seam");
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    const dense = (u.bbox.width / devicePixelRatio) / trace.decisions.length < 5;
    if (trace.decisions.length > 1 && !dense) for (const at of trace.decisions) stroke(at);
    ctx.setLineDash([]);
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.strokeStyle = colour("--warn");
    for (const [at] of trace.flags) stroke(at);
    ctx.restore();
  }

  // ---- the page ----------------------------------------------------------------------------------------------------

  const blocks = {
    tiles: (block) =>
      make(
        "div",
        { class: "tiles" },
        ...block.tiles.map(([label, value, more]) =>
          make("div", { class: "tile" }, make("div", { class: "label", text: label }), make("div", { class: "value", text: value }), make("div", { class: "more", text: more })),
        ),
      ),
    words: (block) =>
      make("div", { class: "panel words" }, block.title ? make("h3", { text: block.title }) : null, ...block.lines.map((text) => make("p", { text }))),
    notes: (block) => make("div", { class: "remark" }, ...block.lines.map((text) => make("p", { text }))),
    facts: (block) => make("dl", { class: "panel facts" }, ...block.pairs.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })])),
    table: (block) =>
      make(
        "div",
        {},
        block.caption ? make("p", { class: "caption", text: block.caption }) : null,
        block.rows.length ? grid(block.columns, block.rows.map((cells) => ({ cells }))).node : make("p", { class: "panel empty", text: block.empty }),
      ),
    charts: (block) => make("div", { class: "charts" }, ...block.charts.map(chartOf)),
    pictures: (block) =>
      make(
        "div",
        {},
        make("p", { class: "caption", text: block.caption }),
        make(
          "div",
          { class: "panel strips" },
          ...block.rows.map(([title, sources]) =>
            make("div", { class: "strip" }, make("p", { class: "caption", text: title }), make("div", { class: "row" }, ...sources.map((src) => make("img", { src, alt: title, loading: "lazy" })))),
          ),
        ),
      ),
    episodes: episodesOf,
  };

  const KEYS = [
    ["space", "play or pause"],
    ["← →", "one step back or on"],
    ["j k", "next or previous episode"],
    ["[ ]", "slower or faster"],
    ["f", "failures only"],
    ["/", "filter episodes"],
    ["t", "light or dark"],
    ["?", "this list"],
  ];
  const help = make(
    "dialog",
    { "aria-label": "Keys" },
    make("h2", { text: "Keys" }),
    make("table", {}, ...KEYS.map(([key, what]) => make("tr", {}, make("td", {}, make("kbd", { text: key })), make("td", { text: what })))),
  );
  help.addEventListener("click", () => help.close());

  const main = make("main");
  const nav = make("nav", { "aria-label": "Sections" });
  for (const section of facts.sections) {
    nav.append(make("a", { href: `#${section.id}`, text: section.title }));
    main.append(
      make(
        "section",
        { id: section.id },
        make("h2", { text: section.title }),
        section.note ? make("p", { class: "note", text: section.note }) : null,
        ...section.blocks.map((block) => make("div", { class: "block" }, blocks[block.type](block))),
      ),
    );
  }
  const { made } = facts;
  document.body.prepend(
    make(
      "div",
      { class: "bar" },
      make(
        "div",
        {},
        nav,
        make("button", { class: "tool", text: "?", title: "Keys", on: { click: () => help.showModal() } }),
        make("button", { class: "tool", id: "theme", text: "◐", title: "Light or dark (t)", "aria-label": "Light or dark", on: { click: toggle } }),
      ),
    ),
    make("header", { class: "top" }, make("h1", { text: facts.title }), make("p", { text: facts.subtitle })),
    main,
    make(
      "footer",
      {},
      make("div", { text: [`flowpolicy ${made.version}`, made.commit && `commit ${made.commit.slice(0, 10)}`, made.when].filter(Boolean).join(", ") }),
      made.command ? make("code", { text: made.command }) : null,
    ),
    help,
  );

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.matches?.("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const acts = {
      " ": () => player?.play(),
      ArrowLeft: () => player?.by(-1),
      ArrowRight: () => player?.by(1),
      j: () => player?.next(1),
      k: () => player?.next(-1),
      "[": () => player?.faster(-1),
      "]": () => player?.faster(1),
      f: () => player?.failures(),
      "/": () => player?.search.focus(),
      t: toggle,
      "?": () => help.showModal(),
    };
    const act = acts[event.key];
    if (!act || (event.key === " " && event.target.matches?.("button, video, a"))) return;
    event.preventDefault();
    act();
  });
})();
