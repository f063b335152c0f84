"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const start = byId("sign-off"), rows = JSON.parse(start.textContent);
  const columns = Object.keys(rows[0]);
  const bodies = new Map([...document.querySelectorAll("tbody.case")].map((body) => [body.dataset.key, body]));
  const keyOf = (row) => row.case_id + "\n" + row.rater;

  // What was judged in this browser and not saved yet; a label that has changed since starts anew.
  // A browser may keep nothing for a page on a disk: then only the saved file counts.
  const place = "medseg-sign-off:" + location.pathname;
  const kept = () => { try { return JSON.parse(localStorage.getItem(place)) || {}; } catch { return {}; } };
  const keep = () => {
    const state = { who: byId("s-who").value, rows: Object.fromEntries(rows.map((row) => [keyOf(row), row])) };
    try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* see above */ }
  };
  const before = kept();
  byId("s-who").value = before.who || "";
  for (const row of rows) {
    const own = (before.rows || {})[keyOf(row)];
    if (own && own.label_sha256 === row.label_sha256 && own.signed > row.signed) Object.assign(row, own);
  }

  const show = (row) => {
    const body = bodies.get(keyOf(row)), cell = body.rows[0].cells[body.rows[0].cells.length - 1];
    const pill = document.createElement("span");
    pill.className = "pill " + ({ right: "accept", wrong: "reject", unsure: "review" }[row.judgement] || "");
    pill.textContent = row.judgement || "open";
    cell.replaceChildren(pill);
    cell.dataset.value = row.judgement || "open";
    body.dataset.signed = row.judgement || "open";
  };
  const count = () => {
    const done = rows.filter((row) => row.judgement).length;
    byId("s-bar").value = done;
    byId("s-count").textContent = `${done} of ${rows.length} signed off`;
  };
  for (const row of rows) {
    const form = bodies.get(keyOf(row)).querySelector(".sign");
    const note = form.querySelector("input[type=text]");
    note.value = row.note;
    form.querySelectorAll("input[type=radio]").forEach((radio) => { radio.checked = radio.value === row.judgement; });
    form.addEventListener("input", () => {
      row.judgement = form.querySelector("input[type=radio]:checked")?.value || "";
      row.note = note.value;
      row.reviewer = byId("s-who").value;
      row.signed = new Date().toISOString().slice(0, 19) + "Z";
      show(row);
      count();
      keep();
    });
    show(row);
  }
  byId("s-who").addEventListener("input", keep);
  count();

  // As a table that no spreadsheet takes for formulas
  const field = (text) => {
    const safe = /^'*\s*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20\uFE66\uFE62\uFE63\uFE6B\u2212]/.test(text) ? "'" + text : text;
    return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
  };
  byId("s-save").addEventListener("click", () => {
    const lines = [columns, ...rows.filter((row) => row.judgement || row.note).map((row) => columns.map((c) => row[c]))];
    const text = lines.map((line) => line.map(field).join(",") + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = start.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
