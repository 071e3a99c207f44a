// Uses every control of a report's page and writes down what it shows.
found.facts = get("#what").textContent;
found.marks = all("#row0 svg")[0].querySelectorAll("circle:not(.single)").length;
found.singles = all("#row0 svg")[0].querySelectorAll(".single").length;
const isCut = (text, box = text.closest("svg").getBoundingClientRect()) =>
  text.getBoundingClientRect().left < box.left - 1 || text.getBoundingClientRect().right > box.right + 1;
found.cut = all("#row0 svg text").filter((text) => isCut(text)).map((text) => text.textContent);
const [compared, curve, runs, epochs] = all("#row0 select");
found.compared = [...compared.options].map((option) => option.value);
choose(compared, "control");
found.differences = all("#row0 svg")[1].getAttribute("aria-label");
found.curves = [...curve.options].map((option) => option.value);
const shown = () => {
  const svg = all("#row0 svg[role=img]").at(-1);
  return { label: svg.getAttribute("aria-label"), lines: svg.querySelectorAll(".line:not(.faint)").length, faint: svg.querySelectorAll(".faint").length };
};
found.first = shown();
choose(curve, "train loss");
choose(runs, "all");
all("#row0 .checks input")[0].click();
found.second = shown();
choose(runs, "2");
choose(epochs, "late");
found.third = shown();
found.ends = [...all("#row0 table").find((table) => /train loss, seed 2/.test(table.caption.textContent)).tBodies[0].rows].map((row) => row.textContent);
found.seeds = [...all("#row0 table").at(-1).tBodies[0].rows].map((row) => row.cells[1].textContent);
found.links = all("#row0 a").map((link) => link.getAttribute("href"));
found.text = document.body.textContent;
finish();
