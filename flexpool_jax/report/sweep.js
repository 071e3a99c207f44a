// What --mode=report found, section by section; see blocks.js for what it is built of.

const BASELINES = { avgpool: "AvgPool", control: "the control", one_classifier: "one classifier" };

document.getElementById("name").textContent = data.name;
document.getElementById("what").textContent = data.opening[0];

// A table with columns of words; "99.05 ± 0.31" and "n = 5" stay on one line.
const whole = (text) => text.replace(/ ([±=<]) /g, "\u00a0$1\u00a0");
const listed = (caption, heads, lines) => table(caption, heads, lines.map((line) => line.map(whole)), "words");

function overview() {
  section("overview", "What the numbers mean", ...data.opening.slice(1).map((text) => el("p", {}, text)));
}

function paper() {
  if (!data.paper.length) return;
  section("paper", "The paper's tables", ...data.paper.map((one) => listed(one.title, one.heads, one.lines)));
}

function accuracies(row) {
  const published = row.settings.some((one) => one.paper !== null);
  const rows = row.settings.map((one, place) => ({ label: one.label, place, ...one.accuracy, values: one.accuracy.half_width === null ? [] : Object.values(one.seeds), published: one.paper }));
  return [
    el("h3", {}, "Accuracy"),
    intervals(`${row.title}: accuracy of each setting; the table below has the numbers`, rows, { x: "accuracy after the last epoch in %" }),
    el("p", { class: "note" }, `Large points and lines: mean and 95 % interval; hollow points: one seed, no interval; small points: single runs${published ? "; diamonds: the paper's numbers" : ""}.`),
    listed(`${row.title}: every setting`, row.heads, row.lines),
  ];
}

function differences(row) {
  const found = Object.keys(BASELINES).filter((name) => row.settings.some((one) => name in one.differences));
  if (!found.length) return [];
  const place = el("div");
  const show = (name) => {
    const rows = row.settings.map((one, i) => ({ label: one.label, place: i, values: [], ...one.differences[name] })).filter((one) => one.mean !== undefined);
    place.replaceChildren(intervals(`${row.title}: difference to ${BASELINES[name]}; the table above has the numbers`, rows, { x: `difference to ${BASELINES[name]} in points`, zero: true }));
  };
  const control = choice("Compared with", found.map((name) => [name, BASELINES[name]]), show);
  show(found[0]);
  return [el("h3", {}, "Differences"), el("p", { class: "note" }, "Mean over pairs of one seed, with its 95 % interval. The control of a setting with dropout is AvgPool + Dropout with the same rate; the control of any other setting with Reg is the same setting without Reg."),
    el("div", { class: "controls" }, control.node), place];
}

function curves(row) {
  const measures = [...new Set(row.settings.flatMap((one) => Object.keys(one.curves)))];
  if (!measures.length) return [el("h3", {}, "Training"), el("p", { class: "note" }, "No run has a metrics.jsonl with at least two epochs.")];
  measures.sort((a, b) => /^train/.test(a) - /^train/.test(b) || !/ accuracy/.test(a) - !/ accuracy/.test(b) || !/ loss/.test(a) - !/ loss/.test(b));
  const seeds = [...new Set(row.settings.flatMap((one) => Object.keys(one.seeds)))];
  let [measure, runs, late] = [measures[0], "mean", false];
  const shown = new Set(row.settings.map((_, i) => i).slice(0, 8));
  const place = el("div");
  const cut = (points) => (late ? points.filter(([epoch]) => epoch >= points.at(-1)[0] / 2) : points);

  function show() {
    const series = [...shown].sort((a, b) => a - b).map((i) => {
      const curve = row.settings[i].curves[measure];
      const points = curve && (runs === "mean" || runs === "all" ? curve.mean : curve.seeds[runs]);
      return points && { label: row.settings[i].label, place: i, points: cut(points), faint: runs === "all" ? Object.values(curve.seeds).map(cut) : [] };
    }).filter(Boolean);
    const what = runs === "mean" || runs === "all" ? "mean over seeds" : `seed ${runs}`;
    place.replaceChildren(...(series.length
      ? [chart(`${row.title}: ${measure} against the epoch, ${what}`, series, { x: "epoch", y: measure }), ends(`${measure}, ${what}: ends and extremes`, "setting", series)]
      : [el("p", { class: "note" }, "No setting that is chosen has this curve.")]));
  }
  const controls = [
    choice("Curve", measures.map((name) => [name, name]), (value) => { measure = value; show(); }),
    choice("Runs", [["mean", "mean over seeds"], ["all", "mean and single runs"], ...seeds.map((seed) => [seed, `seed ${seed}`])], (value) => { runs = value; show(); }),
    choice("Epochs", [["", "all"], ["late", "second half"]], (value) => { late = Boolean(value); show(); }),
  ];
  const checks = el("fieldset", { class: "checks" }, el("legend", {}, "Settings"), ...row.settings.map((one, i) => el("label", {},
    el("input", { type: "checkbox", ...(shown.has(i) ? { checked: "" } : {}), onchange: (event) => { shown[event.target.checked ? "add" : "delete"](i); show(); } }), one.label)));
  show();
  return [el("h3", {}, "Training"), el("div", { class: "controls" }, ...controls.map((one) => one.node)), checks, place];
}

function beside(row) {
  const children = [];
  if (row.metrics.lines.length) children.push(listed("Beside accuracy, after the last epoch: mean ± half of the 95 % interval", row.metrics.heads, row.metrics.lines));
  if (row.classes.lines.length) {
    const turned = row.classes.heads.slice(1).map((name, i) => [name, ...row.classes.lines.map((line) => line[i + 1])]);
    children.push(table("Accuracy of each class in %, mean over seeds", ["class", ...row.classes.lines.map((line) => line[0])], turned, "numbers"));
  }
  return children.length ? [el("h3", {}, "Beside accuracy"), ...children] : [];
}

function runs(row) {
  const lines = row.runs.map((run) => [run.setting, String(run.seed), run.accuracy.toFixed(2), run.best.toFixed(2), number(Math.round(run.seconds)),
    el("td", {}, ...run.links.flatMap(([name, address]) => [el("a", { href: address, "aria-label": `${name} of ${run.setting}, seed ${run.seed}` }, name), " "]))]);
  return [el("h3", {}, "Runs"), table(`${row.title}: every run`, ["setting", "seed", "accuracy", "best epoch", "seconds", "files"], lines, "words")];
}

overview();
paper();
data.rows.forEach((row, i) => section(`row${i}`, row.title, el("p", {}, row.recipe),
  ...[accuracies, differences, curves, beside, runs].flatMap((part) => part(row))));
if (data.left_out.length) section("left-out", "Not in these numbers", el("ul", {}, ...data.left_out.map((line) => el("li", {}, line))));
