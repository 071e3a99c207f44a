// Runs after the page's own program: what a script needs that uses a page as a reader does.
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
// Tells the outer page what was found, once what the page does later is done.
function finish(late = () => {}) {
  found.titles = all("h2").map((title) => title.textContent);
  found.unnamed = all("canvas, select, input, button, a, svg[role=img], [role=region], img").filter((node) =>
    !node.getAttribute("aria-label") && !node.getAttribute("alt") && !(node.labels && node.labels.length) && !node.textContent.trim()
  ).map((node) => node.outerHTML.slice(0, 80));
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  setTimeout(() => {
    late();
    parent.postMessage(JSON.stringify(found), "*");
  }, 200);
}
