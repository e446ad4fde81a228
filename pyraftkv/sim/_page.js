"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const picture = $("picture"), plot = $("plot"), list = $("list"), rowsBox = $("rows"), tip = $("tip");
  const ROW = 18, LABEL = 11, SCALE_MAX = 50000, ZOOM = 1.35;
  const height = Number(plot.getAttribute("height")), seconds = data.seconds;
  const hidden = { kinds: new Set(), hosts: new Set() };
  let scale = data.scale, rows = [], word = "", lit = -1, driver = picture;

  // --- Time: everything in a layer is moved, not drawn anew ---

  const parts = [];
  for (const el of plot.querySelectorAll(".layer > *")) {
    const number = (name) => Number(el.getAttribute(name));
    if (el.tagName === "line") parts.push({ el, kind: 0, a: number("y1") - data.pad, b: number("y2") - data.pad });
    else if (el.tagName === "rect") parts.push({ el, kind: 1, a: number("y") - data.pad, b: number("height") });
    else {
      const [, x, y] = /translate\(([^,]+),([^)]+)\)/.exec(el.getAttribute("transform"));
      parts.push({ el, kind: 2, x, a: Number(y) - data.pad });
    }
  }
  const labels = parts.filter((part) => part.el.dataset.lane !== undefined).sort((one, other) => one.a - other.a);
  const axis = plot.querySelector(".layer.axes"), axisWidth = plot.getAttribute("width");
  const bottom = height - 2 * data.pad - seconds * data.scale;
  const yOf = (at) => data.pad + (at - data.since) * scale;
  const atOf = (y) => data.since + (y - data.pad) / scale;

  function stretch() {
    const k = scale / data.scale;
    for (const { el, kind, x, a, b } of parts) {
      if (kind === 0) { el.setAttribute("y1", data.pad + a * k); el.setAttribute("y2", data.pad + b * k); }
      else if (kind === 1) { el.setAttribute("y", data.pad + a * k); el.setAttribute("height", Math.max(1.5, b * k)); }
      else el.setAttribute("transform", `translate(${x},${data.pad + a * k})`);
    }
    plot.setAttribute("height", bottom + 2 * data.pad + seconds * scale);
    $("scale").value = scale >= 1000 ? `${(scale / 1000).toFixed(1)} px/ms` : `${scale.toFixed(0)} px/s`;
    declutter();
    drawAxis();
  }

  function shown(el) {
    for (const name of el.classList) {
      if (name.startsWith("k-") && hidden.kinds.has(name.slice(2))) return false;
      if (name.startsWith("h-") && hidden.hosts.has(Number(name.slice(2)))) return false;
    }
    return true;
  }

  function declutter() {
    const k = scale / data.scale, lanes = new Map();
    for (const part of labels) {
      if (!shown(part.el)) continue;
      const lane = part.el.dataset.lane;
      if (!lanes.has(lane)) lanes.set(lane, []);
      lanes.get(lane).push(part);
    }
    for (const all of lanes.values()) {  // as `declutter` in svg.py
      const firm = all.filter((part) => part.el.dataset.want === "always").map((part) => part.a * k);
      let last = -Infinity;
      all.forEach((part, i) => {
        const y = part.a * k, want = part.el.dataset.want;
        let fits = true;
        if (want === "alone") {
          const after = i + 1 < all.length ? all[i + 1].a * k : Infinity;
          fits = Math.min(y - last, after - y) >= 2 * LABEL;
          last = y;
        } else if (want !== "always") {
          fits = Math.min(y - last, ...firm.map((each) => Math.abs(each - y))) >= LABEL;
          if (fits) last = y;
        }
        part.el.classList.toggle("x", !fits);
      });
    }
  }

  function drawAxis() {
    const steps = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
    const step = steps.find((each) => each * scale >= 45) || 5, digits = Math.max(1, Math.ceil(-Math.log10(step) - 1e-9));
    const from = Math.max(data.since, atOf(picture.scrollTop - 500));
    const until = Math.min(data.since + seconds, atOf(picture.scrollTop + picture.clientHeight + 500));
    let text = "";
    for (let i = Math.ceil(from / step - 1e-9); i * step <= until + 1e-9; i++) {
      text += `<g class="tick" transform="translate(0,${yOf(i * step)})"><line x1="58" x2="${axisWidth}"/>` +
        `<text x="54" y="3.5" text-anchor="end">${(i * step).toFixed(digits)}</text></g>`;
    }
    axis.innerHTML = text;
  }

  function zoom(to, y = picture.clientHeight / 2) {
    const at = atOf(picture.scrollTop + y - HEAD);
    scale = Math.min(SCALE_MAX, Math.max(picture.clientHeight / seconds / 1.5, to));
    stretch();
    picture.scrollTop = yOf(at) - y + HEAD;
  }
  const HEAD = $("head").getBoundingClientRect().height;
  const goTo = (at) => { picture.scrollTop = yOf(at) + HEAD - picture.clientHeight / 2; follow(); };

  // --- The list: only what is visible exists ---

  function refilter() {
    let css = "";
    for (const kind of hidden.kinds) css += `#plot .k-${CSS.escape(kind)}{display:none}`;
    for (const host of hidden.hosts) css += `#plot .h-${host}{display:none}`;
    $("filters").textContent = css;
    for (const name of document.querySelectorAll("#head .host"))
      name.classList.toggle("off", hidden.hosts.has(Number(name.dataset.h)));
    const needle = word.toLowerCase();
    rows = [];
    const hits = new Set();
    data.rows.forEach(([at, kind, hosts, text], i) => {
      if (hidden.kinds.has(kind) || hosts.some((host) => hidden.hosts.has(host))) return;
      if (needle && !`${at.toFixed(6)} ${where(hosts)} ${text}`.toLowerCase().includes(needle)) return;
      hits.add(i);
      rows.push(i);
    });
    plot.classList.toggle("finding", needle !== "");
    for (const { el } of parts)
      if (el.dataset.e !== undefined) el.classList.toggle("hit", needle !== "" && hits.has(Number(el.dataset.e)));
    $("found").value = `${rows.length.toLocaleString("en")} events`;
    rowsBox.style.height = `${rows.length * ROW}px`;
    declutter();
    fill();
  }

  const where = (hosts) => hosts.map((host) => data.hosts[host]).join(" → ");

  function fill() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 10);
    const end = Math.min(rows.length, first + Math.ceil(list.clientHeight / ROW) + 20);
    rowsBox.textContent = "";
    for (let place = first; place < end; place++) {
      const [at, kind, hosts, text, fate] = data.rows[rows[place]];
      const row = document.createElement("div");
      row.className = `row k-${kind} ${fate}${rows[place] === lit ? " lit" : ""}`;
      row.style.top = `${place * ROW}px`;
      row.dataset.e = rows[place];
      const time = document.createElement("b"), host = document.createElement("u");
      time.textContent = `${at.toFixed(4).padStart(9)}  `;
      host.textContent = `${where(hosts).padEnd(8)}  `;
      row.append(time, host, text);
      rowsBox.append(row);
    }
  }

  const placeOf = (at) => {
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.rows[rows[middle]][0] < at) low = middle + 1; else high = middle;
    }
    return low;
  };

  /** How far down a pane is, from 0 to 1. The same share of its height is what both panes agree on. */
  const share = (pane) => pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);

  /** Bring the list to where the picture is. */
  function follow() {
    const part = share(picture), at = atOf(picture.scrollTop + part * picture.clientHeight - HEAD * (1 - part));
    list.scrollTop = placeOf(at) * ROW - part * list.clientHeight;
    fill();
  }

  /** Bring the picture to where the list is. */
  function lead() {
    const part = share(list), place = Math.floor((list.scrollTop + part * list.clientHeight) / ROW);
    const row = rows[Math.min(rows.length - 1, place)];
    if (row !== undefined) picture.scrollTop = yOf(data.rows[row][0]) + HEAD - part * picture.clientHeight;
  }

  function light(event, { reveal = false, jump = false } = {}) {
    for (const el of plot.querySelectorAll(".lit")) el.classList.remove("lit");
    lit = event;
    if (event >= 0) for (const el of plot.querySelectorAll(`[data-e="${event}"]`)) el.classList.add("lit");
    if (event >= 0 && jump) picture.scrollTop = yOf(data.rows[event][0]) + HEAD - picture.clientHeight / 2;
    const place = rows.indexOf(event);
    if (reveal && place >= 0) list.scrollTop = place * ROW - list.clientHeight / 2;
    fill();
  }

  // --- What the reader does ---

  for (const pane of [picture, list]) {
    pane.addEventListener("pointerenter", () => { driver = pane; });
    pane.addEventListener("scroll", () => {
      if (pane === list) fill(); else drawAxis();
      if (pane === driver) (pane === list ? lead : follow)();
    });
  }
  const eventAt = (target) => {
    const el = target.closest("[data-e]");
    return el === null ? -1 : Number(el.dataset.e);
  };
  picture.addEventListener("pointermove", ({ target, clientX, clientY }) => {
    const event = eventAt(target);
    tip.hidden = event < 0;
    if (event < 0) return;
    const [at, , hosts, text] = data.rows[event];
    tip.textContent = `${at.toFixed(6)}  ${where(hosts)}\n${text}`;
    tip.style.left = `${Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
  });
  picture.addEventListener("pointerleave", () => { tip.hidden = true; });
  picture.addEventListener("click", ({ target }) => {
    if (target.dataset.h !== undefined) {
      const host = Number(target.dataset.h);
      if (!hidden.hosts.delete(host)) hidden.hosts.add(host);
      refilter();
    } else light(eventAt(target), { reveal: true });
  });
  picture.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const y = event.clientY - picture.getBoundingClientRect().top;
    zoom(scale * (event.deltaY < 0 ? ZOOM : 1 / ZOOM), y);
  }, { passive: false });
  let held = null;
  picture.addEventListener("pointerdown", ({ button, clientX, clientY }) => {
    if (button === 0) held = { x: clientX + picture.scrollLeft, y: clientY + picture.scrollTop };
  });
  addEventListener("pointermove", ({ clientX, clientY }) => {
    if (held === null) return;
    picture.classList.add("held");
    picture.scrollLeft = held.x - clientX;
    picture.scrollTop = held.y - clientY;
  });
  addEventListener("pointerup", () => { held = null; picture.classList.remove("held"); });
  list.addEventListener("pointerover", ({ target }) => { const e = eventAt(target); if (e >= 0 && e !== lit) light(e); });
  list.addEventListener("click", ({ target }) => { const e = eventAt(target); if (e >= 0) light(e, { jump: true }); });
  for (const box of document.querySelectorAll("nav input")) {
    const apply = () => { hidden.kinds[box.checked ? "delete" : "add"](box.dataset.k); };
    apply();
    box.addEventListener("change", () => { apply(); refilter(); });
  }
  for (const item of document.querySelectorAll("li[data-t]"))
    item.addEventListener("click", (event) => { event.preventDefault(); goTo(Number(item.dataset.t)); });
  $("search").addEventListener("input", ({ target }) => { word = target.value.trim(); refilter(); });
  $("in").addEventListener("click", () => zoom(scale * ZOOM));
  $("out").addEventListener("click", () => zoom(scale / ZOOM));
  $("fit").addEventListener("click", () => zoom((picture.clientHeight - HEAD - bottom - 2 * data.pad) / seconds));
  $("focus").addEventListener("click", () => goTo(data.focus));
  for (const button of document.querySelectorAll("[data-go]"))
    button.addEventListener("click", () => goTo(Number(button.dataset.go)));
  addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" && event.target.type === "search") {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "+" || event.key === "=") zoom(scale * ZOOM);
    else if (event.key === "-") zoom(scale / ZOOM);
    else if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  });
  addEventListener("resize", fill);

  refilter();
  stretch();
  const [, at, wanted] = /^#([\d.]+)(?:@([\d.]+))?$/.exec(location.hash) || [];  // #seconds@scale
  if (wanted !== undefined) zoom(Number(wanted));
  goTo(at === undefined ? data.focus : Number(at));
})();
