"use strict";
(() => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const svg = "http://www.w3.org/2000/svg";
  const sources = new Map(all("script[data-case]").map((script) => [script.dataset.case, script]));
  const patients = [...sources.keys()];
  const viewer = find("#viewer"), slider = find("#slice"), choice = find("#patient");
  const flair = find("#flair"), map = find("#map"), truth = find("#truth"), predicted = all("#picture .predicted");
  let shown = null; // what is parsed of the patient in view

  // --- one patient, one slice ---------------------------------------------------------------------------------------

  function open(patient) {
    shown = JSON.parse(sources.get(patient).textContent);
    const [height, width] = shown.size;
    find("#picture").setAttribute("viewBox", `0 0 ${2 * width} ${2 * height}`);
    for (const image of [flair, map]) {
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
    tell(patient);
    drawProfile();
    turnTo(shown.first);
  }

  function turnTo(slice) {
    slider.value = slice;
    const k = Number(slider.value); // within the slices there are
    show(flair, checked("flair") && shown.flair ? shown.flair[k] : "");
    const kind = find("input[name=map]:checked")?.value;
    const of = shown.overlays[Number(find("#of")?.value ?? 0)];
    show(map, kind && of[kind] ? of[kind][k] : "");
    map.setAttribute("opacity", kind === "attention" ? 0.55 : 1);
    truth.setAttribute("d", checked("truth") ? shown.truth.paths[k] : "");
    predicted.forEach((path, r) => path.setAttribute("d", checked(`run${r}`) ? shown.overlays[r].mask.paths[k] : ""));
    const areas = shown.overlays.map((overlay) => overlay.mask.areas[k].toLocaleString("en"));
    const words = `Slice ${shown.numbers[k]}, ${k + 1} of ${shown.numbers.length}. Tumor: ` +
      `${shown.truth.areas[k].toLocaleString("en")} pixels true, ${areas.join(" / ")} predicted`;
    find("#position").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    find("#picture").setAttribute("aria-label", `${shown.patient}. ${words}`);
    const at = shown.numbers.length > 1 ? (100 * k) / (shown.numbers.length - 1) : 50;
    find("#profile .here").setAttribute("d", `M${at} 0V100`);
  }

  function checked(layer) {
    const box = find(`[data-layer=${layer}]`);
    return box ? box.checked : false;
  }

  function show(image, base64) {
    if (base64) image.setAttribute("href", `data:image/webp;base64,${base64}`);
    else image.removeAttribute("href");
  }

  function tell(patient) {
    const heads = all("#table thead th").map((head) => head.textContent.trim());
    const cells = [...all("#table tbody tr").find((row) => row.dataset.patient === patient).cells];
    find("#figures").replaceChildren(...cells.slice(1).map((cell, i) => {
      const pair = document.createElement("div");
      const term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = heads[i + 1];
      value.textContent = cell.textContent.trim();
      pair.append(term, value);
      return pair;
    }));
  }

  // Area by slice: where the tumor is, and where the prediction has too much or too little.
  function drawProfile() {
    const lines = [["truth", shown.truth.areas]];
    shown.overlays.forEach((overlay, r) => lines.push([`predicted run${r}`, overlay.mask.areas]));
    const most = Math.max(1, ...lines.flatMap(([, areas]) => areas));
    const last = Math.max(1, shown.numbers.length - 1);
    const paths = lines.map(([kind, areas]) => {
      const line = areas.map((area, k) => `${(100 * k) / last} ${97 - (92 * area) / most}`).join("L");
      return draw(kind, kind === "truth" ? `M0 97L${line}L100 97` : `M${line}`);
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
    const own = event.target.matches("select, input[type=radio]") || event.target === slider;
    if (own || !(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return; // theirs already
    event.preventDefault();
    step(steps[event.key]);
  });
  slider.addEventListener("input", () => turnTo(slider.value));
  viewer.addEventListener("change", (event) => {
    if (event.target === choice) open(choice.value);
    else step(0);
  });
  find("#profile").addEventListener("click", (event) => {
    const box = find("#profile").getBoundingClientRect();
    turnTo(Math.round(((event.clientX - box.left) / box.width) * (shown.numbers.length - 1)));
  });
  find("#previous").addEventListener("click", () => open(patients[patients.indexOf(shown.patient) - 1]));
  find("#next").addEventListener("click", () => open(patients[patients.indexOf(shown.patient) + 1]));
  for (const link of all(".thumb, .open, .mark")) {
    link.addEventListener("click", () => {
      open(link.dataset.patient);
      viewer.focus({ preventScroll: true });
      find("#pictures").scrollIntoView();
    });
  }

  // --- the table ----------------------------------------------------------------------------------------------------

  const body = find("#table tbody"), heads = all("#table thead th");
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
    const numeric = rows.every(([value]) => value === "" || !Number.isNaN(Number(value)));
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // undefined comes last, whichever way
      return (down ? -1 : 1) * (numeric ? a - b : a.localeCompare(b));
    });
    body.append(...rows.map(([, row]) => row));
  }));
  find("#filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    find("#shown").textContent = `${[...body.rows].filter((row) => !row.hidden).length} of ${body.rows.length}`;
  });

  viewer.hidden = false;
  open(patients[0]);
})();
