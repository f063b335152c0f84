"use strict";
(() => {
  const table = document.getElementById("table");
  const byId = (id) => document.getElementById(id);
  const cases = table ? [...table.querySelectorAll("tbody.case")] : [];

  // Rows that open
  const toggle = (body, open) => {
    const button = body.querySelector(".open"), detail = body.querySelector(".detail");
    const now = open ?? button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(now));
    detail.hidden = !now;
  };
  table?.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row && !window.getSelection().toString()) toggle(row.parentElement);
  });
  document.addEventListener("click", (event) => {
    const dot = event.target.closest(".dot");
    if (!dot) return;
    const body = cases.find((c) => c.dataset.case === dot.dataset.case);
    if (!body) return;
    body.hidden = false;
    toggle(body, true);
    body.scrollIntoView();
  });
  (table && "open" in table.dataset ? cases : cases.slice(0, 1)).forEach((body) => toggle(body, true));

  // Sorting: what has no value stays at the end in both directions
  const value = (body, column, numeric) => {
    const text = body.rows[0].cells[column].dataset.value;
    return numeric ? (text === "" ? NaN : Number(text)) : text;
  };
  const order = new Map(cases.map((body, i) => [body, i]));
  const compare = (a, b, column, numeric, sign) => {
    const x = value(a, column, numeric), y = value(b, column, numeric);
    if (numeric) {
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || order.get(a) - order.get(b);
      return sign * (x - y) || order.get(a) - order.get(b);
    }
    if (!x || !y) return !x - !y || order.get(a) - order.get(b);
    return sign * x.localeCompare(y, "en", { numeric: true }) || order.get(a) - order.get(b);
  };
  table?.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.parentElement, numeric = button.dataset.kind === "num";
      const first = button.dataset.first || "ascending", second = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? second : first;
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      [...cases].sort((a, b) => compare(a, b, column, numeric, sign)).forEach((body) => table.append(body));
    });
  });

  // Filtering
  const filters = ["f-text", "f-status", "f-verdict", "f-wrong", "f-signed"].map(byId);
  const [text, status, verdict, wrong, signed] = filters;
  const apply = () => {
    const words = (text?.value || "").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of cases) {
      const ok = words.every((word) => body.dataset.text.includes(word)) && (!status?.value || body.dataset.status === status.value) &&
        (!verdict?.value || body.dataset.verdict === verdict.value) && (!wrong?.checked || "wrong" in body.dataset) &&
        (!signed?.value || (body.dataset.signed || "open") === signed.value);
      body.hidden = !ok;
      shown += ok;
    }
    if (byId("count")) byId("count").textContent = shown === cases.length ? `${shown} cases` : `${shown} of ${cases.length} cases`;
    if (byId("none")) byId("none").hidden = shown > 0;
  };
  filters.forEach((f) => f?.addEventListener("input", apply));
  apply();

  // Viewer
  const dialog = byId("viewer");
  if (!dialog) return;
  const message = (words) => { byId("v-message").textContent = words; };
  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const unpack = async (base64) => new Response(new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const script = (url) => new Promise((done, failed) => {
    const tag = document.createElement("script");
    tag.src = url;
    tag.onload = done;
    tag.onerror = () => failed(new Error(`${url} could not be loaded; it belongs beside this report`));
    document.head.append(tag);
  });
  const side = {};
  window.medsegVolumes = (key, pieces) => { side[key] = pieces; };
  window.medsegRedraw = () => nv?.drawScene();
  const pieces = async (button) => {
    const key = button.dataset.volumes, inlined = byId(key);
    if (inlined) return JSON.parse(inlined.textContent);
    if (!side[key]) await script(button.dataset.file);
    return side[key];
  };
  const start = async () => {
    if (!window.niivue) {
      const url = URL.createObjectURL(new Blob([await unpack(byId("viewer-library").textContent)], { type: "text/javascript" }));
      await script(url);
      URL.revokeObjectURL(url);
    }
    const nv = new niivue.Niivue({ isRadiologicalConvention: true, backColor: [0, 0, 0, 1], show3Dcrosshair: true, crosshairColor: [0.45, 0.74, 0.84, 0.7],
      crosshairWidth: 0.4, isColorbar: false, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID, sagittalNoseLeft: true, loadingText: "", logLevel: "error", dragAndDropEnabled: false });
    await nv.attachToCanvas(byId("v-canvas"));
    return nv;
  };
  const labels = JSON.parse(byId("label-table").textContent);
  let nv = null, layers = {};
  const opacity = () => {
    for (const name of ["prediction", "reference"]) {
      if (name in layers) nv.setOpacity(layers[name], byId(`v-${name}`).checked ? Number(byId("v-opacity").value) : 0);
    }
  };
  const show = async (button) => {
    byId("v-title").textContent = button.closest("tbody").dataset.case;
    dialog.dataset.state = "loading";
    dialog.showModal();
    message("Loading …");
    try {
      nv ??= await start();
      while (nv.volumes.length) nv.removeVolumeByIndex(0);
      layers = {};
      for (const [name, base64] of Object.entries(await pieces(button))) {
        const volume = await niivue.NVImage.loadFromUrl({ url: await unpack(base64), name: `${name}.nii`, colormap: "gray", opacity: name === "image" ? 1 : 0 });
        if (name !== "image") volume.setColormapLabel(labels);
        layers[name] = nv.volumes.length;
        nv.addVolume(volume);
      }
      byId("v-reference-label").hidden = !("reference" in layers);
      opacity();
      nv.scene.crosshairPos = nv.vox2frac(button.dataset.at.split(",").map(Number));
      nv.setSliceType(3);
      mark("3");
      nv.drawScene();
      message("");
      dialog.dataset.state = "ready";
    } catch (error) {
      dialog.dataset.state = "failed";
      message(`The viewer could not start: ${error.message || error}. It needs a browser with WebGL 2.`);
    }
  };
  const mark = (key) => dialog.querySelectorAll("[data-slice]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.slice === key)));
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".view");
    if (button) show(button);
  });
  dialog.querySelectorAll("[data-slice]").forEach((b) => b.addEventListener("click", () => { nv?.setSliceType(Number(b.dataset.slice)); mark(b.dataset.slice); }));
  ["v-prediction", "v-reference", "v-opacity"].forEach((id) => byId(id).addEventListener("input", () => nv && opacity()));
  byId("v-close").addEventListener("click", () => dialog.close());
})();
