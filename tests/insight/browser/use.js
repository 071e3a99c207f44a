// Runs after the page's own program: uses every control as a reader does, and tells the outer page
// what it found.
const found = { problems };
const get = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
function choose(control, value) {
  control.value = value;
  control.dispatchEvent(new Event(control.tagName === "SELECT" ? "change" : "input", { bubbles: true }));
}
function press(node, key) {
  node.focus();
  node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}
found.titles = all("h2").map((title) => title.textContent);
found.curves = all("#curves select option").map((option) => option.value);
found.chart = get("#curves svg").getAttribute("aria-label");
choose(get("#curves select"), "loss");
found.otherChart = get("#curves svg").getAttribute("aria-label");
const map = get("#weights canvas.heat");
choose(get("#weights select"), "stage1");
choose(get("#weights input[type=number]"), "3");
found.weightMap = map.getAttribute("aria-label");
press(map, "ArrowDown"); press(map, "ArrowRight"); press(map, "ArrowRight");
found.weight = get("#weights output").textContent;
get("#weights button[aria-label='Next channel']").click();
found.nextChannel = get("#weights input[type=number]").value;
get("#weights details").open = true;
const grid = get("#weights canvas.overview");
const box = grid.getBoundingClientRect();
grid.dispatchEvent(new MouseEvent("click", { clientX: box.left + box.width / 6, clientY: box.top + box.height / 4, bubbles: true }));
found.clickedChannel = get("#weights input[type=number]").value;
found.images = all("#evidence input[type=radio]").length;
all("#evidence input[type=radio]")[5].click();
found.evidenceMap = get("#evidence canvas.heat").getAttribute("aria-label");
choose(get("#evidence select"), "3");
found.evidenceFacts = [...get("#evidence figure").querySelectorAll("p")].at(-1).textContent;
press(get("#evidence canvas.heat"), "ArrowRight");
found.position = get("#evidence output").textContent;
choose(get("#evidence input[type=range]"), "20");
found.errors = all("#predictions .errors li").length;
found.unnamed = all("canvas, select, input, button, svg[role=img], [role=region], img").filter((node) =>
  !node.getAttribute("aria-label") && !node.getAttribute("alt") && !(node.labels && node.labels.length) && !node.textContent.trim()
).map((node) => node.outerHTML.slice(0, 80));
found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
found.width = innerWidth;
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.text = get("#predictions").textContent;
setTimeout(() => {
  found.weightRows = all("#weights details tbody tr").length;
  parent.postMessage(JSON.stringify(found), "*");
}, 200);
