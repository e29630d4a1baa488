"use strict";
(() => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const svg = "http://www.w3.org/2000/svg";
  const sources = new Map(all("script[data-case]").map((script) => [script.dataset.case, script]));
  const patients = [...sources.keys()];
  const viewer = find("#viewer"), slider = find("#slice"), choice = find("#patient");
  const scan = find("#scan"), map = find("#map"), truth = all("#picture .truth"), predicted = all("#picture .predicted");
  const view = find("#target"); // selects the target to show; null if there is only one
  const targets = all("[data-target]").map((box) => box.parentElement.textContent.trim());
  const word = {{ word | tojson }}; // name of the only target
  let shown = null; // parsed data of the current patient

  // --- one patient, one slice ---------------------------------------------------------------------------------------

  function open(name) {
    // A dot in a plot has the id of a patient, who may have several cases.
    const patient = sources.has(name) ? name : all("script[data-case]").find((one) => one.dataset.patient === name).dataset.case;
    shown = JSON.parse(sources.get(patient).textContent);
    const [height, width] = shown.size;
    find("#picture").setAttribute("viewBox", `0 0 ${2 * width} ${2 * height}`);
    for (const image of [scan, map]) {
      image.setAttribute("width", 2 * width);
      image.setAttribute("height", 2 * height);
      image.setAttribute("preserveAspectRatio", "none");
    }
    choice.value = patient;
    find("#previous").disabled = patient === patients[0];
    find("#next").disabled = patient === patients[patients.length - 1];
    slider.max = shown.numbers.length - 1;
    for (const thumb of all(".thumb")) {
      if (thumb.dataset.patient === patient) thumb.setAttribute("aria-current", "true");
      else thumb.removeAttribute("aria-current");
    }
    fillFigures(patient);
    drawProfile();
    turnTo(shown.first);
  }

  function turnTo(slice) {
    slider.value = slice;
    const k = Number(slider.value); // limited to the range of the slider
    show(scan, checked("scan") && shown.scan ? shown.scan[k] : "");
    const kind = find("input[name=map]:checked")?.value;
    const overlay = shown.overlays[run()];
    const maps = kind === "probability" ? overlay[kind]?.[Number(find("#map-target")?.value ?? 0)] : overlay[kind];
    show(map, maps ? maps[k] : "");
    map.setAttribute("opacity", kind === "attention" ? 0.55 : 1);
    truth.forEach((path, t) => path.setAttribute("d", checked("truth") && selected(t) ? shown.truth[t].paths[k] : ""));
    predicted.forEach((path, i) => {
      const on = view ? checked("predicted") && selected(i) : checked(`run${i}`);
      path.setAttribute("d", on ? masks(i).paths[k] : "");
    });
    const words = `Slice ${shown.numbers[k]}, ${k + 1} of ${shown.numbers.length}. ${areas(k)}`;
    find("#position").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    find("#picture").setAttribute("aria-label", `${shown.name}. ${words}`);
    const x = shown.numbers.length > 1 ? (100 * k) / (shown.numbers.length - 1) : 50;
    find("#profile .here").setAttribute("d", `M${x} 0V100`);
  }

  // The run that the maps, and the outlines of several targets, come from.
  function run() {
    return Number(find("#of")?.value ?? 0);
  }

  // The i-th predicted outline: the i-th run if there is one target, else the i-th target.
  function masks(i) {
    return view ? shown.overlays[run()].masks[i] : shown.overlays[i].masks[0];
  }

  function selected(target) {
    return !view || find(`[data-target="${target}"]`).checked;
  }

  function areas(k) {
    const pixels = (outlines) => outlines.areas[k].toLocaleString("en");
    if (!view) {
      const predictions = shown.overlays.map((overlay) => pixels(overlay.masks[0]));
      return `${word}: ${pixels(shown.truth[0])} pixels in the reference, ${predictions.join(" / ")} predicted`;
    }
    const each = targets.map((name, t) => selected(t) ? `${name} ${pixels(shown.truth[t])} / ${pixels(masks(t))}` : "");
    return `Pixels in reference / prediction: ${each.filter((text) => text).join(", ") || "no target selected"}`;
  }

  function checked(layer) {
    const box = find(`[data-layer=${layer}]`);
    return box ? box.checked : false;
  }

  function show(image, base64) {
    if (base64) image.setAttribute("href", `data:image/webp;base64,${base64}`);
    else image.removeAttribute("href");
  }

  function fillFigures(patient) {
    const table = view ? find(`[data-view="${view.value}"] table.patients`) : find("table.patients");
    const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
    const cells = [...[...table.tBodies[0].rows].find((row) => row.dataset.patient === patient).cells];
    find("#figures").replaceChildren(...cells.slice(1).map((cell, i) => {
      const pair = document.createElement("div");
      const term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = heads[i + 1];
      value.textContent = cell.textContent.trim();
      pair.append(term, value);
      return pair;
    }));
  }

  // Area by slice of reference and prediction: shows where the prediction is too large or too small.
  function drawProfile() {
    const lines = [];
    truth.forEach((path, t) => selected(t) && lines.push([path.getAttribute("class"), shown.truth[t].areas]));
    predicted.forEach((path, i) => (!view || selected(i)) && lines.push([path.getAttribute("class"), masks(i).areas]));
    const maximum = Math.max(1, ...lines.flatMap(([, areas]) => areas));
    const last = Math.max(1, shown.numbers.length - 1);
    const paths = lines.map(([kind, areas]) => {
      const line = areas.map((area, k) => `${(100 * k) / last} ${97 - (92 * area) / maximum}`).join("L");
      return draw(kind, kind.startsWith("truth") ? `M0 97L${line}L100 97` : `M${line}`);
    });
    find("#profile").setAttribute("viewBox", "0 0 100 100");
    find("#profile").replaceChildren(...paths, draw("here", ""));
  }

  function draw(kind, d) {
    const path = document.createElementNS(svg, "path");
    path.setAttribute("class", kind);
    path.setAttribute("d", d);
    return path;
  }

  function step(by) {
    turnTo(Number(slider.value) + by);
  }

  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
  viewer.addEventListener("keydown", (event) => {
    const handled = event.target.matches("select, input[type=radio]") || event.target === slider;
    if (handled || !(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return; // the element handles these keys
    event.preventDefault();
    step(steps[event.key]);
  });
  slider.addEventListener("input", () => turnTo(slider.value));
  viewer.addEventListener("change", (event) => {
    if (event.target === choice) {
      open(choice.value);
    } else {
      drawProfile();
      step(0);
    }
  });
  find("#profile").addEventListener("click", (event) => {
    const box = find("#profile").getBoundingClientRect();
    turnTo(Math.round(((event.clientX - box.left) / box.width) * (shown.numbers.length - 1)));
  });
  find("#previous").addEventListener("click", () => open(patients[patients.indexOf(shown.name) - 1]));
  find("#next").addEventListener("click", () => open(patients[patients.indexOf(shown.name) + 1]));
  for (const link of all(".thumb, .open, .mark")) {
    link.addEventListener("click", () => {
      open(link.dataset.patient);
      viewer.focus({ preventScroll: true });
      find("#pictures").scrollIntoView();
    });
  }

  // --- several targets ----------------------------------------------------------------------------------------------

  // Option 0 is the mean over the targets and shows all outlines; the other options are single targets.
  function choose() {
    const target = Number(view.value) - 1;
    for (const part of all("[data-view]")) part.hidden = part.dataset.view !== view.value;
    for (const box of all("[data-target]")) box.checked = target < 0 || Number(box.dataset.target) === target;
    if (target >= 0 && find("#map-target")) find("#map-target").value = target;
  }

  view?.addEventListener("change", () => {
    choose();
    fillFigures(shown.name);
    drawProfile();
    step(0);
  });

  // --- the tables ---------------------------------------------------------------------------------------------------

  for (const table of all("table.patients")) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
      const numeric = rows.every(([value]) => value === "" || !Number.isNaN(Number(value)));
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // undefined values come last in both orders
        return (down ? -1 : 1) * (numeric ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    }));
  }
  find("#filter").addEventListener("input", (event) => {
    const query = event.target.value.trim().toLowerCase();
    const rows = all("table.patients").map((table) => [...table.tBodies[0].rows]);
    for (const row of rows.flat()) row.hidden = !row.textContent.toLowerCase().includes(query);
    const visible = rows[view ? Number(view.value) : 0].filter((row) => !row.hidden);
    find("#shown").textContent = `${visible.length} of ${rows[0].length}`;
  });

  viewer.hidden = false;
  if (view) {
    find("#choice").hidden = false;
    choose();
  }
  open(patients[0]);
})();
