// What --mode=inspect found, section by section; see blocks.js for what it is built of.

const report = data.report;
const names = report.class_names;

document.getElementById("name").textContent = data.name;
document.getElementById("what").textContent =
  `${report.model} with ${report.pool} pool${report.sac ? " and auxiliary classifiers (SAC)" : ""}, trained on ${report.dataset}. ` +
  `Checkpoint of step ${number(report.step)}, measured on the ${report.split} split (${number(report.examples)} images).${report.is_best ? " This step was chosen by its accuracy on these images, which is therefore too high." : ""}`;

function overview() {
  const facts = Object.entries(report.metrics).map(([name, value]) => [words(name), /accuracy$/.test(name) ? percent(value, 2) : number(value)]);
  facts.push(["parameters", number(report.parameters)], ["FLOPs per image", compact(report.flops)], ["classes", number(names.length)]);
  section("overview", "Overview", el("dl", { class: "facts" },
    ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}

function curves() {
  if (!data.curves.length) {
    section("curves", "Training", el("p", { class: "note" }, "The workdir has no metrics.jsonl with at least two entries."));
    return;
  }
  const found = [...new Set(data.curves.map((curve) => curve.name))];
  const order = ["accuracy", "loss", ...found].filter((name, i, all) => found.includes(name) && all.indexOf(name) === i);
  const place = el("div");
  const show = (name) => {
    const series = data.curves.filter((curve) => curve.name === name).map((curve) => ({ label: curve.split, points: curve.points }));
    place.replaceChildren(chart(`${words(name)} against the epoch`, series, { x: "epoch", y: words(name) }),
      ends(`${words(name)}: ends and extremes`, "split", series));
  };
  const control = choice("Curve", order.map((name) => [name, words(name)]), show);
  section("curves", "Training", el("div", { class: "controls" }, control.node), place);
  show(order[0]);
}

const STATISTICS = [
  ["mean", "mean weight"], ["sd", "spread (standard deviation)"], ["negative_share", "share of negative weights"],
  ["deviation_share", "share that depends on the position"], ["entropy", "entropy (1: even)"], ["effective_rank", "effective rank"],
  ["mirror_correlation", "correlation with the mirror image"], ["activation_correlation", "correlation of |deviation| with the mean activation"],
];

function weights() {
  const stages = Object.keys(data.weights);
  if (!stages.length) {
    section("weights", "Weights of the pool", el("p", {}, `The pool ${report.pool} has no learned weights for each position.`));
    return;
  }
  const decoded = Object.fromEntries(stages.map((stage) => [stage, decode(data.weights[stage].values)]));
  let [stage, channel] = [stages.at(-1), 0];
  const values = () => {
    const { height, width } = data.weights[stage];
    return decoded[stage].subarray(channel * height * width, (channel + 1) * height * width);
  };
  const even = () => 1 / (data.weights[stage].height * data.weights[stage].width);
  const map = heatMap((row, column) => {
    const value = values()[row * data.weights[stage].width + column];
    return `row ${row}, column ${column}: ${number(value)} (${number(value / even(), 3)} × 1/(HW))`;
  });
  const grid = el("canvas", { class: "overview", role: "img" });
  const note = el("p", { class: "note" });
  const facts = el("p");
  const scales = el("div");
  const numbers = el("details", {}, el("summary", {}, "All weights of this channel as a table"));
  numbers.addEventListener("toggle", fill);

  function fill() {
    numbers.querySelector(".scroll")?.remove();
    if (!numbers.open) return;
    const { height, width } = data.weights[stage];
    const rows = Array.from({ length: height }, (_, row) => [String(row), ...Array.from(values().subarray(row * width, (row + 1) * width), (value) => number(value))]);
    numbers.append(table(`Weights of ${stage}, channel ${channel}`, ["row", ...Array.from({ length: width }, (_, i) => String(i))], rows));
  }

  const tiles = () => {
    const { height, width, shown } = data.weights[stage];
    const across = Math.max(1, Math.ceil(Math.sqrt(shown * height / width)));
    const gap = Math.max(1, Math.round(Math.max(height, width) / 8));
    const size = Math.max(1, Math.floor(900 / (across * (width + gap))));
    return { across, gap, size, down: Math.ceil(shown / across), stepX: (width + gap) * size, stepY: (height + gap) * size };
  };
  function drawGrid() {
    const { height, width, shown, reach } = data.weights[stage];
    const { across, down, gap, size, stepX, stepY } = tiles();
    grid.width = across * stepX + gap * size;
    grid.height = down * stepY + gap * size;
    const context = grid.getContext("2d");
    context.clearRect(0, 0, grid.width, grid.height);
    for (let k = 0; k < shown; k++) {
      const [left, top] = [gap * size + (k % across) * stepX, gap * size + Math.floor(k / across) * stepY];
      const map = decoded[stage].subarray(k * height * width, (k + 1) * height * width);
      paint(context, map, height, width, size, (value) => `rgb(${colour(value, even(), reach)})`, left, top);
      if (k === channel) {
        context.strokeStyle = "#ffb000";
        context.lineWidth = Math.max(4, gap * size);
        context.strokeRect(left, top, width * size, height * size);
      }
    }
    grid.setAttribute("aria-label", `The maps of ${shown} channels of ${stage}; channel ${channel} is marked. Choose one by its number above.`);
  }
  grid.addEventListener("click", (event) => {
    const box = grid.getBoundingClientRect();
    const { across, gap, size, stepX, stepY } = tiles();
    const column = Math.floor(((event.clientX - box.left) / box.width * grid.width - gap * size / 2) / stepX);
    const row = Math.floor(((event.clientY - box.top) / box.height * grid.height - gap * size / 2) / stepY);
    const chosen = row * across + Math.min(across - 1, Math.max(0, column));
    if (chosen >= 0 && chosen < data.weights[stage].shown) choose(stage, chosen);
  });

  function choose(newStage, newChannel) {
    stage = newStage;
    const { height, width, channels, shown, reach } = data.weights[stage];
    channel = Math.max(0, Math.min(shown - 1, newChannel || 0));
    input.max = shown - 1;
    input.value = channel;
    map.update(height, width, `Weights of ${stage}, channel ${channel}`, (context, size) =>
      paint(context, values(), height, width, size, (value) => `rgb(${colour(value, even(), reach)})`));
    const sum = report.pools[stage].channel_sums.values[channel];
    facts.textContent = `Channel ${channel}: sum ${number(sum)}, lowest ${number(lowest(values()))}, highest ${number(highest(values()))}.`;
    note.textContent = shown < channels ? `The first ${shown} of ${channels} channels; weights_${stage}.png shows all.` : `All ${channels} channels.`;
    scales.replaceChildren(scale(even(), reach, `1/(HW) = ${number(even(), 3)}`, STOPS.map((stop) => `rgb(${stop})`)));
    drawGrid();
    fill();
  }
  const stageChoice = choice("Stage", stages.map((name) => [name, name]), (name) => choose(name, 0));
  stageChoice.select.value = stage;
  const input = el("input", { type: "number", min: 0, value: 0, oninput: () => input.value !== "" && choose(stage, Math.round(Number(input.value))) });
  const step = (by, text, label) => el("button", { type: "button", "aria-label": label, onclick: () => choose(stage, channel + by) }, text);

  const sums = (name) => ["mean", "sd", "min", "max"].map((key) => number(report.pools[name].channel_sums[key]));
  const rows = [
    ["positions × channels", ...stages.map((name) => report.pools[name].shape.join(" × "))],
    ["channel sums: mean ± standard deviation", ...stages.map((name) => `${sums(name)[0]} ± ${sums(name)[1]}`)],
    ["channel sums: lowest to highest", ...stages.map((name) => `${sums(name)[2]} to ${sums(name)[3]}`)],
    ...STATISTICS.map(([key, title]) => [title, ...stages.map((name) => /share/.test(key) ? percent(report.pools[name][key]) : number(report.pools[name][key]))]),
  ];
  section("weights", "Weights of the pool",
    el("p", {}, "Each channel of the feature map is multiplied by its map of weights and summed over the positions. The lightest colour is 1/(HW), the weight of average pooling. Red is more, blue is less."),
    el("div", { class: "controls" }, stageChoice.node, el("label", {}, "Channel", input), step(-1, "◀", "Previous channel"), step(1, "▶", "Next channel")),
    el("div", { class: "side" }, el("figure", {}, map.canvas, map.output, scales, facts), el("figure", {}, grid, note)),
    numbers, table("The weights in numbers", ["", ...stages], rows, "wide"));
  choose(stage, 0);
}

function evidence() {
  if (!report.evidence.exact) {
    section("evidence", "Evidence maps", el("p", {}, `There are no exact evidence maps: ${report.evidence.reason}.`));
    return;
  }
  const maps = data.evidence.map((one) => decode(one.values));
  let [image, place] = [0, 0];
  const picture = el("img", { class: "heat", width: 320, height: 320 });
  const values = () => {
    const { height, width } = data.evidence[image];
    return maps[image].subarray(place * height * width, (place + 1) * height * width);
  };
  const map = heatMap((row, column) => `row ${row}, column ${column}: ${number(values()[row * data.evidence[image].width + column])}`);
  const facts = el("p");
  const caption = el("figcaption");
  const scales = el("div");
  const strength = el("input", { type: "range", min: 0, max: 100, value: 80, oninput: draw });

  function draw() {
    const one = data.evidence[image];
    const reach = Math.max(highest(maps[image]), -lowest(maps[image])) || 1;
    const label = names[one.classes[place]];
    map.update(one.height, one.width, `Evidence for ${label} in image ${one.index}`, (context, size) => {
      context.clearRect(0, 0, context.canvas.width, context.canvas.height);
      context.imageSmoothingEnabled = false;
      if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
      paint(context, values(), one.height, one.width, size, (value) => overlay(value, reach, strength.value / 100));
    });
    const sum = values().reduce((total, value) => total + value, 0);
    facts.textContent = `${label}: evidence ${number(sum)} + bias ${number(one.bias[place])} = logit ${number(one.logits[place])}.`;
    scales.replaceChildren(scale(0, reach, "0", [`rgb(${TAKES})`, `rgba(${TAKES}, 0)`, `rgba(${ADDS}, 0)`, `rgb(${ADDS})`]));
  }
  function chooseImage(index) {
    image = index;
    const one = data.evidence[image];
    classes.select.replaceChildren(...one.classes.map((label, i) => {
      const marks = [label === one.prediction && "predicted", label === one.label && "true"].filter(Boolean);
      return el("option", { value: i }, `${names[label]}${marks.length ? ` (${marks.join(", ")})` : ""}: ${number(one.logits[i], 3)}`);
    }));
    place = 0;
    picture.onload = draw;
    picture.alt = `image ${one.index}: ${names[one.label]}, predicted as ${names[one.prediction]} with ${percent(one.confidence)}`;
    caption.textContent = `Image ${one.index}: ${names[one.label]}; predicted as ${names[one.prediction]} with ${percent(one.confidence)}`;
    picture.src = one.image;
    draw();
  }
  const classes = choice("Class and its logit", [], (value) => { place = Number(value); draw(); });
  const thumbs = el("fieldset", { class: "thumbs" }, el("legend", {}, "Image (✗: predicted wrongly)"), ...data.evidence.map((one, i) => {
    const right = one.label === one.prediction;
    const text = `image ${one.index}: ${names[one.label]}, predicted ${right ? "correctly" : `as ${names[one.prediction]}`}`;
    return el("label", { title: text }, el("input", { type: "radio", name: "image", value: i, ...(i ? {} : { checked: "" }), onchange: () => chooseImage(i) }),
      el("img", { src: one.image, alt: text }), el("span", { class: `mark ${right ? "right" : "wrong"}`, "aria-hidden": "true" }, right ? "✓" : "✗"));
  }));
  section("evidence", "Evidence maps",
    el("p", {}, "How much each position of the last feature map adds to the logit of a class. The map is exact: its sum plus the classifier's bias is the logit. Red adds to the class, blue takes away from it."),
    el("p", { class: "note" }, `Largest difference between a logit and its sum, over all images shown and all classes: ${number(report.evidence.largest_difference, 2)}, which is rounding.`),
    thumbs, el("div", { class: "controls" }, classes.node, el("label", {}, "Strength of the colours", strength)),
    el("div", { class: "side" }, el("figure", {}, map.canvas, map.output, scales, facts), el("figure", {}, picture, caption)));
  chooseImage(0);
}

function predictions() {
  const counts = names.map(() => 0);
  for (const [label, , count] of report.confusion) counts[label] += count;
  const rows = names.map((name, i) => {
    const value = report.accuracy_per_class[i];
    return [name, number(counts[i]), el("td", {}, percent(value), el("span", { class: "bar", "aria-hidden": "true" }, el("i", { style: `width: ${100 * (value || 0)}%` })))];
  });
  const children = [table("Accuracy of each class", ["class", "images", "accuracy"], rows)];
  if (names.length <= 20) {
    const cells = names.map(() => names.map(() => 0));
    for (const [label, prediction, count] of report.confusion) cells[label][prediction] = count;
    const most = Math.max(...counts);
    const body = cells.map((row, i) => [names[i], ...row.map((count, j) => {
      const share = count ? Math.round(12 + 30 * count / most) : 0;
      const tint = count ? `background: color-mix(in srgb, var(${i === j ? "--right" : "--wrong"}) ${share}%, transparent)` : "";
      return el("td", { class: i === j ? "hit" : "", style: tint }, count ? String(count) : "·");
    })]);
    children.push(table("Confusion matrix: a row for each true class, a column for each prediction", ["", ...names], body, "confusion"));
  }
  const confused = report.confusion.filter(([label, prediction]) => label !== prediction).sort((a, b) => b[2] - a[2]).slice(0, 10);
  if (confused.length) {
    children.push(table("Most frequent confusions", ["true class", "predicted as", "images"], confused.map(([label, prediction, count]) => [names[label], names[prediction], number(count)])));
  }
  children.splice(0, children.length, el("div", { class: "tables" }, ...children), el("h3", {}, "Most confident errors"));
  children.push(report.errors.length
    ? el("ul", { class: "errors" }, ...report.errors.map((one) => el("li", {},
        el("img", { src: one.image, alt: `image ${one.index}`, loading: "lazy" }),
        el("p", { class: "wrong" }, `as ${names[one.prediction]} (${percent(one.confidence)})`), el("p", {}, `is ${names[one.label]}`), el("p", { class: "note" }, `image ${one.index}`))))
    : el("p", {}, "No image of the split is predicted wrongly."));
  section("predictions", "Predictions", ...children);
}

function calibration() {
  const used = report.calibration.filter((bin) => bin.images);
  const rows = used.map((bin) => [`${number(bin.low, 3)} to ${number(bin.high, 3)}`, number(bin.images), percent(bin.confidence), percent(bin.accuracy)]);
  section("calibration", "Calibration",
    el("p", {}, `Does a confidence of 90 % mean that 90 % are right? The images are sorted into ${report.calibration.length} bins by the probability of the predicted class. ` +
      `The expected calibration error, the mean distance between accuracy and confidence over the images, is ${percent(report.metrics.calibration_error, 2)}.`),
    chart("Accuracy against confidence", [
      { label: "this network", points: used.map((bin) => [bin.confidence, bin.accuracy]) },
      { label: "perfectly calibrated", points: [[0, 0], [1, 1]] },
    ], { x: "confidence", y: "accuracy", markers: true, range: [0, 1] }),
    table("Bins that hold images", ["confidence", "images", "mean confidence", "accuracy"], rows));
}

function probes() {
  if (!data.probe) return;
  const rest = (entry) => Object.entries(entry).filter(([key]) => !["name", "accuracy", "loss", "changed", "draws"].includes(key)).map(([key, value]) => `${words(key)} ${typeof value === "number" ? number(value) : value}`).join(", ");
  const rows = (entries) => entries.map((entry) => [words(entry.name), rest(entry), percent(entry.accuracy, 2), number(entry.loss), number(entry.changed)]);
  const header = ["change", "strength", "accuracy", "loss", "changed predictions"];
  const children = [el("p", {}, `What --mode=probe measured at step ${number(data.probe.step)}: the same network with other weights in its pool, and on changed images. Unchanged, its accuracy is ${percent(data.probe.baseline.accuracy, 2)}.`)];
  if (data.probe.interventions.length) children.push(table("Other weights in the pool", header, rows(data.probe.interventions)));
  children.push(table("Changed images", header, rows(data.probe.perturbations)));
  section("probes", "Probes", ...children);
}

function layers() {
  section("model", "Model", el("p", {}, `${number(report.parameters)} parameters; ${report.flops === null ? "the number of FLOPs is not known" : `${number(report.flops)} FLOPs for an image, convolutions included`}.`),
    el("details", {}, el("summary", {}, "All layers"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All layers" }, el("pre", {}, data.summary))));
}

overview();
curves();
weights();
evidence();
predictions();
calibration();
probes();
layers();
